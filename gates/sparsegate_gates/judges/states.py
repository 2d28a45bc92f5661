"""How a causal language model reads prompt and response: the hidden states of one of its middle layers, averaged.

The model reads both as one turn of a chat. The states of the prompt know nothing of the response, those of the response
know the prompt. A long response is averaged in windows, so that what stands late in it is not lost in one mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsegate_gates.judges.judgement import Pair

WINDOW_TOKENS = 110
"""Longest window of a response; a longer one is cut into windows of nearly equal length."""
_BATCH_TOKENS = 4096
_START, _TURN = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


class PairStates(NamedTuple):
    """Averaged hidden states of one pair.

    Args:
        prompt: Mean over the prompt's tokens, shape (width).
        response: Mean over each window of the response's tokens, shape (windows, width).
        texts: The text of each window.
    """

    prompt: Tensor
    response: Tensor
    texts: tuple[str, ...]


class _Encoded(NamedTuple):
    ids: list[int]
    prompt: slice
    response: slice


def cut_at_layer(model: Any, layer: int) -> nn.Module:
    """Return the model's body with its first layers only, so that it puts out the hidden states after ``layer``.

    The model given is changed.
    """
    body: Any = model.model
    body.layers = body.layers[:layer]
    body.norm = nn.Identity()
    return body  # type: ignore[no-any-return]


@torch.inference_mode()
def read_states(body: nn.Module, tokenizer: Any, pairs: Sequence[Pair], *, limit: int) -> list[PairStates | None]:
    """Read pairs in batches of like length, in order.

    Args:
        body: What :func:`cut_at_layer` returns.
        tokenizer: Its tokenizer.
        pairs: Prompts and responses.
        limit: Most tokens of a pair.

    Returns:
        None for a pair that is longer than the limit, or whose prompt or response has no token.
    """
    encoded = [_encode(tokenizer, *pair) for pair in pairs]
    readable = [
        index
        for index, pair in enumerate(encoded)
        if len(pair.ids) <= limit and pair.prompt.stop > pair.prompt.start and pair.response.stop > pair.response.start
    ]
    found: list[PairStates | None] = [None] * len(pairs)
    for chosen in _batches(sorted(readable, key=lambda index: len(encoded[index].ids)), encoded):
        width = max(len(encoded[index].ids) for index in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            length = len(encoded[index].ids)
            ids[row, :length] = torch.tensor(encoded[index].ids)
            mask[row, :length] = 1
        states = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        for row, index in enumerate(chosen):
            found[index] = _average(states[row], encoded[index], tokenizer)
    return found


def _encode(tokenizer: Any, prompt: str, response: str) -> _Encoded:
    def own(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def foreign(text: str) -> list[int]:
        # text that spells a special token stays text: else a response could end its turn and begin another
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    asked, answered = foreign(prompt), foreign(response)
    start, turn = own(_START), own(_TURN)
    first, then = len(start), len(start) + len(asked) + len(turn)
    return _Encoded(
        start + asked + turn + answered, slice(first, first + len(asked)), slice(then, then + len(answered))
    )


def _batches(order: Sequence[int], encoded: Sequence[_Encoded]) -> list[list[int]]:
    """Split pairs, shortest first, into batches that hold at most ``_BATCH_TOKENS`` with their padding."""
    batches: list[list[int]] = []
    for index in order:
        if batches and len(encoded[index].ids) * (len(batches[-1]) + 1) <= _BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _average(states: Tensor, encoded: _Encoded, tokenizer: Any) -> PairStates:
    count = math.ceil((encoded.response.stop - encoded.response.start) / WINDOW_TOKENS)
    windows = states[encoded.response].tensor_split(count)
    tokens = torch.tensor(encoded.ids[encoded.response]).tensor_split(count)
    return PairStates(
        states[encoded.prompt].mean(0),
        torch.stack([window.mean(0) for window in windows]),
        tuple(tokenizer.decode(window) for window in tokens),
    )
