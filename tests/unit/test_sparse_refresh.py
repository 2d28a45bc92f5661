import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import AdamW

from sparsegate.sparse.layouts import BLOCK, LAYOUTS
from sparsegate.sparse.refresh import choose_exchange, exchange, gradient_retention, seed_moments
from sparsegate.sparse.support import SparseSupport, num_chosen, top_k

KINDS = ("element", "column", "row", "block")


def _weight(kind, rows, columns, dtype=torch.float32, seed=0):
    side = BLOCK if kind == "block" else 1
    shape = (rows * side, columns * side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _columns(moved, *, ages=None, ids=(0, 1, 2)):
    """A support of columns of a weight of shape (1, 6) that moved by so much."""
    support = SparseSupport("column", torch.tensor(ids, dtype=torch.int32), torch.zeros(1, 6))
    support.values.data.copy_(torch.tensor([moved]))
    support.age.copy_(torch.tensor(ages or [10] * len(ids)))
    return support


def _choose(support, scores, *, fraction=1.0, margin=1.0, minimum_age=0):
    chosen = choose_exchange(support, torch.tensor(scores), fraction=fraction, margin=margin, minimum_age=minimum_age)
    return chosen.tolist()


# --- what is measured and chosen ------------------------------------------------------------------


def test_retention_is_one_for_the_best_support_and_the_captured_share_of_it_for_others():
    scores = torch.tensor([1.0, 0.0, 5.0, 3.0])
    assert gradient_retention(scores, torch.tensor([2, 3])) == 1.0
    assert gradient_retention(scores, torch.tensor([0, 3])) == 0.5
    assert gradient_retention(scores, torch.tensor([1])) == 0.0
    assert gradient_retention(torch.zeros(4), torch.tensor([1])) == 1.0  # nothing to gain


def test_what_moved_least_is_dropped_and_the_largest_gradient_grows():
    support = _columns([0.3, -0.1, 0.2])
    assert _choose(support, [0.0, 0.0, 0.0, 1.0, 3.0, 2.0], fraction=1 / 3) == [0, 2, 4]
    assert _choose(support, [0.0, 0.0, 0.0, 1.0, 3.0, 2.0], fraction=2 / 3) == [0, 4, 5]


def test_equal_moves_and_equal_gradients_are_decided_by_the_lowest_index():
    assert _choose(_columns([0.1, 0.1, 0.1]), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], fraction=1 / 3) == [1, 2, 3]


def test_a_new_unit_must_beat_the_one_it_replaces_by_the_margin():
    support = _columns([0.3, 0.1, 0.2])
    scores = [0.0, 2.0, 1.0, 3.0, 1.0, 0.0]
    assert _choose(support, scores, fraction=1 / 3, margin=1.4) == [0, 2, 3]
    assert _choose(support, scores, fraction=1 / 3, margin=1.5) == [0, 1, 2]
    # the weakest of those that may go meets the strongest newcomer
    assert _choose(support, scores, fraction=2 / 3, margin=2.0) == [0, 1, 3]


def test_young_units_stay():
    scores = [0.0, 0.0, 0.0, 1.0, 3.0, 2.0]
    assert _choose(_columns([0.3, 0.1, 0.2], ages=[9, 4, 5]), scores, fraction=1 / 3, minimum_age=5) == [0, 1, 4]
    assert _choose(_columns([0.3, 0.1, 0.2], ages=[4, 4, 4]), scores, minimum_age=5) == [0, 1, 2]


def test_a_support_of_the_whole_weight_has_nothing_to_exchange():
    support = _columns([0.1] * 6, ids=range(6))
    assert _choose(support, [1.0] * 6) == list(range(6))


def test_gradients_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="scores must be finite"):
        _choose(_columns([0.3, 0.1, 0.2]), [0.0, 0.0, 0.0, math.nan, 1.0, 1.0])


# --- the exchange ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_stay_keep_value_age_and_moments_and_new_ones_start_untrained(kind):
    weight = _weight(kind, 4, 4)
    base = weight.clone()
    support = SparseSupport(kind, torch.tensor([0, 2], dtype=torch.int32), weight)
    layout = support.layout
    support.values.data.add_(1.0)
    support.commit(weight)
    support.age.copy_(torch.tensor([7, 8]))
    moments = {"exp_avg": torch.rand_like(support.values), "exp_avg_sq": torch.rand_like(support.values)}
    before = {name: layout.by_unit(moment)[1].clone() for name, moment in moments.items()}
    value = layout.by_unit(support.values.detach())[1].clone()
    identity = id(support.values)

    is_new = exchange(support, weight, torch.tensor([2, 3], dtype=torch.int32), moments)

    assert is_new.tolist() == [False, True]
    assert support.ids.tolist() == [2, 3]
    assert support.age.tolist() == [8, 0]
    assert id(support.values) == identity
    assert torch.equal(layout.by_unit(support.values.detach())[0], value)
    assert torch.equal(support.originals, support.gather(base))
    assert torch.equal(layout.by_unit(support.values.detach())[1], layout.by_unit(support.originals)[1])
    for name, moment in moments.items():
        assert torch.equal(layout.by_unit(moment)[0], before[name])
        assert not layout.by_unit(moment)[1].any()
    support.revert(weight)
    assert torch.equal(weight, base)


def test_another_number_of_units_is_refused():
    with pytest.raises(ValueError, match="new_ids must be as many as the support's 3, got 2"):
        exchange(_columns([0.1, 0.2, 0.3]), torch.zeros(1, 6), torch.tensor([0, 1]), {})


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    density=st.floats(0.01, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
    schedule=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.01, 1.0), st.floats(1.0, 2.0), st.integers(0, 4)), max_size=6
    ),
)
def test_weights_outside_the_support_are_the_base_bit_for_bit_after_any_schedule_of_steps_and_refreshes(
    kind, rows, columns, density, dtype, seed, schedule
):
    draw = torch.Generator().manual_seed(seed)
    weight = _weight(kind, rows, columns, dtype, seed)
    base = weight.clone()
    layout = LAYOUTS[kind]
    scores = layout.unit_scores(torch.rand(weight.shape, generator=draw))
    support = SparseSupport(kind, top_k(scores, num_chosen(scores.numel(), density)), weight)
    count, chosen_at, step = len(support.ids), dict.fromkeys(support.ids.tolist(), 0), 0
    optimizer = AdamW([support.values], lr=0.1)
    for steps, fraction, margin, minimum_age in schedule:
        for _ in range(steps):
            support.values.grad = torch.randn(support.values.shape, generator=draw)
            optimizer.step()
            support.commit(weight)
            support.age += 1
            step += 1
        scores = layout.unit_scores(torch.rand(weight.shape, generator=draw).square())
        ids = choose_exchange(support, scores, fraction=fraction, margin=margin, minimum_age=minimum_age)
        old = set(support.ids.tolist())
        is_new = exchange(support, weight, ids, optimizer.state[support.values])

        new = set(ids.tolist())
        assert ids.tolist() == sorted(new)
        assert len(new) == count
        assert ids.dtype == torch.int32
        assert len(new - old) == int(is_new.sum()) <= max(1, round(fraction * count))
        assert all(step - chosen_at[unit] >= minimum_age for unit in old - new)
        chosen_at = {unit: chosen_at.get(unit, step) if unit in old else step for unit in ids.tolist()}
        assert support.age.tolist() == [step - chosen_at[unit] for unit in ids.tolist()]
        assert torch.equal(support.gather(weight), support.values.detach().to(dtype))
        outside = torch.ones(layout.num_units(tuple(weight.shape)), dtype=torch.bool)
        outside[ids.long()] = False
        others = outside.nonzero().flatten()
        assert torch.equal(layout.gather(weight, others), layout.gather(base, others))
    support.revert(weight)
    assert torch.equal(weight, base)


# --- the moments of new units ---------------------------------------------------------------------


def _sizes_of_steps(betas, *, seeded, run_scale=1.0, steps=60):
    """How far a new column moves in each step, in learning rates, late in a run of steady gradients."""
    weight, gradient = torch.zeros(2, 4), 0.5
    support = SparseSupport("column", torch.tensor([0, 1], dtype=torch.int32), weight)
    optimizer = AdamW([support.values], lr=1e-3, betas=betas, weight_decay=0.0, eps=1e-12)
    moments = optimizer.state[support.values]
    in_run = torch.full_like(support.values, gradient * run_scale)
    moments |= {"step": torch.tensor(1e5), "exp_avg": in_run.clone(), "exp_avg_sq": in_run.square()}
    is_new = exchange(support, weight, torch.tensor([1, 3], dtype=torch.int32), moments)
    if seeded:
        mean = torch.full_like(support.values, gradient)
        seed_moments(support.layout, moments, is_new, mean=mean, mean_square=mean.square(), betas=betas)
    places = [0.0]
    for _ in range(steps):
        support.values.grad = in_run.clone()
        optimizer.step()
        places.append(float(support.values.detach()[0, 1]) / 1e-3)
    return [before - after for before, after in pairwise(places)]


@pytest.mark.parametrize(("betas", "first", "largest"), [((0.9, 0.99), 1.0, 2.13), ((0.9, 0.999), 3.16, 6.57)])
def test_a_seeded_unit_moves_by_the_learning_rate_at_once_where_zero_moments_overshoot(betas, first, largest):
    unseeded = _sizes_of_steps(betas, seeded=False)
    assert unseeded[0] == pytest.approx(first, rel=0.01)
    assert max(unseeded) == pytest.approx(largest, rel=0.01)
    assert _sizes_of_steps(betas, seeded=True) == pytest.approx([1.0] * 60, rel=1e-3)


def test_seeds_take_the_scale_of_the_runs_clipped_gradients():
    # else the second moment would be 10000 times too large, and the steps near 0 for hundreds of steps
    assert _sizes_of_steps((0.9, 0.99), seeded=True, run_scale=0.01) == pytest.approx([1.0] * 60, rel=1e-3)


@given(
    mean=st.floats(-10, 10),
    spread=st.floats(0.0, 10),
    gradient=st.floats(-1e3, 1e3),
    step=st.integers(1, 10_000),
)
def test_the_first_step_of_a_new_unit_is_at_most_1_35_learning_rates_whatever_comes(mean, spread, gradient, step):
    square = mean**2 + spread**2
    assume(square > 1e-6)
    betas = (0.9, 0.99)
    support = SparseSupport("element", torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, 2))
    optimizer = AdamW([support.values], lr=1.0, betas=betas, weight_decay=0.0, eps=1e-12)
    moments = optimizer.state[support.values]
    moments |= {"step": torch.tensor(float(step)), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    seed_moments(
        support.layout,
        moments,
        torch.tensor([False, True]),
        mean=torch.tensor([0.0, mean]),
        mean_square=torch.tensor([0.0, square]),
        betas=betas,
    )
    support.values.grad = torch.tensor([0.0, gradient])
    optimizer.step()
    assert abs(float(support.values.detach()[1])) <= 1.35
