"""Texts that say almost the same: near copies by shared shingles, and prompts that differ in numbers and names only.

A shingle is a run of characters of the normalised text, so that it works for short texts and without spaces. Two texts
are compared by the share of the shingles of one that the other contains, and by their resemblance (Jaccard), both of
Broder 1997, "On the resemblance and containment of documents". The search is exact: a text that shares enough with
another shares at least one of its rarest shingles with it (prefix filter: Bayardo et al. 2007, "Scaling up all pairs
similarity search").
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from sparsegate.contracts import Sample
from sparsegate.data.fingerprint import Match, normalise

SHINGLE_CHARACTERS = 5
# below so many words a text stands inside others by chance: it must resemble them as a whole
_CONTAINED_WORDS = 8
# an address or anything with a digit; and a capitalised word that follows one in small letters
_VALUE = re.compile(r"\S+@\S+|\bhttps?://\S+|[\w.,:/-]*\d[\w.,:/-]*")
_NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z]\w+(?: [A-Z]\w+)*")


class _Overlap(NamedTuple):
    """How much of the wanted text at one position the known text at another shares, both shares in (0, 1]."""

    wanted: int
    known: int
    contained: float
    resemblance: float


def find_near_leaks(train: Sequence[Sample], evaluation: Sequence[Sample], *, share: float) -> list[Match]:
    """Find evaluation prompts most of whose shingles stand in one training prompt, equal ones left out.

    Args:
        train: Training samples.
        evaluation: Evaluation samples; prompts of fewer than eight words must resemble the training prompt as a whole.
        share: Share of the shingles that makes a near copy, in (0, 1].
    """
    known, wanted = _distinct(train), _distinct(evaluation)
    texts = [text for text in wanted if text not in known]
    sources = list(known)
    found: dict[str, str] = {}
    for overlap in _overlaps(sources, texts, share):
        text = texts[overlap.wanted]
        is_long = text.count(" ") + 1 >= _CONTAINED_WORDS
        if (overlap.contained if is_long else overlap.resemblance) >= share:
            found.setdefault(text, known[sources[overlap.known]])
    pairs = ((sample.id, found.get(normalise(sample.prompt))) for sample in evaluation)
    return [Match(item, source) for item, source in pairs if source is not None]


def find_near_duplicates(samples: Sequence[Sample], *, share: float) -> list[Match]:
    """Find prompts that resemble an earlier one; those that are equal but for case and punctuation are left out.

    Args:
        samples: The samples.
        share: Shared shingles, of all shingles of both, that make a near copy, in (0, 1].
    """
    known = _distinct(samples)
    texts = list(known)
    found: dict[int, int] = {}
    for overlap in _overlaps(texts, texts, share):
        if overlap.known < overlap.wanted and overlap.resemblance >= share:
            found.setdefault(overlap.wanted, overlap.known)
    return [Match(known[texts[later]], known[texts[earlier]]) for later, earlier in found.items()]


def find_template_collisions(train: Sequence[Sample], evaluation: Sequence[Sample]) -> list[Match]:
    """Find evaluation prompts that equal a training prompt once numbers, addresses and names are masked.

    Prompts that are equal without masking are left out. A name is a capitalised word inside a sentence, which fits
    English; where other words are capitalised too, more prompts are found.
    """
    known = _distinct(train)
    masked: dict[str, str] = {}
    for sample in train:
        masked.setdefault(mask_values(sample.prompt), sample.id)
    return [
        Match(sample.id, masked[template])
        for sample in evaluation
        if (template := mask_values(sample.prompt)) in masked and normalise(sample.prompt) not in known
    ]


def mask_values(prompt: str) -> str:
    """Return a normalised prompt with a mark in place of each number, address and name.

    Example:
        >>> mask_values("Where is order 4711 for Jane Doe?")
        'where is order value for value'
    """
    return normalise(_NAME.sub(" value ", _VALUE.sub(" value ", prompt)))


def _distinct(samples: Sequence[Sample]) -> dict[str, str]:
    """Map each normalised prompt to the id of the first sample with it."""
    first: dict[str, str] = {}
    for sample in samples:
        first.setdefault(normalise(sample.prompt), sample.id)
    return first


def _overlaps(known: Sequence[str], wanted: Sequence[str], share: float) -> Iterator[_Overlap]:
    """Give each wanted text with each known text that contains at least ``share`` of its shingles."""
    counts = Counter(shingle for text in known for shingle in _shingles(text))
    rarest = [_rarest(_shingles(text), counts, share) for text in wanted]
    looked_for = {shingle for prefix in rarest for shingle in prefix.shingles}
    holders: dict[str, list[int]] = {}
    for position, text in enumerate(known):
        for shingle in _shingles(text) & looked_for:
            holders.setdefault(shingle, []).append(position)
    for position, text in enumerate(wanted):
        shingles, prefix = _shingles(text), rarest[position]
        held = Counter(chain.from_iterable(holders.get(shingle, ()) for shingle in prefix.shingles))
        for candidate in sorted(holder for holder, count in held.items() if count >= prefix.least):
            # computed again rather than kept: at 100,000 texts they would take gigabytes
            theirs = _shingles(known[candidate])
            shared = len(shingles & theirs)
            if shared >= share * len(shingles):
                both = len(shingles) + len(theirs) - shared
                yield _Overlap(position, candidate, shared / len(shingles), shared / both)


class _Prefix(NamedTuple):
    """The rarest shingles of a text, and how many of them a text needs that holds enough of all."""

    shingles: list[str]
    least: int


def _rarest(shingles: set[str], counts: Counter[str], share: float) -> _Prefix:
    may_lack = len(shingles) - math.ceil(share * len(shingles))
    # more than one, so that few texts need the whole comparison; not all, as the common ones are in every text
    least = 1 + len(shingles) // 8
    by_rarity = sorted(shingles, key=lambda shingle: (counts[shingle], shingle))
    return _Prefix(by_rarity[: may_lack + least], least)


def _shingles(normalised: str) -> set[str]:
    text = f" {normalised} "
    last = max(1, len(text) - SHINGLE_CHARACTERS + 1)
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(last)}
