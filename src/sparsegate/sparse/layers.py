"""Linear maps of which only a support is trained.

The trained values live inside the weight, so the forward pass is a plain ``F.linear`` or look-up: no clone, no second
weight, no cost at inference. What differs from the plain map is the backward pass, which computes the gradient of the
support only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsegate.sparse.layouts import Layout
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import MapKind, Target, embed_scale

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


class _SparseLinear(torch.autograd.Function):
    """``x W^T + b`` whose backward pass computes the gradient of the support's entries in place of W's.

    ``weight`` is (out, in); the support is one of the weight as stored, which is its transpose if ``is_transposed``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        ids: Tensor,
        layout: Layout,
        is_transposed: bool,
    ) -> Tensor:
        kept = layout.narrow_a(x, ids) if is_transposed else layout.narrow_b(x, ids)
        ctx.save_for_backward(kept, weight, ids)
        ctx.layout, ctx.is_transposed = layout, is_transposed
        ctx.x_dtype, ctx.has_bias_grad = x.dtype, bias is not None and bias.requires_grad
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, ids = ctx.saved_tensors
        dy = grad_output.flatten(0, -2)
        kept = kept.flatten(0, -2).to(dy.dtype)
        if ctx.is_transposed:
            grad_values = ctx.layout.gradient(kept, ctx.layout.narrow_b(dy, ids), ids)
        else:
            grad_values = ctx.layout.gradient(ctx.layout.narrow_a(dy, ids), kept, ids)
        grad_x = (grad_output @ weight.to(dy.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, dy.sum(0) if ctx.has_bias_grad else None, grad_values.float(), None, None, None


class _SparseEmbedding(torch.autograd.Function):
    """A look-up whose backward pass sums the gradients of the chosen tokens; those of others are dropped."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, values: Tensor, ids: Tensor, padding_id: int | None
    ) -> Tensor:
        ctx.save_for_backward(tokens, ids)
        ctx.padding_id, ctx.values_shape, ctx.values_dtype = padding_id, values.shape, values.dtype
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tokens, ids = ctx.saved_tensors
        tokens = tokens.flatten().to(ids.dtype)
        places = torch.searchsorted(ids, tokens).clamp_(max=len(ids) - 1)
        is_chosen = ids[places] == tokens
        if ctx.padding_id is not None:  # as in nn.Embedding
            is_chosen &= tokens != ctx.padding_id
        dy = grad_output.flatten(0, -2)[is_chosen].to(ctx.values_dtype)
        grad_values = dy.new_zeros(ctx.values_shape).index_add_(0, places[is_chosen], dy)
        return None, None, grad_values, None, None


class SparseLinear(nn.Module):
    """Stands in the model where a linear map stood, and shares its weight.

    Args:
        linear: The linear map; its weight is frozen except for the support.
        support: The trained entries of the weight as stored.
        map_kind: How the weight is stored: ``linear`` or ``conv1d``.
    """

    def __init__(self, linear: nn.Linear | Conv1D, support: SparseSupport, map_kind: MapKind = "linear") -> None:
        super().__init__()
        self.linear = linear
        self.support = support
        self.map_kind = map_kind

    def forward(self, x: Tensor) -> Tensor:
        is_transposed = self.map_kind != "linear"
        weight = self.linear.weight.T if is_transposed else self.linear.weight
        if not torch.is_grad_enabled():
            return F.linear(x, weight, self.linear.bias)
        support = self.support
        arguments = (x, weight, self.linear.bias, support.values, support.ids, support.layout, is_transposed)
        return cast(Tensor, _SparseLinear.apply(*arguments))  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.linear.weight)

    def commit(self) -> None:
        self.support.commit(self.weight)


class SparseEmbedding(nn.Module):
    """Stands in the model where the token embedding stood, and shares its weight.

    Args:
        linear: The embedding, a linear map of one-hot vectors; its weight (tokens, width) is frozen except for the
            support.
        support: The trained rows.
    """

    map_kind: MapKind = "embedding"

    def __init__(self, linear: nn.Embedding, support: SparseSupport) -> None:
        super().__init__()
        self.linear = linear
        self.support = support

    def forward(self, tokens: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, self.linear(tokens))
        support = self.support
        arguments = (tokens, self.weight, support.values, support.ids, self.linear.padding_idx)
        found = cast(Tensor, _SparseEmbedding.apply(*arguments))  # type: ignore[no-untyped-call]
        scale = embed_scale(self.linear)
        return found if scale is None else found * scale

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def commit(self) -> None:
        self.support.commit(self.weight)


SparseLayer = SparseLinear | SparseEmbedding


def install(model: nn.Module, target: Target, support: SparseSupport) -> SparseLayer:
    """Put a sparse layer in the place of a target and return it; a head tied to it gets one with the same support."""
    layer: SparseLayer
    if isinstance(target.linear, nn.Embedding):
        layer = SparseEmbedding(target.linear, support)
        if target.tied_head is not None:
            _replace(model, target.tied_head, SparseLinear(model.get_submodule(target.tied_head), support))
    else:
        layer = SparseLinear(target.linear, support, target.map_kind)
    _replace(model, target.name, layer)
    return layer


def uninstall(model: nn.Module) -> None:
    """Give the model its plain maps back; the weights stay as trained."""
    for name, module in _all_sparse_layers(model).items():
        _replace(model, name, module.linear)


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Give the model its plain maps back while the block runs."""
    layers = _all_sparse_layers(model)
    uninstall(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the model's sparse layers by name, in model order, one for each support: no tied head."""
    first: dict[SparseSupport, str] = {}
    found = _all_sparse_layers(model)
    for name, module in found.items():
        first.setdefault(module.support, name)
    return {name: found[name] for name in first.values()}


def _all_sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, SparseLinear | SparseEmbedding)
    }


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
