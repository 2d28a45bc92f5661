"""Golden values come from published tables; each test names its source."""

import math

import pytest
from scipy.stats import binom, multinomial

from sparsegate.evaluation.intervals import clopper_pearson, mcnemar_exact, tango, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.method == "wilson"


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_clopper_pearson_equals_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 5
    interval = clopper_pearson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_tango_equals_the_published_value_for_consolidation_therapy() -> None:
    # Fagerland, Lydersen and Laake (2017), Statistical Analysis of Contingency Tables (data of Cavo et al. 2012);
    # also the expected output in the tests of the R package contingencytables: -0.1240 to -0.0054
    interval = tango(59, 6, 16, 80)
    assert (round(interval.low, 4), round(interval.high, 4)) == (-0.1240, -0.0054)


def test_tango_equals_the_published_value_for_airway_responsiveness() -> None:
    # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875 (data of Bentur et al. 2009)
    interval = tango(1, 1, 7, 12)
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)


def test_tango_without_discordant_pairs_has_the_closed_form_width() -> None:
    squared = 1.959963984540054**2
    interval = tango(45, 0, 0, 5)
    assert interval.high == pytest.approx(squared / (50 + squared), abs=1e-9)
    assert interval.low == pytest.approx(-interval.high, abs=1e-9)


@pytest.mark.parametrize(
    "counts", [(0, 10, 0, 0), (0, 0, 10, 0), (3, 4, 0, 3), (0, 1, 0, 0), (0, 0, 0, 1), (1000, 3, 5, 2)]
)
def test_tango_contains_the_observed_difference_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    both, plus, minus, neither = counts
    interval, mirrored = tango(*counts), tango(both, minus, plus, neither)
    assert -1 <= interval.low <= (plus - minus) / sum(counts) <= interval.high <= 1
    assert interval.low < interval.high
    assert interval.low == pytest.approx(-mirrored.high, abs=1e-9)


def test_tango_limits_solve_the_score_equation() -> None:
    # the statistic as Tango's equation 25 writes it, with the estimate found by a search instead of the closed form
    plus, minus, n = 12, 5, 100
    interval = tango(60, plus, minus, 23)
    for limit in (interval.low, interval.high):
        grid = [max(0.0, -limit) + step * 1e-6 for step in range(400_000)]

        def log_likelihood(rate: float, limit: float = limit) -> float:
            rest = 1 - 2 * rate - limit
            if rate <= 0 or rate + limit <= 0 or rest <= 0:
                return -math.inf
            return plus * math.log(rate + limit) + minus * math.log(rate) + (n - plus - minus) * math.log(rest)

        rate = max(grid, key=log_likelihood)
        statistic = (plus - minus - n * limit) / math.sqrt(n * (2 * rate + limit * (1 - limit)))
        assert abs(statistic) == pytest.approx(1.96, abs=1e-3)


def test_tango_covers_the_true_difference_about_as_often_as_it_says() -> None:
    # exact sum over all outcomes at n = 40: rates 0.1 (candidate only) and 0.05 (baseline only)
    n, plus_rate, minus_rate = 40, 0.1, 0.05
    covered = 0.0
    for plus in range(n + 1):
        for minus in range(n + 1 - plus):
            chance = float(multinomial.pmf([plus, minus, n - plus - minus], n, [plus_rate, minus_rate, 0.85]))
            if chance > 1e-9:
                interval = tango(n - plus - minus, plus, minus, 0)
                covered += chance * (interval.low <= plus_rate - minus_rate <= interval.high)
    assert 0.93 <= covered <= 0.97


def test_clopper_pearson_never_covers_less_than_it_says() -> None:
    n = 30
    for rate in (0.01, 0.05, 0.2, 0.5):
        intervals = [clopper_pearson(successes, n) for successes in range(n + 1)]
        covered = sum(
            float(binom.pmf(successes, n, rate))
            for successes, interval in enumerate(intervals)
            if interval.low <= rate <= interval.high
        )
        assert covered >= 0.95


def test_mcnemar_equals_the_published_p_value() -> None:
    # Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91 (data as above): 0.0703, 0.0525
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar_exact(6, 16) == pytest.approx(0.0525, abs=5e-5)


def test_mcnemar_without_differing_items_is_one() -> None:
    assert mcnemar_exact(0, 0) == 1.0


@pytest.mark.parametrize("method", [wilson, clopper_pearson])
def test_no_items_give_no_interval(method) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="n must be at least 1"):
        method(0, 0)
    with pytest.raises(ValueError, match="successes must be in"):
        method(3, 2)
    with pytest.raises(ValueError, match="confidence must be in"):
        method(1, 2, 1.0)


def test_tango_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        tango(0, 0, 0, 0)
    with pytest.raises(ValueError, match="at least 0"):
        tango(1, -1, 0, 0)
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar_exact(-1, 0)
