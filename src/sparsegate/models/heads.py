"""Logits where they are needed, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from sparsegate.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_at(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
    """Run a model and return the logits at chosen positions.

    The output head sees the hidden states of these positions only; whatever the model does after its head (logit
    scaling, soft-capping) stays in place.

    Args:
        model: A causal language model.
        input_ids: Token ids, shape (batch, tokens).
        attention_mask: 1 for tokens, 0 for padding, shape (batch, tokens).
        positions: True at the N positions wanted, shape (batch, tokens).

    Returns:
        Logits of shape (N, vocabulary), in row-major order of ``positions``.
    """
    with _head_sees(model, lambda states: states[positions][None]):
        output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return cast(Tensor, output.logits[0])


def split_at_head(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, positions: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Run a model up to its head, for logits that are too many to be held at once.

    Args:
        model: A causal language model.
        input_ids: Token ids, shape (batch, tokens).
        attention_mask: 1 for tokens, 0 for padding, shape (batch, tokens).
        positions: True at the N positions wanted, shape (batch, tokens).

    Returns:
        The hidden states that the head would see, shape (N, width), and a function from any rows of them to logits,
        shape (rows, vocabulary): the head, and whatever the model does after it.

    Raises:
        ModelError: If the model does not hold its body apart from its head.
    """
    body = model.base_model
    if body is model:
        raise ModelError(f"{type(model).__name__} does not hold its layers apart from its head; use shorter responses")
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    hidden: list[Tensor] = []
    outputs: list[Any] = []

    def set_aside(states: Tensor) -> Tensor:
        hidden.append(states[positions])
        return states[:, :0]

    handle = body.register_forward_hook(lambda _, __, output: outputs.append(output))
    with handle, _head_sees(model, set_aside):
        model(**inputs)

    def head(rows: Tensor) -> Tensor:
        body.forward = lambda *_, **__: outputs[0]  # on the instance, as long as the head runs
        try:
            with _head_sees(model, lambda _: rows[None]):
                return cast(Tensor, model(**inputs).logits[0])
        finally:
            del body.forward

    return hidden[0], head


@contextmanager
def _head_sees(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the output head see other hidden states than the body gives it."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    with model.get_output_embeddings().register_forward_pre_hook(hook):
        yield
