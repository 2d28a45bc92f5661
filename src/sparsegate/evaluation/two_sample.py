"""Do two sets of texts come from the same distribution? A classifier that can tell them apart says that they don't."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsegate.contracts import Interval


class TwoSampleTest(NamedTuple):
    """What the classifier could do.

    Args:
        auc: Chance that it takes a recent text for more recent than a reference text; 0.5 if it can't tell.
        interval: DeLong's interval of it.
        p_value: One-sided Mann-Whitney p-value of "it can't tell".
        num_reference: Distinct reference texts.
        num_recent: Distinct recent texts.
    """

    auc: float
    interval: Interval
    p_value: float
    num_reference: int
    num_recent: int


def classifier_test(
    reference: Sequence[str], recent: Sequence[str], *, confidence: float = 0.95, seed: int = 0
) -> TwoSampleTest:
    """Train a classifier on one half of the texts to tell the sets apart, and test it on the other half.

    Repeated texts count once: a text in both halves would be recognised, not told apart. A logistic regression on
    TF-IDF of character 1- to 4-grams is enough to see other topics, languages and forms; it sees no change of meaning
    in the same words. The test half is new to the classifier, so p-value and interval hold whatever it learned.

    Args:
        reference: Texts that the model was trained on.
        recent: Texts that it is asked now.
        confidence: Two-sided level of the interval, in (0, 1).
        seed: Seed of the halves.

    Raises:
        ValueError: If a set has fewer than four distinct texts.

    Source: Lopez-Paz and Oquab 2017 (arXiv:1610.06545), with the AUC in place of the accuracy; DeLong et al. 1988, in
    the form of Sun and Xu 2014 (doi:10.1109/LSP.2014.2337313).
    """
    from scipy.stats import mannwhitneyu
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    # sorted: the order of a set depends on the hash seed
    sets = [sorted(set(texts)) for texts in (reference, recent)]
    if min(map(len, sets)) < 4:
        raise ValueError(f"each set must have at least 4 distinct texts, got {len(sets[0])} and {len(sets[1])}")
    generator = np.random.default_rng(seed)
    halves: list[tuple[list[str], list[str]]] = []
    for texts in sets:
        order = [texts[position] for position in generator.permutation(len(texts))]
        halves.append((order[: len(order) // 2], order[len(order) // 2 :]))
    (old_train, old_test), (new_train, new_test) = halves
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=50_000)
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    classifier.fit(features.fit_transform(old_train + new_train), [0] * len(old_train) + [1] * len(new_train))
    old, new = (classifier.decision_function(features.transform(texts)) for texts in (old_test, new_test))
    auc, interval = auc_interval(old, new, confidence=confidence)
    p_value = float(mannwhitneyu(new, old, alternative="greater").pvalue)
    return TwoSampleTest(auc, interval, p_value, len(sets[0]), len(sets[1]))


def auc_interval(low: Sequence[float], high: Sequence[float], *, confidence: float) -> tuple[float, Interval]:
    """Return the AUC of scores, with DeLong's interval.

    Args:
        low: Scores of those that should score lower.
        high: Scores of those that should score higher.
        confidence: Two-sided level, in (0, 1).

    Raises:
        ValueError: If there are fewer than two scores on a side.

    Example:
        >>> auc, interval = auc_interval([1, 2, 3, 4], [3, 5, 6, 7], confidence=0.95)
        >>> f"{auc:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        '0.906 [0.688, 1.000]'
    """
    from scipy.stats import norm, rankdata

    m, n = len(low), len(high)
    if min(m, n) < 2:
        raise ValueError(f"each side must have at least 2 scores, got {m} and {n}")
    ranks = rankdata([*low, *high])
    above = (ranks[m:] - rankdata(high)) / m  # for each high score, the share of low ones below it; ties count half
    below = (ranks[:m] - rankdata(low)) / n  # for each low score, the share of high ones below it
    auc = float(np.mean(above))
    half_width = norm.ppf((1 + confidence) / 2) * math.sqrt(np.var(above, ddof=1) / n + np.var(below, ddof=1) / m)
    return auc, Interval(max(0.0, auc - half_width), min(1.0, auc + half_width), confidence, "delong")
