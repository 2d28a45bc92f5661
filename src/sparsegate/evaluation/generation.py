"""Batched free generation, and the likelihood of given responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from sparsegate.contracts import EncodedSample
from sparsegate.evaluation.prefix import SharedPrefix, attends_freely, pad_left
from sparsegate.models.heads import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int], object]


class GeneratedText(NamedTuple):
    """What the model wrote, and whether it ended by itself within the limit."""

    text: str
    finished: bool


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[GeneratedText]:
    """Write the greedy continuation of each prompt.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a padding token.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts continued at once.
        progress: Called with the number of prompts done after each batch.
    """
    pad, ends = _pad_id(tokenizer), _end_ids(model, tokenizer)
    answers: list[GeneratedText] = [GeneratedText("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    # a cache of another kind, asked for by the model, can't be continued from ours
    can_share = attends_freely(model, longest) and model.generation_config.cache_implementation is None
    prefix = SharedPrefix(model, prompts if can_share else ())
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        group = [prompts[index] for index in chosen]
        padded = pad_left(group, shared=len(prefix.tokens), pad_id=pad, device=model.device)
        output = model.generate(
            input_ids=padded.input_ids,
            attention_mask=padded.attention_mask,
            cache=prefix.copies(len(group)) if prefix.tokens else None,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            eos_token_id=sorted(ends),
        )
        for index, tokens in zip(chosen, output[:, padded.input_ids.shape[1] :].tolist(), strict=True):
            finished = any(token in ends for token in tokens)
            answers[index] = GeneratedText(tokenizer.decode(tokens, skip_special_tokens=True).strip(), finished)
        if progress is not None:
            progress(len(chosen))
    return answers


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(pad, int)
    return pad


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in (*ids, tokenizer.eos_token_id) if isinstance(token, int)}


@torch.inference_mode()
def response_nll(model: PreTrainedModel, samples: Sequence[EncodedSample], *, batch_size: int = 8) -> list[float]:
    """Return the mean negative log-likelihood, in nats per token, of each sample's response after its prompt."""
    results: list[float] = [0.0] * len(samples)
    order = sorted(
        range(len(samples)), key=lambda index: len(samples[index].prompt_ids) + len(samples[index].response_ids)
    )
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = [torch.tensor(samples[index].prompt_ids + samples[index].response_ids) for index in chosen]
        input_ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(model.device)
        lengths = torch.tensor([len(row) for row in tokens], device=model.device)[:, None]
        starts = torch.tensor([len(samples[index].prompt_ids) for index in chosen], device=model.device)[:, None]
        place = torch.arange(input_ids.shape[1], device=model.device)[None]
        predicts = (place >= starts - 1) & (place < lengths - 1)
        logits = logits_at(model, input_ids, (place < lengths).long(), predicts)
        losses = F.cross_entropy(logits.float(), input_ids[:, 1:][predicts[:, :-1]], reduction="none")
        counts = predicts.sum(1).tolist()
        for index, part in zip(chosen, torch.split(losses, counts), strict=True):
            results[index] = float(part.mean())
    return results
