"""Is the candidate at least as good as the champion?

Paired non-inferiority: the lower end of Tango's interval of (candidate - champion) must not fall below minus the
margin, overall and in each slice (or, where the policy says ``slice_rule: holm``, no slice may be shown to lose more
than its margin). A first version has no champion; it is held against the base model, and only where
the run says that it is the first. Where the run names an anchor, a frozen version, the same rule holds against that
one: a hundred releases that each lose a little less than the margin would pass one by one. General skills are judged
too (see ``forgetting.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsegate.contracts import Check, GateContext, GateResult, Prediction, Task
from sparsegate.evaluation.intervals import mcnemar_exact, tango_p
from sparsegate.files import sha256_file
from sparsegate_gates.evidence import PairedCounts, opponent_of, read_answers_of, read_predictions
from sparsegate_gates.forgetting import ForgettingBounds, judge_forgetting
from sparsegate_gates.lint import Need, Sizes, smallest_group
from sparsegate_gates.needs import margin_need
from sparsegate_gates.rules import at_least, collect, given, in_range, level
from sparsegate_gates.slices import (
    GroupLoss,
    SliceRule,
    SmallSlices,
    judge_groups,
    judge_groups_by_holm,
    paired_interval,
    positions_by_slice,
)


@dataclass(frozen=True)
class RegressionSettings:
    """Thresholds of the regression gate.

    Args:
        reason: Why these thresholds, and when they were chosen.
        margin: The candidate may be worse by at most this, at the interval's lower end.
        minimum_n: Evaluation items needed.
        slice_margin: The same for each slice; None does not ask.
        slice_minimum_n: Items that a slice needs to be judged by itself.
        small_slices: What a slice below that does: ``report`` names it, ``block`` makes it INSUFFICIENT.
        slice_rule: ``prove``: each slice must keep its margin at the lower end. ``holm``: none may be shown to lose
            more, with Holm's correction over all slices.
        cluster_column: Slice column (such as a document) whose items belong together: the bounds on all items then use
            a bootstrap of whole clusters. None takes items for independent.
        anchor_margin: The margin against the anchor, where the run names one; None takes ``margin``.
        general_over_base: The candidate's perplexity on general texts may be at most this multiple of the base's, at
            the interval's upper end; None does not ask.
        general_over_champion: The same of the champion's.
        general_minimum_n: General texts needed.
        general_for_labels: Whether these two also hold for a classification task, whose interface says only labels.
        confidence: Two-sided level of the intervals.
    """

    reason: str
    margin: float
    minimum_n: int
    slice_margin: float | None = None
    slice_minimum_n: int = 30
    small_slices: SmallSlices = "report"
    slice_rule: SliceRule = "prove"
    cluster_column: str | None = None
    anchor_margin: float | None = None
    general_over_base: float | None = None
    general_over_champion: float | None = None
    general_minimum_n: int = 40
    general_for_labels: bool = True
    confidence: float = 0.95

    def problems(self) -> dict[str, str]:
        return collect(
            reason=given("reason", self.reason),
            margin=in_range("margin", self.margin),
            minimum_n=at_least("minimum_n", self.minimum_n, 1),
            slice_margin=in_range("slice_margin", self.slice_margin),
            slice_minimum_n=at_least("slice_minimum_n", self.slice_minimum_n, 1),
            anchor_margin=in_range("anchor_margin", self.anchor_margin),
            general_over_base=in_range("general_over_base", self.general_over_base, 1, 1000),
            general_over_champion=in_range("general_over_champion", self.general_over_champion, 1, 1000),
            general_minimum_n=at_least("general_minimum_n", self.general_minimum_n, 10),
            confidence=level("confidence", self.confidence),
        )

    def forgetting(self, task: Task) -> ForgettingBounds:
        """Return what may be forgotten in a task."""
        judged = task == "generation" or self.general_for_labels
        over = {"base": self.general_over_base, "champion": self.general_over_champion}
        return ForgettingBounds(
            over if judged else dict.fromkeys(over), minimum_n=self.general_minimum_n, confidence=self.confidence
        )

    def needs(self, sizes: Sizes) -> list[Need]:
        asked: list[tuple[str, int, float, int]] = [
            ("candidate - champion", sizes.evaluation, self.margin, self.minimum_n)
        ]
        found = smallest_group(
            sizes.slices_but(self.cluster_column), self.slice_minimum_n, block=self.small_slices == "block"
        )
        if self.slice_margin is not None and found and self.slice_rule == "prove":
            asked.append((f"smallest group, {found[0]}", found[1], self.slice_margin, self.slice_minimum_n))
        found_needs = [
            margin_need(question, "evaluation", has, margin=margin, minimum_n=least, confidence=self.confidence)
            for question, has, margin, least in asked
        ]
        task: Task = "classification" if sizes.labels else "generation"
        return found_needs + self.forgetting(task).needs(sizes.general)


class Regression:
    """Compares the candidate's answers with the champion's, item by item."""

    name = "regression"
    settings: type = RegressionSettings
    stage: Literal["data", "model"] = "model"

    def run(self, context: GateContext) -> GateResult:
        settings: RegressionSettings = context.settings
        opponent = opponent_of(context)
        candidate = read_predictions(context, "predictions.candidate")
        other = read_answers_of(context, opponent, candidate)

        def judge(
            name: str,
            positions: Sequence[int],
            margin: float,
            minimum_n: int = settings.minimum_n,
            against: Sequence[Prediction] = other,
        ) -> Check:
            ours, theirs = [candidate[i] for i in positions], [against[i] for i in positions]
            counts = PairedCounts.of([line.correct for line in ours], [line.correct for line in theirs])
            return Check.at_least(
                name,
                counts.difference,
                -margin,
                n=counts.n,
                minimum_n=minimum_n,
                # a slice holds parts of clusters at best, and too few of them
                interval=paired_interval(
                    ours, theirs, settings.cluster_column if len(ours) == len(candidate) else None, settings.confidence
                ),
                items=negative_flips(ours, theirs)[:10],
            )

        everything = range(len(candidate))
        checks = [judge(f"candidate - {opponent}", everything, settings.margin)]
        if "anchor" in context.facts:
            anchor = read_answers_of(context, "anchor", candidate)
            margin = settings.margin if settings.anchor_margin is None else settings.anchor_margin
            name = f"candidate - anchor (version {context.facts['anchor']})"
            checks.append(judge(name, everything, margin, against=anchor))
        forgotten, general = judge_forgetting(context, settings.forgetting(context.task))
        checks += forgotten
        not_judged: list[str] = []
        slice_margin = settings.slice_margin
        if slice_margin is not None:
            groups = positions_by_slice(candidate, but=settings.cluster_column)
            limits: dict[str, Any] = {"minimum_n": settings.slice_minimum_n, "small": settings.small_slices}
            if settings.slice_rule == "holm":
                slices, not_judged = judge_groups_by_holm(
                    groups,
                    lambda name, chosen: _loss(
                        name, [candidate[i] for i in chosen], [other[i] for i in chosen], slice_margin
                    ),
                    error=(1 - settings.confidence) / 2,
                    **limits,
                )
            else:
                slices, not_judged = judge_groups(
                    groups,
                    lambda name, positions: judge(name, positions, slice_margin, settings.slice_minimum_n),
                    **limits,
                )
            checks += slices
        counts = PairedCounts.of([line.correct for line in candidate], [line.correct for line in other])
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method="Tango 1998 paired score interval, non-inferiority; exact McNemar test in the details",
            items_sha256=sha256_file(context.path("predictions.candidate")),
            details={
                "compared_with": opponent,
                "mcnemar_exact_p": mcnemar_exact(counts.only_candidate, counts.only_baseline),
                "negative_flips": counts.only_baseline,
                "positive_flips": counts.only_candidate,
                "not_judged": not_judged,
                **general,
            },
        )


def _loss(name: str, ours: Sequence[Prediction], theirs: Sequence[Prediction], margin: float) -> GroupLoss:
    counts = PairedCounts.of([line.correct for line in ours], [line.correct for line in theirs])
    p_value = tango_p(counts.only_candidate, counts.only_baseline, counts.n, difference=-margin)
    reason = f"{counts.only_baseline} lost and {counts.only_candidate} won of {counts.n}, margin {margin:g}"
    return GroupLoss(name, p_value, counts.n, reason, negative_flips(ours, theirs)[:10])


def negative_flips(candidate: Sequence[Prediction], other: Sequence[Prediction]) -> tuple[str, ...]:
    """Return the ids that the other model gets right and the candidate wrong, the largest loss of likelihood first."""
    lost = [
        (_likelihood_loss(ours, theirs), ours.id)
        for ours, theirs in zip(candidate, other, strict=True)
        if theirs.correct and not ours.correct
    ]
    return tuple(item for _, item in sorted(lost, key=lambda entry: (-entry[0], entry[1])))


def _likelihood_loss(ours: Prediction, theirs: Prediction) -> float:
    if ours.nll_nats is None or theirs.nll_nats is None:
        return -math.inf
    return ours.nll_nats - theirs.nll_nats
