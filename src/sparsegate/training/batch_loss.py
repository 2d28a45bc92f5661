"""The loss of a batch, in which nothing runs twice that comes out the same: shared starts and frozen layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sparsegate.data.datamodule import Batch
from sparsegate.training.loss import supervised_loss
from sparsegate.training.prefix_cache import PrefixCache, available_bytes
from sparsegate.training.shared_start import allow_packed, disallow_packed, pack, shared_length
from sparsegate.training.state_file import StateFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BatchLoss:
    """The mean negative log-likelihood of a batch's supervised tokens, in nats.

    Args:
        model: The model; it can take packed batches until :meth:`close`, where its architecture allows.
        cache_prefix: Keep the outputs of the frozen layers, of which there are none before :meth:`cut_at`.
        disk_limit_bytes: Largest size of the file for outputs beyond a tenth of the free memory.
        folder: Where that file is; None is the system's folder for temporary files.
    """

    def __init__(
        self, model: PreTrainedModel, *, cache_prefix: bool, disk_limit_bytes: int, folder: Path | None
    ) -> None:
        self._model = model
        self.cache_prefix = cache_prefix
        self._disk_limit_bytes = disk_limit_bytes
        self._folder = folder
        self._first_layer = 0
        self._cache: PrefixCache | None = None
        self._can_pack = allow_packed(model)

    def __call__(self, batch: Batch) -> Tensor:
        shared = self.shared(batch)
        packed = pack(batch, shared)
        if not self.cache_prefix or self._first_layer == 0:
            return supervised_loss(self._model, packed)
        if self._cache is None:
            self.start_cache(available_bytes(self._model.device), self._disk_limit_bytes)
        assert self._cache is not None
        with self._cache.batch(batch, shared=shared):
            return supervised_loss(self._model, packed)

    def shared(self, batch: Batch) -> int:
        """Return how many tokens run once for all samples of a batch."""
        return shared_length(batch) if self._can_pack else 0

    def cut_at(self, first_layer: int) -> None:
        """Take the layers below ``first_layer`` for frozen; what was kept for another cut is dropped."""
        if first_layer != self._first_layer:
            self._cache = None
        self._first_layer = first_layer

    @property
    def cache_limits(self) -> tuple[int, int] | None:
        """The limits of what is kept in memory and in the file, in bytes; None if nothing is kept yet."""
        return self._cache.limits if self._cache else None

    def start_cache(self, limit_bytes: int, disk_limit_bytes: int) -> None:
        """Keep outputs from here on, up to these limits."""
        file = StateFile(self._folder, limit_bytes=disk_limit_bytes)
        self._cache = PrefixCache(self._model, first_layer=self._first_layer, limit_bytes=limit_bytes, file=file)

    def fill_cache(self, batch: Batch) -> None:
        """Keep a batch's outputs as its first loss would have, if anything is kept."""
        if self._cache is not None:
            self._cache.fill(batch, shared=self.shared(batch))

    def close(self) -> None:
        """Drop what is kept, and leave the model as it was."""
        self._cache = None
        disallow_packed(self._model)
