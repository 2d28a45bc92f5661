"""Sparse fine-tuning as a LightningModule."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from sparsegate.contracts import SupportKind
from sparsegate.data.datamodule import Batch, BatchLoader, SampleDataModule
from sparsegate.errors import UsageError
from sparsegate.sparse.delta import Delta, extract_delta
from sparsegate.sparse.layers import install, sparse_layers, uninstall
from sparsegate.sparse.optimizer import default_learning_rate, make_optimizer, make_schedule
from sparsegate.sparse.recompute import checkpointed, keep_all, keep_less
from sparsegate.sparse.selection import FLOW, calibrate, select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.selectors.units import statistics_needed
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import decoder_layers, find_targets, num_frozen_layers
from sparsegate.training.loss import supervised_loss
from sparsegate.training.prefix_cache import PrefixCache, available_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)


class SparseFineTuner(L.LightningModule):
    """Fine-tunes a causal language model by updating only a chosen support of its weights.

    The model is changed in place: the trained values live inside its weights.

    Args:
        model: A decoder-only model of transformers, on the CPU or on the device of training.
        selector: Name of the selector that scores entries.
        support: Shape of the trained set: ``column`` or ``element``.
        density: Share of the entries of each trained weight to update, in (0, 1].
        frozen_depth: Share of the layers, from the bottom, that stays frozen, in [0, 1).
        cache_prefix: Keep the outputs of the frozen layers across epochs.
        learning_rate: Peak learning rate; None chooses one by density and depth.
        warmup_fraction: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's weight decay on the trained entries.
        calibration_batches: Batches used to choose the entries.
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
        density: float = 0.1,
        frozen_depth: float = 0.667,
        cache_prefix: bool = True,
        learning_rate: float | None = None,
        warmup_fraction: float = 0.1,
        weight_decay: float = 0.0,
        calibration_batches: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < density <= 1:
            raise UsageError(f"density must be in (0, 1], got {density:g}")
        if not 0 <= frozen_depth < 1:
            raise UsageError(f"frozen_depth must be in [0, 1), got {frozen_depth:g}")
        if sparse_layers(model):
            raise UsageError("the model has sparse layers already; call finish() on the tuner that put them there")
        self.model = model.requires_grad_(False)
        self.learning_rate = learning_rate or default_learning_rate(density=density, frozen_depth=frozen_depth)
        self.selection_seconds = 0.0
        self.strict_loading = False  # a checkpoint holds the supports, not the base model
        self._selector = make_selector(selector)
        self._support: SupportKind = support
        self._density = density
        self._first_layer = num_frozen_layers(model, frozen_depth)
        self._warmup_fraction = warmup_fraction
        self._weight_decay = weight_decay
        self._calibration_batches = calibration_batches
        self._seed = seed
        self._cache_prefix = cache_prefix and self._first_layer > 0
        self._prefix_cache: PrefixCache | None = None
        self._loader_state: dict[str, int] | None = None

    # --- selection ---

    def select(self, batches: Iterable[Batch]) -> None:
        """Choose the entries to train; done by :meth:`setup` unless called before.

        Args:
            batches: Training batches; the first ``calibration_batches`` are used.
        """
        started = time.perf_counter()
        targets = find_targets(self.model, first_layer=self._first_layer)
        statistics: dict[str, dict[str, Tensor]] = {}
        needs = statistics_needed(self._selector, self._support)
        if needs:
            # what flows through a map is measured in the forward pass, so there it must run once
            with nullcontext() if needs & FLOW else checkpointed(self._trained_layers()):
                statistics = calibrate(
                    targets,
                    (self._to_device(batch) for batch in islice(batches, self._calibration_batches)),
                    self.loss,
                    needs=needs,
                )
        select(
            self.model, targets, self._selector, statistics, kind=self._support, density=self._density, seed=self._seed
        )
        keep_less(self._trained_layers())
        self.selection_seconds = time.perf_counter() - started
        _LOG.info(
            "selected %s of %s weights in %d layers by %s (%.1f s)",
            f"{self.num_trainable:,}",
            f"{self.num_total:,}",
            len(targets),
            self._selector.name,
            self.selection_seconds,
        )

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._set_modes()
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

    def _set_modes(self) -> None:
        """Put what is trained in training mode; frozen layers stay deterministic, since their outputs are kept."""
        self.model.train(self._first_layer == 0)
        for layer in self._trained_layers():
            layer.train()

    def _trained_layers(self) -> list[nn.Module]:
        return list(decoder_layers(self.model)[1])[self._first_layer :]

    def _to_device(self, batch: Batch) -> Batch:
        moved = {
            key: value.to(self.model.device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        return cast(Batch, moved)

    def _make_prefix_cache(self, limit_bytes: int) -> PrefixCache:
        return PrefixCache(self.model, first_layer=self._first_layer, limit_bytes=limit_bytes)

    # --- training ---

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood of the batch's supervised tokens, in nats."""
        if not self._cache_prefix:
            return supervised_loss(self.model, batch)
        if self._prefix_cache is None:
            self._prefix_cache = self._make_prefix_cache(available_bytes(self.model.device))
        with self._prefix_cache.batch(batch["ids"], batch["attention_mask"].sum(1).tolist()):
            return supervised_loss(self.model, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss_nats", loss, prog_bar=True, batch_size=len(batch["ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss_nats", self.loss(batch), prog_bar=True, batch_size=len(batch["ids"]))

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
            for part in ("ids", "originals", "values")
        }
        checkpoint["sparse_layers"] = {name: layer.support.kind for name, layer in layers.items()}
        checkpoint["rng_state"] = torch.get_rng_state()
        loader = self.trainer.train_dataloader
        checkpoint["train_loader"] = loader.state_dict() if isinstance(loader, BatchLoader) else None
        checkpoint["prefix_cache_bytes"] = self._prefix_cache.limit_bytes if self._prefix_cache else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state, kinds = checkpoint["state_dict"], checkpoint["sparse_layers"]
        for layer in sparse_layers(self.model).values():
            layer.support.revert(layer.linear.weight)
        uninstall(self.model)
        targets = {target.name: target for target in find_targets(self.model, first_layer=self._first_layer)}
        if targets.keys() != kinds.keys():
            raise UsageError(
                "the checkpoint trains other layers than this configuration; use the configuration it was made with"
            )
        for name, kind in kinds.items():
            parts = {part: state[f"model.{name}.support.{part}"] for part in ("ids", "originals", "values")}
            weight = targets[name].linear.weight
            support = SparseSupport(kind, parts["ids"].to(weight.device), weight)
            if not torch.equal(support.originals, parts["originals"].to(weight.device)):
                raise UsageError("the checkpoint was made with another base model; load the one it was made with")
            support.values.data.copy_(parts["values"])
            install(self.model, targets[name], support).commit()
        keep_less(self._trained_layers())
        torch.set_rng_state(checkpoint["rng_state"].cpu())
        self._loader_state = checkpoint["train_loader"]
        if checkpoint["prefix_cache_bytes"] is not None:
            self._prefix_cache = self._make_prefix_cache(checkpoint["prefix_cache_bytes"])

    def on_train_start(self) -> None:
        # not left to Lightning: it forgets a loader's place once estimated_stepping_batches has looked at the loader
        loader, state = self.trainer.train_dataloader, self._loader_state
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
        return sum(p.numel() for name, p in self.model.named_parameters() if not name.endswith("support.values"))

    def delta(self, *, base_digest: str, manifest: dict[str, Any] | None = None) -> Delta:
        """Return what training changed."""
        return extract_delta(self.model, base_digest=base_digest, manifest=manifest or {})

    def finish(self) -> PreTrainedModel:
        """Give the model its plain layers back, trained, in evaluation mode, and return it."""
        uninstall(self.model)
        keep_all(self._trained_layers())
        self._prefix_cache = None
        return cast("PreTrainedModel", self.model.eval())
