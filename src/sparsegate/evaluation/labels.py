"""Which of a few label texts does the model find most likely? The exact answer, without scoring all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from sparsegate.contracts import EncodedSample
from sparsegate.evaluation.generation import response_nll
from sparsegate.evaluation.label_search import BatchSearch, LabelScore
from sparsegate.evaluation.label_trie import Tokens, build_trie, check_labels
from sparsegate.evaluation.prefix import SharedPrefix, attends_freely, pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int], object]
_MOST_PROMPT_TOKENS = 4096  # encoded at once: bounds the hidden states; wide batches make the rounds after it cheap
_MOST_PADDING = 512  # tokens; about what the rounds of one more batch cost
_MOST_KEPT_TOKENS = 8192  # whose keys and values are kept at once: bounds memory


@torch.inference_mode()
def score_labels(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    labels: Sequence[Tokens],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[LabelScore]:
    """Return the likeliest label for each prompt.

    Args:
        model: A causal language model in evaluation mode. One that does not attend freely
            (:func:`~sparsegate.evaluation.prefix.attends_freely`) reads each prompt once for each label.
        prompts: Token ids of each prompt.
        labels: Token ids of each label, ending with the token that ends an answer, so that no label is the beginning of
            another.
        batch_size: Most prompts scored at once; of long ones fewer are.
        progress: Called with the number of prompts done after each batch.

    Returns:
        One score for each prompt, in order. Ties go to the label that comes first; equal prompts are scored once.

    Raises:
        ValueError: If labels are empty, equal, or one is the beginning of another, or a prompt is empty.
    """
    check_labels(labels)
    if not all(prompts):
        raise ValueError("prompts must not be empty")
    longest = max(map(len, prompts), default=0) + max(map(len, labels))
    by_search = attends_freely(model, longest)
    counts = Counter(prompts)
    distinct = list(counts)
    prefix = SharedPrefix(model, distinct if by_search else ())
    trie = build_trie(labels)
    shared, pad_id = len(prefix.tokens), model.config.get_text_config().pad_token_id or 0
    scores: dict[Tokens, LabelScore] = {}
    for chosen in _batches([len(prompt) for prompt in distinct], shared, trie.num_read(), batch_size):
        group = [distinct[index] for index in chosen]
        if by_search:
            padded = pad_left(group, shared=shared, pad_id=pad_id, device=model.device)
            found = BatchSearch(model, padded, prefix.copies(len(group))).run(trie)
        else:
            found = [_score_each(model, prompt, labels) for prompt in group]
        scores.update(zip(group, found, strict=True))
        if progress is not None:
            progress(sum(counts[prompt] for prompt in group))
    return [scores[prompt] for prompt in prompts]


def _batches(lengths: Sequence[int], shared: int, num_label_tokens: int, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of prompts of similar length together, so that little padding is computed."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        encoded, kept = lengths[index] - shared, lengths[index] + num_label_tokens
        most = min(batch_size, _MOST_PROMPT_TOKENS // encoded, _MOST_KEPT_TOKENS // kept)
        padding = len(batch) * (lengths[index] - lengths[batch[0]]) if batch else 0
        if batch and (len(batch) >= most or padding > _MOST_PADDING):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score_each(model: PreTrainedModel, prompt: Tokens, labels: Sequence[Tokens]) -> LabelScore:
    """Score all labels of a prompt by full passes."""
    means = response_nll(model, [EncodedSample("", prompt, label) for label in labels])
    scores = [-mean * len(label) for mean, label in zip(means, labels, strict=True)]
    best = max(range(len(labels)), key=scores.__getitem__)
    return LabelScore(best, scores[best])
