"""What all prompts begin with, a system prompt and the marks of the chat template, is read once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparsegate.models.attention import MASKED_ATTENTIONS

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Tokens = tuple[int, ...]
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def attends_freely(model: PreTrainedModel, longest: int) -> bool:
    """Say whether what a token computes follows from its position and the tokens that its mask lets it see.

    Keys and values may then be kept, copied and arranged at will. Not so with states that are carried along, positions
    that are counted from the mask, fused attention, and windows shorter than the text.

    Args:
        model: A causal language model.
        longest: Length of the longest text, in tokens.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return (
        model._supports_attention_backend
        and not model._is_stateful
        and config._attn_implementation in MASKED_ATTENTIONS
        and set(getattr(config, "layer_types", None) or ()) <= _LAYER_TYPES
        and (window is None or longest <= window)
    )


class SharedPrefix:
    """The beginning that all prompts share, with its keys and values.

    Args:
        model: A causal language model in evaluation mode that attends freely.
        prompts: Token ids of the prompts; each keeps at least one token of its own. Fewer than two share nothing.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Tokens]) -> None:
        from transformers import DynamicCache

        self.tokens: Tokens = _common_beginning(prompts)
        self._cache = DynamicCache()  # without the model's configuration: one that drops nothing behind a window
        if self.tokens:
            tokens = torch.tensor([self.tokens], device=model.device)
            model(input_ids=tokens, cache=self._cache, use_cache=True, logits_to_keep=1)

    def copies(self, count: int) -> DynamicCache:
        """Return the keys and values for a batch of ``count`` prompts, to be continued."""
        cache = deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def _common_beginning(prompts: Sequence[Tokens]) -> Tokens:
    if len(prompts) < 2:
        return ()
    shortest = min(map(len, prompts))
    columns = zip(*prompts, strict=False)
    common = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    return prompts[0][: min(common, shortest - 1)]


class PaddedBatch(NamedTuple):
    """Token ids, padded on the left, and 1 where they are tokens; both of shape (batch, tokens)."""

    input_ids: Tensor
    attention_mask: Tensor


def pad_left(rows: Sequence[Tokens], *, shared: int, pad_id: int, device: torch.device) -> PaddedBatch:
    """Pad prompts between the first ``shared`` tokens and the rest."""
    width = max(map(len, rows))
    ids = [[*row[:shared], *[pad_id] * (width - len(row)), *row[shared:]] for row in rows]
    masks = [[*[1] * shared, *[0] * (width - len(row)), *[1] * (len(row) - shared)] for row in rows]
    return PaddedBatch(torch.tensor(ids, device=device), torch.tensor(masks, device=device))
