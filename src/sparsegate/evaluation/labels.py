"""Which of a few label texts does the model find most likely? The exact answer, without scoring all of them.

Labels form a trie. The log-probability of a prefix bounds that of every label below it, so a best-first search may stop
as soon as a whole label scores at least as high as every prefix left: usually after one or two short forward passes
over the cached prompt.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Tokens = tuple[int, ...]
Progress = Callable[[int], object]
_MOST_PATHS = 64  # label paths read at once: bounds the copies of cached prompts


class LabelScore(NamedTuple):
    """The likeliest label of one prompt, by index, and the log-probability (nats) of its tokens after the prompt."""

    label: int
    log_probability: float


@dataclass
class _Node:
    """A prefix shared by labels: ``path`` leads here from the prompt, ``start`` is where the last branch was."""

    path: Tokens
    start: int
    label: int | None = None
    children: list[_Node] = field(default_factory=list)

    @property
    def inputs(self) -> Tokens:
        """Tokens to read after the prompt; a whole label's last token is only predicted, never read."""
        return self.path if self.label is None else self.path[:-1]


# a heap of (negative bound, tie-break, node or label): the likeliest first
_Frontier = list[tuple[float, Tokens, _Node | int]]


class _Open(NamedTuple):
    row: int
    bound: float
    node: _Node


def _build_trie(labels: Sequence[tuple[int, Tokens]], path: Tokens = ()) -> _Node:
    """Build the trie below a common prefix ``path``; chains without a branch are one node."""
    start = len(path)
    rests = [tokens[start:] for _, tokens in labels]
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*rests, strict=False))))
    if path == ():
        common = 0  # the root is the prompt itself
    path = labels[0][1][: start + common]
    node = _Node(path, start)
    groups: dict[int, list[tuple[int, Tokens]]] = {}
    for index, tokens in labels:
        if len(tokens) == len(path):
            node.label = index
        else:
            groups.setdefault(tokens[len(path)], []).append((index, tokens))
    for token, group in groups.items():
        child = _build_trie(group, (*path, token))
        child.start = len(path)
        node.children.append(child)
    return node


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
        model: A causal language model in evaluation mode.
        prompts: Token ids of each prompt.
        labels: Token ids of each label, ending with the token that ends an answer, so that no label is the beginning of
            another.
        batch_size: Prompts scored at once.
        progress: Called with the number of prompts done after each batch.

    Returns:
        One score for each prompt, in order. Ties go to the label that comes first.

    Raises:
        ValueError: If labels are empty, equal, or one is the beginning of another, or a prompt is empty.
    """
    _check_labels(labels)
    if not all(prompts):
        raise ValueError("prompts must not be empty")
    trie = _build_trie(list(enumerate(labels)))
    shared = _shared_prefix(prompts)
    prefix = _encode(model, torch.tensor([shared], device=model.device), None, 0) if shared else None
    scores: list[LabelScore | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        search = _BatchSearch(model, [prompts[index][len(shared) :] for index in chosen], prefix, len(shared))
        for index, score in zip(chosen, search.run(trie), strict=True):
            scores[index] = score
        if progress is not None:
            progress(len(chosen))
    return [score for score in scores if score is not None]


def _check_labels(labels: Sequence[Tokens]) -> None:
    ordered = sorted(labels)
    if not labels or not all(labels):
        raise ValueError("labels must not be empty")
    for first, second in pairwise(ordered):
        if second[: len(first)] == first:
            raise ValueError(
                "labels must differ, and none may be the beginning of another; end each with the end token"
            )


def _shared_prefix(prompts: Sequence[Tokens]) -> Tokens:
    """Return what all prompts begin with, leaving each at least one token of its own."""
    if len(prompts) < 2:
        return ()
    shortest = min(len(prompt) for prompt in prompts)
    columns = zip(*prompts, strict=False)
    common = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    return prompts[0][: min(common, shortest - 1)]


class _Encoded(NamedTuple):
    cache: Cache
    last_logits: Tensor  # (batch, vocabulary)


def _encode(
    model: PreTrainedModel, input_ids: Tensor, cache: Cache | None, past: int, mask: Tensor | None = None
) -> _Encoded:
    """Run prompt tokens, padded on the left, after ``past`` cached ones."""
    if mask is None:
        mask = torch.ones((len(input_ids), past + input_ids.shape[1]), dtype=torch.long, device=input_ids.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
    output = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1
    )
    return _Encoded(output.cache, output.logits[:, -1].float())


class _BatchSearch:
    """Best-first search over the trie for a batch of prompts with one cached prompt pass.

    Args:
        model: The model.
        prompts: Token ids after the shared prefix.
        prefix: The encoded shared prefix, or None.
        past: Length of the shared prefix in tokens.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Tokens], prefix: _Encoded | None, past: int) -> None:
        self._model = model
        width = max(map(len, prompts))
        pad = model.config.get_text_config().pad_token_id or 0
        rows = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        masks = [[1] * past + [0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask = torch.tensor(masks, device=model.device)
        cache = None
        if prefix is not None:
            cache = deepcopy(prefix.cache)
            cache.batch_repeat_interleave(len(prompts))
        encoded = _encode(model, torch.tensor(rows, device=model.device), cache, past, self._mask)
        self._cache, self._log_probs = encoded.cache, encoded.last_logits.log_softmax(-1)

    def run(self, trie: _Node) -> list[LabelScore]:
        frontiers: list[_Frontier] = []
        for row in range(len(self._mask)):
            frontiers.append([])
            _push_children(frontiers[row], trie, 0.0, self._log_probs[row])
        found: dict[int, LabelScore] = {}
        breadth = 1
        while len(found) < len(frontiers):
            wanted: list[_Open] = []
            for row, frontier in enumerate(frontiers):
                if row in found:
                    continue
                opened = _pop_open(frontier, breadth)
                if not opened:
                    negative, _, label = frontier[0]
                    assert isinstance(label, int)
                    found[row] = LabelScore(label, -negative)
                wanted += [_Open(row, score, node) for score, node in opened]
            # of one length at a time, so that no padding is computed
            for _, group in groupby(sorted(wanted, key=_num_inputs), key=_num_inputs):
                paths = list(group)
                for start in range(0, len(paths), _MOST_PATHS):
                    self._expand(paths[start : start + _MOST_PATHS], frontiers)
            breadth *= 2  # an unsure model needs most labels: ask for more of them at once
        return [found[row] for row in range(len(frontiers))]

    def _expand(self, opened: Sequence[_Open], frontiers: list[_Frontier]) -> None:
        """Run nodes' paths of one length after their prompts; push the whole label or the children each leads to."""
        rows = torch.tensor([row for row, _, _ in opened], device=self._mask.device)
        tokens = torch.tensor([node.inputs for _, _, node in opened], device=rows.device)
        mask = self._mask[rows]
        cache = copy(self._cache)
        cache.layers = [copy(layer) for layer in self._cache.layers]
        cache.batch_select_indices(rows)
        output = self._model(
            input_ids=tokens,
            attention_mask=torch.cat([mask, torch.ones_like(tokens)], dim=1),
            position_ids=mask.sum(1, keepdim=True) + torch.arange(tokens.shape[1], device=rows.device),
            cache=cache,
            use_cache=True,
        )
        log_probs = output.logits.float().log_softmax(-1)
        for place, (row, bound, node) in enumerate(opened):
            # the node's first token is in the bound already; the rest of its chain has no branch
            chain = range(node.start + 1, len(node.path))
            score = bound + sum(float(log_probs[place, position - 1, node.path[position]]) for position in chain)
            if node.label is not None:
                heapq.heappush(frontiers[row], (-score, (node.label,), node.label))
            else:
                _push_children(frontiers[row], node, score, log_probs[place, len(node.path) - 1])


def _pop_open(frontier: _Frontier, count: int) -> list[tuple[float, _Node]]:
    """Take up to ``count`` nodes that may still lead to a better label than the best whole one."""
    opened: list[tuple[float, _Node]] = []
    while frontier and len(opened) < count:
        negative, _, node = frontier[0]
        if isinstance(node, int):
            break
        heapq.heappop(frontier)
        opened.append((-negative, node))
    return opened


def _num_inputs(opened: _Open) -> int:
    return len(opened.node.inputs)


def _push_children(frontier: _Frontier, node: _Node, score: float, log_probs: Tensor) -> None:
    for child in node.children:
        bound = score + float(log_probs[child.path[child.start]])
        if child.label is not None and len(child.path) == child.start + 1:
            heapq.heappush(frontier, (-bound, (child.label,), child.label))
        else:
            heapq.heappush(frontier, (-bound, (-1, *child.path), child))
