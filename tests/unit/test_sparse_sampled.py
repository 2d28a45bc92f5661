import pytest
import torch

from sparsegate.sparse import sampled as module
from sparsegate.sparse.sampled import dense, element_gradient, measured_choices, recall_choices, sampled


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch):
    monkeypatch.setattr(module, "_sampling_wins", {})


def _case(tokens=7, rows=12, columns=15, entries=6, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(tokens, side, generator=draw).to(dtype) for side in (rows, columns))
    ids = torch.randperm(rows * columns, generator=draw)[:entries].sort().values.int()
    return a, b, ids


@pytest.fixture
def measured(monkeypatch):
    """Which ways were timed; sampling wins."""
    ways = []

    def seconds(way, *_):
        ways.append(way)
        return 1.0 if way is sampled else 2.0

    monkeypatch.setattr(module, "_seconds", seconds)
    return ways


@pytest.mark.parametrize("chunk", [1, 15, 2**21])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_both_ways_give_the_same_gradient(monkeypatch, chunk, dtype, tolerance):
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", chunk)
    a, b, ids = _case(dtype=dtype)
    expected = (a.double().T @ b.double()).flatten()[ids.long()]
    for way in (dense, sampled):
        torch.testing.assert_close(way(a, b, ids).double(), expected, rtol=tolerance, atol=tolerance)


def test_sampling_gathers_no_more_at_a_time_than_its_bound(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 14)
    sizes = []
    gather = torch.Tensor.index_select

    def watched(tensor, *arguments):
        result = gather(tensor, *arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "index_select", watched)
    sampled(*_case(tokens=7, entries=5))
    assert sizes == [14, 14, 14, 14, 7, 7]


def test_a_case_is_measured_once_and_the_choice_kept(measured):
    a, b, ids = _case()
    for _ in range(3):
        assert torch.equal(element_gradient(a, b, ids), sampled(a, b, ids))
    assert measured == [sampled, dense]


@pytest.mark.parametrize(
    "change", [{"tokens": 20}, {"rows": 13}, {"columns": 16}, {"entries": 5}, {"dtype": torch.float64}]
)
def test_another_case_is_measured_anew(measured, change):
    element_gradient(*_case())
    element_gradient(*_case(**change))
    assert measured == [sampled, dense] * 2


def test_where_many_entries_are_trained_nothing_is_measured(measured):
    a, b, ids = _case(entries=90)
    assert torch.equal(element_gradient(a, b, ids), dense(a, b, ids))
    assert measured == []
    assert measured_choices() == []


def test_the_quicker_way_is_found_by_running_both():
    a, b, ids = _case()
    torch.testing.assert_close(element_gradient(a, b, ids), dense(a, b, ids))
    assert [case for case, _ in measured_choices()] == [(12, 15, 3, 6, "torch.float32", "cpu")]


def test_recalled_choices_are_not_measured_again(measured):
    a, b, ids = _case()
    recall_choices([((12, 15, 3, 6, "torch.float32", "cpu"), False)])
    assert torch.equal(element_gradient(a, b, ids), dense(a, b, ids))
    assert measured == []
