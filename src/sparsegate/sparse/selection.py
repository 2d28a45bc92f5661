"""Choosing what to train: calibration, scores, supports.

Gradients are taken one weight at a time: each is added to its statistics and freed as soon as back-propagation has made
it. Only the statistics that a selector needs are kept; those of :data:`FLOW` cost no weight gradient at all, and for
``movement`` the weights move, and are put back (:mod:`sparsegate.sparse.moving`).

Scores and units are those of the map, as (out, in); weights that are stored as (in, out) are turned for it, and the
chosen support is turned back. Of an embedding the inputs are the tokens of the vocabulary, so ``input_sq`` counts them.
With a tied head, gradients of the weight hold both its uses, and the statistics of :data:`FLOW` the look-up only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsegate.contracts import Allocation, CalibrationStats, MaskSelector, Statistic, SupportKind
from sparsegate.errors import DataError, UsageError
from sparsegate.sparse.budget import global_counts, rank_counts, tensor_units, uniform_counts
from sparsegate.sparse.layers import install
from sparsegate.sparse.layouts import transpose_support
from sparsegate.sparse.moving import moving
from sparsegate.sparse.selectors.combine import PrefilterSelector
from sparsegate.sparse.selectors.units import unit_scores
from sparsegate.sparse.support import SparseSupport, top_k
from sparsegate.sparse.targets import Target

Batch = TypeVar("Batch")

FLOW: frozenset[Statistic] = frozenset({"output_grad_sq", "input_sq"})
"""Statistics of what flows through a map, in place of gradients of its weight."""


def calibrate(
    targets: list[Target],
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    needs: frozenset[Statistic],
) -> dict[str, dict[str, Tensor]]:
    """Measure statistics of the targets.

    Args:
        targets: Weights to measure.
        batches: Calibration batches.
        loss: Gives the scalar loss of one batch.
        needs: Which statistics to gather, as :func:`~sparsegate.sparse.selectors.units.statistics_needed` gives them.

    Returns:
        For each target's name the statistics, fp32, of the shapes that :class:`~sparsegate.contracts.CalibrationStats`
        tells.

    Raises:
        DataError: If there is no batch, or a loss is not finite.
    """
    held = list(batches)
    sums: dict[str, dict[str, Tensor]] = {target.name: {} for target in targets}
    if still := needs - {"movement"}:
        sums = _gather(targets, held, loss, needs=still)
    if "movement" in needs:  # in passes of their own, so that all else is measured on the base model
        with _asking_for_gradients(targets), moving(targets) as moved:
            _back_propagate(held, loss)
        for name, values in moved.items():
            sums[name]["movement"] = values
    return sums


def _gather(
    targets: list[Target], batches: list[Batch], loss: Callable[[Batch], Tensor], *, needs: frozenset[Statistic]
) -> dict[str, dict[str, Tensor]]:
    sums: dict[str, dict[str, Tensor]] = {
        target.name: {need: _zeros(need, target.matrix) for need in needs} for target in targets
    }
    watched = targets if needs & FLOW else []
    differentiated = targets if needs - FLOW else []
    handles: list[RemovableHandle] = []
    with _asking_for_gradients(differentiated):
        for target in differentiated:
            hook = partial(_add_gradient, sums[target.name], target.is_transposed)
            handles.append(target.linear.weight.register_post_accumulate_grad_hook(hook))
        for target in watched:
            handles.append(target.linear.register_forward_hook(_ask_for_gradient))
        try:
            # watched in the forward pass only: in the backward pass checkpointed layers run again
            _back_propagate(batches, loss, watching=partial(_watching, watched, sums))
        finally:
            for handle in handles:
                handle.remove()
    return sums


@contextmanager
def _asking_for_gradients(targets: list[Target]) -> Iterator[None]:
    weights = [target.linear.weight for target in targets]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def _back_propagate(
    batches: list[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    watching: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Take the gradients of each batch's loss, which hooks have to free; ``watching`` is around the forward pass."""
    if not batches:
        raise DataError("no calibration batch; the training set is empty")
    for number, batch in enumerate(batches, start=1):
        torch.clear_autocast_cache()  # weights may have moved since they were cast
        with watching():
            value = loss(batch)
        if not bool(torch.isfinite(value)):
            raise DataError(f"calibration batch {number} has a loss of {value.item()}; check its samples")
        value.backward()  # type: ignore[no-untyped-call]


def _zeros(need: Statistic, matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    shapes: dict[Statistic, tuple[int, ...]] = {
        "grad_sum": (rows, columns),
        "grad_sq_sum": (rows, columns),
        "grad_sq_columns": (columns,),
        "grad_sq_rows": (rows,),
        "output_grad_sq": (rows,),
        "input_sq": (columns,),
    }
    return torch.zeros(shapes[need], dtype=torch.float32, device=matrix.device)


def _add_gradient(sums: Mapping[str, Tensor], is_transposed: bool, weight: Tensor) -> None:
    assert weight.grad is not None
    gradient = (weight.grad.T if is_transposed else weight.grad).float()
    if "grad_sum" in sums:
        sums["grad_sum"].add_(gradient)
    if "grad_sq_sum" in sums:
        sums["grad_sq_sum"].addcmul_(gradient, gradient)
    if "grad_sq_columns" in sums:
        sums["grad_sq_columns"].add_(torch.linalg.vector_norm(gradient, dim=0).square_())
    if "grad_sq_rows" in sums:
        sums["grad_sq_rows"].add_(torch.linalg.vector_norm(gradient, dim=1).square_())
    weight.grad = None


@contextmanager
def _watching(targets: list[Target], sums: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(target.linear.register_forward_hook(partial(_watch, sums[target.name])))
        yield


def _ask_for_gradient(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
    if not output.requires_grad:  # the first maps, below which nothing needs a gradient
        output.requires_grad_(True)


def _watch(sums: Mapping[str, Tensor], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook: add the inputs, and see to it that the outputs' gradients will be added."""
    if not isinstance(module, nn.Embedding):
        _add_squares("input_sq", sums, inputs[0])
    elif "input_sq" in sums:  # one-hot vectors
        sums["input_sq"].add_(torch.bincount(inputs[0].flatten(), minlength=module.num_embeddings))
    output.register_hook(partial(_add_squares, "output_grad_sq", sums))  # type: ignore[no-untyped-call]


def _add_squares(need: Statistic, sums: Mapping[str, Tensor], values: Tensor) -> None:
    if need in sums:
        sums[need].add_(torch.linalg.vector_norm(values.detach().flatten(0, -2).float(), dim=0).square_())


def score_units(
    targets: list[Target],
    selector: MaskSelector,
    statistics: Mapping[str, Mapping[str, Tensor]],
    *,
    kind: SupportKind,
    seed: int,
) -> Iterator[Tensor]:
    """Yield the unit scores of each target, shape (units); arguments as for :func:`select`."""
    generator = torch.Generator().manual_seed(seed)
    for target in targets:
        stats = CalibrationStats(**statistics.get(target.name, {}), generator=generator)
        yield unit_scores(selector, target.matrix, stats, target.units or kind)


def select(
    model: nn.Module,
    targets: list[Target],
    selector: MaskSelector,
    statistics: Mapping[str, Mapping[str, Tensor]],
    *,
    kind: SupportKind,
    density: float,
    seed: int,
    allocation: Allocation = "uniform",
) -> None:
    """Score the targets, choose their supports and put sparse layers in their places.

    Args:
        model: The model that holds the targets.
        targets: Weights to train.
        selector: Gives the scores.
        statistics: What :func:`calibrate` returned; empty for selectors that need none.
        kind: Shape of the supports, in terms of (out, in); of an embedding and of a head whole tokens are chosen.
        density: Share of the targets' entries to train.
        seed: Seed for selectors that draw.
        allocation: How the entries are shared out among the targets (:mod:`sparsegate.sparse.budget`).

    Raises:
        UsageError: If the selector keeps a smaller share of the columns than a target is to train.
    """
    tensors = [tensor_units(target.units or kind, target.matrix.shape) for target in targets]
    scores: Iterable[Tensor] = score_units(targets, selector, statistics, kind=kind, seed=seed)
    if allocation == "global":
        scores = list(scores)
        counts = global_counts(tensors, density, scores)
    else:
        counts = (rank_counts if allocation == "rank" else uniform_counts)(tensors, density)
    if isinstance(selector, PrefilterSelector):
        # a global allocation takes what the filter dropped, which scores -1, only where nothing else is left
        shares = [count / tensor.units for tensor, count in zip(tensors, counts, strict=True)]
        share = max(density, *shares) if allocation == "rank" else density
        if share > selector.share:
            raise UsageError(
                f"density {share:.4g} is above the share of columns that selector '{selector.name}' keeps; "
                "raise the share"
            )
    for target, count, values in zip(targets, counts, scores, strict=True):
        install(model, target, make_support(target, kind, top_k(values, count)))


def make_support(target: Target, kind: SupportKind, ids: Tensor) -> SparseSupport:
    """Return the support of a target's weight, as stored, for units chosen of its map.

    Args:
        target: The map.
        kind: Shape of the support, in terms of (out, in), unless the target has units of its own.
        ids: Ascending indices of the chosen units, in terms of (out, in).
    """
    kind = target.units or kind
    if target.is_transposed:
        rows, columns = target.matrix.shape
        kind, ids = transpose_support(kind, ids, (rows, columns))
    return SparseSupport(kind, ids, target.linear.weight)
