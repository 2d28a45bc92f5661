"""Golden values come from published tables; coverage is checked by seeded simulation."""

import numpy as np
import pytest
from scipy.stats import binom

from sparsegate.evaluation.bootstrap import LEAST_CLUSTERS, cluster_bootstrap
from sparsegate.evaluation.intervals import clopper_pearson, mcnemar_exact, newcombe, tango, tango_p, wilson
from sparsegate.evaluation.judge_error import JudgeCalibration, corrected_rate
from sparsegate.evaluation.multiplicity import holm
from sparsegate.evaluation.planning import items_for_ceiling, items_for_floor, items_for_margin, most_that_pass


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_equals_the_published_table(counts, low, high):
    # Newcombe (1998), Statistics in Medicine 17:873-890, table II, method 10
    interval = newcombe(*counts)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_newcombe_covers_the_true_difference_about_as_often_as_it_says():
    n, other_n, rate, other = 40, 30, 0.9, 0.7
    covered = 0.0
    for a in range(n + 1):
        for b in range(other_n + 1):
            chance = float(binom.pmf(a, n, rate) * binom.pmf(b, other_n, other))
            if chance > 1e-6:
                interval = newcombe(a, n, b, other_n)
                covered += chance * (interval.low <= rate - other <= interval.high)
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize("counts", [(0, 24, 480), (12, 12, 480), (1, 9, 60), (0, 0, 50), (30, 2, 40)])
@pytest.mark.parametrize("difference", [-0.1, -0.03, 0.0, 0.2])
def test_the_p_value_and_tangos_interval_say_the_same(counts, difference):
    plus, minus, n = counts
    interval = tango(n - plus - minus, plus, minus, 0)
    assert (tango_p(plus, minus, n, difference=difference) < 0.025) == (interval.high < difference)


def test_holm_equals_the_adjusted_values_of_r():
    # stats::p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.05, 0.01]) == [0.05, 0.02]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, wrong])


def test_holm_keeps_the_rate_of_any_false_alarm():
    draws = np.random.default_rng(0).random((4000, 12))
    alarms = np.mean([min(holm(row.tolist())) <= 0.05 for row in draws])
    assert 0.04 <= alarms <= 0.06


# --- clusters ---


def test_the_bootstrap_of_clusters_is_wider_than_that_of_items():
    right = [float(document % 2) for document in range(40) for _ in range(10)]
    documents = [document for document in range(40) for _ in range(10)]
    by_document = cluster_bootstrap(right, documents)
    by_item = cluster_bootstrap(right, list(range(400)))
    assert by_document.high - by_document.low > 2.5 * (by_item.high - by_item.low)
    assert cluster_bootstrap(right, documents) == by_document


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("clusters", [1, 2, LEAST_CLUSTERS - 1, LEAST_CLUSTERS, 50])
def test_no_event_and_few_clusters_give_no_narrow_interval(value, clusters):
    interval = cluster_bootstrap([value] * 200, [item % clusters for item in range(200)])
    # as wide at least as the exact interval that takes a whole cluster for one item
    exact = clopper_pearson(round(value * clusters), clusters)
    assert interval.low <= value <= interval.high
    assert interval.high - interval.low >= min(1.0, exact.high - exact.low) * 0.98
    assert interval.method.startswith("hoeffding")


def test_one_cluster_says_nothing():
    interval = cluster_bootstrap([0.0, 1.0] * 50, ["a"] * 100, bounds=(-1.0, 1.0))
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_the_cluster_bootstrap_covers_the_true_mean_where_items_resemble_each_other():
    draw = np.random.default_rng(1)
    covered = {"clusters": 0, "items": 0}
    for _ in range(300):
        levels = draw.beta(2, 1, size=60)  # a document's own rate; 2/3 on average
        right = (draw.random((60, 8)) < levels[:, None]).astype(float).ravel().tolist()
        documents = np.repeat(np.arange(60), 8).tolist()
        interval = cluster_bootstrap(right, documents, resamples=400)
        covered["clusters"] += interval.low <= 2 / 3 <= interval.high
        plain = wilson(int(sum(right)), len(right))
        covered["items"] += plain.low <= 2 / 3 <= plain.high
    assert 0.91 <= covered["clusters"] / 300 <= 0.98
    assert covered["items"] / 300 < 0.88, "an interval that takes the items for independent is too narrow"


def test_the_bootstrap_refuses_what_can_not_be():
    with pytest.raises(ValueError, match="at least one"):
        cluster_bootstrap([], [])
    with pytest.raises(ValueError, match="cluster for each item"):
        cluster_bootstrap([1.0], ["a", "b"])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        cluster_bootstrap([float("nan")], ["a"])
    with pytest.raises(ValueError, match="confidence"):
        cluster_bootstrap([1.0], ["a"], confidence=1.0)


# --- planning ---


@pytest.mark.parametrize("ceiling", [0.01, 0.05, 0.1, 0.2])
def test_the_least_n_for_a_ceiling_is_the_first_at_which_a_perfect_model_passes(ceiling):
    n = items_for_ceiling(ceiling)
    assert clopper_pearson(0, n).high <= ceiling < clopper_pearson(0, n - 1).high


def test_the_least_n_without_events_equals_hanley_and_lippman_hand():
    # Hanley and Lippman-Hand (1983), JAMA 249:1743-1745: about 3 / n at a one-sided 95%, which is a two-sided 90%
    assert items_for_ceiling(0.01, confidence=0.9) == 299
    assert items_for_ceiling(0.1, confidence=0.9) == 29


@pytest.mark.parametrize("floor", [0.5, 0.7, 0.9, 0.99])
def test_the_least_n_for_a_floor_is_the_first_at_which_a_perfect_model_passes(floor):
    n = items_for_floor(floor)
    assert wilson(n, n).low >= floor > wilson(n - 1, n - 1).low


@pytest.mark.parametrize("margin", [0.02, 0.03, 0.1])
def test_the_least_n_for_a_margin_is_the_first_at_which_an_equal_model_passes(margin):
    n = items_for_margin(margin)
    assert tango(n, 0, 0, 0).low >= -margin > tango(n - 1, 0, 0, 0).low


def test_more_items_are_needed_where_less_is_expected():
    assert items_for_floor(0.7, expected=0.75) > items_for_floor(0.7, expected=0.9)
    assert items_for_margin(0.05, differing=0.2) > items_for_margin(0.05, differing=0.1)
    n = items_for_margin(0.05, differing=0.1, difference=-0.02)
    assert tango(0, round(0.04 * n), round(0.06 * n), n - round(0.1 * n)).low == pytest.approx(-0.05, abs=0.001)


def test_bounds_that_no_n_meets_are_named():
    assert items_for_floor(0.8, expected=0.8) is None
    assert items_for_ceiling(0.0) is None
    assert items_for_margin(0.0) is None
    with pytest.raises(ValueError, match="differing"):
        items_for_margin(0.1, difference=0.2)


def test_the_most_faults_that_pass_lie_at_the_bound():
    most = most_that_pass(120, lambda faults: clopper_pearson(faults, 120).high <= 0.2)
    assert most == 15
    assert most_that_pass(5, lambda faults: False) is None
    assert most_that_pass(5, lambda faults: True) == 5


# --- the judge's errors ---


def test_a_judge_without_error_measured_on_many_items_changes_little():
    rate, interval = corrected_rate(10, 200, JudgeCalibration(100_000, 100_000, 100_000, 100_000))
    plain = clopper_pearson(10, 200, 1 - 0.05 / 3)
    assert rate == pytest.approx(0.05)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high), abs=1e-3)


def test_rogan_and_gladens_estimate_undoes_the_judges_errors():
    # a true rate of 0.3 seen by a judge of sensitivity 0.8 and specificity 0.9 shows as 0.3 * 0.8 + 0.7 * 0.1 = 0.31
    rate, interval = corrected_rate(310, 1000, JudgeCalibration(80, 100, 90, 100))
    assert rate == pytest.approx(0.3)
    assert interval.low < 0.3 < interval.high


def test_a_judge_that_guesses_says_nothing():
    assert corrected_rate(0, 100, JudgeCalibration(10, 20, 10, 20))[1].high == 1.0
    assert corrected_rate(0, 100, JudgeCalibration(1, 1, 1, 1))[1].high > clopper_pearson(0, 100).high


def test_fewer_calibration_items_give_a_higher_upper_end():
    many = corrected_rate(5, 200, JudgeCalibration(90, 100, 95, 100))[1]
    few = corrected_rate(5, 200, JudgeCalibration(18, 20, 19, 20))[1]
    assert few.high > many.high > clopper_pearson(5, 200).high


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.1, 0.4])
def test_the_corrected_interval_is_never_too_narrow(truth):
    sensitivity, specificity, n, labelled = 0.8, 0.9, 160, 60
    draw = np.random.default_rng(3)
    shown = truth * sensitivity + (1 - truth) * (1 - specificity)
    covered = above = 0
    for judged, found, cleared in zip(
        draw.binomial(n, shown, 300),
        draw.binomial(labelled, sensitivity, 300),
        draw.binomial(labelled, specificity, 300),
        strict=True,
    ):
        _, interval = corrected_rate(int(judged), n, JudgeCalibration(int(found), labelled, int(cleared), labelled))
        covered += interval.low <= truth <= interval.high
        above += truth <= interval.high
    assert covered / 300 >= 0.95
    assert above / 300 >= 0.975


@pytest.mark.parametrize("counts", [(0, 0, 1, 1), (2, 1, 1, 1), (1, 1, -1, 1)])
def test_a_calibration_without_items_is_refused(counts):
    with pytest.raises(ValueError, match="calibration"):
        JudgeCalibration(*counts)


# --- error rates of the decision rule ---


def test_equal_models_pass_and_a_loss_of_five_points_fails_at_the_stated_rates():
    draw = np.random.default_rng(5)

    def passes(only_candidate, only_champion):
        return tango(0, only_candidate, only_champion, 480 - only_candidate - only_champion).low >= -0.03

    equal = [passes(*map(int, draw.multinomial(480, [0.03, 0.03, 0.94])[:2])) for _ in range(200)]
    at_the_margin = [passes(*map(int, draw.multinomial(480, [0.03, 0.06, 0.91])[:2])) for _ in range(200)]
    worse = [passes(*map(int, draw.multinomial(480, [0.03, 0.08, 0.89])[:2])) for _ in range(200)]
    assert np.mean(equal) >= 0.7
    assert np.mean(at_the_margin) <= 0.05, "a loss of the margin passes in 2.5% at most, but for chance"
    assert np.mean(worse) <= 0.01
    assert mcnemar_exact(0, 0) == 1.0
