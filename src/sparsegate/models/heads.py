"""Logits where they are needed, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

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

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][positions][None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits[0]
    return logits
