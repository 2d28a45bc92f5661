"""How an arm stands: its answers by category, what changed, what it costs, and each target held against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from sparsegate.contracts import Prediction, Sample
from sparsegate.evaluation.intervals import clopper_pearson, wilson
from sparsegate.files import read_records
from sparsegate.reports.pilot import Price, Targets
from sparsegate.reports.pilot_arm import OURS, ArmResult, ChangedExample, ProjectedCost, SafetyRate, SizePoint
from sparsegate.reports.pilot_verdict import Reason, TargetCheck, TargetName
from sparsegate_gates.judging import JudgedAnswer

Fault = Literal["harmful", "refused"]
JUDGING_GATES: Mapping[Fault, str] = {"harmful": "harmful_output", "refused": "over_refusal"}
_EXAMPLES = 5  # of each kind
_SEEDS_WANTED = 3


def safety_rates(gates_folder: Path) -> tuple[SafetyRate, ...]:
    """Return the rates of each set and category from the gates' judgements; none of a set that no gate has judged."""
    rates: list[SafetyRate] = []
    for fault, gate in JUDGING_GATES.items():
        path = gates_folder / gate / "judgements.jsonl"
        judged = read_records(path, JudgedAnswer) if path.exists() else []
        categories = ["", *sorted({answer.category for answer in judged})] if judged else []
        rates += [_rate(fault, name, [one for one in judged if name in ("", one.category)]) for name in categories]
    return tuple(rates)


def _rate(fault: Fault, category: str, judged: Sequence[JudgedAnswer]) -> SafetyRate:
    ours = [answer.counts_as(fault) for answer in judged if answer.model == "candidate"]
    theirs = [answer.counts_as(fault) for answer in judged if answer.model == "base"]
    return SafetyRate(
        fault=fault,
        category=category,
        n=len(ours),
        count=sum(ours),
        interval=clopper_pearson(sum(ours), len(ours)),
        base_count=sum(theirs),
        base_interval=clopper_pearson(sum(theirs), len(theirs)),
    )


def changed_examples(
    samples: Sequence[Sample], arm: Sequence[Prediction], base: Sequence[Prediction]
) -> tuple[ChangedExample, ...]:
    """Return the items that one model gets right and the other wrong; those for the worse first.

    Of each kind those come first whose expected answer changed most in likelihood.
    """
    changed: list[tuple[bool, float, ChangedExample]] = []
    for sample, ours, theirs in zip(samples, arm, base, strict=True):
        if ours.correct != theirs.correct:
            change = abs((ours.nll_nats or 0.0) - (theirs.nll_nats or 0.0))
            said = (sample.id, sample.prompt, sample.response, theirs.predicted, ours.predicted)
            changed.append((ours.correct, -change, ChangedExample(*said, better=ours.correct)))
    changed.sort(key=lambda entry: entry[:2])
    for_worse = [example for better, _, example in changed if not better]
    for_better = [example for better, _, example in changed if better]
    return (*for_worse[:_EXAMPLES], *for_better[:_EXAMPLES])


def projected_costs(seconds: float, prices: Sequence[Price], trainings_per_year: int) -> tuple[ProjectedCost, ...]:
    """Return what one training costs on each device, and a year of them."""
    costs = []
    for price in prices:
        there = seconds / price.speed
        money = there / 3600 * price.per_hour
        costs.append(ProjectedCost(price.device, there, money, money * trainings_per_year, price.currency))
    return tuple(costs)


def check_targets(
    targets: Targets,
    *,
    point: SizePoint,
    evaluation: int,
    costs: Sequence[ProjectedCost],
    safety: Sequence[SafetyRate],
) -> tuple[TargetCheck, ...]:
    """Hold each target against an arm.

    Args:
        targets: What is asked.
        point: The arm at the largest size.
        evaluation: Evaluation samples.
        costs: Its costs; money is held against the first.
        safety: Its rates.
    """
    checks: list[TargetCheck] = []

    def at_most(target: TargetName, goal: float | None, observed: float | None) -> None:
        if goal is not None:
            checks.append(TargetCheck(target, goal, "at_most", observed, n=0 if observed is None else 1))

    right = point.by_seed[0]
    accuracy = wilson(round(right * evaluation), evaluation)
    checks.append(TargetCheck("accuracy", targets.accuracy, "at_least", right, accuracy, evaluation))
    at_most("seconds", targets.seconds, finite(point.seconds))
    at_most("peak_memory_gb", targets.peak_memory_gb, point.peak_memory_bytes / 1e9)
    at_most("money", targets.money, finite(costs[0].money) if costs else None)
    goals: tuple[tuple[TargetName, float | None, Fault], ...] = (
        ("harmful_rate", targets.harmful_rate, "harmful"),
        ("over_refusal_rate", targets.over_refusal_rate, "refused"),
    )
    for target, goal, fault in goals:
        if goal is not None:
            whole = next((rate for rate in safety if rate.fault == fault and not rate.category), None)
            found = (None, None, 0) if whole is None else (whole.count / whole.n, whole.interval, whole.n)
            checks.append(TargetCheck(target, goal, "at_most", *found))
    return tuple(checks)


def find_conditions(arm: ArmResult, *, goal: float, quick: bool) -> tuple[Reason, ...]:
    """Return what a go for this arm would depend on.

    Args:
        arm: An arm with all its points.
        goal: The goal of accuracy.
        quick: Whether the pilot is a quick one.
    """
    found: list[Reason] = []
    accuracy, tried = arm.points[-1].accuracy, [rate.learning_rate for rate in arm.rates]
    if quick:
        found.append(Reason("quick"))
    if accuracy.n < _SEEDS_WANTED:
        found.append(Reason("few_seeds", arm.name, {"seeds": accuracy.n, "wanted": _SEEDS_WANTED}))
    if accuracy.interval is not None and accuracy.interval.low < goal:
        figures = {"goal": goal, "mean": accuracy.mean, "low": accuracy.interval.low}
        found.append(Reason("seeds_disagree", arm.name, figures))
    if tried and arm.learning_rate in (min(tried), max(tried)):
        found.append(Reason("rate_at_edge", arm.name, {"learning_rate": arm.learning_rate}))
    if arm.method != OURS:
        found.append(Reason("not_by_retrain", arm.name, {"method": arm.method}))
    return tuple(found)


def finite(value: float | None) -> float | None:
    """Return a figure, or None if it is not finite: a figure that was not measured is no figure."""
    return value if value is not None and math.isfinite(value) else None
