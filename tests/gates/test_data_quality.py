import json
import socket

import pytest

from sparsegate.contracts import Sample, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate_gates.data_quality import DataQuality, DataQualitySettings
from sparsegate_gates.expectation_suite import load_suite

# Great Expectations imports modules that Python 3.11 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"tried to connect: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def samples(prefix, n, **changes):
    lines = [Sample(f"{prefix}{i}", f"{prefix} message number {i}", "ab"[i % 2]) for i in range(n)]
    return [Sample(**{**vars(line), **changes}) if not i else line for i, line in enumerate(lines)]


def write(files, train, evaluation):
    files.records("data.train", train)
    files.records("data.evaluation", evaluation)


def run(files, *, task="classification", **changes):
    values = {"reason": "test", "minimum_rows": 20, "minimum_evaluation_rows": 10, "minimum_expectations": 9, **changes}
    return DataQuality().run(files.context(DataQualitySettings(**values), task=task))


def test_sound_data_passes_and_keeps_its_data_docs(files):
    write(files, samples("t", 40), samples("e", 20))
    result = run(files)
    assert result.verdict is Verdict.PASS, result.reason
    assert (files.folder / "output" / "data_docs" / "index.html").is_file()
    assert len(list((files.folder / "output" / "data_docs" / "validations").rglob("*.html"))) == 2
    assert len(result.details["expectations"]["train"]) == 10
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": "t5"}, "unique(id)"),
        ({"id": None}, "not_be_null(id)"),
        ({"prompt": None}, "not_be_null(prompt)"),
        ({"response": None}, "not_be_null(response)"),
        ({"prompt": ""}, "lengths_to_be_between(prompt)"),
        ({"response": "  "}, "match_regex(response)"),
    ],
)
def test_a_bad_training_row_fails_and_the_expectation_is_named(files, change, named):
    write(files, samples("t", 40, **change), samples("e", 20))
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert named in result.reason


def test_an_evaluation_label_that_training_lacks_fails(files):
    write(files, samples("t", 40), samples("e", 20, response="zebra"))
    result = run(files)
    assert result.deciding is not None
    assert result.deciding.name.startswith("evaluation")
    assert "be_in_set(response)" in result.reason


def test_a_generation_task_has_no_label_set(files):
    write(files, samples("t", 40), samples("e", 20, response="something new"))
    assert run(files, task="generation").verdict is Verdict.PASS


def test_a_column_of_nulls_fails_where_great_expectations_would_pass(files):
    suite = [{"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "prompt", "min_value": 1}}]
    path = files.folder / "lengths.json"
    path.write_text(json.dumps({"name": "lengths", "expectations": suite}))
    write(files, [Sample(f"t{i}", None, "a") for i in range(40)], samples("e", 20))  # type: ignore[arg-type]
    result = run(files, suite=str(path), minimum_expectations=1)
    assert result.verdict is Verdict.FAIL
    assert "no value to look at" in result.reason


@pytest.mark.parametrize(
    "expectations", [[], [{"type": "expect_column_values_to_be_unique", "kwargs": {"column": "id"}}]]
)
def test_a_suite_with_too_few_expectations_is_insufficient(files, expectations):
    path = files.folder / "few.json"
    path.write_text(json.dumps({"name": "few", "expectations": expectations}))
    write(files, samples("t", 40), samples("e", 20))
    assert run(files, suite=str(path)).verdict is Verdict.INSUFFICIENT


def test_an_expectation_that_can_not_be_evaluated_is_an_error(files):
    path = files.folder / "broken.json"
    suite = [{"type": "expect_column_values_to_be_unique", "kwargs": {"column": "no_such_column"}}]
    path.write_text(json.dumps({"name": "broken", "expectations": suite}))
    write(files, samples("t", 40), samples("e", 20))
    result = run(files, suite=str(path), minimum_expectations=1)
    assert result.verdict is Verdict.ERROR
    assert "no_such_column" in result.reason


def test_values_of_another_type_never_pass(files):
    write(files, samples("t", 40), samples("e", 20, prompt=7))
    text = files.artifacts["data.train"].read_text()
    files.text("data.train", text.replace('"t message number 0"', "NaN"))
    assert run(files).verdict in (Verdict.FAIL, Verdict.ERROR)


def test_too_few_rows_never_pass(files):
    write(files, samples("t", 19), samples("e", 20))
    assert run(files).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize("name", ["data.train", "data.evaluation"])
def test_no_rows_or_no_file_is_missing_evidence(files, name):
    write(files, samples("t", 40), samples("e", 20))
    files.text(name, "")
    with pytest.raises(MissingEvidenceError, match=name):
        run(files)
    del files.artifacts[name]
    with pytest.raises(MissingEvidenceError, match=name):
        run(files)


@pytest.mark.parametrize("prompt", ["t message number 3", "T  message: number 3!"])
def test_an_evaluation_item_seen_in_training_fails(files, prompt):
    write(files, samples("t", 40), samples("e", 20, prompt=prompt))
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert "'e0' is 't3' of training" in result.reason


def test_an_evaluation_item_seen_in_validation_fails(files):
    write(files, samples("t", 40), samples("e", 20, prompt="v message number 1"))
    files.records("data.validation", samples("v", 5))
    assert run(files).verdict is Verdict.FAIL


def test_copied_runs_of_words_fail_beyond_their_bound(files):
    copied = "one two three four five six seven eight nine"
    write(files, samples("t", 40, prompt=f"{copied} ten"), samples("e", 20, prompt=f"zero {copied}"))
    result = run(files)
    assert result.deciding is not None
    assert "8 words in a row" in result.deciding.name
    assert run(files, max_ngram_leak_fraction=0.1).verdict is Verdict.PASS


def test_repeated_samples_and_conflicting_labels_fail(files):
    train = samples("t", 40)
    write(files, [*train, Sample("again", train[0].prompt, train[0].response)], samples("e", 20))
    assert run(files, max_duplicate_fraction=0.0).deciding.name == "repeated training samples"  # type: ignore[union-attr]
    write(files, [*train, Sample("other", train[0].prompt, "b")], samples("e", 20))
    result = run(files)
    assert result.deciding is not None
    assert result.deciding.name == "training samples with conflicting labels"
    assert set(result.deciding.items) == {"t0", "other"}


def test_a_suite_is_found_by_name_or_file(files):
    assert len(load_suite("samples", task="classification")) == 10
    with pytest.raises(DataError, match="did you mean 'samples'"):
        load_suite("sample", task="classification")
    (files.folder / "odd.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a list"):
        load_suite(str(files.folder / "odd.json"), task="classification")


def test_the_shipped_training_data_passes_the_standard_policy(files):
    from pathlib import Path

    from sparsegate_gates.policy import load_policy

    folder = Path(__file__).parents[2] / "data" / "support_routing"
    for name in ("train", "evaluation"):
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        files.records(f"data.{name}", [Sample(line["id"], line["text"], line["intent"]) for line in lines])
    for policy in ("standard", "strict"):
        result = DataQuality().run(files.context(load_policy(policy).gates["data_quality"]))
        assert result.verdict is Verdict.PASS, result.reason


def test_a_pinned_evaluation_set_passes_and_another_one_does_not(files):
    write(files, samples("t", 40), samples("e", 20))
    pinned = run(files).items_sha256
    assert run(files, evaluation_sha256=pinned).verdict is Verdict.PASS
    write(files, samples("t", 40), samples("e", 20, prompt="another message"))
    result = run(files, evaluation_sha256=pinned)
    assert result.verdict is Verdict.FAIL
    assert f"the policy pins {pinned}" in result.reason


def test_a_pin_that_is_no_digest_is_refused():
    settings = DataQualitySettings("test", 1, 1, 1, evaluation_sha256="latest")
    assert list(settings.problems()) == ["evaluation_sha256"]
