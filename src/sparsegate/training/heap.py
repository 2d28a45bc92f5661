"""Freed memory goes back to the system while a step runs; glibc alone would keep it as holes.

torch aligns its blocks, and in glibc's heap an aligned block does not fit the hole that one of its size has left. So
what a layer frees is not used again by the next one, and a fifth of a step's peak was such holes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_EVERY_LAYERS = 5
_WORTHWHILE_BYTES = 1 << 20  # a layer's output below this leaves small holes, and going over the heap takes its time


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim() -> None:
    """Give freed memory back to the system, where the C library is one that keeps it."""
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)


def trim_between(layers: Sequence[nn.Module]) -> ExitStack:
    """Trim the heap after every fifth of the layers, from the first on, in passes that keep a graph and backwards.

    Only where layers run on the CPU, and with batches that are large enough for it to matter.

    Args:
        layers: Decoder layers.

    Returns:
        What ends it when it is closed.
    """
    hooks = ExitStack()
    for layer in layers[::_EVERY_LAYERS]:
        hooks.enter_context(layer.register_forward_hook(_trim_after))
    return hooks


def _trim_after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    if torch.is_grad_enabled() and states.is_cpu and states.nbytes >= _WORTHWHILE_BYTES:
        trim()
        if states.requires_grad:
            states.register_hook(_trim_before)  # type: ignore[no-untyped-call]


def _trim_before(_: Tensor) -> None:
    trim()
