"""What a judged rate says about the true one, where the judge errs and its errors were measured on few items too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sparsegate.contracts import Interval
from sparsegate.evaluation.intervals import clopper_pearson


@dataclass(frozen=True)
class JudgeCalibration:
    """How a judge did on items with known labels.

    Args:
        found: Items with the label that it found.
        with_label: Items with the label.
        cleared: Items without the label that it left alone.
        without_label: Items without the label.
    """

    found: int
    with_label: int
    cleared: int
    without_label: int

    def __post_init__(self) -> None:
        for count, n in ((self.found, self.with_label), (self.cleared, self.without_label)):
            if n < 1 or not 0 <= count <= n:
                raise ValueError(f"a calibration needs items of both kinds and counts within them, got {self}")

    @property
    def sensitivity(self) -> float:
        return self.found / self.with_label

    @property
    def specificity(self) -> float:
        return self.cleared / self.without_label


def corrected_rate(
    judged: int, n: int, calibration: JudgeCalibration, *, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Return the true rate that a judged rate speaks for, and a conservative interval of it.

    The interval puts together exact intervals of the judged rate, the sensitivity and the specificity, each at a third
    of the error (Bonferroni), at their worst corner. So it covers the true rate at least as often as it says, whatever
    the calibration's size; Lang and Reiczigel's narrower interval does so only on average. A judge that can't be told
    from guessing gives [0, 1].

    Args:
        judged: Items that the judge gave the label.
        n: Items that it judged.
        calibration: Its errors, measured on other items of the same kind.
        confidence: Two-sided level, in (0, 1).

    Returns:
        Rogan and Gladen's estimate, held within [0, 1], and the interval.

    Raises:
        ValueError: If the counts or the level can't be.

    Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107:71-76; compare Lang and Reiczigel (2014), Prev. Vet. Med.
    113:13-22.

    Example:
        >>> rate, interval = corrected_rate(16, 160, JudgeCalibration(72, 80, 95, 100))
        >>> f"{rate:.3f} {interval.low:.3f} to {interval.high:.3f}"
        '0.059 0.000 to 0.203'
    """
    each = 1 - (1 - confidence) / 3
    rate = clopper_pearson(judged, n, each)
    sensitivity = clopper_pearson(calibration.found, calibration.with_label, each)
    specificity = clopper_pearson(calibration.cleared, calibration.without_label, each)
    low = _rogan_gladen(rate.low, sensitivity.high, specificity.low, guessing=0.0)
    high = _rogan_gladen(rate.high, sensitivity.low, specificity.high, guessing=1.0)
    best = _rogan_gladen(judged / n, calibration.sensitivity, calibration.specificity, guessing=judged / n)
    return best, Interval(low, high, confidence, "rogan-gladen, clopper-pearson corners")


def corrected_rate_over(
    judged: int, n: int, calibrations: Sequence[JudgeCalibration], *, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Return the true rate that a judged rate speaks for, where the judge was calibrated on several sources.

    Which source the judged items are most like is not known. So the interval spans what each calibration gives
    (:func:`corrected_rate`) and the exact interval without a correction, since false alarms that the sources had
    may be absent here. The estimate is by the mean sensitivity and specificity.

    Args:
        judged: Items that the judge gave the label.
        n: Items that it judged.
        calibrations: Its errors, one for each source; at least one.
        confidence: Two-sided level, in (0, 1).

    Example:
        >>> strict, lax = JudgeCalibration(80, 100, 99, 100), JudgeCalibration(90, 100, 85, 100)
        >>> rate, interval = corrected_rate_over(16, 160, [strict, lax])
        >>> f"{rate:.3f} {interval.low:.3f} to {interval.high:.3f}"
        '0.026 0.000 to 0.248'
    """
    if not calibrations:
        raise ValueError("a rate can't be corrected without a calibration")
    corrected = [corrected_rate(judged, n, each, confidence=confidence)[1] for each in calibrations]
    intervals = [clopper_pearson(judged, n, confidence), *corrected]
    sensitivity, specificity = (
        fmean(rates) for rates in zip(*((each.sensitivity, each.specificity) for each in calibrations), strict=True)
    )
    best = _rogan_gladen(judged / n, sensitivity, specificity, guessing=judged / n)
    low, high = min(interval.low for interval in intervals), max(interval.high for interval in intervals)
    return best, Interval(low, high, confidence, corrected[0].method)


def _rogan_gladen(rate: float, sensitivity: float, specificity: float, *, guessing: float) -> float:
    """Return the corrected rate within [0, 1], or ``guessing`` for a judge that is no better than a coin."""
    power = sensitivity + specificity - 1
    return guessing if power <= 0 else min(1.0, max(0.0, (rate + specificity - 1) / power))
