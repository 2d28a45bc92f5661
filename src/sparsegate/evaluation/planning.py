"""How many items a bound needs: the least n at which an interval around an expected rate keeps within it.

Expected counts are rates times n and not rounded, as is usual in planning; for perfect rates (1 for a floor, 0 for a
ceiling, no item that differs for a margin) they are whole, and the answer is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sparsegate.evaluation.intervals import tango_upper, two_sided_quantile

_MOST = 10_000_000


def items_for_floor(floor: float, *, expected: float = 1.0, confidence: float = 0.95) -> int | None:
    """Return the least n at which the lower end of Wilson's interval reaches a floor; None if none does.

    Args:
        floor: The bound.
        expected: The rate that is expected to be measured.
        confidence: Two-sided level.

    Example:
        >>> items_for_floor(0.70), items_for_floor(0.70, expected=0.75), items_for_floor(1.0)
        (9, 323, None)
    """
    z = two_sided_quantile(confidence)

    def holds(n: int) -> bool:
        half = z * math.sqrt(expected * (1 - expected) / n + z * z / (4 * n * n))
        return (expected + z * z / (2 * n) - half) / (1 + z * z / n) >= floor

    return least_items(holds)


def items_for_ceiling(ceiling: float, *, expected: float = 0.0, confidence: float = 0.95) -> int | None:
    """Return the least n at which the upper end of the exact interval stays within a ceiling; None if none does.

    Args:
        ceiling: The bound.
        expected: The rate that is expected to be measured.
        confidence: Two-sided level.

    Example:
        >>> items_for_ceiling(0.05), items_for_ceiling(0.10, expected=0.05), items_for_ceiling(0.0)
        (72, 142, None)
    """
    from scipy.special import betaincinv

    def holds(n: int) -> bool:
        count = expected * n
        return count < n and float(betaincinv(count + 1, n - count, 0.5 + confidence / 2)) <= ceiling

    return least_items(holds)


def items_for_margin(
    margin: float, *, differing: float = 0.0, difference: float = 0.0, confidence: float = 0.95
) -> int | None:
    """Return the least n at which Tango's interval proves a loss of no more than a margin; None if none does.

    Args:
        margin: Largest loss allowed, in (0, 1].
        differing: Share of the items that are expected to be right for one model only.
        difference: Expected difference (candidate - other), no larger than ``differing`` either way.
        confidence: Two-sided level.

    Raises:
        ValueError: If ``difference`` is larger than ``differing``.

    Example:
        >>> items_for_margin(0.03), items_for_margin(0.03, differing=0.1), items_for_margin(0.0)
        (125, 456, None)
    """
    if abs(difference) > differing:
        raise ValueError(f"difference must be at most differing={differing:g} either way, got {difference:g}")
    lost, won = (differing - difference) / 2, (differing + difference) / 2
    return least_items(lambda n: tango_upper(lost * n, won * n, n, confidence) <= margin)


def most_that_pass(n: int, passes: Callable[[int], bool]) -> int | None:
    """Return the largest count in [0, n] with which a check still passes, if fewer always do; None if none does.

    Example:
        >>> most_that_pass(10, lambda faults: faults <= 3)
        3
    """
    if not passes(0):
        return None
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def least_items(holds: Callable[[int], bool]) -> int | None:
    """Return the least n that holds, if all larger ones do too; None if none up to ten million does."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
