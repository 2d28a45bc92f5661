import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsegate.sparse.layouts import LAYOUTS
from sparsegate.sparse.support import SparseSupport, num_chosen, top_k

SCORES = st.lists(
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]) | st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40
)


@given(SCORES, st.data())
def test_top_k_takes_exactly_the_highest_scores_and_ties_by_lowest_index(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]
    assert top_k(torch.tensor(scores, dtype=torch.float64), count).tolist() == sorted(best)


def test_top_k_of_equal_scores_is_the_first_ones():
    assert top_k(torch.zeros(100_000), 7).tolist() == list(range(7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_top_k_refuses_scores_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="scores must be finite"):
        top_k(torch.tensor([1.0, bad, 2.0]), 1)


@pytest.mark.parametrize("count", [0, -1, 4])
def test_top_k_refuses_counts_out_of_range(count):
    with pytest.raises(ValueError, match=rf"count must be in \[1, 3\], got {count}"):
        top_k(torch.ones(3), count)


@pytest.mark.parametrize(("density", "count"), [(0.001, 1), (0.25, 6), (0.5, 12), (1.0, 24)])
def test_element_ids_are_flat_indices_of_the_highest_entries(density, count):
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    ids = top_k(LAYOUTS["element"].unit_scores(scores), num_chosen(24, density))
    assert len(ids) == count
    assert set(ids.tolist()) == set(scores.flatten().topk(count).indices.tolist())


@pytest.mark.parametrize(("density", "count"), [(0.001, 1), (0.34, 2), (1.0, 6)])
def test_column_ids_are_the_columns_with_the_highest_sums(density, count):
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    ids = top_k(LAYOUTS["column"].unit_scores(scores), num_chosen(6, density))
    assert set(ids.tolist()) == set(scores.sum(0).topk(count).indices.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "ids"), [("element", [0, 5, 23]), ("column", [1, 4])])
def test_commit_changes_the_support_only_and_revert_restores_every_bit(kind, ids, dtype):
    weight = torch.randn(4, 6, dtype=dtype)
    before = weight.clone()
    support = SparseSupport(kind, torch.tensor(ids, dtype=torch.int32), weight)
    support.values.data.add_(1.0)
    support.commit(weight)
    assert torch.equal(support.gather(weight), support.values.detach().to(dtype))
    changed = (weight != before).nonzero().tolist()
    assert len(changed) == support.values.numel()
    support.revert(weight)
    assert torch.equal(weight, before)


def test_trained_values_are_fp32_whatever_the_weight():
    support = SparseSupport("column", torch.tensor([0]), torch.ones(2, 2, dtype=torch.bfloat16))
    assert support.values.dtype == torch.float32
    assert support.originals.dtype == torch.bfloat16
