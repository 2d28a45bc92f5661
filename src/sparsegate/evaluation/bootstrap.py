"""How sure a mean is where items come in groups that belong together, such as questions about one document."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from sparsegate.contracts import Interval

# with fewer clusters percentile intervals are too narrow (Cameron, Gelbach and Miller 2008, section 4)
LEAST_CLUSTERS = 10


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a percentile interval of the mean, drawing whole clusters with replacement.

    A bootstrap of equal values has no width, and one of few clusters too little. In both cases the result is
    Hoeffding's bound over the clusters instead: wide, but it holds for any values within the bounds.

    Args:
        values: One figure for each item, within ``bounds``: 0 and 1 for a rate, -1 to 1 for a paired difference.
        clusters: The cluster of each item.
        bounds: Least and largest value that an item could have had.
        confidence: Two-sided level, in (0, 1).
        resamples: Draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are no items, lengths differ, a value is outside the bounds, or the level can't be.

    Source: Field and Welsh (2007), J. R. Stat. Soc. B 69:369-390 (cluster bootstrap); Hoeffding (1963), J. Am. Stat.
    Assoc. 58:13-30, theorem 2.

    Example:
        >>> cluster_bootstrap([0.0] * 100, ["one document"] * 100)
        Interval(low=0.0, high=1.0, confidence=0.95, method='hoeffding over 1 cluster')
    """
    import numpy as np

    low, high = bounds
    if not values or len(values) != len(clusters):
        raise ValueError(f"needs a cluster for each item and at least one, got {len(clusters)} and {len(values)}")
    if not all(low <= value <= high for value in values):
        raise ValueError(f"values must be in [{low:g}, {high:g}]")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    index = {cluster: position for position, cluster in enumerate(dict.fromkeys(clusters))}
    members = np.array([index[cluster] for cluster in clusters])
    sizes = np.bincount(members).astype(float)
    sums = np.bincount(members, weights=np.asarray(values, dtype=float))
    drawn = np.random.default_rng(seed).integers(len(index), size=(resamples, len(index)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    if len(index) >= LEAST_CLUSTERS and np.ptp(means) > 0:
        ends = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
        return Interval(float(ends[0]), float(ends[1]), confidence, "cluster bootstrap")
    weights = sizes / sizes.sum()
    reach = (high - low) * math.sqrt(math.log(2 / (1 - confidence)) * float(weights @ weights) / 2)
    mean = float(sums.sum() / sizes.sum())
    name = f"hoeffding over {len(index)} cluster{'s' if len(index) > 1 else ''}"
    return Interval(max(low, mean - reach), min(high, mean + reach), confidence, name)
