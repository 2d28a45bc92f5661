import json

import pytest
import yaml

from sparsegate.cli import main
from sparsegate.contracts import Sample, Verdict
from sparsegate_gates.data_quality import DataQuality, DataQualitySettings
from sparsegate_gates.draft_suite import draft_suite
from sparsegate_gates.expectation_suite import load_suite

# Great Expectations imports modules that Python 3.11 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")

WORDS = ("order", "parcel", "invoice", "login", "refund", "device")


def samples(prefix, n):
    return [
        Sample(f"{prefix}{i}", f"{prefix}{i} asks about the {WORDS[i % 6]} of day {i * 7}", "ab"[i % 2])
        for i in range(n)
    ]


@pytest.fixture
def outcome(files):
    """Draft a suite from sound data, and judge other data by it."""
    tables = {"train": samples("t", 40), "evaluation": samples("e", 20)}

    def judge(*, task="classification", mixed=False, train=None, evaluation=None):
        path = files.folder / "drafted.json"
        path.write_text(json.dumps(draft_suite(tables, task=task, mixed=mixed)))
        files.records("data.train", train or tables["train"])
        files.records("data.evaluation", evaluation or tables["evaluation"])
        # the rows of these tests are much alike, which is not what is asked here
        alike = {"max_near_leak_fraction": 1.0, "max_template_fraction": 1.0, "max_near_duplicate_fraction": 1.0}
        settings = DataQualitySettings("test", 20, 10, 9, suite=str(path), **alike)
        return DataQuality().run(files.context(settings, task=task))

    return judge


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_the_data_that_a_suite_was_drafted_from_keeps_it(outcome, task):
    result = outcome(task=task)
    assert result.verdict is Verdict.PASS, result.reason
    assert len(result.details["expectations"]["train"]) == (13 if task == "classification" else 11)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (Sample("new", "n asks about the order of day 3", "c"), "in_set(response)"),
        (Sample("new", "n" * 500, "a"), "lengths_to_be_between(prompt)"),
        (Sample("new", "n", "a"), "lengths_to_be_between(prompt)"),
    ],
)
def test_a_row_unlike_the_data_breaks_the_drafted_suite(outcome, row, named):
    result = outcome(train=[*samples("t", 40), row])
    assert result.verdict is Verdict.FAIL
    assert named in result.reason


def test_a_label_that_is_gone_and_prompts_that_repeat_break_the_drafted_suite(outcome):
    lines = [Sample(f"t{i}", f"t{i % 8} asks about the order of day", "a") for i in range(40)]
    reason = outcome(train=lines).reason
    assert "contain_set(response)" in reason
    assert "unique_values_to_be_between(prompt)" in reason


def test_with_a_safety_mix_its_free_answers_are_no_broken_labels(outcome):
    mix = Sample("m", "tell me about the weather today", "I can't see it.")
    result = outcome(mixed=True, train=[*samples("t", 40), mix])
    held = {entry["name"]: entry["passed"] for entry in result.details["expectations"]["train"]}
    assert held["expect_column_values_to_be_in_set(response)"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, n in (("train", 40), ("evaluation", 20)):
        rows = [{"id": line.id, "prompt": line.prompt, "response": line.response} for line in samples(name[0], n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {"data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl", "id_column": "id"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_validate_drafts_a_suite_that_the_gate_can_read(project, capsys):
    assert main(["validate", "--config", "run.yaml", "--draft-suite", "suite.json", "--json"]) == 11
    assert json.loads(capsys.readouterr().out)["draft_suite"] == "suite.json"
    assert len(load_suite("suite.json", task="classification")) == 13


@pytest.mark.parametrize(
    ("file", "named"), [("suite.yaml", ".json"), ("run.json", "there already"), ("missing/suite.json", "not a folder")]
)
def test_a_file_that_can_not_be_drafted_to_is_named_and_nothing_is_written(project, capsys, file, named):
    (project / "run.json").write_text("{}")
    assert main(["validate", "--config", "run.yaml", "--draft-suite", file]) == 2
    assert named in capsys.readouterr().err
    assert (project / "run.json").read_text() == "{}"
    assert not (project / file).exists() or file == "run.json"
