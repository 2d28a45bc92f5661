"""The one mask form: which entries of a weight are trained, and their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from sparsegate.contracts import SupportKind
from sparsegate.sparse.layouts import LAYOUTS


def top_k(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores of a 1-d tensor, in ascending order.

    The count is exact and equal scores are taken lowest index first, so that the mask is the same on every machine and
    rank.

    Raises:
        ValueError: If a score is not finite or ``count`` is out of range.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2)
        tensor([1, 2], dtype=torch.int32)
    """
    if not 1 <= count <= scores.numel():
        raise ValueError(f"count must be in [1, {scores.numel()}], got {count}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite; the calibration loss gave NaN or infinity")
    cut = torch.topk(scores, count, sorted=False).values.min()
    chosen = scores > cut
    missing = count - int(chosen.sum())
    ties = torch.nonzero(scores == cut).flatten()[:missing]
    chosen[ties] = True
    ids = torch.nonzero(chosen).flatten()
    return ids.to(torch.int32) if scores.numel() < 2**31 else ids


def num_chosen(num_units: int, density: float) -> int:
    """Return how many of a weight's units a density takes; at least one."""
    return max(1, round(num_units * density))


class SparseSupport(nn.Module):
    """The trained entries of one weight, in terms of the weight as it is stored.

    Args:
        kind: ``element``, ``column``, ``row`` or ``block``.
        ids: Ascending indices of the chosen units.
        weight: The weight; its present entries become ``originals``.
    """

    ids: Tensor
    originals: Tensor
    age: Tensor  # optimizer steps since each unit was chosen

    def __init__(self, kind: SupportKind, ids: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.kind: SupportKind = kind
        self.layout = LAYOUTS[kind]
        self.shape = tuple(weight.shape)
        self.register_buffer("ids", ids)
        self.register_buffer("originals", self.gather(weight).clone())
        self.register_buffer("age", torch.zeros(len(ids), dtype=torch.int32, device=ids.device))
        # fp32: bf16 drops updates below |w| * 2**-8
        self.values = nn.Parameter(self.originals.to(torch.float32, copy=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to another device; values stay fp32 where the model is turned to another dtype."""
        wide = (self.values, self.values.grad)

        def keep_wide(tensor: Tensor) -> Tensor:
            is_wide = any(tensor is one for one in wide)
            return tensor.to(fn(tensor).device) if is_wide else fn(tensor)

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self

    def gather(self, weight: Tensor) -> Tensor:
        """Return a copy of the supported entries of a weight, in the layout's shape."""
        return self.layout.gather(weight.detach(), self.ids)

    @torch.no_grad()
    def scatter(self, entries: Tensor, weight: Tensor) -> None:
        """Write entries of :meth:`gather`'s shape into the weight, in place."""
        self.layout.scatter(weight, self.ids, entries.to(weight.dtype))

    def commit(self, weight: Tensor) -> None:
        """Write the trained values into the weight."""
        self.scatter(cast(Tensor, self.values), weight)

    def revert(self, weight: Tensor) -> None:
        """Write the original entries back, bit for bit."""
        self.scatter(self.originals, weight)
