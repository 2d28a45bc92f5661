"""The last decoder layer, worked out only where its output is read.

No other token reads what the last layer makes of a token: beside its keys and values, which later tokens attend to, its
work is of use at supervised positions only. Queries, the attention's output map and the MLP run there and nowhere else;
elsewhere they give zeros, which end in hidden states that the output head does not look at. Exact, for gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from sparsegate.sparse.targets import PER_TOKEN, decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def last_layer_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Let the last decoder layer do at chosen positions only what no other position reads.

    A layer that is run again in the backward pass is left alone, since there it would not know the positions; so is one
    with hooks that watch what flows through it.

    Args:
        model: A causal language model.
        positions: True where the model's output is wanted, shape (batch, tokens).
    """
    layer = decoder_layers(model)[1][-1]
    runs_again = "forward" in vars(layer) or getattr(layer, "gradient_checkpointing", False)
    is_watched = any(module._forward_hooks for module in layer.modules())
    per_token = (module for name, module in layer.named_modules() if name.rpartition(".")[2] in PER_TOKEN)
    modules = [] if runs_again or is_watched else list(per_token)
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(_forward_at, positions, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _forward_at(positions: Tensor, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    rows = forward(x[positions][None])[0]
    full = rows.new_zeros(*positions.shape, rows.shape[-1])
    full[positions] = rows
    return full
