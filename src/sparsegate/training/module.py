"""Sparse fine-tuning as a LightningModule."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sparsegate.contracts import Allocation, SupportKind
from sparsegate.data.datamodule import Batch, BatchLoader, SampleDataModule
from sparsegate.errors import UsageError
from sparsegate.sparse.budget import DEFAULT_DENSITY, Budget, check_budget
from sparsegate.sparse.delta import Delta, extract_delta
from sparsegate.sparse.layers import install, sparse_layers, uninstall
from sparsegate.sparse.optimizer import default_learning_rate, make_optimizer, make_schedule
from sparsegate.sparse.planner import Plan
from sparsegate.sparse.recompute import checkpointed, keep_all, keep_less
from sparsegate.sparse.sampled import measured_choices, recall_choices
from sparsegate.sparse.selection import FLOW, calibrate, score_units, select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.selectors.units import statistics_needed
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import Target, decoder_layers, find_targets, num_frozen_layers
from sparsegate.training.heap import trim, trim_between
from sparsegate.training.loss import num_supervised, supervised_loss
from sparsegate.training.planning import plan_training
from sparsegate.training.prefix_cache import PrefixCache, available_bytes
from sparsegate.training.state_file import StateFile
from sparsegate.training.token_mean import TokenMean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)


class SparseFineTuner(L.LightningModule):
    """Fine-tunes a causal language model by updating only a chosen support of its weights.

    The model is changed in place: the trained values live inside its weights.

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
        if frozen_depth != "auto" and not 0 <= frozen_depth < 1:
            raise UsageError(f"frozen_depth must be in [0, 1), or 'auto', got {frozen_depth:g}")
        if train_embeddings and (frozen_depth != 0 or self._budget.limit is not None):
            raise UsageError(
                f"train_embeddings needs frozen_depth 0, got {frozen_depth}, and no limit: gradients must reach the "
                "embedding, and its costs are not planned"
            )
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
        self._may_cache = cache_prefix
        self._cache_disk_bytes = int(cache_disk_gb * 1e9)
        self._cache_folder = cache_folder
        self._prefix_cache: PrefixCache | None = None
        self._trim_heap = trim_heap
        self._trims = ExitStack()
        self._loader_state: dict[str, int] | None = None
        self._token_mean = TokenMean()
        self._batch_tokens = 0
        # where select() plans, this stands for what it will choose
        self._first_layer = 0 if frozen_depth == "auto" else num_frozen_layers(model, frozen_depth)
        self._adopt(Plan(self._first_layer, density or DEFAULT_DENSITY))

    # --- selection ---

    def _adopt(self, plan: Plan) -> None:
        if plan.first_layer != self._first_layer:
            self._prefix_cache = None  # its states enter another layer
        self.plan = plan
        self._first_layer = plan.first_layer
        self._cache_prefix = self._may_cache and plan.first_layer > 0
        depth = self._frozen_depth
        frozen = plan.first_layer / len(decoder_layers(self.model)[1]) if depth == "auto" else depth
        self.learning_rate = self._given_rate or default_learning_rate(density=plan.density, frozen_depth=frozen)

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
        calibration = [self._to_device(batch) for batch in islice(batches, self._calibration_batches)]
        targets = self.find_targets()
        statistics: dict[str, dict[str, Tensor]] = {}
        kinds = {target.units or self._support for target in targets}
        needs = frozenset().union(*(statistics_needed(self._selector, kind) for kind in kinds))
        if needs:
            # what flows through a map is measured in the forward pass, so there it must run once
            with nullcontext() if needs & FLOW else checkpointed(self._trained_layers()):
                statistics = calibrate(targets, calibration, self.loss, needs=needs)
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
                    cached=self._may_cache,
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
        self._save_memory()
        self.selection_seconds = time.perf_counter() - started
        _LOG.info(
            "selected %s of %s weights in %d layers by %s (%.1f s)",
            f"{self.num_trainable:,}",
            f"{self.num_total:,}",
            len(targets),
            self._selector.name,
            self.selection_seconds,
        )

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

    def _save_memory(self) -> None:
        self._trims.close()
        keep_less(self._trained_layers())
        trim()  # what selection has freed
        if self._trim_heap:  # after the frozen layers for the first time
            self._trims = trim_between(list(decoder_layers(self.model)[1])[max(0, self._first_layer - 1) :])

    def _to_device(self, batch: Batch) -> Batch:
        moved = {
            key: value.to(self.model.device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        return cast(Batch, moved)

    def _make_prefix_cache(self, limit_bytes: int, disk_limit_bytes: int) -> PrefixCache:
        file = StateFile(self._cache_folder, limit_bytes=disk_limit_bytes)
        return PrefixCache(self.model, first_layer=self._first_layer, limit_bytes=limit_bytes, file=file)

    # --- training ---

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the batch's supervised tokens, in nats."""
        if not self._cache_prefix:
            return supervised_loss(self.model, batch)
        if self._prefix_cache is None:
            self._prefix_cache = self._make_prefix_cache(available_bytes(self.model.device), self._cache_disk_bytes)
        with self._prefix_cache.batch(batch["ids"], batch["attention_mask"].sum(1).tolist()):
            return supervised_loss(self.model, batch)

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
        layers = sparse_layers(self.model)
        checkpoint["state_dict"] = {
            f"model.{name}.support.{part}": getattr(layer.support, part).detach()
            for name, layer in layers.items()
            for part in ("ids", "originals", "values", "age")
        }
        checkpoint["sparse_layers"] = {name: layer.support.kind for name, layer in layers.items()}
        checkpoint["element_gradients"] = measured_choices()
        checkpoint["plan"] = self.plan._asdict()
        checkpoint["rng_state"] = torch.get_rng_state()
        loader = self.trainer.train_dataloader
        checkpoint["train_loader"] = loader.state_dict() if isinstance(loader, BatchLoader) else None
        checkpoint["prefix_cache_limits"] = self._prefix_cache.limits if self._prefix_cache else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state, kinds = checkpoint["state_dict"], checkpoint["sparse_layers"]
        for layer in sparse_layers(self.model).values():
            layer.support.revert(layer.weight)
        uninstall(self.model)
        if self._plans:
            self._adopt(Plan(**checkpoint["plan"]))
        targets = {target.name: target for target in self.find_targets()}
        if targets.keys() != kinds.keys():
            raise UsageError(
                "the checkpoint trains other layers than this configuration; use the configuration it was made with"
            )
        for name, kind in kinds.items():
            parts = {part: state[f"model.{name}.support.{part}"] for part in ("ids", "originals", "values", "age")}
            weight = targets[name].linear.weight
            support = SparseSupport(kind, parts["ids"].to(weight.device), weight)
            if not torch.equal(support.originals, parts["originals"].to(weight.device)):
                raise UsageError("the checkpoint was made with another base model; load the one it was made with")
            support.values.data.copy_(parts["values"])
            support.age.copy_(parts["age"])
            install(self.model, targets[name], support).commit()
        recall_choices(checkpoint["element_gradients"])
        self._save_memory()
        torch.set_rng_state(checkpoint["rng_state"].cpu())
        self._loader_state = checkpoint["train_loader"]
        if checkpoint["prefix_cache_limits"] is not None:
            self._prefix_cache = self._make_prefix_cache(*checkpoint["prefix_cache_limits"])

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
        if self._prefix_cache is not None:
            # in the batches of the first pass: in others, sums round differently
            with self.trainer.precision_plugin.forward_context():
                for batch in loader.first_pass():
                    self._prefix_cache.fill(self._to_device(batch))

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
        keep_all(self._trained_layers())
        self._trims.close()
        self._prefix_cache = None
        trim()
        return cast("PreTrainedModel", self.model.eval())
