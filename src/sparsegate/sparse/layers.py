"""A linear map of which only a support is trained.

The trained values live inside the weight, so the forward pass is a plain ``F.linear``: no clone, no second weight, no
cost at inference. What differs from ``nn.Linear`` is the backward pass, which computes the gradient of the support
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsegate.sparse.layouts import Layout
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import Target


class _SparseLinear(torch.autograd.Function):
    """``x W^T + b`` whose backward pass computes the gradient of the support's entries in place of W's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, ids: Tensor, layout: Layout
    ) -> Tensor:
        ctx.save_for_backward(layout.keep(x, ids), weight, ids)
        ctx.layout, ctx.x_dtype, ctx.has_bias_grad = layout, x.dtype, bias is not None and bias.requires_grad
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, ids = ctx.saved_tensors
        dy = grad_output.flatten(0, -2)
        grad_values = ctx.layout.gradient(dy, kept.flatten(0, -2).to(dy.dtype), ids).float()
        grad_x = (grad_output @ weight.to(dy.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, dy.sum(0) if ctx.has_bias_grad else None, grad_values, None, None


class SparseLinear(nn.Module):
    """Stands in the model where the ``nn.Linear`` stood, and shares its weight.

    Args:
        linear: The linear map; its weight (out, in) is frozen except for the support.
        support: The trained entries.
    """

    def __init__(self, linear: nn.Linear, support: SparseSupport) -> None:
        super().__init__()
        self.linear = linear
        self.support = support

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.linear(x, self.linear.weight, self.linear.bias)
        support = self.support
        arguments = (x, self.linear.weight, self.linear.bias, support.values, support.ids, support.layout)
        return cast(Tensor, _SparseLinear.apply(*arguments))  # type: ignore[no-untyped-call]

    def commit(self) -> None:
        self.support.commit(self.linear.weight)


def install(model: nn.Module, target: Target, support: SparseSupport) -> SparseLinear:
    """Put a sparse layer in the place of a target and return it."""
    layer = SparseLinear(target.linear, support)
    _replace(model, target.name, layer)
    return layer


def uninstall(model: nn.Module) -> None:
    """Give the model its plain linear maps back; the weights stay as trained."""
    for name, module in sparse_layers(model).items():
        _replace(model, name, module.linear)


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Give the model its plain linear maps back while the block runs."""
    layers = sparse_layers(model)
    uninstall(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Return the model's sparse layers by name, in model order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
