"""Sparse fine-tuning as a LightningModule."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sparsegate.contracts import Allocation, Statistic, SupportKind
from sparsegate.data.datamodule import Batch, BatchLoader, SampleDataModule, to_device
from sparsegate.errors import UsageError
from sparsegate.sparse.budget import DEFAULT_DENSITY, Budget, check_budget
from sparsegate.sparse.delta import Delta, extract_delta
from sparsegate.sparse.layers import sparse_layers, uninstall
from sparsegate.sparse.optimizer import default_learning_rate, make_optimizer, make_schedule
from sparsegate.sparse.planner import Plan
from sparsegate.sparse.recompute import checkpointed
from sparsegate.sparse.selection import FLOW, calibrate, score_units, select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.selectors.units import statistics_needed
from sparsegate.sparse.targets import Target, decoder_layers, find_targets, num_frozen_layers
from sparsegate.training.batch_loss import BatchLoss
from sparsegate.training.loss import num_supervised, supervised_loss
from sparsegate.training.memory import MemorySaver
from sparsegate.training.planning import check_depth, plan_training
from sparsegate.training.supports_state import load_supports, save_supports
from sparsegate.training.token_mean import TokenMean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)


class SparseFineTuner(L.LightningModule):
    """Fine-tunes a causal language model by updating only a chosen support of its weights.

    The model is changed in place: the trained values live inside its weights. What all samples of a batch begin with
    runs once for all of them, where the model's architecture allows (:mod:`sparsegate.training.shared_start`).

    Args:
        model: A decoder-only model of transformers, on the CPU or on the device of training.
        selector: Name of the selector that scores entries.
        support: Shape of the trained set: ``column``, ``row``, ``block`` or ``element``.
        density: Share of the entries of the trained weights to update, in (0, 1]; None takes 0.1, or what a limit
            allows. At most one of ``density``, ``memory_limit_gb`` and ``time_limit`` may be given.
        memory_limit_gb: Trainable state and saved activations, in 10**9 bytes.
        time_limit: Time of a step over that of a full fine-tuning step, in (0, 1].
        allocation: How the entries are shared out among weights: ``uniform``, ``rank`` or ``global``.
        frozen_depth: Share of the layers, from the bottom, that stays frozen, in [0, 1); ``auto`` lets the planner
            choose.
        train_embeddings: Train rows of the token embedding and of the output head too; needs ``frozen_depth`` 0 and no
            limit.
        cache_prefix: Keep the outputs of the frozen layers across epochs: in a tenth of the free memory, and then in a
            file.
        cache_disk_gb: Largest size of that file, in 10**9 bytes; 0 for none.
        cache_folder: Where that file is; None is the system's folder for temporary files.
        learning_rate: Peak learning rate; None chooses one by density and depth.
        warmup_fraction: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's weight decay on the trained entries.
        calibration_batches: Batches used to choose the entries.
        checkpoint_activations: Keep only what enters each layer, and run it again in the backward pass: less memory,
            more time, equal gradients.
        trim_heap: Give freed memory back to the system during each step on a CPU: a fifth less peak memory, for time.
        seed: Seed for selectors that draw.

    Raises:
        UsageError: If an argument is out of range, the selector is unknown or the model is being tuned already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        selector: str = "fisher",
        support: SupportKind = "column",
        density: float | None = None,
        memory_limit_gb: float | None = None,
        time_limit: float | None = None,
        allocation: Allocation = "uniform",
        frozen_depth: float | Literal["auto"] = 0.667,
        train_embeddings: bool = False,
        cache_prefix: bool = True,
        cache_disk_gb: float = 8.0,
        cache_folder: Path | None = None,
        learning_rate: float | None = None,
        warmup_fraction: float = 0.1,
        weight_decay: float = 0.0,
        calibration_batches: int = 4,
        checkpoint_activations: bool = False,
        trim_heap: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._budget = Budget(density, memory_limit_gb, time_limit)
        check_budget(self._budget)
        check_depth(frozen_depth, train_embeddings=train_embeddings, is_limited=self._budget.limit is not None)
        if checkpoint_activations and not model.supports_gradient_checkpointing:
            raise UsageError(
                f"{type(model).__name__} can't run its layers again; turn training.checkpoint_activations off"
            )
        if sparse_layers(model):
            raise UsageError("the model has sparse layers already; call finish() on the tuner that put them there")
        self.model = model.requires_grad_(False)
        if checkpoint_activations:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.selection_seconds = 0.0
        self.strict_loading = False  # a checkpoint holds the supports, not the base model
        self._selector = make_selector(selector)
        self._support: SupportKind = support
        self._allocation: Allocation = allocation
        self._frozen_depth = frozen_depth
        self._given_rate = learning_rate
        self._train_embeddings = train_embeddings
        self._warmup_fraction = warmup_fraction
        self._weight_decay = weight_decay
        self._calibration_batches = calibration_batches
        self._seed = seed
        self._loss = BatchLoss(
            model, cache_prefix=cache_prefix, disk_limit_bytes=int(cache_disk_gb * 1e9), folder=cache_folder
        )
        self._memory = MemorySaver(model, trim_heap=trim_heap)
        self._loader_state: dict[str, int] | None = None
        self._token_mean = TokenMean()
        self._batch_tokens = 0
        # where select() plans, this stands for what it will choose
        self._first_layer = 0 if frozen_depth == "auto" else num_frozen_layers(model, frozen_depth)
        self._adopt(Plan(self._first_layer, density or DEFAULT_DENSITY))

    # --- selection ---

    def _adopt(self, plan: Plan) -> None:
        self.plan = plan
        self._first_layer = plan.first_layer
        self._loss.cut_at(plan.first_layer)
        depth = self._frozen_depth
        frozen = plan.first_layer / len(decoder_layers(self.model)[1]) if depth == "auto" else depth
        self.learning_rate = self._given_rate or default_learning_rate(
            density=plan.density,
            frozen_depth=frozen,
            by_gradient=bool(statistics_needed(self._selector, self._support)),
        )

    @property
    def _plans(self) -> bool:
        """Whether :meth:`select` chooses cut or density."""
        return self._frozen_depth == "auto" or any(self._budget[1:])

    def select(self, batches: Iterable[Batch]) -> None:
        """Choose the entries to train; done by :meth:`setup` unless called before.

        Args:
            batches: Training batches; the first ``calibration_batches`` are used.
        """
        started = time.perf_counter()
        calibration = [to_device(batch, self.model.device) for batch in islice(batches, self._calibration_batches)]
        targets = self.find_targets()
        statistics: dict[str, dict[str, Tensor]] = {}
        kinds = {target.units or self._support for target in targets}
        needs = frozenset().union(*(statistics_needed(self._selector, kind) for kind in kinds))
        if needs:
            statistics = self._calibrate(targets, calibration, needs)
        if self._plans:
            scores = score_units(targets, self._selector, statistics, kind=self._support, seed=self._seed)
            self._adopt(
                plan_training(
                    self.model,
                    calibration,
                    zip((target.layer for target in targets), scores, strict=True),
                    budget=self._budget,
                    kind=self._support,
                    first_layer=None if self._frozen_depth == "auto" else self._first_layer,
                    cached=self._loss.cache_prefix,
                    shared=self._loss.shared,
                )
            )
            targets = [target for target in targets if target.layer >= self._first_layer]
        select(
            self.model,
            targets,
            self._selector,
            statistics,
            kind=self._support,
            density=self.plan.density,
            seed=self._seed,
            allocation=self._allocation,
        )
        self._memory.start(self._first_layer)
        self.selection_seconds = time.perf_counter() - started
        _LOG.info(
            "selected %s of %s weights in %d layers by %s (%.1f s)",
            f"{self.num_trainable:,}",
            f"{self.num_total:,}",
            len(targets),
            self._selector.name,
            self.selection_seconds,
        )

    def _calibrate(
        self, targets: list[Target], batches: list[Batch], needs: frozenset[Statistic]
    ) -> dict[str, dict[str, Tensor]]:
        if needs & FLOW:  # what flows through a map is measured in the forward pass: once, and for each token
            return calibrate(targets, batches, partial(supervised_loss, self.model), needs=needs)
        with checkpointed(self._trained_layers()):
            return calibrate(targets, batches, self.loss, needs=needs)

    def find_targets(self) -> list[Target]:
        """Return the maps of which entries are trained."""
        return find_targets(self.model, first_layer=self._first_layer, embeddings=self._train_embeddings)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._set_modes()
            # before anything is chosen or resumed, so that originals are those of the weights at training's precision
            self.trainer.precision_plugin.convert_module(self.model)
        resuming = self.trainer.ckpt_path is not None
        if stage != "fit" or resuming or sparse_layers(self.model):
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, SampleDataModule):
            raise UsageError(
                "nothing to choose the entries by: call select(batches) first, or fit with a SampleDataModule"
            )
        self.model.to(self.trainer.strategy.root_device)
        with self.trainer.precision_plugin.forward_context():
            self.select(datamodule.calibration_batches())

    def on_fit_start(self) -> None:
        self._set_modes()  # again: the cut may have been planned, or come with a checkpoint

    def _set_modes(self) -> None:
        """Put what is trained in training mode; frozen layers stay deterministic, since their outputs are kept."""
        self.model.train(self._first_layer == 0)
        for layer in self._trained_layers():
            layer.train()

    def _trained_layers(self) -> list[nn.Module]:
        return list(decoder_layers(self.model)[1])[self._first_layer :]

    # --- training ---

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the batch's supervised tokens, in nats."""
        return self._loss(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self._batch_tokens = num_supervised(batch)
        self.log("train_loss_nats", loss, prog_bar=True, batch_size=len(batch["ids"]))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        num_batches = self.trainer.accumulate_grad_batches
        super().backward(self._token_mean.weigh(loss, self._batch_tokens, num_batches=num_batches), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # before gradients are clipped
        layers = sparse_layers(self.model).values()
        self._token_mean.finish((layer.support.values for layer in layers), self.trainer.strategy)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # times the ranks: Lightning cuts the mean of their batch sizes down to a whole number
        weight = num_supervised(batch) * self.trainer.world_size
        self.log("val_loss_nats", self.loss(batch), prog_bar=True, batch_size=weight, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model, learning_rate=self.learning_rate, weight_decay=self._weight_decay)
        schedule = make_schedule(
            optimizer,
            total_steps=int(self.trainer.estimated_stepping_batches),
            warmup_fraction=self._warmup_fraction,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- checkpoints: k numbers and not the model ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        save_supports(self.model, checkpoint)
        checkpoint["plan"] = self.plan._asdict()
        checkpoint["rng_state"] = torch.get_rng_state()
        loader = self.trainer.train_dataloader
        checkpoint["train_loader"] = loader.state_dict() if isinstance(loader, BatchLoader) else None
        checkpoint["prefix_cache_limits"] = self._loss.cache_limits

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._plans:
            self._adopt(Plan(**checkpoint["plan"]))
        load_supports(self.model, checkpoint, self.find_targets)
        self._memory.start(self._first_layer)
        torch.set_rng_state(checkpoint["rng_state"].cpu())
        self._loader_state = checkpoint["train_loader"]
        if checkpoint["prefix_cache_limits"] is not None:
            self._loss.start_cache(*checkpoint["prefix_cache_limits"])

    def on_train_start(self) -> None:
        self._token_mean = TokenMean()  # an earlier fit may have ended between the batches of a step
        # not left to Lightning: it forgets a loader's place once estimated_stepping_batches has looked at the loader
        loader, state = self.trainer.train_dataloader, self._loader_state
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            # ranks have begun with equal weights and supports: only gradients are exchanged from here on
            self.trainer.strategy.model.broadcast_buffers = False
        if state is None or not isinstance(loader, BatchLoader):
            return
        loader.load_state_dict(state)
        self._loader_state = None
        # in the batches of the first pass: in others, sums round differently
        with self.trainer.precision_plugin.forward_context():
            for batch in loader.first_pass():
                self._loss.fill_cache(to_device(batch, self.model.device))

    # --- results ---

    @property
    def num_trainable(self) -> int:
        """Number of entries that are updated."""
        return sum(layer.support.values.numel() for layer in sparse_layers(self.model).values())

    @property
    def num_total(self) -> int:
        """Number of entries of the base model."""
        return sum(parameter.numel() for parameter in self._base_parameters())

    @property
    def base_bytes(self) -> int:
        """Size of the base model's weights, in bytes."""
        return sum(parameter.nbytes for parameter in self._base_parameters())

    def _base_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if not name.endswith("support.values")]

    def delta(self, *, base_digest: str, manifest: dict[str, Any] | None = None) -> Delta:
        """Return what training changed."""
        return extract_delta(self.model, base_digest=base_digest, manifest=manifest or {})

    def finish(self) -> PreTrainedModel:
        """Give the model its plain layers back, trained, in evaluation mode, and return it."""
        uninstall(self.model)
        self.model.activation_checkpointing_disable()
        self._loss.close()
        self._memory.stop()
        return cast("PreTrainedModel", self.model.eval())
