import pytest
import torch

from sparsegate.data.datamodule import collate
from sparsegate.sparse import sampled as module
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.sampled import dense, element_gradient, measured_choices, recall_choices, sampled
from sparsegate.sparse.selection import select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.targets import find_targets
from sparsegate.training.loss import supervised_loss


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch):
    monkeypatch.setattr(module, "_sampling_wins", {})


def _case(tokens=7, rows=20, columns=24, entries=6, dtype=torch.float32):
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
    "change", [{"tokens": 20}, {"rows": 21}, {"columns": 25}, {"entries": 5}, {"dtype": torch.float64}]
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
    assert [case for case, _ in measured_choices()] == [(20, 24, 3, 6, "torch.float32", "cpu")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_of_a_model_do_not_depend_on_the_way(family, make_model, make_samples, monkeypatch):
    batch = collate(make_samples(6), pad_id=0)
    model = make_model(family).double().requires_grad_(False)
    select(model, find_targets(model), make_selector("random"), {}, kind="element", density=0.01, seed=0)
    gradients = []
    for quicker in (dense, sampled):
        monkeypatch.setattr(module, "_sampling_wins", {})
        monkeypatch.setattr(module, "_seconds", lambda way, *_, quicker=quicker: float(way is not quicker))
        supports = [layer.support for layer in sparse_layers(model).values()]
        gradients.append(torch.autograd.grad(supervised_loss(model, batch), [part.values for part in supports]))
        assert {wins for _, wins in measured_choices()} == {quicker is sampled}
    torch.testing.assert_close(*gradients)


def test_recalled_choices_are_not_measured_again(measured):
    a, b, ids = _case()
    recall_choices([((20, 24, 3, 6, "torch.float32", "cpu"), False)])
    assert torch.equal(element_gradient(a, b, ids), dense(a, b, ids))
    assert measured == []
