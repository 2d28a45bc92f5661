"""Sparse training: shapes of what is trained, and who scores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

SupportKind = Literal["element", "column", "row", "block"]
Allocation = Literal["uniform", "rank", "global"]
Statistic = Literal[
    "grad_sum", "grad_sq_sum", "grad_sq_columns", "grad_sq_rows", "output_grad_sq", "input_sq", "movement"
]


@dataclass(frozen=True)
class CalibrationStats:
    """What calibration batches told about one weight of shape (out, in); absent figures are None.

    Args:
        grad_sum: Sum of the loss gradients over the batches, shape (out, in).
        grad_sq_sum: Sum of the squared gradients over the batches, shape (out, in).
        grad_sq_columns: ``grad_sq_sum`` summed over each column, shape (in).
        grad_sq_rows: ``grad_sq_sum`` summed over each row, shape (out).
        output_grad_sq: Sum of the squared gradients of the map's outputs over all tokens, shape (out).
        input_sq: Sum of the squared inputs of the map over all tokens, shape (in).
        movement: How far the weight moves where each batch's gradient makes a step, shape (out, in).
        generator: Source of randomness for selectors that need it.
    """

    grad_sum: Tensor | None = None
    grad_sq_sum: Tensor | None = None
    grad_sq_columns: Tensor | None = None
    grad_sq_rows: Tensor | None = None
    output_grad_sq: Tensor | None = None
    input_sq: Tensor | None = None
    movement: Tensor | None = None
    generator: Any = None


@runtime_checkable
class MaskSelector(Protocol):
    """Scores the entries of one weight; the highest scores are trained.

    A selector only scores: :func:`sparsegate.sparse.support.top_k` turns scores into indices.
    """

    name: str
    needs: frozenset[Statistic]

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        """Return finite scores of the weight's shape (out, in), on the weight's device."""
        ...


@runtime_checkable
class UnitSelector(MaskSelector, Protocol):
    """A selector that scores whole columns or rows from smaller statistics than it needs for entries.

    ``unit_needs`` names, for each kind of support it does this for (``column``, ``row``), what it then needs in place
    of ``needs``.
    """

    unit_needs: Mapping[SupportKind, frozenset[Statistic]]

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        """Return finite scores of shape (in) for ``column``, (out) for ``row``."""
        ...
