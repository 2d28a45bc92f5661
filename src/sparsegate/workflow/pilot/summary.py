"""Makes the arms of a pilot's result from their runs and what the gates said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparsegate.contracts import GateResult
from sparsegate.evaluation.intervals import wilson
from sparsegate.reports.pilot_arm import OURS, ArmResult, ArmState, MaskCell, Mean, RateTried, SizePoint
from sparsegate.workflow.bench.options import parse_sparse
from sparsegate.workflow.bench.quality.job import BASE, Outcome
from sparsegate.workflow.bench.quality.summary import estimate
from sparsegate.workflow.pilot.config import PilotConfig
from sparsegate.workflow.pilot.evidence import Questions, predictions
from sparsegate.workflow.pilot.protocol import ArmRuns
from sparsegate.workflow.pilot.standings import (
    changed_examples,
    check_targets,
    find_conditions,
    finite,
    projected_costs,
    safety_rates,
)


def base_result(base: Outcome, arms: Sequence[ArmResult], *, evaluation: int) -> ArmResult:
    """Return the base model as an arm; its safety rates are those that the gates saw beside an arm's."""
    beside = next((arm.safety for arm in arms if arm.safety), ())
    safety = [replace(rate, count=rate.base_count, interval=rate.base_interval) for rate in beside]
    return ArmResult(
        name=BASE,
        method=BASE,
        state="base",
        points=(_point(0, [base], evaluation),),
        general_perplexity=finite(base.general_perplexity),
        safety=tuple(safety),
    )


def measured_arm(runs: ArmRuns, config: PilotConfig, *, evaluation: int) -> ArmResult:
    """Return what the runs of an arm say; a figure that is not finite makes the arm a failed one.

    Args:
        runs: Its runs.
        config: The pilot.
        evaluation: Evaluation samples.
    """
    found = {size: [record.found for record in same if record.found] for size, same in runs.finals.items()}
    error = runs.error
    if not all(math.isfinite(x) for same in found.values() for o in same for x in (o.end.quality, o.end.seconds)):
        error, found = "a figure is not finite", {}
    points = tuple(_point(size, same, evaluation) for size, same in found.items() if same)
    state: ArmState = "failed" if error else "stopped" if runs.stop else "complete"
    method, _, text = runs.name.partition(":")
    setting = parse_sparse(text) if method == OURS else None
    return ArmResult(
        name=runs.name,
        method=method,
        state=state,
        support=setting.support if setting else None,
        density=setting.density if setting else None,
        cut=setting.cut if setting else None,
        stop=runs.stop,
        error=error,
        learning_rate=runs.rate,
        rates=tuple(RateTried(r.learning_rate, r.found.end.quality if r.found else None) for r in runs.searches),
        points=points,
        costs=projected_costs(points[-1].seconds, config.prices, config.trainings_per_year) if points else (),
    )


def judged_arm(
    arm: ArmResult,
    found: Sequence[Outcome],
    config: PilotConfig,
    *,
    base: Outcome,
    questions: Questions,
    gates: Sequence[GateResult],
    gates_folder: Path,
    quick: bool,
) -> ArmResult:
    """Add to a complete arm what its models at the largest size were asked.

    Args:
        arm: The arm.
        found: The runs at the largest size; the first of them is probed.
        config: The pilot.
        base: The base model's run.
        questions: What both were asked.
        gates: What the gates said.
        gates_folder: Where they left their judgements.
        quick: Whether the pilot is a quick one.
    """
    first, point = found[0], arm.points[-1]
    assert first.probed is not None, "the largest size is probed"
    assert base.probed is not None, "the base model is probed"
    kept = first.probed.kept
    safety = safety_rates(gates_folder)
    answers = [predictions(questions, probed) for probed in (first.probed, base.probed)]
    before = finite(base.general_perplexity)
    after = [finite(outcome.general_perplexity) for outcome in found]
    rises = [] if before is None else [value - before for value in after if value is not None]
    return replace(
        arm,
        tokens_per_second=statistics.fmean(outcome.end.tokens / outcome.end.seconds for outcome in found),
        trained_parameters=first.trained_parameters,
        artifact_bytes=kept.artifact_bytes if kept else None,
        general_perplexity=finite(first.general_perplexity),
        forgetting=_mean(rises) if rises else None,
        safety=safety,
        gates=tuple(gates),
        mask=tuple(MaskCell(c.layer, c.module, c.trained, c.total) for c in (kept.mask if kept else ())),
        changed=changed_examples(questions.evaluation, *answers),
        targets=check_targets(
            config.targets, point=point, evaluation=len(questions.evaluation), costs=arm.costs, safety=safety
        ),
        conditions=find_conditions(arm, goal=config.targets.accuracy, quick=quick),
    )


def _point(size: int, found: Sequence[Outcome], evaluation: int) -> SizePoint:
    accuracies = tuple(outcome.end.quality for outcome in found)
    energies = [outcome.energy_joules for outcome in found if outcome.energy_joules is not None]
    return SizePoint(
        size=size,
        accuracy=_mean(accuracies, share=True),
        items=wilson(round(accuracies[0] * evaluation), evaluation),
        by_seed=accuracies,
        seconds=statistics.fmean(outcome.end.seconds for outcome in found),
        peak_memory_bytes=max(outcome.peak_memory_bytes for outcome in found),
        energy_joules=statistics.fmean(energies) if len(energies) == len(found) else None,
    )


def _mean(values: Sequence[float], *, share: bool = False) -> Mean:
    found = estimate(values, share=share)
    return Mean(found.mean, found.interval, found.n)
