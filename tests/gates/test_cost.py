import pytest

from sparsegate.contracts import Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate_gates.cost import Cost, CostSettings

REPORT = {
    "method": "sparse",
    "train_seconds": 100.0,
    "selection_seconds": 5.0,
    "tokens_per_second": 900.0,
    "steps": 60,
    "peak_memory_bytes": 2_000_000_000,
    "trainable_parameters": 5_000,
    "total_parameters": 100_000,
    "trainable_state_bytes": 80_000,
    "artifact_bytes": 40_000,
    "base_bytes": 400_000,
    "device": "cpu",
}
LATENCY = {"candidate_seconds_per_item": 0.011, "base_seconds_per_item": 0.01, "n": 40}


def run(files, **changes):
    values = {"reason": "test", "max_artifact_fraction": 0.2, "max_trainable_state_fraction": 0.1, **changes}
    return Cost().run(files.context(CostSettings(**values)))


def test_a_cheap_run_passes_and_is_held_against_full_fine_tuning(files):
    files.json("cost", REPORT)
    result = run(files, max_peak_memory_bytes=3_000_000_000, max_train_seconds=200.0)
    assert result.verdict is Verdict.PASS
    # 16 bytes for each of 100,000 parameters
    assert result.checks[-1].observed == pytest.approx(80_000 / 1_600_000)


@pytest.mark.parametrize(
    "bound",
    [
        {"max_peak_memory_bytes": 1},
        {"max_train_seconds": 99.0},
        {"max_artifact_fraction": 0.09},
        {"max_trainable_state_fraction": 0.04},
    ],
)
def test_each_bound_can_fail(files, bound):
    files.json("cost", REPORT)
    assert run(files, **bound).verdict is Verdict.FAIL


@pytest.mark.parametrize(("ratio", "n", "verdict"), [(1.2, 30, "PASS"), (1.05, 30, "FAIL"), (1.2, 50, "INSUFFICIENT")])
def test_latency_is_judged_against_the_base(files, ratio, n, verdict):
    files.json("cost", REPORT)
    files.json("latency", LATENCY)
    assert run(files, max_latency_ratio=ratio, latency_minimum_n=n).verdict == verdict


def test_latency_that_was_not_measured_is_missing_evidence(files):
    files.json("cost", REPORT)
    with pytest.raises(MissingEvidenceError, match="latency"):
        run(files, max_latency_ratio=1.2)


def test_the_champion_is_compared_where_it_left_a_cost(files):
    files.json("cost", REPORT)
    result = run(files, max_train_seconds_over_champion=2.0)
    assert result.verdict is Verdict.PASS
    assert "no cost file" in result.details["not_judged"][0]
    files.json("cost.champion", {**REPORT, "train_seconds": 40.0})
    assert run(files, max_train_seconds_over_champion=2.0).verdict is Verdict.FAIL


def test_more_data_may_take_more_time_and_a_dearer_method_may_not(files):
    files.json("cost", {**REPORT, "train_seconds": 900.0, "tokens_per_second": 500.0})
    files.json("cost.champion", {**REPORT, "train_seconds": 100.0, "tokens_per_second": 600.0})
    result = run(files, max_token_seconds_over_champion=3.0)
    assert result.verdict is Verdict.PASS
    assert result.checks[-1].observed == pytest.approx(1.2)
    files.json("cost", {**REPORT, "train_seconds": 100.0, "tokens_per_second": 150.0})
    assert run(files, max_token_seconds_over_champion=3.0).verdict is Verdict.FAIL


@pytest.mark.parametrize("value", [0, -1, "much", None, True])
@pytest.mark.parametrize("name", ["peak_memory_bytes", "base_bytes", "train_seconds", "tokens_per_second"])
def test_a_figure_that_was_not_measured_is_an_error(files, name, value):
    files.json("cost", {**REPORT, name: value})
    with pytest.raises(DataError, match=name):
        run(files)


def test_nan_is_an_error(files):
    files.json("cost", REPORT)
    path = files.artifacts["cost"]
    path.write_text(path.read_text().replace("100.0", "NaN"))
    with pytest.raises(DataError, match="train_seconds"):
        run(files)


@pytest.mark.parametrize("text", ["", "[]", '{"method": "x"}'])
def test_something_else_is_an_error(files, text):
    path = files.folder / "cost.json"
    path.write_text(text)
    files.artifacts["cost"] = path
    with pytest.raises(DataError):
        run(files)


def test_a_missing_file_is_missing_evidence(files):
    with pytest.raises(MissingEvidenceError, match="cost"):
        run(files)


def test_a_policy_must_set_two_bounds():
    assert (
        "bounds" in CostSettings(reason="test", max_train_seconds=3.0, max_train_seconds_over_champion=1.0).problems()
    )
    assert CostSettings(reason="test", max_train_seconds=3.0, max_latency_ratio=1.5).problems() == {}
    assert "max_latency_ratio" in CostSettings(reason="t", max_train_seconds=3.0, max_latency_ratio=-1.0).problems()
