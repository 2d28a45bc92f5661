"""Optimizer and schedule over the trained values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sparsegate.sparse.layers import SparseLayer, sparse_layers


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> AdamW:
    """Return AdamW over the supports' values; after each step they are written into the weights and age by 1."""
    layers = list(sparse_layers(model).values())
    optimizer = AdamW(
        [layer.support.values for layer in layers], lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
    )
    optimizer.register_step_post_hook(partial(_commit, layers))
    return optimizer


def _commit(layers: list[SparseLayer], *_: Any) -> None:
    for layer in layers:
        layer.commit()
        layer.support.age += 1


def make_schedule(optimizer: Optimizer, *, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Return a linear rise over the warm-up followed by a cosine fall to zero."""
    return LambdaLR(optimizer, partial(_factor, total_steps=total_steps, warmup_fraction=warmup_fraction))


def _factor(step: int, *, total_steps: int, warmup_fraction: float) -> float:
    warmup = max(1, round(total_steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def default_learning_rate(*, density: float, frozen_depth: float, by_gradient: bool = True) -> float:
    """Return a learning rate for a density and a depth: the fewer entries are trained, the further each must move.

    Args:
        density: Share of the entries that is trained, in (0, 1].
        frozen_depth: Share of the layers that stays frozen, in [0, 1).
        by_gradient: Entries were chosen by their gradients. Others change the loss less and must move further.

    Source: the rise as density falls is Random Masking's, arXiv:2405.02596, section 4; the constants were fitted to
    this project's experiments (CONTRIBUTING.md, log of results).
    """
    rate = min(3e-3, 6e-4 * math.sqrt(0.1 / density) / (1 - frozen_depth))
    return rate if by_gradient else 3 * rate
