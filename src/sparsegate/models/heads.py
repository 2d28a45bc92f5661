"""Logits where they are needed, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from sparsegate.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_at(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    *,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Run a model and return the logits at chosen positions.

    The output head sees the hidden states of these positions only; whatever the model does after its head (logit
    scaling, soft-capping) stays in place.

    Args:
        model: A causal language model.
        input_ids: Token ids, shape (batch, tokens).
        attention_mask: 1 for tokens, 0 for padding, shape (batch, tokens).
        positions: True at the N positions wanted, shape (batch, tokens).
        position_ids: Place of each token in its sequence, shape (batch, tokens), where it is not that in the row.

    Returns:
        Logits of shape (N, vocabulary), in row-major order of ``positions``.
    """
    with _head_sees(model, lambda states: states[positions][None]):
        output = model(**_inputs(input_ids, attention_mask, position_ids))
    return cast(Tensor, output.logits[0])


def split_at_head(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    *,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Run a model up to its head, for logits that are too many to be held at once.

    Args:
        model: A causal language model.
        input_ids: Token ids, shape (batch, tokens).
        attention_mask: 1 for tokens, 0 for padding, shape (batch, tokens).
        positions: True at the N positions wanted, shape (batch, tokens).
        position_ids: Place of each token in its sequence, shape (batch, tokens), where it is not that in the row.

    Returns:
        The hidden states that the head would see, shape (N, width), and a function from any rows of them to logits,
        shape (rows, vocabulary): the head, and whatever the model does after it.

    Raises:
        ModelError: If the model does not hold its body apart from its head.
    """
    body = model.base_model
    if body is model:
        raise ModelError(f"{type(model).__name__} does not hold its layers apart from its head; use shorter responses")
    inputs = _inputs(input_ids, attention_mask, position_ids)
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


def _inputs(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> dict[str, Any]:
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    return inputs if position_ids is None else {**inputs, "position_ids": position_ids}


@contextmanager
def _head_sees(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the output head see other hidden states than the body gives it."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    with model.get_output_embeddings().register_forward_pre_hook(hook):
        yield
