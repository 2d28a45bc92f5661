"""The shapes a support can have: single entries, columns, rows, or square blocks of a weight.

Each layout says how many units a weight has, how entries of chosen units are read and written, and how their gradient
is made without the dense one where that can be avoided. The dense gradient of a weight of shape (m, n) is ``a^T b``,
with ``a`` (tokens, m) and ``b`` (tokens, n): for a weight stored as (out, in), ``a`` is the output gradient and ``b``
the input; for one stored as (in, out), as GPT-2's are, ``a`` is the input and ``b`` the output gradient.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sparsegate.contracts import SupportKind
from sparsegate.errors import UsageError
from sparsegate.sparse.sampled import element_gradient

BLOCK = 32
"""Side of a block, in entries."""


class Layout(Protocol):
    """One shape of support; ``ids`` are the ascending indices of the chosen units."""

    def num_units(self, shape: tuple[int, int]) -> int:
        """Return the number of units of a weight of shape (m, n)."""
        ...

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Sum entry scores, shape (m, n), over each unit; shape (units)."""
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

    def narrow_a(self, a: Tensor, ids: Tensor) -> Tensor:
        """Return what the gradient needs of ``a``, shape (..., m)."""
        ...

    def narrow_b(self, b: Tensor, ids: Tensor) -> Tensor:
        """Return what the gradient needs of ``b``, shape (..., n)."""
        ...

    def gradient(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        """Return the gradient of the entries from the narrowed ``a`` and ``b``, shapes (tokens, ...)."""
        ...


class ElementLayout:
    """Single entries; units are flat indices."""

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

    def narrow_a(self, a: Tensor, ids: Tensor) -> Tensor:
        return a

    def narrow_b(self, b: Tensor, ids: Tensor) -> Tensor:
        return b

    def gradient(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return element_gradient(a, b, ids)


class ColumnLayout:
    """Whole columns: ``a^T b[:, C]``."""

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

    def narrow_a(self, a: Tensor, ids: Tensor) -> Tensor:
        return a

    def narrow_b(self, b: Tensor, ids: Tensor) -> Tensor:
        return b.index_select(-1, ids)

    def gradient(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return a.T @ b


class RowLayout:
    """Whole rows: ``a[:, R]^T b``."""

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

    def narrow_a(self, a: Tensor, ids: Tensor) -> Tensor:
        return a.index_select(-1, ids)

    def narrow_b(self, b: Tensor, ids: Tensor) -> Tensor:
        return b

    def gradient(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        return a.T @ b


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

    def narrow_a(self, a: Tensor, ids: Tensor) -> Tensor:
        return a

    def narrow_b(self, b: Tensor, ids: Tensor) -> Tensor:
        return b

    def gradient(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        rows, columns = _block_places(b.shape[1], ids)
        a_slices = a.reshape(len(a), -1, BLOCK)[:, rows].transpose(0, 1)
        b_slices = b.reshape(len(b), -1, BLOCK)[:, columns].transpose(0, 1)
        return torch.bmm(a_slices.transpose(1, 2), b_slices)


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

TRANSPOSED: dict[SupportKind, SupportKind] = {"element": "element", "column": "row", "row": "column", "block": "block"}
"""What units of a weight are in its transpose."""


def transpose_support(kind: SupportKind, ids: Tensor, shape: tuple[int, int]) -> tuple[SupportKind, Tensor]:
    """Return the kind and the ids of the same support in the transposed weight.

    Args:
        kind: Shape of the support.
        ids: Ascending indices of the chosen units.
        shape: Shape of the weight, before it is transposed.

    Example:
        >>> transpose_support("element", torch.tensor([1, 3]), (2, 3))
        ('element', tensor([1, 2]))
        >>> transpose_support("column", torch.tensor([0, 2]), (2, 3))
        ('row', tensor([0, 2]))
    """
    if kind in ("element", "block"):
        side = BLOCK if kind == "block" else 1
        rows, columns = shape[0] // side, shape[1] // side
        ids = (ids % columns * rows + ids // columns).sort().values
    return TRANSPOSED[kind], ids


def transpose_unit_scores(kind: SupportKind, scores: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the scores of the same units in the order in which the transposed weight numbers them.

    Args:
        kind: Shape of the support.
        scores: One score for each unit, shape (units).
        shape: Shape of the weight, before it is transposed.
    """
    if kind in ("element", "block"):
        side = BLOCK if kind == "block" else 1
        return scores.view(shape[0] // side, shape[1] // side).T.flatten()
    return scores
