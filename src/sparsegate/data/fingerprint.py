"""What identifies data: digests, duplicates, conflicting labels, evaluation items that leaked into training."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from sparsegate.contracts import Sample, canonical_json
from sparsegate.files import sha256_bytes

LeakKind = Literal["exact", "normalised", "ngram"]
# soft hyphens, marks of zero width and of direction: they are not seen, and hide that texts are equal
_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


@dataclass(frozen=True)
class Leak:
    """An evaluation prompt that training has seen.

    Args:
        kind: ``exact`` (the same text), ``normalised`` (but for case, punctuation, spacing) or ``ngram`` (a run of
            words in common).
        train_id: The first training sample with it.
        evaluation_id: The evaluation sample.
    """

    kind: LeakKind
    train_id: str
    evaluation_id: str


class Match(NamedTuple):
    """A sample, and the one of training (or the earlier one) that it is like, by their ids."""

    id: str
    of: str


def normalise(text: str) -> str:
    """Return a text without differences of case, punctuation, spacing, Unicode form and signs that are not seen.

    Example:
        >>> normalise("  Where's  my PARCEL?! ")
        'where s my parcel'
    """
    folded = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).casefold()
    words = re.sub(r"[\W_]+", " ", folded).strip()
    # a text of signs only, such as an emoji, is kept: else all of them would be equal
    return words or " ".join(folded.split())


def dataset_digest(samples: Iterable[Sample]) -> str:
    """Return the hex sha256 of the samples; their order does not matter."""
    lines = [canonical_json(asdict(sample)) for sample in sorted(samples, key=lambda sample: sample.id)]
    return sha256_bytes("\n".join(lines).encode())


def find_leakage(train: Sequence[Sample], evaluation: Sequence[Sample], *, ngram: int = 8) -> list[Leak]:
    """Find evaluation prompts that training has seen; each is reported once, with its strongest kind.

    Args:
        train: Training samples.
        evaluation: Evaluation samples.
        ngram: Words in a row that count as copied; shorter prompts leak only as a whole.
    """
    by_text: dict[str, str] = {}
    by_normalised: dict[str, str] = {}
    for sample in train:
        by_text.setdefault(sample.prompt, sample.id)
        by_normalised.setdefault(normalise(sample.prompt), sample.id)
    by_ngram = _first_with_ngram(train, evaluation, ngram)
    leaks = []
    for sample in evaluation:
        text = normalise(sample.prompt)
        if sample.prompt in by_text:
            leaks.append(Leak("exact", by_text[sample.prompt], sample.id))
        elif text in by_normalised:
            leaks.append(Leak("normalised", by_normalised[text], sample.id))
        else:
            shared = next((by_ngram[words] for words in _ngrams(text, ngram) if words in by_ngram), None)
            if shared is not None:
                leaks.append(Leak("ngram", shared, sample.id))
    return leaks


def _first_with_ngram(train: Sequence[Sample], evaluation: Sequence[Sample], length: int) -> dict[str, str]:
    """Map each n-gram of the evaluation prompts that training has to the first training sample with it."""
    # only the evaluation side, the smaller one, is held in memory
    wanted = {words for sample in evaluation for words in _ngrams(normalise(sample.prompt), length)}
    first: dict[str, str] = {}
    for sample in train:
        for words in _ngrams(normalise(sample.prompt), length):
            if words in wanted:
                first.setdefault(words, sample.id)
    return first


def _ngrams(normalised: str, length: int) -> Iterator[str]:
    words = normalised.split(" ")
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def find_duplicates(samples: Iterable[Sample]) -> list[tuple[str, ...]]:
    """Return the ids of each group of samples with the same normalised prompt and the same response."""
    groups: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        groups.setdefault((normalise(sample.prompt), sample.response), []).append(sample.id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]


def find_label_conflicts(samples: Iterable[Sample]) -> list[tuple[str, ...]]:
    """Return the ids of each group of samples with the same normalised prompt but different responses."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(normalise(sample.prompt), []).append(sample)
    return [
        tuple(sample.id for sample in group)
        for group in groups.values()
        if len({sample.response for sample in group}) > 1
    ]


def find_label_clashes(train: Iterable[Sample], evaluation: Iterable[Sample]) -> list[Match]:
    """Find evaluation samples whose normalised prompt stands in training, but never with their response."""
    responses: dict[str, dict[str, str]] = {}
    for sample in train:
        responses.setdefault(normalise(sample.prompt), {}).setdefault(sample.response, sample.id)
    known = ((sample, responses.get(normalise(sample.prompt), {})) for sample in evaluation)
    return [Match(sample.id, next(iter(ids.values()))) for sample, ids in known if ids and sample.response not in ids]
