"""Is the candidate accurate enough?

The lower end of a Wilson interval must reach the floor: overall, for each label and for each slice (or, where the
policy says ``slice_rule: holm``, no label or slice may be shown to miss its floor). The lower end of
Tango's interval of the gain over the untouched base model must reach the gain asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsegate.contracts import JSON, Check, GateContext, GateResult, Prediction
from sparsegate.evaluation.intervals import wilson
from sparsegate.files import sha256_file
from sparsegate_gates.evidence import PairedCounts, read_answers_of, read_predictions
from sparsegate_gates.lint import Need, Sizes, smallest_group
from sparsegate_gates.needs import floor_need
from sparsegate_gates.rules import at_least, collect, given, in_range, level
from sparsegate_gates.slices import (
    GroupLoss,
    SliceRule,
    SmallSlices,
    cluster_interval,
    judge_groups,
    judge_groups_by_holm,
    paired_interval,
    positions_by_slice,
)


@dataclass(frozen=True)
class AccuracySettings:
    """Thresholds of the accuracy gate.

    Args:
        reason: Why these thresholds, and when they were chosen.
        floor: Lower bound of the accuracy must reach this.
        gain_over_base: Lower bound of (candidate - base) must reach this.
        minimum_n: Evaluation items needed.
        class_recall_floor: Lower bound of each label's recall must reach this; None does not ask. Classification only.
        slice_floor: Lower bound of each slice's accuracy must reach this; None does not ask.
        slice_minimum_n: Items that a label or slice needs to be judged by itself.
        small_slices: What a label or slice below that does: ``report`` names it, ``block`` makes it INSUFFICIENT.
        slice_rule: ``prove``: each label and slice must reach its floor at the lower end. ``holm``: none may be shown
            to miss it, with Holm's correction over all labels, and over all slices.
        cluster_column: Slice column (such as a document) whose items belong together: the bounds on all items then use
            a bootstrap of whole clusters. None takes items for independent.
        confidence: Two-sided level of the intervals.
    """

    reason: str
    floor: float
    gain_over_base: float
    minimum_n: int
    class_recall_floor: float | None = None
    slice_floor: float | None = None
    slice_minimum_n: int = 30
    small_slices: SmallSlices = "report"
    slice_rule: SliceRule = "prove"
    cluster_column: str | None = None
    confidence: float = 0.95

    def problems(self) -> dict[str, str]:
        return collect(
            reason=given("reason", self.reason),
            floor=in_range("floor", self.floor),
            gain_over_base=in_range("gain_over_base", self.gain_over_base, -1, 1),
            minimum_n=at_least("minimum_n", self.minimum_n, 1),
            class_recall_floor=in_range("class_recall_floor", self.class_recall_floor),
            slice_floor=in_range("slice_floor", self.slice_floor),
            slice_minimum_n=at_least("slice_minimum_n", self.slice_minimum_n, 1),
            confidence=level("confidence", self.confidence),
        )

    def needs(self, sizes: Sizes) -> list[Need]:
        asked: list[tuple[str, int, float, int]] = [("accuracy", sizes.evaluation, self.floor, self.minimum_n)]
        for groups, floor in (
            (sizes.labels, self.class_recall_floor),
            (sizes.slices_but(self.cluster_column), self.slice_floor),
        ):
            found = smallest_group(groups, self.slice_minimum_n, block=self.small_slices == "block")
            if floor is not None and found and self.slice_rule == "prove":
                asked.append((f"smallest group, {found[0]}", found[1], floor, self.slice_minimum_n))
        return [
            floor_need(question, "evaluation", has, floor=floor, minimum_n=least, confidence=self.confidence)
            for question, has, floor, least in asked
        ]


class Accuracy:
    """Judges the candidate's answers to the evaluation set."""

    name = "accuracy"
    settings: type = AccuracySettings
    stage: Literal["data", "model"] = "model"

    def run(self, context: GateContext) -> GateResult:
        settings: AccuracySettings = context.settings
        context.path("data.evaluation")  # without it, items that were left out would go unnoticed
        candidate = read_predictions(context, "predictions.candidate")
        base = read_answers_of(context, "base", candidate)

        everything = list(range(len(candidate)))
        checks = [_floor_check("accuracy", candidate, everything, settings.floor, settings.minimum_n, settings)]
        if settings.cluster_column:
            checks = [_clustered_floor_check(checks[0], candidate, settings, settings.cluster_column)]
        gain = PairedCounts.of([line.correct for line in candidate], [line.correct for line in base])
        checks.append(
            Check.at_least(
                "gain over base",
                gain.difference,
                settings.gain_over_base,
                n=gain.n,
                minimum_n=settings.minimum_n,
                interval=paired_interval(candidate, base, settings.cluster_column, settings.confidence),
            )
        )
        group_checks, not_judged = _group_checks(candidate, settings, by_label=context.task == "classification")
        details: dict[str, JSON] = {"base_accuracy": sum(line.correct for line in base) / len(base)}
        if context.task == "classification":
            details |= _figures(candidate)
        return GateResult(
            gate=self.name,
            checks=(*checks, *group_checks),
            method="Wilson 1927 interval for rates; Tango 1998 score interval for the paired gain",
            items_sha256=sha256_file(context.path("predictions.candidate")),
            details={**details, "not_judged": not_judged},
        )


def _floor_check(
    name: str,
    lines: Sequence[Prediction],
    positions: Sequence[int],
    floor: float,
    minimum_n: int,
    settings: AccuracySettings,
) -> Check:
    chosen = [lines[position] for position in positions]
    right = sum(line.correct for line in chosen)
    return Check.at_least(
        name,
        right / len(chosen),
        floor,
        n=len(chosen),
        minimum_n=minimum_n,
        interval=wilson(right, len(chosen), settings.confidence),
        items=tuple(line.id for line in chosen if not line.correct)[:10],
    )


def _clustered_floor_check(check: Check, lines: Sequence[Prediction], settings: AccuracySettings, column: str) -> Check:
    """Return the floor's check on an interval over whole clusters."""
    right = [float(line.correct) for line in lines]
    interval = cluster_interval(lines, right, column, bounds=(0.0, 1.0), confidence=settings.confidence)
    assert check.observed is not None, "a floor's check always measures"
    return Check.at_least(
        check.name,
        check.observed,
        settings.floor,
        n=check.n,
        minimum_n=settings.minimum_n,
        interval=interval,
        items=check.items,
    )


def _group_checks(
    lines: Sequence[Prediction], settings: AccuracySettings, *, by_label: bool
) -> tuple[list[Check], list[str]]:
    """Judge the labels and the slices that the policy asks about."""
    asked: list[tuple[dict[str, list[int]], float]] = []
    if settings.class_recall_floor is not None and by_label:
        labels: dict[str, list[int]] = {}
        for position, line in enumerate(lines):
            labels.setdefault(f"label={line.expected}", []).append(position)
        asked.append((dict(sorted(labels.items())), settings.class_recall_floor))
    if settings.slice_floor is not None:
        asked.append((positions_by_slice(lines, but=settings.cluster_column), settings.slice_floor))

    checks: list[Check] = []
    not_judged: list[str] = []
    for groups, floor in asked:

        def judge(name: str, positions: list[int], floor: float = floor) -> Check:
            return _floor_check(name, lines, positions, floor, settings.slice_minimum_n, settings)

        def loss(name: str, positions: list[int], floor: float = floor) -> GroupLoss:
            return _floor_loss(name, [lines[position] for position in positions], floor)

        limits: dict[str, Any] = {"minimum_n": settings.slice_minimum_n, "small": settings.small_slices}
        if settings.slice_rule == "holm":
            found, left_out = judge_groups_by_holm(groups, loss, error=(1 - settings.confidence) / 2, **limits)
        else:
            found, left_out = judge_groups(groups, judge, **limits)
        checks += found
        not_judged += left_out
    return checks, not_judged


def _floor_loss(name: str, lines: Sequence[Prediction], floor: float) -> GroupLoss:
    from scipy.stats import binom

    wrong = tuple(line.id for line in lines if not line.correct)
    right = len(lines) - len(wrong)
    reason = f"{right} of {len(lines)} right, floor {floor:g}"
    return GroupLoss(name, float(binom.cdf(right, len(lines), floor)), len(lines), reason, wrong)


def _figures(lines: Sequence[Prediction]) -> dict[str, Any]:
    from sparsegate.evaluation.metrics import classification_figures

    figures = classification_figures([line.expected for line in lines], [line.predicted for line in lines])
    return asdict(figures)
