"""Scores of whole columns and rows, from no more statistics than they take."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, MaskSelector, Statistic, SupportKind, UnitSelector

_SUMMED_AXIS: dict[SupportKind, int] = {"column": 0, "row": 1}


def statistics_needed(selector: MaskSelector, kind: SupportKind) -> frozenset[Statistic]:
    """Return the statistics a selector needs to score the units of one kind of support."""
    if isinstance(selector, UnitSelector) and kind in selector.unit_needs:
        return selector.unit_needs[kind]
    return selector.needs


def unit_scores(selector: MaskSelector, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
    """Return one score for each column, shape (in), or each row, shape (out), of a weight.

    Args:
        selector: Gives the scores; if it scores entries only, those of a column or row are summed.
        weight: The weight, shape (out, in).
        stats: At least the statistics of :func:`statistics_needed`.
        kind: ``column`` or ``row``.
    """
    if isinstance(selector, UnitSelector) and kind in selector.unit_needs:
        return selector.score_units(weight, stats, kind)
    return selector.score(weight, stats).sum(_SUMMED_AXIS[kind])
