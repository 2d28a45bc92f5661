"""Student's interval of a mean over seeds."""

import pytest

from sparsegate.evaluation.means import student_t


def test_the_interval_of_a_share_ends_where_shares_end() -> None:
    plain, share = student_t([0.9, 1.0]), student_t([0.9, 1.0], within=(0.0, 1.0))
    assert plain.high > 1.5  # 12.7 standard errors with two figures
    assert (share.low, share.high) == (pytest.approx(plain.low), 1.0)
    assert student_t([0.0, 0.1], within=(0.0, 1.0)).low == 0.0


@pytest.mark.parametrize("values", [[0.5], [], [0.5, float("nan")]])
def test_one_figure_or_one_that_is_none_gives_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="needs two finite figures or more"):
        student_t(values)
