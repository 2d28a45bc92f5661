"""A linear map of which only a support is trained.

The trained values live inside the weight, so the forward pass is a plain ``F.linear``: no clone, no second weight, no
cost at inference. What differs from ``nn.Linear`` is the backward pass, which computes the gradient of the support
only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import Target


class _ColumnLinear(torch.autograd.Function):
    """``x W^T + b`` with the gradient of W's columns C: ``dY^T x[:, C]``; only ``x[:, C]`` is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(x.index_select(-1, ids), weight)
        ctx.x_dtype, ctx.has_bias_grad = x.dtype, bias is not None and bias.requires_grad
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x_columns, weight = ctx.saved_tensors
        grad_rows = grad_output.flatten(0, -2)
        grad_values = (grad_rows.T @ x_columns.flatten(0, -2).to(grad_rows.dtype)).float()
        return _grad_input(ctx, grad_output, weight), None, _grad_bias(ctx, grad_rows), grad_values, None


class _ElementLinear(torch.autograd.Function):
    """``x W^T + b`` with the gradient of single entries of W: the dense ``dY^T x``, gathered and freed at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ids)
        ctx.x_dtype, ctx.has_bias_grad = x.dtype, bias is not None and bias.requires_grad
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ids = ctx.saved_tensors
        grad_rows = grad_output.flatten(0, -2)
        dense = grad_rows.T @ x.flatten(0, -2).to(grad_rows.dtype)
        grad_values = dense.flatten().index_select(0, ids).float()
        return _grad_input(ctx, grad_output, weight), None, _grad_bias(ctx, grad_rows), grad_values, None


def _grad_input(ctx: FunctionCtx, grad_output: Tensor, weight: Tensor) -> Tensor | None:
    if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
        return None
    return (grad_output @ weight.to(grad_output.dtype)).to(ctx.x_dtype)  # type: ignore[attr-defined]


def _grad_bias(ctx: FunctionCtx, grad_rows: Tensor) -> Tensor | None:
    return grad_rows.sum(0) if ctx.has_bias_grad else None  # type: ignore[attr-defined]


_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {"column": _ColumnLinear, "element": _ElementLinear}


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
        function = _FUNCTIONS[self.support.kind]
        arguments = (x, self.linear.weight, self.linear.bias, self.support.values, self.support.ids)
        return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]

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


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Return the model's sparse layers by name, in model order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
