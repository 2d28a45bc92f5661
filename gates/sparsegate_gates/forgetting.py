"""Has the candidate kept its general skills? A part of the regression gate.

The perplexity of general texts, over that of the base (which never moves) and over the champion's. A classifier whose
interface says nothing but labels may forget how to speak and still be right, which a policy can allow; its ratios are
then reported and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsegate.contracts import JSON, Check, GateContext, TextScore
from sparsegate.evaluation.forgetting import perplexity, perplexity_ratio
from sparsegate_gates.evidence import read_scores, require_same_texts
from sparsegate_gates.lint import Need


@dataclass(frozen=True)
class ForgettingBounds:
    """What may be lost; None does not ask.

    Args:
        over: Role of a model to the most that the candidate's perplexity may be over that model's, at the interval's
            upper end.
        minimum_n: Texts needed.
        confidence: Two-sided level of the intervals.
    """

    over: dict[str, float | None]
    minimum_n: int
    confidence: float

    @property
    def asked(self) -> bool:
        return any(bound is not None for bound in self.over.values())

    def needs(self, has: int) -> list[Need]:
        return [Need("general texts", "general", has, self.minimum_n)] if self.asked else []


def judge_forgetting(context: GateContext, bounds: ForgettingBounds) -> tuple[list[Check], dict[str, JSON]]:
    """Return one check for each bound that can be asked, and the figures for the report.

    The base is always there; the champion is not in a first version, which the comparison of answers has settled.

    Raises:
        MissingEvidenceError: If a bound is set and the texts were not scored.
        DataError: If models scored other texts.
    """
    if not bounds.asked and not context.has("general.candidate"):
        return [], {"general perplexity": "not measured: evaluation.general_text is not set"}
    ours = read_scores(context, "general.candidate")
    checks: list[Check] = []
    figures: list[str] = [f"candidate {perplexity(ours):.3g}"]
    for role, bound in bounds.over.items():
        name = f"general.{role}"
        if role == "champion" and not context.has("predictions.champion"):
            continue
        if bound is None and not context.has(name):
            continue
        theirs = read_scores(context, name)
        require_same_texts(ours, theirs, name)
        ratio, interval = perplexity_ratio(ours, theirs, confidence=bounds.confidence)
        figures.append(
            f"{role} {perplexity(theirs):.3g}, ratio {ratio:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
            f" ({_by_kind(ours, theirs)})"
        )
        if bound is not None:
            checks.append(
                Check.at_most(
                    f"general perplexity / {role}",
                    ratio,
                    bound,
                    n=len(ours),
                    minimum_n=bounds.minimum_n,
                    interval=interval,
                    items=most_forgotten(ours, theirs),
                )
            )
    return checks, {"general perplexity": figures}


def _by_kind(ours: list[TextScore], theirs: list[TextScore]) -> str:
    parts = []
    for kind in sorted({score.kind for score in ours}):
        chosen = [place for place, score in enumerate(ours) if score.kind == kind]
        ratio, _ = perplexity_ratio([ours[i] for i in chosen], [theirs[i] for i in chosen])
        parts.append(f"{kind} {ratio:.3g}")
    return ", ".join(parts)


def most_forgotten(ours: Sequence[TextScore], theirs: Sequence[TextScore]) -> tuple[str, ...]:
    """Return the ids of texts by how much likelihood they lost for each token, the worst first."""
    lost = [((mine.nats - other.nats) / other.tokens, mine.id) for mine, other in zip(ours, theirs, strict=True)]
    return tuple(item for loss, item in sorted(lost, key=lambda entry: (-entry[0], entry[1])) if loss > 0)
