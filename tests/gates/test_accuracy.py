import json

import pytest

from sparsegate.contracts import Prediction, Sample, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate_gates.accuracy import Accuracy, AccuracySettings

LABELS = ("billing", "returns", "delivery", "login")


def settings(**changes):
    values = {"reason": "test", "floor": 0.75, "gain_over_base": 0.1, "minimum_n": 50}
    return AccuracySettings(**{**values, **changes})


def run(files, **changes):
    return Accuracy().run(files.context(settings(**changes)))


def test_a_good_model_passes_and_reports_its_figures(files, share):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(60, 200))
    result = run(files, class_recall_floor=0.5, slice_floor=0.5)
    assert result.verdict is Verdict.PASS
    assert result.checks[0].interval is not None
    assert result.checks[0].interval.method == "wilson"
    assert result.details["macro_f1"] == pytest.approx(0.95, abs=0.01)
    assert result.details["base_accuracy"] == 0.3
    assert result.details["not_judged"] == ["channel=phone: 20 items, needs 30"]
    assert len(result.items_sha256) == 64
    json.dumps(result.to_json(), allow_nan=False)


def test_the_lower_bound_decides_and_not_the_rate(files, share):
    files.predictions("predictions.candidate", share(76, 100))
    files.predictions("predictions.base", share(0, 100))
    result = run(files)
    assert result.checks[0].observed == 0.76
    assert result.verdict is Verdict.FAIL
    assert len(result.checks[0].items) == 10


def test_a_model_that_gains_nothing_over_the_base_fails(files, share):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(190, 200))
    result = run(files)
    assert [check.verdict for check in result.checks] == [Verdict.PASS, Verdict.FAIL]


def test_a_label_that_was_given_up_fails(files):
    right = [position % 4 != 0 for position in range(400)]
    files.predictions("predictions.candidate", right)
    files.predictions("predictions.base", [False] * 400)
    result = run(files, floor=0.6, class_recall_floor=0.2)
    assert result.deciding is not None
    assert result.deciding.name == "label=billing"


def test_a_small_slice_blocks_where_the_policy_says_so(files, share):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(60, 200))
    result = run(files, slice_floor=0.5, small_slices="block")
    assert result.verdict is Verdict.INSUFFICIENT
    assert "needs 30 items, has 20" in result.reason


def test_no_slice_column_blocks_where_the_policy_says_so(files):
    files.predictions("predictions.base", [False] * 100)
    labels = [LABELS[position % len(LABELS)] for position in range(100)]
    files.records("predictions.candidate", [Prediction(f"q{i}", label, label, True) for i, label in enumerate(labels)])
    assert run(files, slice_floor=0.5, small_slices="block").verdict is Verdict.INSUFFICIENT
    assert "no slice column" in run(files, slice_floor=0.5).details["not_judged"][0]


def test_too_few_items_are_insufficient(files, share):
    files.predictions("predictions.candidate", share(20, 20))
    files.predictions("predictions.base", share(0, 20))
    result = run(files)
    assert result.verdict is Verdict.INSUFFICIENT


def test_an_empty_file_is_missing_evidence(files, share):
    files.predictions("predictions.base", share(0, 20))
    files.text("predictions.candidate", "")
    with pytest.raises(MissingEvidenceError, match="no lines"):
        run(files)


@pytest.mark.parametrize("missing", ["predictions.candidate", "predictions.base", "data.evaluation"])
def test_a_missing_file_is_missing_evidence(files, share, missing):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(60, 200))
    del files.artifacts[missing]
    with pytest.raises(MissingEvidenceError, match=missing):
        run(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nll_nats": float("nan")}, "finite"),
        ({"correct": float("nan")}, "true or false"),
        ({"correct": 1}, "true or false"),
        ({"predicted": None}, "predicted must be text"),
        ({"correct": False}, "was answered where"),
        ({"id": "q1"}, "stands twice"),
        ({"id": "other"}, "does not answer the evaluation set"),
    ],
)
def test_a_damaged_line_is_an_error(files, share, change, message):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(60, 200))
    lines = files.artifacts["predictions.candidate"].read_text().splitlines()
    first = {**json.loads(lines[0]), **change}
    files.text("predictions.candidate", "\n".join([json.dumps(first), *lines[1:]]))
    with pytest.raises(DataError, match=message):
        run(files)


def test_items_left_out_of_the_evaluation_are_an_error(files, share):
    files.predictions("predictions.base", share(60, 200))
    files.predictions("predictions.candidate", share(190, 190))
    with pytest.raises(DataError, match="does not answer the evaluation set"):
        run(files)


def test_a_generation_task_is_judged_by_its_correct_flag(files):
    lines = [Prediction(f"q{i}", "42", f"so it is {42 if i else 41}", bool(i)) for i in range(100)]
    files.records("predictions.candidate", lines)
    files.records("predictions.base", [Prediction(line.id, "42", "no idea", False) for line in lines])
    files.records("data.evaluation", [Sample(line.id, "what is it?", "42") for line in lines])
    result = Accuracy().run(files.context(settings(class_recall_floor=0.9), task="generation"))
    assert result.verdict is Verdict.PASS
    assert "macro_f1" not in result.details


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"floor": 1.2}, "floor"),
        ({"floor": float("nan")}, "floor"),
        ({"minimum_n": 0}, "minimum_n"),
        ({"reason": " "}, "reason"),
    ],
)
def test_settings_say_what_is_wrong(change, field):
    assert list(settings(**change).problems()) == [field]


def test_a_label_that_is_shown_to_miss_its_floor_blocks_under_holm(files):
    right = [position % 4 != 0 for position in range(400)]
    files.predictions("predictions.candidate", right)
    files.predictions("predictions.base", [False] * 400)
    result = run(files, floor=0.6, class_recall_floor=0.2, slice_rule="holm")
    assert [check.name for check in result.checks if check.verdict is Verdict.FAIL] == [
        "label=billing: Holm-adjusted p"
    ]
    assert "0 of 100 right, floor 0.2" in result.reason


def test_a_label_that_can_not_prove_its_floor_passes_under_holm_only(files, share):
    files.predictions("predictions.candidate", share(190, 200))
    files.predictions("predictions.base", share(60, 200))
    assert run(files, class_recall_floor=0.93).verdict is Verdict.FAIL
    assert run(files, class_recall_floor=0.93, slice_rule="holm").verdict is Verdict.PASS


def test_an_accuracy_over_few_documents_is_less_sure(files):
    lines = [
        Prediction(f"q{i}", "a", "a" if i // 20 % 10 else "b", bool(i // 20 % 10), None, {"doc": f"d{i // 20}"})
        for i in range(400)
    ]
    files.records("predictions.candidate", lines)
    files.records("predictions.base", [Prediction(line.id, "a", "b", False, None, line.slices) for line in lines])
    files.records("data.evaluation", [Sample(line.id, "x", "a", line.slices) for line in lines])
    assert run(files, floor=0.85).verdict is Verdict.PASS
    result = run(files, floor=0.85, cluster_column="doc")
    assert [check.verdict for check in result.checks] == [Verdict.FAIL, Verdict.PASS]
