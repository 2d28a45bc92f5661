"""Entries whose loss gradient is largest over the calibration batches."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic


class GradientSelector:
    """Scores ``|sum of g|``: batches that disagree about the direction cancel out.

    Source: SPEFT, arXiv:2412.13488, section 3.
    """

    name: str = "gradient"
    needs: frozenset[Statistic] = frozenset({"grad_sum"})

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.grad_sum is not None
        return stats.grad_sum.abs()
