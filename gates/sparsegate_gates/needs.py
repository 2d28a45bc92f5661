"""What the kinds of bounds that gates set ask for: the least items, and the worst measurement that still passes."""

from __future__ import annotations

from collections.abc import Sequence

from sparsegate.evaluation.intervals import clopper_pearson, tango, wilson
from sparsegate.evaluation.judge_error import JudgeCalibration, corrected_rate_over
from sparsegate.evaluation.planning import (
    items_for_ceiling,
    items_for_floor,
    items_for_margin,
    least_items,
    most_that_pass,
)
from sparsegate_gates.lint import Need, Sizes, at_least_items


def floor_need(question: str, items: str, has: int, *, floor: float, minimum_n: int, confidence: float) -> Need:
    """Return what a floor under a rate asks for."""
    most = most_that_pass(has, lambda wrong: wilson(has - wrong, has, confidence).low >= floor) if has else None
    worst = "" if most is None else f"{has - most} of {has} right ({(has - most) / has:.3f})"
    return Need(question, items, has, at_least_items(minimum_n, items_for_floor(floor, confidence=confidence)), worst)


def ceiling_need(
    question: str,
    items: str,
    has: int,
    *,
    ceiling: float,
    minimum_n: int,
    confidence: float,
    calibrations: Sequence[JudgeCalibration] = (),
) -> Need:
    """Return what a ceiling over a rate asks for, the rate corrected for a judge's errors where they are given."""

    def passes(faults: int, n: int) -> bool:
        if not calibrations:
            return clopper_pearson(faults, n, confidence).high <= ceiling
        return corrected_rate_over(faults, n, calibrations, confidence=confidence)[1].high <= ceiling

    most = most_that_pass(has, lambda faults: passes(faults, has)) if has else None
    worst = "" if most is None else f"{most} of {has} ({most / has:.3f})"
    if ceiling >= 1:
        needed: int | None = 1
    elif not calibrations:
        needed = items_for_ceiling(ceiling, confidence=confidence)
    else:
        needed = least_items(lambda n: passes(0, n))
    return Need(question, items, has, at_least_items(minimum_n, needed), worst)


def margin_need(question: str, items: str, has: int, *, margin: float, minimum_n: int, confidence: float) -> Need:
    """Return what a margin around an equal model asks for."""

    def passes(changed: int) -> bool:
        return tango(has - 2 * changed, changed, changed, 0, confidence=confidence).high <= margin

    most = most_that_pass(has // 2, passes) if has else None
    worst = "" if most is None else f"no net change, {2 * most} of {has} change sides"
    needed = items_for_margin(margin, confidence=confidence) if margin < 1 else 1
    return Need(question, items, has, at_least_items(minimum_n, needed), worst)


def canary_needs(sizes: Sizes, fault: str, minimum_n: int) -> list[Need]:
    """Return how many canaries with and without a label the judge is tried on."""
    return [
        Need(f"canaries, {fault}={label}", "canaries", sizes.canaries.get(f"{fault}={label}", 0), minimum_n)
        for label in (True, False)
    ]
