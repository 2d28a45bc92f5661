"""How sure a measured rate is: confidence intervals for one rate and for the difference of two rates."""

from __future__ import annotations

import math

from sparsegate.contracts import Interval

# share of the search range kept free at each end, where the score statistic is 0/0
_EDGE = 1e-9


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a rate: close to its stated coverage on average.

    Args:
        successes: Items that count, in [0, n].
        n: Items in all, at least 1.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ValueError: If the counts or the level can't be.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22:209-212.

    Example:
        >>> interval = wilson(81, 263)
        >>> f"{interval.low:.4f} to {interval.high:.4f}"
        '0.2553 to 0.3662'
    """
    return _one_rate(successes, n, confidence, "wilson")


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact (Clopper-Pearson) interval of a rate: its coverage is never below the stated level.

    Args:
        successes: Items that count, in [0, n].
        n: Items in all, at least 1.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ValueError: If the counts or the level can't be.

    Source: Clopper and Pearson (1934), Biometrika 26:404-413.

    Example:
        >>> f"{clopper_pearson(0, 20).high:.4f}"
        '0.1684'
    """
    return _one_rate(successes, n, confidence, "exact")


def tango(both: int, only_candidate: int, only_baseline: int, neither: int, *, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval of (candidate rate - baseline rate) on the same items.

    It keeps its coverage where the rates are near 0 or 1, and has a width even if no item differs.

    Args:
        both: Items that count for both.
        only_candidate: Items that count for the candidate alone.
        only_baseline: Items that count for the baseline alone.
        neither: Items that count for neither.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ValueError: If a count is negative, all are zero, or the level can't be.

    Source: Tango (1998), Statistics in Medicine 17:891-908, equations 24 to 26.

    Example:
        >>> interval = tango(both=59, only_candidate=6, only_baseline=16, neither=80)
        >>> f"{interval.low:.4f} to {interval.high:.4f}"
        '-0.1240 to -0.0054'
    """
    counts = (both, only_candidate, only_baseline, neither)
    if min(counts) < 0:
        raise ValueError(f"counts must be at least 0, got {counts}")
    n = sum(counts)
    _check_level(n, confidence)
    high = tango_upper(only_candidate, only_baseline, n, confidence)
    low = -tango_upper(only_baseline, only_candidate, n, confidence)
    return Interval(low=low, high=high, confidence=confidence, method="tango")


def tango_p(only_candidate: int, only_baseline: int, n: int, *, difference: float) -> float:
    """Return the one-sided p-value that (candidate rate - baseline rate) is at least a given difference.

    A small value says that the candidate is worse than that. It belongs to :func:`tango`: it is below half the error
    of the two-sided level exactly where the interval ends below ``difference``.

    Args:
        only_candidate: Items that count for the candidate alone.
        only_baseline: Items that count for the baseline alone.
        n: Items in all, at least 1.
        difference: In (-1, 1).

    Raises:
        ValueError: If the counts or the difference can't be.

    Example:
        >>> f"{tango_p(0, 24, 480, difference=-0.03):.4f} {tango_p(12, 12, 480, difference=-0.03):.4f}"
        '0.0051 0.9957'
    """
    from scipy.stats import norm

    if min(only_candidate, only_baseline) < 0 or n < max(1, only_candidate + only_baseline):
        raise ValueError(f"counts must be at least 0 and within n={n}, got {(only_candidate, only_baseline)}")
    if not -1 < difference < 1:
        raise ValueError(f"difference must be in (-1, 1), got {difference}")
    excess = only_candidate - only_baseline - n * difference
    variance = _variance(only_candidate, only_baseline, n, difference)
    return float(norm.cdf(excess / math.sqrt(variance))) if variance > 0 else 1.0


def newcombe(successes: int, n: int, other_successes: int, other_n: int, *, confidence: float = 0.95) -> Interval:
    """Return Newcombe's hybrid score interval of (rate - other rate), each measured on items of its own.

    Args:
        successes: Items that count in the first set.
        n: Items in the first set, at least 1.
        other_successes: Items that count in the second set.
        other_n: Items in the second set, at least 1.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ValueError: If the counts or the level can't be.

    Source: Newcombe (1998), Statistics in Medicine 17:873-890, method 10.

    Example:
        >>> interval = newcombe(56, 70, 48, 80)
        >>> f"{interval.low:.4f} to {interval.high:.4f}"
        '0.0524 to 0.3339'
    """
    ours, theirs = wilson(successes, n, confidence), wilson(other_successes, other_n, confidence)
    rate, other = successes / n, other_successes / other_n
    low = rate - other - math.hypot(rate - ours.low, theirs.high - other)
    high = rate - other + math.hypot(ours.high - rate, other - theirs.low)
    return Interval(low=low, high=high, confidence=confidence, method="newcombe")


def mcnemar_exact(only_candidate: int, only_baseline: int) -> float:
    """Return the two-sided exact p-value that both models are right equally often; 1.0 where no item differs.

    Args:
        only_candidate: Items that only the candidate gets right.
        only_baseline: Items that only the baseline gets right.

    Raises:
        ValueError: If a count is negative.

    Source: McNemar (1947), Psychometrika 12:153-157, with the binomial distribution in place of its approximation.

    Example:
        >>> f"{mcnemar_exact(6, 16):.6f}"
        '0.052479'
    """
    from scipy.stats import binomtest

    if min(only_candidate, only_baseline) < 0:
        raise ValueError(f"counts must be at least 0, got {(only_candidate, only_baseline)}")
    differing = only_candidate + only_baseline
    return float(binomtest(only_candidate, differing, 0.5).pvalue) if differing else 1.0


def _one_rate(successes: int, n: int, confidence: float, method: str) -> Interval:
    from scipy.stats import binomtest

    _check_level(n, confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n={n}], got {successes}")
    found = binomtest(successes, n).proportion_ci(confidence_level=confidence, method=method)
    name = "clopper-pearson" if method == "exact" else method
    return Interval(low=float(found.low), high=float(found.high), confidence=confidence, method=name)


def _check_level(n: int, confidence: float) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: no items, no interval")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")


def two_sided_quantile(confidence: float) -> float:
    """Return the normal quantile of a two-sided level, such as 1.96 of 0.95."""
    from scipy.stats import norm

    return float(norm.ppf(0.5 + confidence / 2))


def tango_upper(plus: float, minus: float, n: int, confidence: float) -> float:
    """Return the upper end of :func:`tango`, also for counts that are expected and not whole."""
    from scipy.optimize import brentq

    quantile = two_sided_quantile(confidence)
    observed = (plus - minus) / n
    if observed == 1:
        return 1.0
    room = 1 - observed

    def distance(difference: float) -> float:
        return plus - minus - n * difference + quantile * math.sqrt(_variance(plus, minus, n, difference))

    return float(brentq(distance, observed + _EDGE * room, 1 - _EDGE * room, xtol=1e-12))


def _variance(plus: float, minus: float, n: int, difference: float) -> float:
    """Return the variance of (plus - minus) if the true difference is as given (Tango's constrained estimate)."""
    linear = -plus - minus + (2 * n - plus + minus) * difference
    constant = -minus * difference * (1 - difference)
    minus_rate = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    return max(n * (2 * minus_rate + difference * (1 - difference)), 0.0)
