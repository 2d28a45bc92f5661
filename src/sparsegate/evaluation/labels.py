"""Which of a few label texts does the model find most likely? The exact answer, without scoring all of them.

Labels form a trie. The log-probability of a prefix bounds that of every label below it, so a best-first search may stop
as soon as a whole label scores at least as high as every prefix left: usually after one or two short forward passes
over the cached prompt. What is read for one prompt at a time is packed into one row, a tree under a mask.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy, deepcopy
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from sparsegate.evaluation.label_trie import Node, Tokens, build_trie, check_labels
from sparsegate.models.attention import sees_all_before

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Progress = Callable[[int], object]
Item = TypeVar("Item")
_MOST_PROMPT_TOKENS = 1024  # encoded at once: what fits the caches is quicker
_MOST_LABEL_TOKENS = 512  # read at once: bounds the logits and the copies of cached prompts
_GROWTH = 8  # an unsure model needs most labels: so many times more of them are asked for in each round


class LabelScore(NamedTuple):
    """The likeliest label of one prompt, by index, and the log-probability (nats) of its tokens after the prompt."""

    label: int
    log_probability: float


# a heap of (negative bound, tie-break, node or label): the likeliest first
_Frontier = list[tuple[float, Tokens, Node | int]]


class _Open(NamedTuple):
    bound: float
    node: Node


class _Reading(NamedTuple):
    """Nodes to read for one prompt, and the tokens of all paths to them: each prefix once, by its place."""

    row: int
    opened: list[_Open]
    places: dict[Tokens, int]


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
        batch_size: Most prompts scored at once; of long ones fewer are.
        progress: Called with the number of prompts done after each batch.

    Returns:
        One score for each prompt, in order. Ties go to the label that comes first.

    Raises:
        ValueError: If labels are empty, equal, or one is the beginning of another, or a prompt is empty.
    """
    check_labels(labels)
    if not all(prompts):
        raise ValueError("prompts must not be empty")
    trie = build_trie(list(enumerate(labels)))
    shared = _shared_prefix(prompts)
    prefix = _encode(model, torch.tensor([shared], device=model.device), None, 0) if shared else None
    scores: list[LabelScore | None] = [None] * len(prompts)
    lengths = [len(prompt) - len(shared) for prompt in prompts]
    batches = _by_size(range(len(prompts)), lengths.__getitem__, most_tokens=_MOST_PROMPT_TOKENS, most_items=batch_size)
    for chosen in batches:
        search = _BatchSearch(model, [prompts[index][len(shared) :] for index in chosen], prefix, len(shared))
        for index, score in zip(chosen, search.run(trie), strict=True):
            scores[index] = score
        if progress is not None:
            progress(len(chosen))
    return [score for score in scores if score is not None]


def _by_size(
    items: Iterable[Item], size: Callable[[Item], int], *, most_tokens: int, most_items: int | None = None
) -> Iterator[list[Item]]:
    """Yield items of similar size together, so that little padding is computed; at least one at a time."""
    group: list[Item] = []
    for item in sorted(items, key=size):
        if group and (len(group) == most_items or (len(group) + 1) * size(item) > most_tokens):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


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
        self._model, self._can_pack = model, _can_pack(model)
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

    def run(self, trie: Node) -> list[LabelScore]:
        frontiers: list[_Frontier] = []
        for row in range(len(self._mask)):
            frontiers.append([])
            first = [float(self._log_probs[row, child.path[0]]) for child in trie.children]
            _push_children(frontiers[row], trie, 0.0, first)
        found: dict[int, LabelScore] = {}
        breadth = 1
        while len(found) < len(frontiers):
            readings: list[_Reading] = []
            for row, frontier in enumerate(frontiers):
                if row in found:
                    continue
                opened = _pop_open(frontier, breadth)
                if not opened:
                    negative, _, label = frontier[0]
                    assert isinstance(label, int)
                    found[row] = LabelScore(label, -negative)
                elif self._can_pack:
                    readings.append(_reading(row, opened))
                else:
                    readings += [_reading(row, [node]) for node in opened]
            for group in _by_size(readings, _num_places, most_tokens=_MOST_LABEL_TOKENS):
                self._read(group, frontiers)
            breadth *= _GROWTH
        return [found[row] for row in range(len(frontiers))]

    def _read(self, readings: Sequence[_Reading], frontiers: list[_Frontier]) -> None:
        """Run the paths to the opened nodes after their prompts; push the whole label or the children each leads to."""
        device = self._mask.device
        width = max(map(_num_places, readings))
        tokens = torch.zeros((len(readings), width), dtype=torch.long)
        depths = torch.zeros_like(tokens)
        sees = torch.eye(width, dtype=torch.bool).repeat(len(readings), 1, 1)  # (readings, reader, read)
        for index, reading in enumerate(readings):
            for path, place in reading.places.items():
                tokens[index, place], depths[index, place] = path[-1], len(path) - 1
                if len(path) > 1:
                    sees[index, place] |= sees[index, reading.places[path[:-1]]]
        rows = torch.tensor([reading.row for reading in readings], device=device)
        mask = self._mask[rows]
        cache = copy(self._cache)
        cache.layers = [copy(layer) for layer in self._cache.layers]
        cache.batch_select_indices(rows)
        output = self._model(
            input_ids=tokens.to(device),
            attention_mask=self._tree_mask(mask, sees.to(device)),
            position_ids=mask.sum(1, keepdim=True) + depths.to(device),
            cache=cache,
            use_cache=True,
        )
        self._push(readings, frontiers, output.logits.float())

    def _tree_mask(self, prompt_mask: Tensor, sees: Tensor) -> Tensor:
        """Return the attention mask: a label token sees its prompt and the tokens on its own path."""
        if not self._can_pack:
            return torch.cat([prompt_mask, torch.ones_like(sees[:, 0], dtype=prompt_mask.dtype)], dim=1)
        sees_prompt = prompt_mask.bool()[:, None].expand(-1, sees.shape[1], -1)
        visible = torch.cat([sees_prompt, sees], dim=2)[:, None]
        hidden = torch.finfo(self._model.dtype).min
        return torch.zeros(visible.shape, dtype=self._model.dtype, device=visible.device).masked_fill(~visible, hidden)

    def _push(self, readings: Sequence[_Reading], frontiers: list[_Frontier], logits: Tensor) -> None:
        """Score what was read by logits of shape (readings, places, vocabulary)."""
        wanted: list[tuple[int, int, int]] = []  # reading, place, token
        for index, (_, opened, places) in enumerate(readings):
            for _, node in opened:
                # the node's first token is in the bound already; the rest of its chain has no branch
                for end in range(node.start + 1, len(node.path)):
                    wanted.append((index, places[node.path[:end]], node.path[end]))
                wanted += [(index, places[node.path], child.path[child.start]) for child in node.children]
        where = torch.tensor(wanted, device=logits.device)
        chosen = logits[where[:, 0], where[:, 1], where[:, 2]]
        log_probs = iter((chosen - logits.logsumexp(-1)[where[:, 0], where[:, 1]]).tolist())
        for row, opened, _ in readings:
            for bound, node in opened:
                score = bound + sum(next(log_probs) for _ in range(node.start + 1, len(node.path)))
                if node.label is not None:
                    heapq.heappush(frontiers[row], (-score, (node.label,), node.label))
                else:
                    _push_children(frontiers[row], node, score, [next(log_probs) for _ in node.children])


def _can_pack(model: PreTrainedModel) -> bool:
    """Say whether each token may have a mask of its own: not so with windows or fused attention."""
    return sees_all_before(model) and model.config.get_text_config()._attn_implementation in {"sdpa", "eager"}


def _reading(row: int, opened: list[_Open]) -> _Reading:
    places: dict[Tokens, int] = {}
    for _, node in opened:
        for end in range(1, len(node.inputs) + 1):
            places.setdefault(node.inputs[:end], len(places))
    return _Reading(row, opened, places)


def _num_places(reading: _Reading) -> int:
    return len(reading.places)


def _pop_open(frontier: _Frontier, count: int) -> list[_Open]:
    """Take up to ``count`` nodes that may still lead to a better label than the best whole one."""
    opened: list[_Open] = []
    while frontier and len(opened) < count:
        negative, _, node = frontier[0]
        if isinstance(node, int):
            break
        heapq.heappop(frontier)
        opened.append(_Open(-negative, node))
    return opened


def _push_children(frontier: _Frontier, node: Node, score: float, log_probs: Sequence[float]) -> None:
    """Push a node's children, given the log-probability of each one's first token."""
    for child, log_prob in zip(node.children, log_probs, strict=True):
        bound = score + log_prob
        if child.label is not None and len(child.path) == child.start + 1:
            heapq.heappush(frontier, (-bound, (child.label,), child.label))
        else:
            heapq.heappush(frontier, (-bound, (-1, *child.path), child))
