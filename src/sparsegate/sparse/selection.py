"""Choosing what to train: calibration, scores, supports.

Gradients are taken one weight at a time: each is added to its statistics and freed as soon as back-propagation has made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsegate.contracts import CalibrationStats, MaskSelector, SupportKind
from sparsegate.errors import DataError
from sparsegate.sparse.layers import install
from sparsegate.sparse.support import SparseSupport, choose_ids
from sparsegate.sparse.targets import Target

Batch = TypeVar("Batch")


def calibrate(
    targets: list[Target],
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    needs: frozenset[str],
) -> dict[str, dict[str, Tensor]]:
    """Measure gradient statistics of the targets' weights.

    Args:
        targets: Weights to measure.
        batches: Calibration batches.
        loss: Gives the scalar loss of one batch.
        needs: Which statistics to gather: ``grad_sum``, ``grad_sq_sum``.

    Returns:
        For each target's name the statistics, each of the weight's shape (out, in), fp32.

    Raises:
        DataError: If there is no batch, or a loss is not finite.
    """
    sums: dict[str, dict[str, Tensor]] = {
        target.name: {need: torch.zeros_like(target.linear.weight, dtype=torch.float32) for need in needs}
        for target in targets
    }
    handles: list[RemovableHandle] = []
    for target in targets:
        target.linear.weight.requires_grad_(True)
        hook = partial(_accumulate, sums[target.name])
        handles.append(target.linear.weight.register_post_accumulate_grad_hook(hook))
    try:
        count = 0
        for count, batch in enumerate(batches, start=1):
            value = loss(batch)
            if not bool(torch.isfinite(value)):
                raise DataError(f"calibration batch {count} has a loss of {float(value)}; check its samples")
            value.backward()  # type: ignore[no-untyped-call]
        if count == 0:
            raise DataError("no calibration batch; the training set is empty")
    finally:
        for handle in handles:
            handle.remove()
        for target in targets:
            target.linear.weight.requires_grad_(False)
            target.linear.weight.grad = None
    return sums


def _accumulate(sums: Mapping[str, Tensor], weight: Tensor) -> None:
    assert weight.grad is not None
    gradient = weight.grad.float()
    if "grad_sum" in sums:
        sums["grad_sum"].add_(gradient)
    if "grad_sq_sum" in sums:
        sums["grad_sq_sum"].addcmul_(gradient, gradient)
    weight.grad = None


def select(
    model: nn.Module,
    targets: list[Target],
    selector: MaskSelector,
    statistics: Mapping[str, Mapping[str, Tensor]],
    *,
    kind: SupportKind,
    density: float,
    seed: int,
) -> None:
    """Score the targets, choose their supports and put sparse layers in their places.

    Args:
        model: The model that holds the targets.
        targets: Weights to train.
        selector: Gives the scores.
        statistics: What :func:`calibrate` returned; empty for selectors that need none.
        kind: Shape of the supports.
        density: Share of each weight's entries to train.
        seed: Seed for selectors that draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for target in targets:
        weight = target.linear.weight
        scores = selector.score(weight, CalibrationStats(**statistics.get(target.name, {}), generator=generator))
        ids = choose_ids(scores.to(weight.device), kind, density)
        install(model, target, SparseSupport(kind, ids, weight))
