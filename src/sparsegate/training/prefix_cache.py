"""Outputs of the frozen layers, kept across epochs.

The layers below the first trained one never change, so what they make of a sample never changes either: they run once
for each sample, and from then on the first trained layer is fed from memory, or from a file once a share of memory is
full. What samples share at their start is kept once. Exact for causal models with padding on the right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsegate.data.datamodule import Batch
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training.shared_start import pack, pack_rows, unpack_rows
from sparsegate.training.state_file import StateFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrefixCache:
    """Keeps the hidden states that enter layer ``first_layer``.

    Args:
        model: The model; its first ``first_layer`` decoder layers are frozen.
        first_layer: Index of the first trained layer, at least 1.
        limit_bytes: Samples beyond this size are not kept in memory.
        file: Where they are kept; those beyond its limit too run through the frozen layers each time.
    """

    def __init__(self, model: PreTrainedModel, *, first_layer: int, limit_bytes: int, file: StateFile) -> None:
        assert first_layer >= 1
        self._model = model
        self._layers = decoder_layers(model)[1]
        self._first_layer = first_layer
        self._limit_bytes = limit_bytes
        self._file = file
        self._starts: dict[tuple[int, ...], Tensor | None] = {}  # by their tokens; None where there was no room
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}  # start, which others share, and rest
        self.size_bytes = 0  # in memory

    @property
    def limits(self) -> tuple[int, int]:
        """The limits of memory and file, in bytes: what another cache needs, to keep the same samples."""
        return self._limit_bytes, self._file.limit_bytes

    @contextmanager
    def batch(self, batch: Batch, *, shared: int = 0) -> Iterator[None]:
        """Serve forward passes over a batch from the cache.

        Args:
            batch: The batch, not packed.
            shared: How many tokens its samples share; the passes are those over the batch that
                :func:`~sparsegate.training.shared_start.pack` makes of it.
        """
        with self._replay(pack_rows(self._states(batch, shared), shared)):
            yield

    def fill(self, batch: Batch, *, shared: int = 0) -> None:
        """Keep a batch's samples; only the frozen layers are run. Arguments as for :meth:`batch`."""
        if not self._has(batch):
            self._keep(batch, self._run_frozen(batch, shared), shared)

    def _has(self, batch: Batch) -> bool:
        return all(sample_id in self._kept for sample_id in batch["ids"])

    def _states(self, batch: Batch, shared: int) -> Tensor:
        """Return the states of a batch, shape (samples, tokens, width), as kept wherever all of it could be."""
        if not self._has(batch):
            states = self._run_frozen(batch, shared)
            self._keep(batch, states, shared)
            if not self._has(batch):
                return states
        kept = [torch.cat(self._kept[sample_id]).to(self._model.device) for sample_id in batch["ids"]]
        self._file.release()
        return nn.utils.rnn.pad_sequence(kept, batch_first=True)

    @torch.no_grad()
    def _run_frozen(self, batch: Batch, shared: int) -> Tensor:
        captured: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            captured.append(arguments[0] if arguments else named["hidden_states"])
            raise _FrozenLayersDoneError

        handle = self._layers[self._first_layer].register_forward_pre_hook(stop, with_kwargs=True)
        inputs = {name: value for name, value in pack(batch, shared).items() if name not in ("labels", "ids")}
        with handle, suppress(_FrozenLayersDoneError):
            self._model(**inputs, use_cache=False)
        return unpack_rows(captured[0], shared, len(batch["ids"]))

    def _keep(self, batch: Batch, states: Tensor, shared: int) -> None:
        lengths = batch["attention_mask"].sum(1).tolist()
        for row, (sample_id, length) in enumerate(zip(batch["ids"], lengths, strict=True)):
            if sample_id in self._kept:
                continue
            tokens = tuple(batch["input_ids"][row, :shared].tolist())
            if tokens not in self._starts:
                self._starts[tokens] = self._put(states[row, :shared])
            start = self._starts[tokens]
            rest = None if start is None else self._put(states[row, shared:length])
            if start is not None and rest is not None:
                self._kept[sample_id] = start, rest
        self._file.release()

    def _put(self, state: Tensor) -> Tensor | None:
        """Return a copy that is kept in memory or in the file, or None where both are full."""
        size = state.numel() * state.element_size()
        if self.size_bytes + size > self._limit_bytes:
            return self._file.put(state)
        self.size_bytes += size
        return state.clone()

    @contextmanager
    def _replay(self, states: Tensor) -> Iterator[None]:
        """Make the frozen layers pass through, the last of them giving ``states``."""
        frozen = [self._layers[index] for index in range(self._first_layer)]
        for layer in frozen:
            # on the instance: the loop of the model's forward still reads the layer's own attributes
            layer.forward = _pass_through
        frozen[-1].forward = lambda *_, **__: states
        try:
            yield
        finally:
            for layer in frozen:
                del layer.forward


class _FrozenLayersDoneError(Exception):
    """Ends a forward pass before the first trained layer."""


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def available_bytes(device: torch.device) -> int:
    """Return a tenth of the memory that is free on a device: the default limit of the cache."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 10
    import psutil

    return int(psutil.virtual_memory().available) // 10
