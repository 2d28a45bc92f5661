"""The selector ``movement``: weights move with the calibration batches, and come back."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsegate.contracts import CalibrationStats
from sparsegate.data.datamodule import collate
from sparsegate.errors import DataError
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.moving import LEARNING_RATE
from sparsegate.sparse.optimizer import default_learning_rate
from sparsegate.sparse.recompute import checkpointed
from sparsegate.sparse.selection import calibrate, select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.targets import Target, decoder_layers, find_targets
from sparsegate.training.loss import supervised_loss
from sparsegate.training.module import SparseFineTuner

MOVEMENT = frozenset({"movement"})


@pytest.fixture
def batches(make_samples):
    return [collate(make_samples(4, prefix=f"{seed}-", seed=seed), pad_id=0) for seed in range(3)]


def measured(model, batches, *, needs=MOVEMENT, targets=None, loss=None):
    targets = find_targets(model, embeddings=True) if targets is None else targets
    return calibrate(targets, batches, loss or partial(supervised_loss, model), needs=needs)


def trained_in_full(model, batches):
    """Return how far a plain loop of full fine-tuning moves each target, (out, in), by all gradients at once."""
    targets = find_targets(model, embeddings=True)
    weights = [target.linear.weight for target in targets]
    before = [weight.detach().clone() for weight in weights]
    seen = [[] for _ in weights]
    for batch in batches:
        gradients = torch.autograd.grad(supervised_loss(model, batch), weights)
        with torch.no_grad():
            for weight, gradient, history in zip(weights, gradients, seen, strict=True):
                history.append(gradient)
                all_of_it = torch.stack(history)
                weight -= LEARNING_RATE * all_of_it.mean(0) / (all_of_it.square().mean(0).sqrt() + 1e-8)
    moved = [weight.detach() - old for weight, old in zip(weights, before, strict=True)]
    return {t.name: change.T if t.is_transposed else change for t, change in zip(targets, moved, strict=True)}


# --- what is measured ---------------------------------------------------------------------------


def test_movement_is_that_of_full_fine_tuning_in_every_target_tied_heads_and_conv1d_included(any_model, batches):
    model = any_model.double()
    found = measured(model.requires_grad_(False), batches)
    expected = trained_in_full(model.requires_grad_(True), batches)
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert bool(change.any())
        torch.testing.assert_close(found[name]["movement"].double(), change, rtol=1e-4, atol=1e-9)


def test_an_entry_that_all_batches_push_one_way_outscores_one_that_is_pushed_to_and_fro():
    linear = nn.Linear(3, 1, bias=False).requires_grad_(False)
    inputs = [torch.tensor([0.1, 9.0, 0.0]), torch.tensor([0.1, -9.0, 0.0]), torch.tensor([0.1, 9.0, 0.0])]
    target = Target("map", 0, linear)
    statistics = calibrate([target], inputs, lambda x: linear(x).sum(), needs=MOVEMENT)["map"]
    scores = make_selector("movement").score(linear.weight, CalibrationStats(**statistics))
    step = LEARNING_RATE
    torch.testing.assert_close(scores, torch.tensor([[3 * step, step * (1 + 0 + 1 / 3), 0.0]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_moved_furthest_is_selected(family, make_model, batches):
    model = make_model(family).requires_grad_(False)
    targets, selector = find_targets(model), make_selector("movement")
    statistics = measured(model, batches, targets=targets)
    select(model, targets, selector, statistics, kind="element", density=0.1, seed=0)
    for target in targets:
        support = sparse_layers(model)[target.name].support
        far = statistics[target.name]["movement"].abs()
        stored = far.T if target.is_transposed else far
        chosen = stored.flatten()[support.ids.long()]
        assert chosen.min() >= far.flatten().topk(len(chosen)).values.min()


def test_bf16_weights_move_by_steps_too_small_for_their_type():
    linear = nn.Linear(2, 2, bias=False).bfloat16().requires_grad_(False)
    linear.weight.fill_(4.0)  # the next value is 4.03
    inputs = [torch.ones(2, dtype=torch.bfloat16)] * 3
    seen = []

    def loss(x):
        seen.append(linear.weight.clone())
        return linear(x).sum()

    moved = calibrate([Target("map", 0, linear)], inputs, loss, needs=MOVEMENT)["map"]["movement"]
    torch.testing.assert_close(moved, torch.full((2, 2), -3 * LEARNING_RATE), rtol=1e-5, atol=0)
    assert all(torch.equal(weight, torch.full((2, 2), 4.0, dtype=torch.bfloat16)) for weight in seen)


def test_other_statistics_are_those_of_the_base_model(tiny_model, batches):
    tiny_model.requires_grad_(False)
    others = frozenset({"grad_sum", "input_sq"})
    together, alone = (
        measured(tiny_model, batches, needs=MOVEMENT | others),
        measured(tiny_model, batches, needs=others),
    )
    for name, statistics in alone.items():
        assert together[name].keys() == {"movement", *others}
        assert all(torch.equal(together[name][need], values) for need, values in statistics.items())


def test_layers_that_run_again_in_the_backward_pass_give_the_same_movement(any_model, batches):
    any_model.requires_grad_(False)
    plain = measured(any_model, batches)
    with checkpointed(decoder_layers(any_model)[1]):
        again = measured(any_model, batches)
    assert all(torch.equal(again[name]["movement"], plain[name]["movement"]) for name in plain)


def test_under_autocast_each_batch_sees_the_weights_that_the_one_before_has_moved(tiny_model, batches, monkeypatch):
    monkeypatch.setattr("sparsegate.sparse.moving.LEARNING_RATE", 1e-2)  # far enough to be seen in bf16
    tiny_model.requires_grad_(False)

    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16):  # casts end with it
            return supervised_loss(tiny_model, batch)

    apart = measured(tiny_model, batches, loss=loss)
    with torch.autocast("cpu", torch.bfloat16):  # as Lightning's precision plugin does around a whole selection
        before = supervised_loss(tiny_model, batches[0])
        together = measured(tiny_model, batches)
        assert torch.equal(supervised_loss(tiny_model, batches[0]), before)
    assert all(torch.equal(together[name]["movement"], apart[name]["movement"]) for name in apart)


# --- what is left behind ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_identical_and_frozen(any_model, batches, weights_of, dtype):
    model = any_model.to(dtype).requires_grad_(False)
    before = weights_of(model)
    seen = []

    def loss(batch):
        seen.append(weights_of(model))
        return supervised_loss(model, batch)

    measured(model, batches, loss=loss)
    targets = [f"{target.name}.weight" for target in find_targets(model, embeddings=True)]
    assert not any(torch.equal(seen[-1][name], before[name]) for name in targets)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


@pytest.mark.parametrize("fault", ["nan", "raises", "raises in the backward pass"])
def test_weights_come_back_after_an_error_too(fault, tiny_model, batches, weights_of):
    tiny_model.requires_grad_(False)
    before = weights_of(tiny_model)
    moved = []

    def fail(*_):
        raise RuntimeError("out of memory")

    def loss(batch):
        value = supervised_loss(tiny_model, batch)
        if batch is batches[1]:
            moved.append(not torch.equal(weights_of(tiny_model)["lm_head.weight"], before["lm_head.weight"]))
            if fault == "raises":
                fail()
            if fault == "nan":
                return value * float("nan")
            value.register_hook(fail)
        return value

    with pytest.raises(DataError if fault == "nan" else RuntimeError, match=r"batch 2 has a loss of nan|out of memory"):
        measured(tiny_model, batches, loss=loss)
    assert moved == [True]
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(tiny_model).items())
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in tiny_model.parameters())


def test_a_graph_that_still_needs_the_weight_is_refused_not_misread():
    linear = nn.Linear(2, 2, bias=False).requires_grad_(False)

    def loss(x):
        late = x.requires_grad_(True) @ linear.weight.detach()  # a use that the weight's own gradient does not wait for
        return late.square().sum() + linear(x.detach()).sum()

    inputs = [torch.ones(2)]
    before = linear.weight.clone()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        calibrate([Target("map", 0, linear)], inputs, loss, needs=MOVEMENT)
    assert torch.equal(linear.weight, before)


# --- in a tuner ---------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["movement", "movement*fisher", "magnitude@movement:0.5"])
def test_a_tuner_selects_by_movement_and_leaves_the_weights_alone(selector, tiny_model, batches, weights_of):
    before = weights_of(tiny_model)
    tuner = SparseFineTuner(tiny_model, selector=selector, frozen_depth=0.25, density=0.1)
    tuner.select(batches)
    assert tuner.learning_rate == default_learning_rate(density=0.1, frozen_depth=0.25, by_gradient=True)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(tuner.finish()).items())


def test_movement_asks_for_the_dense_statistic_for_whole_columns_too(tiny_model, batches):
    targets = find_targets(tiny_model.requires_grad_(False))
    statistics = measured(tiny_model, batches, targets=targets)
    select(tiny_model, targets, make_selector("movement"), statistics, kind="column", density=0.25, seed=0)
    for target in targets:
        sums = statistics[target.name]["movement"].abs().sum(0)
        ids = sparse_layers(tiny_model)[target.name].support.ids.long()
        assert sums[ids].min() >= sums.topk(len(ids)).values.min()


def test_the_loss_of_a_linear_map_falls_along_the_movement():
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    inputs = [torch.randn(5, 4, generator=draw) for _ in range(4)]

    def loss(x):
        return F.mse_loss(linear(x), torch.ones(5, 3))

    moved = calibrate([Target("map", 0, linear)], inputs, loss, needs=MOVEMENT)["map"]["movement"]
    before = sum(loss(x) for x in inputs)
    linear.weight += moved
    assert sum(loss(x) for x in inputs) < before
