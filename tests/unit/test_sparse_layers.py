import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsegate.data.datamodule import collate
from sparsegate.sparse import layouts
from sparsegate.sparse.layers import SparseLinear, _SparseLinear, install, sparse_layers, uninstall
from sparsegate.sparse.layouts import LAYOUTS
from sparsegate.sparse.optimizer import make_optimizer
from sparsegate.sparse.support import SparseSupport, num_chosen, top_k
from sparsegate.sparse.targets import find_targets
from sparsegate.training.loss import supervised_loss

KINDS = ("column", "row", "block", "element")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(layouts, "BLOCK", 2)


def _ids(shape, kind, density, seed=0):
    scores = LAYOUTS[kind].unit_scores(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
    return top_k(scores, num_chosen(scores.numel(), density))


def _sparsify(model, kind, density=0.2):
    for number, target in enumerate(find_targets(model)):
        weight = target.linear.weight
        install(model, target, SparseSupport(kind, _ids(weight.shape, kind, density, number), weight))
    return model


@pytest.mark.parametrize("leading", [(5,), (2, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_input_bias_and_support_equal_finite_differences(kind, is_transposed, with_bias, leading):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(*leading, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((6, 4) if is_transposed else (4, 6), generator=draw, dtype=torch.float64)
    bias = torch.randn(4, generator=draw, dtype=torch.float64, requires_grad=True) if with_bias else None
    support = SparseSupport(kind, _ids(weight.shape, kind, 0.4), weight)
    values = support.originals.clone().requires_grad_(True)

    def forward(x, bias, values):
        committed = weight.clone()
        support.scatter(values.detach(), committed)
        matrix = committed.T if is_transposed else committed
        return _SparseLinear.apply(x, matrix, bias, values, support.ids, support.layout, is_transposed)

    assert torch.autograd.gradcheck(forward, (x, bias, values))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_whole_model_equal_the_dense_ones(any_model, make_samples, kind):
    batch = collate(make_samples(6), pad_id=0)
    model = any_model.double()
    loss = supervised_loss(model, batch)
    loss.backward()
    dense = {target.name: target.linear.weight.grad for target in find_targets(model)}
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)

    sparse_loss = supervised_loss(_sparsify(model, kind), batch)
    sparse_loss.backward()

    assert torch.equal(sparse_loss, loss)
    assert sparse_layers(model).keys() == dense.keys()
    for name, layer in sparse_layers(model).items():
        expected = layer.support.gather(dense[name]).float()
        torch.testing.assert_close(layer.support.values.grad, expected, rtol=1e-5, atol=1e-7)


def test_only_the_trained_values_get_gradients(tiny_model, make_samples):
    model = _sparsify(tiny_model.requires_grad_(False), "column")
    supervised_loss(model, collate(make_samples(3), pad_id=0)).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"{name}.support.values" for name in sparse_layers(model)}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_bfloat16_autocast_stay_close_and_fp32(kind):
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(32, 16)
    x = torch.randn(8, 5, 32, generator=draw)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x).square().mean().backward()
    dense = linear.weight.grad
    layer = SparseLinear(
        linear.requires_grad_(False), SparseSupport(kind, _ids((16, 32), kind, 0.3), linear.weight.detach())
    )
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().mean().backward()
    assert layer.support.values.grad.dtype == torch.float32
    torch.testing.assert_close(layer.support.values.grad, layer.support.gather(dense), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_model_answers_bit_for_bit_like_the_plain_one(any_model, kind):
    tokens = torch.arange(2, 14).reshape(2, 6)
    with torch.no_grad():
        before = any_model(input_ids=tokens).logits
        plain = [target.linear for target in find_targets(any_model)]
        _sparsify(any_model, kind)
        assert torch.equal(any_model(input_ids=tokens).logits, before)
    uninstall(any_model)
    assert not sparse_layers(any_model)
    assert all(a is b.linear for a, b in zip(plain, find_targets(any_model), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
    density=st.floats(0.01, 1.0),
    steps=st.integers(1, 4),
    weight_decay=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_unselected_weights_are_bit_identical_after_training(
    rows, columns, kind, density, steps, weight_decay, dtype, seed
):
    if kind == "block":
        rows, columns = rows * layouts.BLOCK, columns * layouts.BLOCK
    draw = torch.Generator().manual_seed(seed)
    linear = nn.Linear(columns, rows, bias=False).requires_grad_(False)
    linear.weight.data = torch.randn(rows, columns, generator=draw).to(dtype)
    before = linear.weight.detach().clone()
    ids = _ids((rows, columns), kind, density, seed)
    model = nn.Sequential(SparseLinear(linear, SparseSupport(kind, ids, linear.weight)))
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=weight_decay)
    for _ in range(steps):
        x = torch.randn(3, columns, generator=draw).to(dtype)
        F.mse_loss(model(x).float(), torch.ones(3, rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    support = model[0].support
    selected = torch.zeros(rows, columns)
    support.scatter(torch.ones_like(support.values), selected)
    frozen = selected == 0
    assert torch.equal(linear.weight[frozen], before[frozen])
    assert torch.equal(support.gather(linear.weight), support.values.detach().to(dtype))
    assert not torch.equal(support.values.detach(), support.originals.float())
