"""The shapes a support can have: single entries, columns, rows, or square blocks of a weight.

Each layout says how many units a weight of shape (out, in) has, how entries of chosen units are read and written, and
how their gradient is made from an input ``x`` (tokens, in) and an output gradient ``dy`` (tokens, out) without the
dense ``dy^T x`` where that can be avoided.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sparsegate.contracts import SupportKind
from sparsegate.errors import UsageError

BLOCK = 32
"""Side of a block, in entries."""


class Layout(Protocol):
    """One shape of support; ``ids`` are the ascending indices of the chosen units."""

    def num_units(self, shape: tuple[int, int]) -> int:
        """Return the number of units of a weight of shape (out, in)."""
        ...

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Sum entry scores, shape (out, in), over each unit; shape (units)."""
        ...

    def entries_shape(self, shape: tuple[int, int], num_chosen: int) -> tuple[int, ...]:
        """Return the shape of the entries of ``num_chosen`` units."""
        ...

    def by_unit(self, entries: Tensor) -> Tensor:
        """View entries of :meth:`entries_shape` as (chosen units, entries of a unit)."""
        ...

    def gather(self, weight: Tensor, ids: Tensor) -> Tensor:
        """Return a copy of the chosen units' entries."""
        ...

    def scatter(self, weight: Tensor, ids: Tensor, entries: Tensor) -> None:
        """Write the chosen units' entries into the weight, in place."""
        ...

    def keep(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return what of the input, shape (..., in), the gradient needs."""
        ...

    def gradient(self, dy: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        """Return the gradient of the entries from ``dy``, shape (tokens, out), and ``kept``, shape (tokens, ...)."""
        ...


class ElementLayout:
    """Single entries; units are flat indices. The gradient is dense, then gathered, and freed at once."""

    def num_units(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    def unit_scores(self, scores: Tensor) -> Tensor:
        return scores.flatten()

    def entries_shape(self, shape: tuple[int, int], num_chosen: int) -> tuple[int, ...]:
        return (num_chosen,)

    def by_unit(self, entries: Tensor) -> Tensor:
        return entries.unsqueeze(1)

    def gather(self, weight: Tensor, ids: Tensor) -> Tensor:
        return weight.flatten().index_select(0, ids)

    def scatter(self, weight: Tensor, ids: Tensor, entries: Tensor) -> None:
        weight.view(-1).index_copy_(0, ids.long(), entries)

    def keep(self, x: Tensor, ids: Tensor) -> Tensor:
        return x

    def gradient(self, dy: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        return (dy.T @ kept).flatten().index_select(0, ids)


class ColumnLayout:
    """Whole input columns: ``dy^T x[:, C]``, and only ``x[:, C]`` is kept."""

    def num_units(self, shape: tuple[int, int]) -> int:
        return shape[1]

    def unit_scores(self, scores: Tensor) -> Tensor:
        return scores.sum(0)

    def entries_shape(self, shape: tuple[int, int], num_chosen: int) -> tuple[int, ...]:
        return (shape[0], num_chosen)

    def by_unit(self, entries: Tensor) -> Tensor:
        return entries.T

    def gather(self, weight: Tensor, ids: Tensor) -> Tensor:
        return weight.index_select(1, ids)

    def scatter(self, weight: Tensor, ids: Tensor, entries: Tensor) -> None:
        weight.index_copy_(1, ids.long(), entries)

    def keep(self, x: Tensor, ids: Tensor) -> Tensor:
        return x.index_select(-1, ids)

    def gradient(self, dy: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        return dy.T @ kept


class RowLayout:
    """Whole output rows: ``dy[:, R]^T x``."""

    def num_units(self, shape: tuple[int, int]) -> int:
        return shape[0]

    def unit_scores(self, scores: Tensor) -> Tensor:
        return scores.sum(1)

    def entries_shape(self, shape: tuple[int, int], num_chosen: int) -> tuple[int, ...]:
        return (num_chosen, shape[1])

    def by_unit(self, entries: Tensor) -> Tensor:
        return entries

    def gather(self, weight: Tensor, ids: Tensor) -> Tensor:
        return weight.index_select(0, ids)

    def scatter(self, weight: Tensor, ids: Tensor, entries: Tensor) -> None:
        weight.index_copy_(0, ids.long(), entries)

    def keep(self, x: Tensor, ids: Tensor) -> Tensor:
        return x

    def gradient(self, dy: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        return dy.index_select(1, ids).T @ kept


class BlockLayout:
    """Square blocks of side :data:`BLOCK`, numbered row by row: each block's gradient is a small product of slices."""

    def num_units(self, shape: tuple[int, int]) -> int:
        if shape[0] % BLOCK or shape[1] % BLOCK:
            raise UsageError(
                f"block supports need weights whose sides are multiples of {BLOCK}, got {tuple(shape)}; use column"
            )
        return shape[0] // BLOCK * (shape[1] // BLOCK)

    def unit_scores(self, scores: Tensor) -> Tensor:
        return _blocks(scores).sum((2, 3)).flatten()

    def entries_shape(self, shape: tuple[int, int], num_chosen: int) -> tuple[int, ...]:
        return (num_chosen, BLOCK, BLOCK)

    def by_unit(self, entries: Tensor) -> Tensor:
        return entries.view(len(entries), -1)

    def gather(self, weight: Tensor, ids: Tensor) -> Tensor:
        rows, columns = _block_places(weight.shape[1], ids)
        return _blocks(weight)[rows, columns]

    def scatter(self, weight: Tensor, ids: Tensor, entries: Tensor) -> None:
        rows, columns = _block_places(weight.shape[1], ids)
        _blocks(weight)[rows, columns] = entries

    def keep(self, x: Tensor, ids: Tensor) -> Tensor:
        return x

    def gradient(self, dy: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        rows, columns = _block_places(kept.shape[1], ids)
        dy_slices = dy.view(len(dy), -1, BLOCK)[:, rows].transpose(0, 1)
        x_slices = kept.view(len(kept), -1, BLOCK)[:, columns].transpose(0, 1)
        return torch.bmm(dy_slices.transpose(1, 2), x_slices)


def _blocks(weight: Tensor) -> Tensor:
    """View a weight as (block rows, block columns, BLOCK, BLOCK)."""
    rows, columns = weight.shape
    return weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).transpose(1, 2)


def _block_places(columns: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    per_row = columns // BLOCK
    wide = ids.long()
    return wide // per_row, wide % per_row


LAYOUTS: dict[SupportKind, Layout] = {
    "element": ElementLayout(),
    "column": ColumnLayout(),
    "row": RowLayout(),
    "block": BlockLayout(),
}
