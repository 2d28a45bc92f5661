"""What a model has forgotten: how much less likely it finds general texts than another model does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsegate.contracts import Interval, TextScore


def perplexity(scores: Sequence[TextScore]) -> float:
    """Return the perplexity for each token, averaged (geometrically) over the texts."""
    return math.exp(sum(score.nats / score.tokens for score in scores) / len(scores))


def perplexity_ratio(
    candidate: Sequence[TextScore],
    reference: Sequence[TextScore],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return the candidate's perplexity over the reference's, with a paired percentile interval over texts.

    What the candidate loses on a text is counted for each token of the reference, so that models with different
    tokenizers can be compared; with one tokenizer this is the ratio of :func:`perplexity`. Texts are what is drawn, so
    long ones count no more than short ones. Equal scores have no width: these are measurements, not counts of rare
    events, and a model that gives every text the same likelihood is the same model.

    Args:
        candidate: Scores of the candidate.
        reference: Scores of the other model, for the same texts in the same order.
        confidence: Two-sided level, in (0, 1).
        resamples: Draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are no texts, or they differ.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3 (percentile interval).

    Example:
        >>> old = [TextScore("1", "story", 20.0, 10), TextScore("2", "story", 30.0, 10)]
        >>> new = [TextScore("1", "story", 22.0, 10), TextScore("2", "story", 32.0, 10)]
        >>> f"{perplexity_ratio(new, old)[0]:.3f}"
        '1.221'
    """
    import numpy as np

    if not candidate or [score.id for score in candidate] != [score.id for score in reference]:
        raise ValueError("both models must have scored the same texts in the same order, and at least one")
    losses = np.array(
        [(ours.nats - theirs.nats) / theirs.tokens for ours, theirs in zip(candidate, reference, strict=True)]
    )
    drawn = np.random.default_rng(seed).integers(len(losses), size=(resamples, len(losses)))
    low, high = np.exp(np.quantile(losses[drawn].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2]))
    return math.exp(losses.mean()), Interval(float(low), float(high), confidence, "bootstrap over texts")
