"""What all samples of a batch begin with, such as a system prompt, runs through the model once for all of them.

The states of a token follow from the tokens before it, so samples that begin alike have equal states there. A packed
batch is one row of tokens: the shared start, then the rest of each sample in turn. Only attention looks further than
one token: it takes the row apart, and each rest sees the start and itself. Gradients of the start add up over the
samples, so loss and gradients are those of the plain batch, up to rounding, for fewer operations and less memory.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsegate.data.datamodule import IGNORED, Batch
from sparsegate.models.attention import PACKED_ATTENTION, sees_all_before
from sparsegate.models.heads import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
_PLAIN_ATTENTION = "sdpa"
_LEAST_TOLERANCE = 0.01  # of the largest logit; what a model takes for other tokens is further off, or an error


def shared_length(batch: Batch) -> int:
    """Return how many tokens a plain batch's samples share at their start, as far as none of them predicts for one.

    At least one token of each row is left to itself, and nothing is shared by a single sample.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    if len(input_ids) == 1:
        return 0
    alike = ((input_ids == input_ids[0]) & batch["attention_mask"].bool()).all(0)
    # a token that predicts a supervised one does so for its own sample; the last column stays in any case
    predicts = F.pad(labels[:, 1:] != IGNORED, (0, 1), value=True).any(0)
    return int((alike & ~predicts).long().cumprod(0).sum())


def pack(batch: Batch, shared: int) -> Batch:
    """Return the packed batch, or the batch itself where nothing is shared.

    Args:
        batch: A plain batch, padded on the right.
        shared: How many tokens its samples share, as :func:`shared_length` gives it.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids`` of shape (1, shared + samples * rest), and an ``attention_mask``
        of shape (samples, 1, rest, shared + rest) that is True where a token of a rest sees.
    """
    if shared == 0:
        return batch
    input_ids = batch["input_ids"]
    samples, width = input_ids.shape
    sees = torch.ones((width - shared, width), dtype=torch.bool, device=input_ids.device).tril(shared)
    positions = torch.arange(width, device=input_ids.device).expand(samples, -1)
    return Batch(
        input_ids=pack_rows(input_ids, shared),
        attention_mask=(sees & batch["attention_mask"].bool()[:, None])[:, None],
        labels=pack_rows(batch["labels"], shared),
        position_ids=pack_rows(positions, shared),
        ids=batch["ids"],
    )


def pack_rows(rows: Tensor, shared: int) -> Tensor:
    """Turn (samples, tokens, ...) into (1, shared + samples * rest, ...); unchanged where nothing is shared."""
    if shared == 0:
        return rows
    return torch.cat([rows[0, :shared], rows[:, shared:].flatten(0, 1)])[None]


def unpack_rows(row: Tensor, shared: int, samples: int) -> Tensor:
    """Undo :func:`pack_rows`."""
    if shared == 0:
        return row
    start, rest = row[:, :shared], row[0, shared:].reshape(samples, -1, *row.shape[2:])
    return torch.cat([start.expand(samples, *start.shape[1:]), rest], dim=1)


def allow_packed(model: PreTrainedModel) -> bool:
    """Make a model take packed batches beside plain ones, until :func:`disallow_packed`.

    Returns:
        Whether it does. Not so, and unchanged, if its attention is another than ``sdpa`` or has windows, or if a probe
        comes out otherwise than plain: with dropout, or where tokens meet elsewhere than in attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation not in (_PLAIN_ATTENTION, PACKED_ATTENTION) or not sees_all_before(model):
        return False
    AttentionInterface.register(PACKED_ATTENTION, _attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
    model.config._attn_implementation = PACKED_ATTENTION
    if _gives_the_same(model):
        return True
    disallow_packed(model)
    _LOG.debug("%s runs what samples share once for each of them", type(model).__name__)
    return False


def disallow_packed(model: PreTrainedModel) -> None:
    """Undo :func:`allow_packed`."""
    if model.config._attn_implementation == PACKED_ATTENTION:
        model.config._attn_implementation = _PLAIN_ATTENTION


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of a packed batch, known by its mask, or of a plain one.

    Args:
        module: The attention module.
        query: Shape (batch, heads, tokens, width); the batch is 1 if packed.
        key: Shape (batch, key heads, tokens, width).
        value: Shape (batch, key heads, tokens, width).
        attention_mask: As :func:`pack` makes it, or as transformers does.
        options: What transformers passes on.

    Returns:
        Shape (batch, tokens, heads, width), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if attention_mask is None or attention_mask.shape[2] == query.shape[2]:
        found, _ = sdpa(module, query, key, value, attention_mask, **options)
        return found, None
    samples, _, rest, seen_tokens = attention_mask.shape
    shared = seen_tokens - rest

    def own(states: Tensor) -> Tensor:  # (samples, heads, rest, width)
        _, heads, _, width = states.shape
        return states[0, :, shared:].reshape(heads, samples, rest, width).transpose(0, 1)

    def start(states: Tensor) -> Tensor:
        return states[:, :, :shared].contiguous()  # a view would hold all of it until the backward pass

    def seen(states: Tensor) -> Tensor:
        return torch.cat([start(states).expand(samples, -1, -1, -1), own(states)], dim=2)

    of_start, _ = sdpa(module, start(query), start(key), start(value), None, **options)
    of_rests, _ = sdpa(module, own(query), seen(key), seen(value), attention_mask, **options)
    return torch.cat([of_start, of_rests.flatten(0, 1)[None]], dim=1), None


@torch.no_grad()
def _gives_the_same(model: PreTrainedModel) -> bool:
    """Tell whether a packed batch has the logits of the plain one, in training mode, where dropout would draw."""
    tokens = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 6, 7, 0]], device=model.device)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], device=model.device)
    supervised = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]], device=model.device)
    plain = Batch(
        input_ids=tokens % vocabulary,
        attention_mask=mask,
        labels=torch.where(supervised.bool(), tokens, IGNORED),
        ids=["probe 1", "probe 2"],
    )
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            expected, found = (_logits(model, batch) for batch in (plain, pack(plain, 2)))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # it takes no such batch
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    tolerance = max(_LEAST_TOLERANCE, math.sqrt(torch.finfo(found.dtype).eps))
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    inputs = (model, batch["input_ids"], batch["attention_mask"], F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1)))
    return logits_at(*inputs, position_ids=batch.get("position_ids"))
