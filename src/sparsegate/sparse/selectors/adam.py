"""Entries on which the calibration batches agree."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic

_SMALLEST = 1e-12  # of the root of the summed squares: far below gradients that train, far above underflow


class AdamSelector:
    """Scores ``|sum of g| / sqrt(sum of g**2)``: the size of Adam's step, which is a signal-to-noise ratio.

    An entry scores highest if all batches push it the same way by the same amount, however little that is.

    Source: Adam, arXiv:1412.6980, section 2.1 (the ratio of the moments, here over the calibration batches).
    """

    name: str = "adam"
    needs: frozenset[Statistic] = frozenset({"grad_sum", "grad_sq_sum"})

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.grad_sum is not None
        assert stats.grad_sq_sum is not None
        return stats.grad_sum.abs() / (stats.grad_sq_sum.sqrt() + _SMALLEST)
