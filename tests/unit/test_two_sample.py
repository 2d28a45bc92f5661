"""The classifier two-sample test: right figures, no drift where there is none, and drift where there is."""

import random

import numpy as np
import pytest

from sparsegate.evaluation.two_sample import auc_interval, classifier_test

SUBJECTS = ["parcel", "invoice", "lamp", "order", "refund", "charger", "account", "door", "table", "phone"]
VERBS = ["is", "was", "seems", "looks", "got"]
ENDS = ["broken", "late", "missing", "wrong", "lost", "open", "empty", "slow", "stuck", "gone"]


def messages(count, seed, words=SUBJECTS):
    draw = random.Random(seed)
    return [
        f"my {draw.choice(words)} {draw.choice(VERBS)} {draw.choice(ENDS)} {draw.randrange(10**6)}"
        for _ in range(count)
    ]


def test_the_auc_is_the_share_of_pairs_in_the_right_order_and_delongs_interval_is_that_of_its_formula():
    generator = np.random.default_rng(0)
    low, high = generator.integers(0, 9, 30), generator.integers(2, 11, 40)  # with ties
    wins = (high[:, None] > low) + (high[:, None] == low) / 2
    auc, interval = auc_interval(low, high, confidence=0.95)
    assert auc == pytest.approx(wins.mean())
    deviation = np.sqrt(wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 30)
    assert (interval.low, interval.high) == pytest.approx((auc - 1.959964 * deviation, auc + 1.959964 * deviation))


def test_texts_of_one_distribution_are_told_apart_as_rarely_as_stated():
    rejected = sum(
        classifier_test(messages(60, 2 * seed), messages(60, 2 * seed + 1)).p_value < 0.05 for seed in range(60)
    )
    assert rejected <= 7  # 60 tests at 5%: more than 7 come up in less than 1% of all cases


def test_texts_about_something_else_are_told_apart():
    found = classifier_test(messages(80, 0), messages(80, 1, ["router", "modem", "antenna", "signal"]))
    assert found.interval.low > 0.8
    assert found.p_value < 1e-6
    assert (found.num_reference, found.num_recent) == (80, 80)


def test_repeated_texts_count_once_and_order_does_not_matter():
    reference, recent = messages(40, 0), messages(40, 1)
    once = classifier_test(reference, recent)
    assert classifier_test(reference[::-1] * 2, recent * 3) == once


def test_too_few_distinct_texts_are_refused():
    with pytest.raises(ValueError, match="at least 4 distinct texts, got 3 and 40"):
        classifier_test(["a", "b", "c"] * 9, messages(40, 0))
    with pytest.raises(ValueError, match="at least 2 scores, got 1 and 3"):
        auc_interval([1.0], [1.0, 2.0, 3.0], confidence=0.9)
