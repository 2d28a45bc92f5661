"""Random entries: the baseline every other selector must beat."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from sparsegate.contracts import CalibrationStats


class RandomSelector:
    """Scores drawn uniformly.

    Source: Random Masking, arXiv:2405.02596.
    """

    name: Final = "random"
    needs: frozenset[Literal["grad_sum", "grad_sq_sum"]] = frozenset()

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return torch.rand(weight.shape, generator=stats.generator)
