import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsegate.errors import UsageError
from sparsegate.sparse.budget import (
    Budget,
    check_budget,
    global_counts,
    rank_counts,
    tensor_units,
    uniform_counts,
)

KINDS = ["column", "row", "element"]
SHAPES = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=6)


def entries(tensors, counts):
    return sum(tensor.unit_entries * count for tensor, count in zip(tensors, counts, strict=True))


def draw_scores(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(tensor.units, generator=generator) ** 3 for tensor in tensors]


@given(SHAPES, st.sampled_from(KINDS), st.floats(1e-3, 1), st.integers(0, 99))
def test_a_global_allocation_spends_what_a_uniform_one_does_within_a_unit_and_never_more(shapes, kind, density, seed):
    tensors = [tensor_units(kind, shape) for shape in shapes]
    uniform = uniform_counts(tensors, density)
    counts = global_counts(tensors, density, draw_scores(tensors, seed))
    short = entries(tensors, uniform) - entries(tensors, counts)
    assert 0 <= short < max(tensor.unit_entries for tensor in tensors)
    for tensor, count, share in zip(tensors, counts, uniform, strict=True):
        assert max(1, share // 4) <= count <= min(tensor.units, 4 * share)


@given(SHAPES, st.sampled_from(KINDS), st.floats(1e-3, 1))
def test_a_rank_allocation_keeps_to_the_same_total_unless_single_units_exceed_it(shapes, kind, density):
    tensors = [tensor_units(kind, shape) for shape in shapes]
    counts = rank_counts(tensors, density)
    assert all(1 <= count <= tensor.units for tensor, count in zip(tensors, counts, strict=True))
    short = entries(tensors, uniform_counts(tensors, density)) - entries(tensors, counts)
    assert short < max(tensor.unit_entries for tensor in tensors)
    if all(count > 1 for count in counts):
        assert short >= 0


def test_a_rank_allocation_gives_each_weight_what_a_lora_of_one_rank_would_have():
    tensors = [tensor_units("element", shape) for shape in [(576, 576), (192, 576), (1536, 576)]]
    counts = rank_counts(tensors, 0.05)
    ranks = [count / sum(tensor.shape) for tensor, count in zip(tensors, counts, strict=True)]
    assert max(ranks) - min(ranks) < 0.01
    assert sum(counts) == sum(uniform_counts(tensors, 0.05))


def test_a_rank_allocation_fills_a_small_weight_and_gives_the_rest_to_the_others():
    tensors = [tensor_units("element", shape) for shape in [(2, 2), (40, 40)]]
    assert rank_counts(tensors, 0.5) == [4, 798]


def test_a_global_allocation_gives_more_to_the_weight_with_outstanding_units():
    tensors = [tensor_units("column", (8, 16)), tensor_units("column", (8, 16))]
    peaked = torch.tensor([9.0, 8.0, 7.0, 6.0, *[0.1] * 12])
    flat = torch.full((16,), 1000.0)  # its scale plays no part
    assert global_counts(tensors, 0.125, [flat, peaked]) == [1, 3]
    assert global_counts(tensors, 0.25, [flat, peaked]) == [4, 4]


def test_equal_scores_go_to_the_first_weights():
    tensors = [tensor_units("column", (4, 12))] * 3
    assert global_counts(tensors, 0.25, [torch.ones(12)] * 3) == [9 - 2, 1, 1]
    assert global_counts(tensors, 0.25, [torch.zeros(12)] * 3) == [9 - 2, 1, 1]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(density=0.1, time_limit=0.5), "give one of density, memory_limit_gb and time_limit, got density and"),
        (Budget(density=1.5), r"density must be in \(0, 1\], got 1.5"),
        (Budget(time_limit=0.0), r"time_limit must be in \(0, 1\], got 0"),
        (Budget(memory_limit_gb=-1.0), "memory_limit_gb must be above 0, got -1"),
        (Budget(memory_limit_gb=float("nan")), "memory_limit_gb must be above 0, got nan"),
        (Budget(memory_limit_gb=float("inf")), "memory_limit_gb must be above 0, got inf"),
    ],
)
def test_budgets_of_two_kinds_or_out_of_range_are_refused(budget, message):
    with pytest.raises(UsageError, match=message):
        check_budget(budget)
