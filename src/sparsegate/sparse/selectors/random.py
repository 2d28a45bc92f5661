"""Random entries: the baseline every other selector must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic


class RandomSelector:
    """Scores drawn uniformly.

    Source: Random Masking, arXiv:2405.02596.
    """

    name: str = "random"
    needs: frozenset[Statistic] = frozenset()

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        # drawn on the CPU: the same mask on every device
        return torch.rand(weight.shape, generator=stats.generator).to(weight.device)
