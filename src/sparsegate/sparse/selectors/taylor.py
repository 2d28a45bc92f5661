"""Entries whose removal would change the loss most, to first order."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic


class TaylorSelector:
    """Scores ``|w * sum of g|``: the first-order Taylor estimate of what setting the entry to zero does to the loss.

    Source: Molchanov et al., arXiv:1611.06440, section 2.2; for single weights, SNIP, arXiv:1810.02340.
    """

    name: str = "taylor"
    needs: frozenset[Statistic] = frozenset({"grad_sum"})

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.grad_sum is not None
        return (weight.detach().float() * stats.grad_sum).abs()
