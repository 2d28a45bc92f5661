"""Entries between active inputs and outputs that matter: Fisher information at the memory of two vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsegate.contracts import CalibrationStats, Statistic, SupportKind


class SeparableSelector:
    """Scores ``sum of dy**2`` (of the entry's row) times ``sum of x**2`` (of its column) over all tokens.

    It equals the Fisher information of the entry where input and output gradient are independent. The statistics are
    ``out + in`` numbers for each weight in place of ``out * in``, and no weight gradient is computed for them. Padded
    positions count as inputs, so batches of similar length are best.

    Source: the diagonal of K-FAC's Kronecker factors, arXiv:1503.05671, section 3.
    """

    name: str = "separable"
    needs: frozenset[Statistic] = frozenset({"output_grad_sq", "input_sq"})
    unit_needs: Mapping[SupportKind, frozenset[Statistic]] = {"column": needs, "row": needs}

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        assert stats.output_grad_sq is not None
        assert stats.input_sq is not None
        return torch.outer(stats.output_grad_sq, stats.input_sq)

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        assert stats.output_grad_sq is not None
        assert stats.input_sq is not None
        if kind == "row":
            return stats.output_grad_sq * stats.input_sq.sum()
        return stats.input_sq * stats.output_grad_sq.sum()
