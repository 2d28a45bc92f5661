"""How sure a mean of a few figures is, such as one figure for each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from sparsegate.contracts import Interval


def student_t(
    values: Sequence[float], *, confidence: float = 0.95, within: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Return Student's interval of the mean of independent figures that spread like a normal distribution.

    For a comparison that is paired by seed, give the differences.

    Args:
        values: Two figures or more, finite.
        confidence: Two-sided level, in (0, 1).
        within: Where the mean must lie, such as (0, 1) for a share; the interval is cut there.

    Raises:
        ValueError: If there are fewer than two figures, one is not finite, or the level can't be.

    Source: Student (1908), Biometrika 6:1-25.

    Example:
        >>> interval = student_t([0.82, 0.84, 0.83])
        >>> f"{interval.low:.3f} to {interval.high:.3f}"
        '0.805 to 0.855'
    """
    from scipy.stats import t

    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"needs two finite figures or more, got {list(values)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    reach = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return Interval(max(mean - reach, within[0]), min(mean + reach, within[1]), confidence, "student t")
