"""Keeps less for the backward pass: cheap elementwise results are made again from what is kept anyway.

A gated MLP, ``down(act(gate) * up)``, plainly keeps ``act(gate)`` beside ``gate`` and ``up``; a norm in bf16 keeps its
input in fp32; an activation spelled out in Python keeps each of its terms. Here they keep their inputs only. The same
operations run in the same order, so outputs and gradients are the same bit for bit. Matrix products are not made
again: that would cost time. Models are changed by their structure, and left alone where it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_GATED_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_ACTIVATIONS = ("act", "act_fn", "activation")
_PROBE_TOKENS, _PROBE_WIDTH = 4, 32
_WORTHWHILE = 1.5  # a module that keeps less than so many times its input is left alone


class _Recomputed(torch.autograd.Function):
    """A function of tensors that keeps these only; its graph is built again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.autocast = function, _autocast_state(inputs[0].device.type)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            kept.detach().requires_grad_(needed)
            for kept, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            output = ctx.function(*inputs)
        gradients = iter(torch.autograd.grad(output, [kept for kept in inputs if kept.requires_grad], grad_output))
        return None, *(next(gradients) if kept.requires_grad else None for kept in inputs)


def _autocast_state(device: str) -> dict[str, Any]:
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
    }


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(*inputs)
    return cast(Tensor, _Recomputed.apply(function, *inputs))  # type: ignore[no-untyped-call]


def keep_less(layers: Iterable[nn.Module]) -> None:
    """Let the gated MLPs, norms and activations of frozen base layers keep their inputs only.

    Undone by :func:`keep_all`. What has trained parameters of its own, or an unknown structure, stays as it is.

    Args:
        layers: Decoder layers that gradients flow through.
    """
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if _is_gated(module):
                module.forward = partial(_gated_forward, module)
            elif _keeps_too_much(name.rpartition(".")[2], module):
                module.forward = partial(_recomputed, module.forward)


def keep_all(layers: Iterable[nn.Module]) -> None:
    """Undo :func:`keep_less`."""
    for layer in layers:
        for module in layer.modules():
            forward = vars(module).get("forward")
            if isinstance(forward, partial) and forward.func in (_gated_forward, _recomputed):
                del module.forward


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let each layer keep its input only and run again in the backward pass: least memory, a third more time."""
    held = list(layers)
    for layer in held:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in held:
            del layer.forward


def _gated_forward(mlp: Any, x: Tensor) -> Tensor:
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    return cast(Tensor, mlp.down_proj(_recomputed(partial(_gate, mlp.act_fn), gate, up)))


def _gate(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    active = activation(gate)
    if torch.is_grad_enabled() or active is gate or active.dtype != up.dtype:
        return active * up
    return active.mul_(up)


@torch.no_grad()
def _is_gated(module: Any) -> bool:
    """Tell whether a module is a gated MLP, by its parts and by what it makes of a probe."""
    if not all(hasattr(module, part) for part in _GATED_PARTS) or "forward" in vars(module):
        return False
    weight = next(module.gate_proj.parameters())
    if not weight.is_floating_point() or _has_trained(module.act_fn):
        return False
    probe = _probe(weight.shape[-1], weight)
    with torch.random.fork_rng(devices=[]):  # an MLP with dropout draws, and then is another function
        try:
            return torch.equal(module(probe), _gated_forward(module, probe))
        except TypeError:  # it takes or gives more than one tensor
            return False


def _has_trained(module: nn.Module | Callable[..., Any]) -> bool:
    return isinstance(module, nn.Module) and any(parameter.requires_grad for parameter in module.parameters())


def _keeps_too_much(name: str, module: nn.Module) -> bool:
    """Tell whether a norm or an activation keeps clearly more than its input, by what it keeps of a probe."""
    weight = getattr(module, "weight", None)
    if "forward" in vars(module) or _has_trained(module):
        return False
    if type(module).__name__.endswith("Norm") and isinstance(weight, Tensor) and weight.dim() == 1:
        probe = _probe(len(weight), weight)
    elif name in _ACTIVATIONS:
        probe = _probe(_PROBE_WIDTH, torch.empty(0))
    else:
        return False
    kept: list[Tensor] = []  # held, so that no storage is another's successor
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_append_to(kept), lambda tensor: tensor):
        module(probe.requires_grad_())
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for at, size in storages.items() if at not in parameters) > _WORTHWHILE * probe.nbytes


def _append_to(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return pack


def _probe(width: int, like: Tensor) -> Tensor:
    return torch.linspace(-2, 2, _PROBE_TOKENS * width, device=like.device, dtype=like.dtype).view(-1, width)
