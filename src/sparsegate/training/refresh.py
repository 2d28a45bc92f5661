"""Changing what is trained during training, where measured gradient retention has fallen."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from sparsegate.config import RefreshConfig, check_rules
from sparsegate.contracts import CalibrationStats, Statistic, SupportKind
from sparsegate.data.datamodule import Batch, BatchLoader
from sparsegate.errors import SparsegateError, UsageError
from sparsegate.sparse.layers import SparseLayer, plain_layers, sparse_layers
from sparsegate.sparse.layouts import TRANSPOSED, transpose_unit_scores
from sparsegate.sparse.refresh import choose_exchange, exchange, gradient_retention, seed_moments
from sparsegate.sparse.selection import calibrate
from sparsegate.sparse.selectors.fisher import FisherSelector
from sparsegate.sparse.selectors.units import statistics_needed, unit_scores
from sparsegate.sparse.targets import Target
from sparsegate.training.module import SparseFineTuner

_LOG = logging.getLogger(__name__)
_SQUARED_GRADIENT = FisherSelector()


class Refreshed(NamedTuple):
    """What one refresh found and did.

    Args:
        retention: For each weight, how much of the squared gradient its support captured, relative to the best support
            of its size.
        exchanged: For each weight whose support changed, how many units are new.
    """

    retention: dict[str, float]
    exchanged: dict[str, int]


def refresh(
    tuner: SparseFineTuner,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    *,
    below: float,
    fraction: float,
    margin: float,
    minimum_age: int,
) -> Refreshed:
    """Measure gradient retention of every trained weight, and change the supports where it is low.

    The squared gradients of whole units are measured first, with dense gradients of one weight at a time; then the
    gradients of the new supports' entries, and of no others. Gradients that wait for the optimizer are left alone. With
    several processes, all sums are over the batches of all of them, so that all choose alike.

    Args:
        tuner: The tuner, between two optimizer steps.
        optimizer: Its AdamW.
        batches: Batches to measure by, on the model's device.
        below: Change a support whose retention is below this.
        fraction: Largest share of a support's units to exchange.
        margin: A new unit must have more than this multiple of the squared gradient of the one it replaces.
        minimum_age: Units younger than so many steps stay.

    Raises:
        ValueError: If a loss or a gradient is not finite.
    """
    layers = sparse_layers(tuner.model)
    scores = _measure_units(tuner, layers, batches)
    retention: dict[str, float] = {}
    is_new: dict[str, Tensor] = {}
    for name, layer in layers.items():
        support = layer.support
        retention[name] = gradient_retention(scores[name], support.ids)
        if retention[name] < below:
            ids = choose_exchange(support, scores[name], fraction=fraction, margin=margin, minimum_age=minimum_age)
            if not torch.equal(ids, support.ids):
                is_new[name] = exchange(support, layer.weight, ids, optimizer.state[support.values])
    if is_new:
        _seed_new_units(tuner, optimizer, {name: layers[name] for name in is_new}, is_new, batches)
    return Refreshed(retention, {name: int(new.sum()) for name, new in is_new.items()})


def _measure_units(
    tuner: SparseFineTuner, layers: dict[str, SparseLayer], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return for each layer the squared gradients of its units, summed over all batches."""
    with plain_layers(tuner.model):
        targets = tuner.find_targets()
        # units as the map has them, (out, in)
        kinds = {t.name: _turned(t, layers[t.name].support.kind) for t in targets}
        needs = frozenset[Statistic]().union(*(statistics_needed(_SQUARED_GRADIENT, kind) for kind in kinds.values()))
        sums = calibrate(targets, batches, tuner.loss, needs=needs)
    _add_up_ranks(tensor for stats in sums.values() for tensor in stats.values())
    scores: dict[str, Tensor] = {}
    for target in targets:
        kind, stats = kinds[target.name], CalibrationStats(**sums[target.name])
        found = unit_scores(_SQUARED_GRADIENT, target.matrix, stats, kind)
        rows, columns = target.matrix.shape
        scores[target.name] = transpose_unit_scores(kind, found, (rows, columns)) if target.is_transposed else found
    return scores


def _turned(target: Target, kind: SupportKind) -> SupportKind:
    return TRANSPOSED[kind] if target.is_transposed else kind


def _seed_new_units(
    tuner: SparseFineTuner,
    optimizer: Optimizer,
    layers: dict[str, SparseLayer],
    is_new: dict[str, Tensor],
    batches: Sequence[Batch],
) -> None:
    """Measure the gradients of changed supports and seed the new units' moments with them."""
    values = [layer.support.values for layer in layers.values()]
    means = [torch.zeros_like(value, requires_grad=False) for value in values]
    squares = [torch.zeros_like(value, requires_grad=False) for value in values]
    count = len(batches) * _num_ranks()
    for batch in batches:
        # not backward(): it would add to the gradients at hand, and wake DDP
        gradients = torch.autograd.grad(tuner.loss(batch), values, materialize_grads=True)
        for mean, square, gradient in zip(means, squares, gradients, strict=True):
            mean.add_(gradient, alpha=1 / count)
            square.addcmul_(gradient, gradient, value=1 / count)
    _add_up_ranks([*means, *squares])
    betas: tuple[float, float] = optimizer.param_groups[0]["betas"]
    for (name, layer), mean, square in zip(layers.items(), means, squares, strict=True):
        seed_moments(
            layer.support.layout,
            optimizer.state[layer.support.values],
            is_new[name],
            mean=mean,
            mean_square=square,
            betas=betas,
        )


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _add_up_ranks(tensors: Iterable[Tensor]) -> None:
    if _num_ranks() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


class RefreshCallback(Callback):
    """Refreshes a :class:`~sparsegate.training.module.SparseFineTuner`'s supports every so many steps.

    The batches are among those that training has seen, and their use does not move its order. The frozen layers stay
    the same, so their kept outputs stay valid. Nothing is exchanged when fewer than ``every_steps`` steps remain: what
    is chosen last is trained as well.

    Args:
        every_steps: Optimizer steps between refreshes, at least 1.
        below: Change a support that captures less than this share of what the best of its size would.
        fraction: Largest share of a support that is exchanged at once.
        margin: A new unit must have more than this multiple of the squared gradient of the one it replaces.
        minimum_age_steps: Units that were chosen less than so many steps ago stay.
        batches: Batches of each measurement.

    Raises:
        UsageError: If an argument is out of range.

    Example:
        >>> trainer = L.Trainer(callbacks=[RefreshCallback(every_steps=200)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        *,
        every_steps: int,
        below: float = RefreshConfig.below,
        fraction: float = RefreshConfig.fraction,
        margin: float = RefreshConfig.margin,
        minimum_age_steps: int = RefreshConfig.minimum_age_steps,
        batches: int = RefreshConfig.batches,
    ) -> None:
        self._config = RefreshConfig(every_steps, below, fraction, margin, minimum_age_steps, batches)
        check_rules(self._config)
        if every_steps == 0:
            raise UsageError("every_steps must be at least 1, got 0; leave the callback out to never refresh")
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(pl_module, SparseFineTuner):
            raise UsageError(f"RefreshCallback is for a SparseFineTuner, got {type(pl_module).__name__}; leave it out")
        if not isinstance(loader, BatchLoader):
            raise UsageError(
                f"a refresh needs a BatchLoader to measure by, got {type(loader).__name__}; fit with a SampleDataModule"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self._config.every_steps
        is_new, self._last_step = step > self._last_step, step  # several batches may make one step
        if not is_new or step % every or step + every > trainer.estimated_stepping_batches:
            return
        assert isinstance(pl_module, SparseFineTuner)
        ages = [int(layer.support.age.max()) for layer in sparse_layers(pl_module.model).values()]
        if max(ages) >= self._config.minimum_age_steps:
            self._report(step, pl_module, self._refresh(trainer, pl_module))

    def _refresh(self, trainer: L.Trainer, tuner: SparseFineTuner) -> Refreshed:
        config, loader = self._config, trainer.train_dataloader
        assert isinstance(loader, BatchLoader)
        number = trainer.global_step // config.every_steps
        batches = loader.some_of_first_pass(config.batches, start=number * config.batches)
        try:
            with trainer.precision_plugin.forward_context():
                return refresh(
                    tuner,
                    trainer.optimizers[0],
                    [trainer.strategy.batch_to_device(batch) for batch in batches],
                    below=config.below,
                    fraction=config.fraction,
                    margin=config.margin,
                    minimum_age=config.minimum_age_steps,
                )
        except ValueError as error:
            raise SparsegateError(
                f"training diverged before the refresh at step {trainer.global_step} ({error}); lower "
                f"training.learning_rate from {tuner.learning_rate:g}"
            ) from None

    def _report(self, step: int, tuner: SparseFineTuner, found: Refreshed) -> None:
        mean = statistics.fmean(found.retention.values())
        tuner.log("gradient_retention", mean)
        _LOG.info(
            "refresh at step %d: supports capture %.0f%% of the best squared gradient (lowest %.0f%%); "
            "%d units in %d of %d weights are new",
            step,
            100 * mean,
            100 * min(found.retention.values()),
            sum(found.exchanged.values()),
            len(found.exchanged),
            len(found.retention),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]
