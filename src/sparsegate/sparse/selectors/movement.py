"""Entries that full fine-tuning moves furthest."""

from __future__ import annotations

from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic


class MovementSelector:
    """Scores ``|w_after - w_before|`` of full fine-tuning on the calibration batches; the weights are then put back.

    One Adam step is taken for each batch. The first moves nearly all entries equally far, so it takes several batches
    to tell them apart. Unlike ``adam``, which reads all gradients at the base model, each is taken where the steps
    before it have led. While it lasts, it takes a third more memory than the gradients and moments of full fine-tuning
    would (:func:`sparsegate.sparse.moving.moving`).

    Source: composable sparse fine-tuning (LT-SFT), arXiv:2110.07560, which trains to the end before it chooses.
    Movement pruning, arXiv:2005.07683, asks for the direction too: away from zero or towards it.
    """

    name: str = "movement"
    needs: frozenset[Statistic] = frozenset({"movement"})

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.movement is not None
        return stats.movement.abs()
