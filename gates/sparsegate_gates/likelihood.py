"""Does the candidate find the expected responses likelier than the base, and no less likely than the champion?

For free text, where many answers would be right and few are the expected one word by word, so that counting exact
answers says little. The perplexity of the expected responses over that of the base, and of the champion, with an
interval over items; overall, and in each slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparsegate.contracts import Check, GateContext, GateResult
from sparsegate.evaluation.forgetting import perplexity, perplexity_ratio
from sparsegate.files import sha256_file
from sparsegate_gates.evidence import likelihoods, opponent_of, read_answers_of, read_predictions
from sparsegate_gates.forgetting import most_forgotten
from sparsegate_gates.lint import Need, Sizes, smallest_group
from sparsegate_gates.rules import at_least, collect, given, in_range, level
from sparsegate_gates.slices import SmallSlices, judge_groups, positions_by_slice


@dataclass(frozen=True)
class LikelihoodSettings:
    """Thresholds of the likelihood gate.

    Args:
        reason: Why these thresholds, and when they were chosen.
        over_base: The candidate's perplexity on the expected responses may be at most this multiple of the base's, at
            the interval's upper end; below 1 it asks for a gain.
        over_champion: The same of the champion's, and of the anchor's where the run names one.
        minimum_n: Evaluation items needed.
        slice_over_base: The same as ``over_base`` for each slice; None does not ask.
        slice_minimum_n: Items that a slice needs to be judged by itself.
        small_slices: What a slice below that does: ``report`` names it, ``block`` makes it INSUFFICIENT.
        confidence: Two-sided level of the intervals.
    """

    reason: str
    over_base: float
    over_champion: float
    minimum_n: int
    slice_over_base: float | None = None
    slice_minimum_n: int = 40
    small_slices: SmallSlices = "report"
    confidence: float = 0.95

    def problems(self) -> dict[str, str]:
        return collect(
            reason=given("reason", self.reason),
            over_base=in_range("over_base", self.over_base, 0.01, 1),
            over_champion=in_range("over_champion", self.over_champion, 0.01, 10),
            minimum_n=at_least("minimum_n", self.minimum_n, 20),
            slice_over_base=in_range("slice_over_base", self.slice_over_base, 0.01, 10),
            slice_minimum_n=at_least("slice_minimum_n", self.slice_minimum_n, 20),
            confidence=level("confidence", self.confidence),
        )

    def needs(self, sizes: Sizes) -> list[Need]:
        if sizes.labels:  # what labels are right is counted; their likelihood is not kept
            return [Need("expected responses (data.task: generation)", "evaluation", sizes.evaluation, None)]
        needs = [Need("expected responses", "evaluation", sizes.evaluation, self.minimum_n)]
        found = smallest_group(sizes.slices, self.slice_minimum_n, block=self.small_slices == "block")
        if self.slice_over_base is not None and found:
            needs.append(Need(f"smallest group, {found[0]}", "evaluation", found[1], self.slice_minimum_n))
        return needs


class Likelihood:
    """Compares how likely models find the expected responses, item by item."""

    name = "likelihood"
    settings: type = LikelihoodSettings
    stage: Literal["data", "model"] = "model"

    def run(self, context: GateContext) -> GateResult:
        settings: LikelihoodSettings = context.settings
        context.path("data.evaluation")  # without it, items that were left out would go unnoticed
        candidate = read_predictions(context, "predictions.candidate")
        ours = likelihoods(candidate, "predictions.candidate")
        bounds = {"base": settings.over_base}
        if opponent_of(context) == "champion":
            bounds["champion"] = settings.over_champion
        if "anchor" in context.facts:
            bounds["anchor"] = settings.over_champion
        others = {
            role: likelihoods(read_answers_of(context, role, candidate), f"predictions.{role}") for role in bounds
        }

        def judge(name: str, role: str, positions: Sequence[int], bound: float, minimum_n: int) -> Check:
            mine, theirs = ([scores[place] for place in positions] for scores in (ours, others[role]))
            ratio, interval = perplexity_ratio(mine, theirs, confidence=settings.confidence)
            return Check.at_most(
                name,
                ratio,
                bound,
                n=len(mine),
                minimum_n=minimum_n,
                interval=interval,
                items=most_forgotten(mine, theirs),
            )

        everything = range(len(candidate))
        checks = [
            judge(f"response perplexity / {role}", role, everything, bound, settings.minimum_n)
            for role, bound in bounds.items()
        ]
        not_judged: list[str] = []
        slice_bound = settings.slice_over_base
        if slice_bound is not None:
            slices, not_judged = judge_groups(
                positions_by_slice(candidate),
                lambda name, positions: judge(name, "base", positions, slice_bound, settings.slice_minimum_n),
                minimum_n=settings.slice_minimum_n,
                small=settings.small_slices,
            )
            checks += slices
        figures = [f"{role} {perplexity(scores):.3g}" for role, scores in {"candidate": ours, **others}.items()]
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method="Efron 1993 percentile interval of the ratio of perplexities, drawn over items",
            items_sha256=sha256_file(context.path("predictions.candidate")),
            details={"response perplexity": figures, "not_judged": not_judged},
        )
