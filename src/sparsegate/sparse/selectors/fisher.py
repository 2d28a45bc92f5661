"""Entries with the largest empirical Fisher information."""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor

from sparsegate.contracts import CalibrationStats


class FisherSelector:
    """Scores the sum of ``g**2`` over the calibration batches, the diagonal of the empirical Fisher matrix.

    Source: FISH Mask, arXiv:2111.09839, equation 3 (with gradients of batches in place of single samples).
    """

    name: Final = "fisher"
    needs: frozenset[Literal["grad_sum", "grad_sq_sum"]] = frozenset({"grad_sq_sum"})

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.grad_sq_sum is not None
        return stats.grad_sq_sum
