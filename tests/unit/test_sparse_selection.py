import pytest
import torch

from sparsegate.data.datamodule import collate
from sparsegate.errors import DataError
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.selection import calibrate, select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.targets import find_targets
from sparsegate.training.loss import supervised_loss


@pytest.fixture
def batches(make_samples):
    return [collate(make_samples(3, seed=seed), pad_id=0) for seed in range(3)]


def test_calibration_sums_gradients_and_their_squares_over_the_batches(tiny_model, batches):
    targets = find_targets(tiny_model, first_layer=2)
    weight = targets[0].linear.weight
    gradients = [torch.autograd.grad(supervised_loss(tiny_model, batch), weight)[0] for batch in batches]

    tiny_model.requires_grad_(False)
    sums = calibrate(
        targets,
        batches,
        lambda batch: supervised_loss(tiny_model, batch),
        needs=frozenset({"grad_sum", "grad_sq_sum"}),
    )

    assert sums.keys() == {target.name for target in targets}
    measured = sums[targets[0].name]
    torch.testing.assert_close(measured["grad_sum"], sum(gradients))
    torch.testing.assert_close(measured["grad_sq_sum"], sum(gradient.square() for gradient in gradients))


def test_calibration_leaves_weights_frozen_without_gradients_or_hooks(tiny_model, batches):
    tiny_model.requires_grad_(False)
    targets = find_targets(tiny_model)
    calibrate(
        targets, batches, lambda batch: supervised_loss(tiny_model, batch), needs=frozenset({"grad_sum", "input_sq"})
    )
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert not any(target.linear._forward_hooks for target in targets)


def test_a_calibration_loss_that_is_not_finite_names_its_batch_and_leaves_the_model_frozen(tiny_model, batches):
    tiny_model.requires_grad_(False)
    targets = find_targets(tiny_model)
    losses = iter([1.0, float("nan")])

    def loss(batch):
        return supervised_loss(tiny_model, batch) * next(losses)

    with pytest.raises(DataError, match="calibration batch 2 has a loss of nan"):
        calibrate(targets, batches, loss, needs=frozenset({"grad_sum"}))
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())


def test_calibration_without_batches_is_refused(tiny_model):
    with pytest.raises(DataError, match="no calibration batch"):
        calibrate(find_targets(tiny_model), [], lambda _: torch.tensor(0.0), needs=frozenset({"grad_sum"}))


@pytest.mark.parametrize("kind", ["element", "column"])
def test_select_puts_the_same_supports_of_the_asked_density_in_every_target_for_the_same_seed(make_model, kind):
    chosen = []
    for _ in range(2):
        model = make_model("llama").requires_grad_(False)
        targets = find_targets(model, first_layer=1)
        select(model, targets, make_selector("random"), {}, kind=kind, density=0.25, seed=3)
        layers = sparse_layers(model)
        assert layers.keys() == {target.name for target in targets}
        for layer in layers.values():
            assert layer.support.values.numel() == layer.linear.weight.numel() * 0.25
        chosen.append([layer.support.ids for layer in layers.values()])
    assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))
