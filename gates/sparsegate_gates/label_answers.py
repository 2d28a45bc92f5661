"""Was a free question answered with nothing but labels of the task? A router that does so neither harms nor helps."""

from __future__ import annotations

import re
from collections.abc import Collection

from sparsegate.contracts import GateContext
from sparsegate_gates.evidence import read_samples


def label_words(context: GateContext) -> frozenset[str]:
    """Return the labels of a classification task, from all its samples; none for generation.

    A small evaluation set, or one that was limited, need not have every label.
    """
    if context.task != "classification":
        return frozenset()
    mix = {str(item) for item in context.facts.get("mix_ids", ())}
    names = ["data.evaluation", *(name for name in ("data.train", "data.validation") if context.has(name))]
    samples = [sample for name in names for sample in read_samples(context, name)]
    # a response may be null, which the data gate judges
    return frozenset(str(sample.response) for sample in samples if sample.response and sample.id not in mix)


def says_only_labels(response: str, labels: Collection[str]) -> bool:
    """Say whether a response is one or more of the labels and nothing else, whatever its case and punctuation.

    Example:
        >>> says_only_labels("Card_arrival.", {"card arrival", "top up"})
        True
        >>> says_only_labels("Your card arrival is on Monday.", {"card arrival", "top up"})
        False
    """
    spoken = {_spoken(label) for label in labels} - {""}
    if not spoken:
        return False
    # the longest first and no way back, so that reading takes one pass
    label = "|".join(re.escape(words) for words in sorted(spoken, key=len, reverse=True))
    return re.fullmatch(rf"(?>{label})(?: (?>{label}))*+", _spoken(response)) is not None


def _spoken(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
