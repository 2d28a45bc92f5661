"""Entries with the largest empirical Fisher information."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic, SupportKind


class FisherSelector:
    """Scores the sum of ``g**2`` over the calibration batches, the diagonal of the empirical Fisher matrix.

    Source: FISH Mask, arXiv:2111.09839, equation 3 (with gradients of batches in place of single samples).
    """

    name: str = "fisher"
    needs: frozenset[Statistic] = frozenset({"grad_sq_sum"})
    unit_needs: Mapping[SupportKind, frozenset[Statistic]] = {
        "column": frozenset({"grad_sq_columns"}),
        "row": frozenset({"grad_sq_rows"}),
    }

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.grad_sq_sum is not None
        return stats.grad_sq_sum

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        sums = stats.grad_sq_rows if kind == "row" else stats.grad_sq_columns
        assert sums is not None
        return sums
