"""How often the regression gate errs, on files as a run leaves them: repeated draws of champion and candidate.

Each bound is the 0.5% or 99.5% quantile of 100 draws at the rule's exact rate, which is the sum of the probabilities of
all counts of won and lost items that Tango's interval lets pass.
"""

from dataclasses import replace

import numpy as np
import pytest

from sparsegate.contracts import Verdict
from sparsegate_gates.policy import load_policy
from sparsegate_gates.regression import Regression

N, REPEATS = 480, 100


@pytest.fixture
def passes(files):
    """Return a function that draws pairs of answers and says how many of them the standard policy lets pass.

    An item is won by the candidate, lost by it, or answered alike; the champion is right on about 78%.
    """

    # over all items: each slice is one more question, and errs by itself
    settings = replace(load_policy("standard").gates["regression"], slice_margin=None)

    def count(*, won, lost, seed):
        draw = np.random.default_rng(seed)
        passed = 0
        for _ in range(REPEATS):
            side = draw.choice(3, size=N, p=[won, lost, 1 - won - lost])
            alike = draw.random(N) < 0.8
            files.predictions("predictions.champion", list(map(bool, np.where(side == 2, alike, side == 1))))
            files.predictions("predictions.candidate", list(map(bool, np.where(side == 2, alike, side == 0))))
            result = Regression().run(files.context(settings))
            assert result.verdict in (Verdict.PASS, Verdict.FAIL)
            passed += result.verdict is Verdict.PASS
        return passed

    return count


def test_the_champion_against_itself_always_passes(passes):
    assert passes(won=0.0, lost=0.0, seed=1) == REPEATS


def test_an_equal_model_that_answers_a_few_items_otherwise_mostly_passes(passes):
    # exact rate 85.8%
    assert passes(won=0.02, lost=0.02, seed=2) >= 76


def test_a_planted_regression_of_five_points_fails(passes):
    # exact rate 0.03%
    assert passes(won=0.02, lost=0.07, seed=3) <= 1


def test_a_loss_of_the_margin_passes_no_oftener_than_stated(passes):
    # stated rate 2.5%, exact rate 2.3%
    assert passes(won=0.02, lost=0.05, seed=4) <= 7
