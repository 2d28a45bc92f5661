"""Largest weights first, or smallest first."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic


class MagnitudeSelector:
    """Scores ``|w|``.

    Source: Han et al., Learning both Weights and Connections, arXiv:1506.02626; as a choice of what to train, LIFT,
    arXiv:2506.00772.
    """

    name: str = "magnitude"
    needs: frozenset[Statistic] = frozenset()

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return weight.detach().float().abs()


class MagnitudeBottomSelector:
    """Scores ``-|w|``: the smallest weights are trained, the large ones, which carry what was learnt, are left alone.

    Source: PaFi, arXiv:2305.16742, section 3.
    """

    name: str = "magnitude_bottom"
    needs: frozenset[Statistic] = frozenset()

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return -weight.detach().float().abs()
