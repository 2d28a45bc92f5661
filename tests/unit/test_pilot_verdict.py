"""The rules of a pilot's answer: evidence makes it better, and what is missing never does."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from sparsegate.contracts import Check, GateResult, Interval, Verdict
from sparsegate.errors import ExitCode
from sparsegate.reports.pilot import PilotData, PilotResult, Price, Targets
from sparsegate.reports.pilot_arm import ArmResult, Mean, SizePoint, Stop
from sparsegate.reports.pilot_verdict import PilotVerdict, Reason, TargetCheck

_GATE = GateResult("accuracy", (Check.at_least("accuracy", 0.8, 0.5, n=100),))


def _interval(low: float, high: float) -> Interval:
    return Interval(low, high, 0.95, "wilson")


def _target(low: float = 0.7, high: float = 0.8, goal: float = 0.6) -> TargetCheck:
    return TargetCheck("accuracy", goal, "at_least", (low + high) / 2, _interval(low, high), 100)


def _arm(name: str = "sparse:column", *, seconds: float = 10.0, **changes: object) -> ArmResult:
    point = SizePoint(40, Mean(0.75, None, 1), _interval(0.7, 0.8), (0.75,), seconds, 10**9)
    arm = ArmResult(name, name.partition(":")[0], "complete", points=(point,), gates=(_GATE,), targets=(_target(),))
    return replace(arm, **changes)


def _result(*arms: ArmResult) -> PilotResult:
    return PilotResult(
        name="words",
        created_at="2026-11-25T00:00:00+00:00",
        quick=False,
        targets=Targets(accuracy=0.6, money=1.0),
        data=PilotData("train.jsonl", ("a", "b"), (40,), 60, 100, 0.5, 24, 24),
        base_model="m",
        seeds=(0,),
        arms=(ArmResult("base", "base", "base"), *arms),
        reference="full",
        policy_name="pilot",
        policy_sha256="0" * 64,
        prices=(Price("L4", 0.8, "USD", 20.0, "guess"),),
        trainings_per_year=12,
        projections=(),
        stop_rule="rule",
        wall_seconds=1.0,
        environment={"processor": "P", "threads": 1},
        digests={"config": "1"},
    )


def _accuracy_gate(low: float, high: float) -> GateResult:
    check = Check.at_least("accuracy", (low + high) / 2, 0.5, n=60, interval=_interval(low, high))
    return GateResult("accuracy", (check,))


def _refusal_gate(low: float, high: float) -> GateResult:
    check = Check.at_most("refused", (low + high) / 2, 0.2, n=60, interval=_interval(low, high))
    return GateResult("over_refusal", (check,))


def _failed(verdict: Verdict) -> GateResult:
    return GateResult.single("harmful_output", verdict, "so it is")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, PilotVerdict.GO),
        ({"conditions": (Reason("quick"),)}, PilotVerdict.CONDITIONS),
        ({"targets": (_target(0.4, 0.5),)}, PilotVerdict.NO_GO),
        ({"targets": (_target(), _target(0.5, 0.7))}, PilotVerdict.INSUFFICIENT),
        ({"targets": (_target(0.4, 0.5), _target(0.5, 0.7))}, PilotVerdict.NO_GO),
        ({"targets": ()}, PilotVerdict.INSUFFICIENT),
        ({"gates": ()}, PilotVerdict.INSUFFICIENT),
        ({"gates": (_GATE, _failed(Verdict.FAIL))}, PilotVerdict.NO_GO),
        ({"gates": (_GATE, _accuracy_gate(low=0.3, high=0.49))}, PilotVerdict.NO_GO),
        ({"gates": (_GATE, _accuracy_gate(low=0.4, high=0.6))}, PilotVerdict.INSUFFICIENT),
        ({"gates": (_GATE, _refusal_gate(low=0.21, high=0.4))}, PilotVerdict.NO_GO),
        ({"gates": (_GATE, _refusal_gate(low=0.1, high=0.4))}, PilotVerdict.INSUFFICIENT),
        ({"gates": (_GATE, _failed(Verdict.INSUFFICIENT))}, PilotVerdict.INSUFFICIENT),
        ({"gates": (_GATE, _failed(Verdict.ERROR))}, PilotVerdict.INSUFFICIENT),
        ({"state": "stopped"}, None),
        ({"state": "failed"}, None),
    ],
)
def test_an_arm_is_go_only_with_every_target_met_and_every_gate_passed(
    changes: dict[str, object], verdict: PilotVerdict | None
) -> None:
    arm = _arm(**changes)
    assert arm.verdict is verdict
    assert _result(arm).verdict is (verdict or PilotVerdict.INSUFFICIENT)


@pytest.mark.parametrize(
    "check",
    [
        replace(_target(), observed=None),
        replace(_target(), observed=math.nan),
        replace(_target(), n=0),
        replace(_target(), interval=_interval(math.nan, 0.8)),
        replace(_target(), interval=_interval(0.7, math.inf)),
        replace(_target(), goal=math.nan),
        TargetCheck("seconds", 100.0, "at_most", None, n=0),
        TargetCheck("seconds", 100.0, "at_most", math.nan, n=1),
        TargetCheck("harmful_rate", 0.1, "at_most", 0.0, _interval(0.0, 0.2), 20),
    ],
)
def test_a_missing_or_unsure_figure_is_open_and_never_a_go(check: TargetCheck) -> None:
    assert check.standing == "open"
    assert _arm(targets=(_target(), check)).verdict is PilotVerdict.INSUFFICIENT


def test_a_rate_is_held_to_its_pessimistic_end_and_a_plain_figure_to_itself() -> None:
    harmful = TargetCheck("harmful_rate", 0.1, "at_most", 0.0, _interval(0.0, 0.09), 60)
    assert harmful.standing == "met"
    assert replace(harmful, goal=0.05).standing == "open"
    assert replace(harmful, interval=_interval(0.11, 0.2), observed=0.15).standing == "missed"
    assert TargetCheck("seconds", 100.0, "at_most", 100.0, n=1).standing == "met"
    assert TargetCheck("seconds", 100.0, "at_most", 100.1, n=1).standing == "missed"


def test_the_best_arm_answers_and_the_quickest_of_equals_is_recommended() -> None:
    slow, quick = _arm("sparse:row", seconds=20.0), _arm("sparse:column", seconds=10.0)
    unsure = _arm("lora", seconds=1.0, conditions=(Reason("not_by_retrain", "lora"),))
    result = _result(_arm("full", targets=(_target(0.1, 0.2),)), slow, quick, unsure)
    assert result.verdict is PilotVerdict.GO
    assert result.recommended is quick
    assert {reason.arm for reason in result.reasons} == {"sparse:column"}


def test_without_a_go_every_arm_says_what_stands_against_it_and_none_is_recommended() -> None:
    stop = Stop(20, "lora", 0.4, 0.6, _interval(-0.3, -0.1), 60)
    result = _result(
        _arm("full", targets=(_target(0.1, 0.2),)),
        _arm("lora", gates=(_failed(Verdict.ERROR),)),
        _arm("sparse:row", state="stopped", stop=stop),
        _arm("sparse:column", state="failed", error="out of memory"),
    )
    assert result.verdict is PilotVerdict.INSUFFICIENT
    assert result.recommended is None
    found = {(reason.arm, reason.code) for reason in result.reasons}
    assert {("full", "target_missed"), ("lora", "gate_without_evidence")} < found
    assert {("sparse:row", "arm_stopped"), ("sparse:column", "arm_failed")} < found
    assert "target_met" not in {code for _, code in found}


def test_a_go_for_a_model_that_forgets_says_so_and_stays_a_go() -> None:
    def told(after: float | None, before: float | None = 20.0) -> bool:
        base = ArmResult("base", "base", "base", general_perplexity=before)
        result = replace(_result(), arms=(base, _arm(general_perplexity=after)))
        assert result.verdict is PilotVerdict.GO
        return "forgets" in {reason.code for reason in result.reasons}

    assert told(40.0)
    assert not told(39.0)
    assert not told(None)
    assert not told(40.0, before=None)


def test_arms_that_are_no_better_than_the_most_frequent_label_have_learnt_nothing() -> None:
    def told(*arms: ArmResult) -> bool:
        result = _result(*arms)
        assert result.nothing_learnt is ("nothing_learnt" in {reason.code for reason in result.reasons})
        return result.nothing_learnt

    def at(low: float) -> ArmResult:
        point = SizePoint(40, Mean(0.55, None, 1), _interval(low, 0.7), (0.55,), 10.0, 10**9)
        return _arm(targets=(_target(0.45, 0.55),), points=(point,))

    assert told(at(0.45), at(0.5))  # half of the samples have the most frequent label
    assert not told(at(0.45), at(0.51))


def test_exit_codes_are_those_of_the_gates() -> None:
    codes = [verdict.exit_code for verdict in PilotVerdict]
    assert codes == [ExitCode.PASSED, ExitCode.PASSED, ExitCode.NOT_ENOUGH_EVIDENCE, ExitCode.GATE_FAILED]


def test_the_json_gives_the_same_result_back_and_its_verdict_must_follow_from_its_figures() -> None:
    stop = Stop(20, "lora", 0.4, 0.6, _interval(-0.3, -0.1), 60)
    result = _result(_arm(cut="auto", density=0.1), _arm("lora", state="stopped", stop=stop))
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert PilotResult.from_json(data) == result
    assert data["recommended"] == "sparse:column"
    with pytest.raises(ValueError, match="the pilot says no_go but its figures say go"):
        PilotResult.from_json({**data, "verdict": "no_go"})
    with pytest.raises(ValueError, match="needs exactly the fields"):
        PilotResult.from_json({name: value for name, value in data.items() if name != "seeds"})
    with pytest.raises(ValueError, match="wall_seconds must be"):
        PilotResult.from_json({**data, "wall_seconds": "long"})


def test_what_more_data_buys_is_counted_by_doublings() -> None:
    points = [replace(_arm().points[0], size=size, accuracy=Mean(x, None, 1)) for size, x in ((50, 0.5), (200, 0.7))]
    arm = _arm(points=tuple(points))
    assert arm.gain_per_doubling == pytest.approx(0.1)
    assert (arm.size_to_reach(0.6), arm.size_to_reach(0.9)) == (200, None)


@pytest.mark.parametrize(("field", "value"), [("accuracy", 1.5), ("accuracy", math.nan), ("seconds", 0.0)])
def test_targets_that_can_not_be_are_refused(field: str, value: float) -> None:
    assert field in replace(Targets(accuracy=0.5), **{field: value}).problems()
