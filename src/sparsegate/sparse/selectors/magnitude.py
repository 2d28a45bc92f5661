"""Largest weights first."""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor

from sparsegate.contracts import CalibrationStats


class MagnitudeSelector:
    """Scores ``|w|``.

    Source: Han et al., Learning both Weights and Connections, arXiv:1506.02626; as a choice of what to train, LIFT, arXiv:2506.00772.
    """

    name: Final = "magnitude"
    needs: frozenset[Literal["grad_sum", "grad_sq_sum"]] = frozenset()

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return weight.detach().float().abs()
