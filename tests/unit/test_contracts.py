import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsegate.contracts import (
    Check,
    GateContext,
    GateResult,
    Interval,
    Verdict,
    canonical_json,
    worst,
)
from sparsegate.errors import ExitCode, MissingEvidenceError

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def _pass(**changes):
    return Check(**{"name": "overall", "verdict": Verdict.PASS, "observed": 0.9, "threshold": 0.8, "n": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"observed": None}, "observed must be a finite number, got None"),
        ({"observed": math.nan}, "observed must be a finite number, got nan"),
        ({"observed": math.inf}, "observed must be a finite number, got inf"),
        ({"threshold": None}, "threshold must be a finite number, got None"),
        ({"threshold": math.nan}, "threshold must be a finite number"),
        ({"threshold": -math.inf}, "threshold must be a finite number"),
        ({"n": 0}, r"n must be at least max\(1, minimum_n=1\), got 0"),
        ({"n": 0, "minimum_n": 0}, r"n must be at least max\(1, minimum_n=0\), got 0"),
        ({"n": -3, "minimum_n": -5}, "n must be at least"),
        ({"n": 10, "minimum_n": 11}, r"n must be at least max\(1, minimum_n=11\), got 10"),
        ({"interval": Interval(math.nan, 1.0, 0.95, "wilson")}, "the deciding figure must be finite, got nan"),
        ({"interval": Interval(0.7, 0.95, 0.95, "wilson")}, "0.7 is not at least 0.8"),
        ({"observed": 0.79}, "0.79 is not at least 0.8"),
        ({"direction": "at_most"}, "0.9 is not at most 0.8"),
    ],
)
def test_a_pass_without_evidence_can_not_be_built(changes, reason):
    with pytest.raises(ValueError, match=f"check 'overall' can't pass: {reason}"):
        _pass(**changes)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INSUFFICIENT, Verdict.ERROR])
def test_whatever_is_not_a_pass_gives_a_reason(verdict):
    with pytest.raises(ValueError, match="gives no reason"):
        Check(name="overall", verdict=verdict)
    assert Check(name="overall", verdict=verdict, reason="too few").verdict is verdict


@given(
    observed=NUMBERS,
    threshold=NUMBERS,
    low=NUMBERS | st.none(),
    n=st.integers(-2, 5),
    minimum_n=st.integers(-2, 5),
    upwards=st.booleans(),
)
def test_a_judged_check_passes_only_on_finite_figures_enough_items_and_the_right_side(
    observed, threshold, low, n, minimum_n, upwards
):
    interval = None if low is None else Interval(low, low, 0.95, "exact")
    judge = Check.at_least if upwards else Check.at_most
    check = judge("q", observed, threshold, n=n, minimum_n=minimum_n, interval=interval)
    figure = observed if low is None else low
    finite = all(map(math.isfinite, (observed, threshold, figure)))
    reached = figure >= threshold if upwards else figure <= threshold
    assert (check.verdict is Verdict.PASS) == (finite and minimum_n >= 1 and n >= minimum_n and reached)
    if not finite:
        assert check.verdict is Verdict.ERROR
    assert check.verdict is Verdict.PASS or check.reason


@pytest.mark.parametrize(
    ("observed", "n", "verdict", "reason"),
    [
        (0.81, 20, Verdict.PASS, ""),
        (0.79, 20, Verdict.FAIL, "0.79 is not at least 0.8"),
        (0.99, 19, Verdict.INSUFFICIENT, "needs 20 items, has 19"),
        (0.10, 19, Verdict.INSUFFICIENT, "needs 20 items, has 19"),
        (math.nan, 20, Verdict.ERROR, "observed must be a finite number, got nan"),
        (math.nan, 0, Verdict.ERROR, "observed must be a finite number, got nan"),
    ],
)
def test_a_judged_check_says_why(observed, n, verdict, reason):
    check = Check.at_least("overall", observed, 0.8, n=n, minimum_n=20)
    assert (check.verdict, check.reason) == (verdict, reason)


@pytest.mark.parametrize(("judge", "verdict"), [(Check.at_least, Verdict.FAIL), (Check.at_most, Verdict.FAIL)])
def test_the_pessimistic_end_of_the_interval_decides(judge, verdict):
    interval = Interval(0.7, 0.9, 0.95, "wilson")
    check = judge("overall", 0.8, 0.8, n=50, interval=interval)
    assert check.verdict is verdict
    assert check.decided_on == (0.7 if judge == Check.at_least else 0.9)


def test_a_reason_given_is_kept_behind_the_figures_and_ten_items_at_most():
    check = Check.at_most("rate", 0.5, 0.1, n=9, reason="see items", items=tuple(map(str, range(30))))
    assert check.reason == "0.5 is not at most 0.1: see items"
    assert len(check.items) == 10


def test_a_gate_that_asked_nothing_is_an_error():
    result = GateResult(gate="accuracy", checks=())
    assert result.verdict is Verdict.ERROR
    assert result.deciding is None
    assert result.reason == "the gate asked nothing"
    assert worst([]) is Verdict.ERROR


def test_the_worst_check_decides_the_gate():
    fine = Check.at_least("a", 1.0, 0.5, n=3)
    few = Check.at_least("b", 1.0, 0.5, n=3, minimum_n=9)
    bad = Check.at_least("c", 0.1, 0.5, n=3)
    broken = Check.at_least("d", math.nan, 0.5, n=3)
    for checks, verdict in [
        ([fine], Verdict.PASS),
        ([fine, few], Verdict.INSUFFICIENT),
        ([few, fine, bad], Verdict.FAIL),
        ([bad, broken, few, fine], Verdict.ERROR),
    ]:
        result = GateResult(gate="g", checks=tuple(checks))
        assert result.verdict is verdict
        assert result.deciding.verdict is verdict
        assert result.reason == result.deciding.reason


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict.PASS, ExitCode.PASSED),
        (Verdict.FAIL, ExitCode.GATE_FAILED),
        (Verdict.INSUFFICIENT, ExitCode.NOT_ENOUGH_EVIDENCE),
        (Verdict.ERROR, ExitCode.ERROR),
    ],
)
def test_each_verdict_has_its_exit_code(verdict, code):
    assert verdict.exit_code is code


def _result():
    interval = Interval(0.85, 0.95, 0.95, "wilson")
    checks = (
        Check.at_least("overall", 0.9, 0.8, n=100, minimum_n=50, interval=interval),
        Check.at_most("channel=email", 0.9, 0.5, n=12, unscorable=2, items=("a", "b")),
    )
    return GateResult("accuracy", checks, "Wilson 1927", "ff" * 32, 1.5, {"slices": ["email"], "best": None})


def test_a_result_reads_back_from_its_json_text():
    result = _result()
    assert GateResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_json_with_a_better_verdict_than_its_checks_is_refused():
    data = json.loads(json.dumps(_result().to_json()))
    data["verdict"] = "PASS"
    with pytest.raises(ValueError, match="gate 'accuracy' says PASS but its checks say FAIL"):
        GateResult.from_json(data)


def test_json_with_a_check_that_was_made_to_pass_is_refused():
    data = json.loads(json.dumps(_result().to_json()))
    data["verdict"] = data["checks"][1]["verdict"] = "PASS"
    with pytest.raises(ValueError, match="check 'channel=email' can't pass"):
        GateResult.from_json(data)


def test_a_gate_that_could_not_be_judged_has_one_check():
    result = GateResult.single("cost", Verdict.ERROR, "timed out after 60 s", seconds=60.0)
    assert (result.verdict, result.reason, result.seconds) == (Verdict.ERROR, "timed out after 60 s", 60.0)


def test_a_context_gives_files_that_exist_and_asks_for_those_that_do_not(tmp_path):
    (tmp_path / "there.json").write_text("{}")
    context = GateContext(
        settings=None,
        artifacts={"cost": tmp_path / "there.json", "delta": tmp_path / "gone.safetensors"},
        output_dir=tmp_path,
    )
    assert context.path("cost") == tmp_path / "there.json"
    assert context.has("delta")
    for name in ("delta", "base_model"):
        with pytest.raises(MissingEvidenceError, match=f"no '{name}' to judge from"):
            context.path(name)


def test_a_context_can_be_sent_to_another_process():
    context = GateContext(settings={"minimum": 3}, artifacts={"cost": Path("cost.json")}, output_dir=Path("out"))
    assert pickle.loads(pickle.dumps(context)) == context  # noqa: S301 - what the runner does with it


def test_canonical_json_is_the_same_for_equal_values_and_refuses_nan():
    assert canonical_json({"b": 1, "a": "ö"}) == canonical_json({"a": "ö", "b": 1}) == '{"a":"ö","b":1}'
    with pytest.raises(ValueError, match="Out of range float values"):
        canonical_json({"a": math.nan})
