"""Scores of whole columns and rows, from no more statistics than they take."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, MaskSelector, Statistic, SupportKind, UnitSelector
from sparsegate.sparse.layouts import LAYOUTS


def statistics_needed(selector: MaskSelector, kind: SupportKind) -> frozenset[Statistic]:
    """Return the statistics a selector needs to score the units of one kind of support."""
    if isinstance(selector, UnitSelector) and kind in selector.unit_needs:
        return selector.unit_needs[kind]
    return selector.needs


def unit_scores(selector: MaskSelector, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
    """Return one score for each unit of a support, shape (units).

    Args:
        selector: Gives the scores; if it scores entries only, those of a unit are summed.
        weight: The weight, shape (out, in).
        stats: At least the statistics of :func:`statistics_needed`.
        kind: Shape of the support.
    """
    if isinstance(selector, UnitSelector) and kind in selector.unit_needs:
        return selector.score_units(weight, stats, kind)
    return LAYOUTS[kind].unit_scores(selector.score(weight, stats))
