"""Outputs of the frozen layers, kept across epochs.

The layers below the first trained one never change, so what they make of a sample never changes either: they run once
for each sample, and from then on the first trained layer is fed from memory, or from a file once a share of memory is
full. Exact for causal models with padding on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsegate.data.datamodule import Batch
from sparsegate.sparse.targets import decoder_layers
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
        self._kept: dict[str, Tensor] = {}
        self.size_bytes = 0  # in memory

    @property
    def limits(self) -> tuple[int, int]:
        """The limits of memory and file, in bytes: what another cache needs, to keep the same samples."""
        return self._limit_bytes, self._file.limit_bytes

    @contextmanager
    def batch(self, ids: Sequence[str], lengths: Sequence[int]) -> Iterator[None]:
        """Serve forward passes over these samples from the cache, or fill it.

        Args:
            ids: Ids of the samples in the batch.
            lengths: Their lengths in tokens, without padding.
        """
        if all(sample_id in self._kept for sample_id in ids):
            kept = [self._kept[sample_id].to(self._model.device) for sample_id in ids]
            states = nn.utils.rnn.pad_sequence(kept, batch_first=True)
            self._file.release()
            with self._replay(states):
                yield
            return
        captured: list[Tensor] = []
        handle = self._layers[self._first_layer].register_forward_pre_hook(
            lambda _, args, kwargs: captured.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        try:
            yield
        finally:
            handle.remove()
        self._keep(ids, lengths, captured[0].detach())

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        """Keep a batch's samples; only the frozen layers are run."""
        with self.batch(batch["ids"], batch["attention_mask"].sum(1).tolist()):
            handle = self._layers[self._first_layer].register_forward_pre_hook(_stop)
            with handle, suppress(_FrozenLayersDoneError):
                self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def _keep(self, ids: Sequence[str], lengths: Sequence[int], states: Tensor) -> None:
        for row, (sample_id, length) in enumerate(zip(ids, lengths, strict=True)):
            if sample_id in self._kept:
                continue
            state = states[row, :length]
            size = state.numel() * state.element_size()
            if self.size_bytes + size <= self._limit_bytes:
                self._kept[sample_id] = state.clone()
                self.size_bytes += size
            elif (filed := self._file.put(state)) is not None:
                self._kept[sample_id] = filed
        self._file.release()

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


def _stop(*_: Any) -> None:
    raise _FrozenLayersDoneError


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def available_bytes(device: torch.device) -> int:
    """Return a tenth of the memory that is free on a device: the default limit of the cache."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 10
    import psutil

    return int(psutil.virtual_memory().available) // 10
