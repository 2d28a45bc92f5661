"""GPT-2's Conv1D: a linear map whose weight is stored as (in, out)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparsegate.sparse import layouts
from sparsegate.sparse.layers import install, sparse_layers, uninstall
from sparsegate.sparse.selection import calibrate, make_support, select
from sparsegate.sparse.selectors import SELECTORS, make_selector
from sparsegate.sparse.selectors.units import statistics_needed
from sparsegate.sparse.targets import Target, find_targets

KINDS = ("column", "row", "block", "element")
STORED = {"column": "row", "row": "column", "block": "block", "element": "element"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(layouts, "BLOCK", 2)


class Pair(nn.Module):
    """A model of one map; as a linear map or as the Conv1D that does the same."""

    def __init__(self, map_kind):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        weight, bias = torch.randn(4, 6, generator=draw), torch.randn(4, generator=draw)
        self.map = nn.Linear(6, 4) if map_kind == "linear" else Conv1D(4, 6)
        self.map.weight.data = weight if map_kind == "linear" else weight.T.contiguous()
        self.map.bias.data = bias
        self.requires_grad_(False)
        self.target = [Target("map", 0, self.map, map_kind)]

    def loss(self, x):
        return F.mse_loss(self.map(x), torch.ones(*x.shape[:-1], 4))


def batches():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 6, generator=draw) for _ in range(3)]


def selected(map_kind, name, kind):
    model, selector = Pair(map_kind), make_selector(name)
    needs = statistics_needed(selector, kind)
    statistics = calibrate(model.target, batches(), model.loss, needs=needs) if needs else {}
    select(model, model.target, selector, statistics, kind=kind, density=0.3, seed=0)
    return model


def marked(support):
    """Return which entries of the stored weight are in a support."""
    weight = torch.zeros(support.shape)
    support.scatter(torch.ones_like(support.originals), weight)
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*SELECTORS, "fisher*magnitude", "magnitude@separable:0.5"])
def test_every_selector_chooses_the_entries_that_it_chooses_of_the_equal_linear_map(name, kind):
    linear, conv1d = selected("linear", name, kind).map.support, selected("conv1d", name, kind).map.support
    assert conv1d.kind == STORED[kind]
    assert bool((conv1d.ids[1:] > conv1d.ids[:-1]).all())
    assert torch.equal(marked(conv1d), marked(linear).T)


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_equal_those_of_the_linear_map(kind):
    gradients = []
    for map_kind in ("linear", "conv1d"):
        model = selected(map_kind, "fisher", kind)
        x = batches()[0].requires_grad_(True)
        model.loss(x).backward()
        support = model.map.support
        dense = torch.zeros(support.shape)
        support.scatter(support.values.grad, dense)
        gradients.append((x.grad, dense if map_kind == "linear" else dense.T))
    for linear, conv1d in zip(*gradients, strict=True):
        torch.testing.assert_close(conv1d, linear)


def test_columns_of_the_map_keep_no_more_of_the_input_than_themselves():
    model = Pair("conv1d")
    install(model, model.target[0], make_support(model.target[0], "column", torch.tensor([1, 4])))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model.map(batches()[0])
    shapes = sorted(tuple(tensor.shape) for tensor in kept)
    assert shapes == [(2,), (2, 3, 2), (4, 6)]  # the ids, the chosen inputs, the weight itself


def test_gpt2_is_trained_in_all_its_maps_and_gets_them_back(make_model):
    model = make_model("gpt2").requires_grad_(False)
    plain = {target.name: target.linear for target in find_targets(model)}
    assert all(isinstance(module, Conv1D) for module in plain.values())
    select(model, find_targets(model), make_selector("random"), {}, kind="column", density=0.25, seed=0)
    layers = sparse_layers(model)
    assert layers.keys() == plain.keys()
    assert all(layer.support.kind == "row" for layer in layers.values())
    uninstall(model)
    assert all(model.get_submodule(name) is module for name, module in plain.items())
