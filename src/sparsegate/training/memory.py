"""What a run does to take less memory: layers keep less, and the heap is given back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from sparsegate.sparse.recompute import keep_all, keep_less
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training.heap import trim, trim_between

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MemorySaver:
    """Lets a model's trained layers keep less for their backward pass.

    Args:
        model: The model.
        trim_heap: Give freed memory back to the system during each step, too.
    """

    def __init__(self, model: PreTrainedModel, *, trim_heap: bool) -> None:
        self._layers = list(decoder_layers(model)[1])
        self._trim_heap = trim_heap
        self._trims = ExitStack()

    def start(self, first_layer: int) -> None:
        """Begin, or begin anew, with the layers from ``first_layer`` up, and give back what has been freed so far."""
        self._trims.close()
        keep_less(self._layers[first_layer:])
        trim()
        if self._trim_heap:  # after the frozen layers for the first time
            self._trims = trim_between(self._layers[max(0, first_layer - 1) :])

    def stop(self) -> None:
        """Leave the layers as they were."""
        keep_all(self._layers)
        self._trims.close()
        trim()
