"""The likeliest label of each prompt of a batch, by branch and bound over the trie of labels.

The log-probability of a prefix bounds that of every label below it. Each prompt first follows the likeliest token down
to a whole label; then only prefixes that may still beat it are read. One forward pass reads tokens for all prompts; the
keys and values of all that was read are kept, so that no token is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparsegate.evaluation.label_trie import Node
from sparsegate.evaluation.prefix import PaddedBatch

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

_MOST_TOKENS = 512  # read at once: bounds the logits


class LabelScore(NamedTuple):
    """The likeliest label of one prompt, by index, and the log-probability (nats) of its tokens after the prompt."""

    label: int
    log_probability: float


class _Open(NamedTuple):
    """A token to read: the log-probability up to and with it, and where the tokens before it lie in the cache."""

    bound: float
    node: Node
    columns: tuple[int, ...]


class _PromptSearch:
    """What is known of one prompt's labels."""

    def __init__(self) -> None:
        self.best: LabelScore | None = None
        self.open: list[_Open] = []

    def extend(self, read: _Open, log_probs: Sequence[float]) -> None:
        """Take in the log-probabilities of the tokens that may follow the one read."""
        for child, log_prob in zip(read.node.children, log_probs, strict=True):
            score = read.bound + log_prob
            if child.label is None:
                self.open.append(_Open(score, child, read.columns))
            elif self.best is None or (-score, child.label) < (-self.best.log_probability, self.best.label):
                self.best = LabelScore(child.label, score)

    def prune(self) -> None:
        """Drop what can't lead to a better label; what can equal it may lead to one that comes first."""
        if self.best is not None:
            least = self.best.log_probability
            self.open = [item for item in self.open if item.bound >= least]

    def take(self, count: int) -> list[_Open]:
        """Take the likeliest tokens to read; while there is no whole label, the one next on the way to the first."""
        if self.best is None:
            taken = [max(self.open, key=lambda item: (item.node.depth, item.bound))]
        else:
            taken = sorted(self.open, key=lambda item: -item.bound)[:count]
        self.open = [item for item in self.open if item not in taken]
        return taken


class BatchSearch:
    """Finds the likeliest label of each prompt of a batch.

    Args:
        model: A causal language model in evaluation mode that attends freely.
        prompts: The whole prompts, padded.
        cache: Keys and values of their first tokens; continued in place.
    """

    def __init__(self, model: PreTrainedModel, prompts: PaddedBatch, cache: Cache) -> None:
        mask, past = prompts.attention_mask, cache.get_seq_length()
        output = model(
            input_ids=prompts.input_ids[:, past:],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, past:],
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._model, self._cache, self._prompt_mask = model, cache, mask
        self._last_logits: Tensor = output.logits.float()

    def run(self, trie: Node) -> list[LabelScore]:
        searches = [_PromptSearch() for _ in self._prompt_mask]
        root = [[_Open(0.0, trie, ())] for _ in searches]
        self._extend(searches, root, self._last_logits)
        at_work = searches
        while at_work := self._drop_finished(at_work):
            # one each on the way to the first labels; then a width at which most rows need no padding
            diving = any(search.best is None for search in at_work)
            usual = 1 if diving else median_low(len(search.open) for search in at_work)
            width = max(1, min(usual, _MOST_TOKENS // len(at_work)))
            self._read(at_work, [search.take(width) for search in at_work])
        scores = [search.best for search in searches]
        return [score for score in scores if score is not None]

    def _drop_finished(self, searches: list[_PromptSearch]) -> list[_PromptSearch]:
        """Return the searches that go on, and keep only their rows."""
        for search in searches:
            search.prune()
        rows = [row for row, search in enumerate(searches) if search.open]
        if 0 < len(rows) < len(searches):
            kept = torch.tensor(rows, device=self._prompt_mask.device)
            self._cache.batch_select_indices(kept)
            self._prompt_mask = self._prompt_mask[kept]
        return [searches[row] for row in rows]

    def _read(self, searches: Sequence[_PromptSearch], taken: Sequence[list[_Open]]) -> None:
        """Run a token each for what was taken; its own tokens before it are all that it sees beside the prompt."""
        device, past = self._prompt_mask.device, self._cache.get_seq_length()
        rows, width, prompt = len(taken), max(map(len, taken)), self._prompt_mask.shape[1]
        tokens = torch.zeros((rows, width), dtype=torch.long)
        depths = torch.ones_like(tokens)
        sees = torch.zeros((rows, width, past + width), dtype=torch.bool)
        sees[:, :, :prompt] = self._prompt_mask.bool()[:, None].cpu()
        read: list[list[_Open]] = []
        for row, items in enumerate(taken):
            read.append([item._replace(columns=(*item.columns, past + place)) for place, item in enumerate(items)])
            for place, item in enumerate(read[row]):
                tokens[row, place], depths[row, place] = item.node.token, item.node.depth
                sees[row, place, list(item.columns)] = True
        dtype = self._model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
        output = self._model(
            input_ids=tokens.to(device),
            attention_mask=mask[:, None].to(device),
            position_ids=self._prompt_mask.sum(1, keepdim=True) + depths.to(device) - 1,
            cache=self._cache,
            use_cache=True,
        )
        self._extend(searches, read, output.logits.float())

    def _extend(self, searches: Sequence[_PromptSearch], read: Sequence[list[_Open]], logits: Tensor) -> None:
        """Take in what logits of shape (rows, width, vocabulary) say of the tokens after those read."""
        wanted = [
            (row, place, child.token)
            for row, items in enumerate(read)
            for place, item in enumerate(items)
            for child in item.node.children
        ]
        row, place, token = torch.tensor(wanted, device=logits.device).unbind(1)
        log_probs = logits[row, place, token] - logits.logsumexp(-1)[row, place]
        # what is no number is the least likely
        values = iter(log_probs.nan_to_num(nan=-torch.inf).tolist())
        for search, items in zip(searches, read, strict=True):
            for item in items:
                search.extend(item, [next(values) for _ in item.node.children])
