"""Entries that are largest in a low-rank approximation of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic

_OVERSAMPLING = 8  # further random directions, so that the leading ones are found well; Halko et al., arXiv:0909.4061
_POWER_ITERATIONS = 2


class LiftSelector:
    """Scores ``|W_r|``, where ``W_r`` is the best approximation of W of rank r, found by a randomised SVD.

    A weight whose smaller side is at most r is taken as it is, which is the ``magnitude`` selector.

    Args:
        rank: The rank r; the authors recommend 128.

    Source: LIFT, arXiv:2506.00772; randomised SVD: Halko et al., arXiv:0909.4061.
    """

    name: str = "lift"
    needs: frozenset[Statistic] = frozenset()

    def __init__(self, rank: int = 128) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self._rank = rank

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        matrix = weight.detach().float()
        if self._rank >= min(matrix.shape):
            return matrix.abs()
        seed = int(torch.randint(2**31, (), generator=stats.generator))
        # svd_lowrank draws from the global generators; they go on afterwards as if it had not
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            directions = min(self._rank + _OVERSAMPLING, *matrix.shape)
            u, s, v = torch.svd_lowrank(matrix, q=directions, niter=_POWER_ITERATIONS)
        kept = slice(self._rank)
        return ((u[:, kept] * s[kept]) @ v[:, kept].T).abs_()
