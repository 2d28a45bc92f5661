from itertools import chain

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import BatchLoader, collate
from sparsegate.sparse.layers import sparse_layers
from sparsegate.training.loss import num_supervised, supervised_loss
from sparsegate.training.module import SparseFineTuner


@pytest.fixture
def batches():
    """Six batches whose numbers of supervised tokens differ by a factor of up to twenty."""
    lengths = [(1, 1), (20, 17), (3, 2), (9, 1), (1, 2), (12, 4)]
    return [
        collate(
            [EncodedSample(f"{i}/{j}", (5 + i, 6, 7 + j), tuple(range(8, 8 + n))) for j, n in enumerate(pair)], pad_id=0
        )
        for i, pair in enumerate(lengths)
    ]


class _Gradients(Callback):
    """Keeps the gradients that an optimizer step uses, and the losses."""

    def __init__(self):
        self.steps = []
        self.losses = []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.steps.append(_gradients(pl_module.model)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train_loss_nats"]))


def _gradients(model):
    return torch.cat([layer.support.values.grad.flatten() for layer in sparse_layers(model).values()])


def _tuner(model, batches):
    # a rate so low that later steps see the same model
    tuner = SparseFineTuner(model, density=0.2, frozen_depth=0.5, learning_rate=1e-12)
    tuner.select(batches)
    return tuner


def _fit(tuner, batches, tmp_path, **options):
    gradients = _Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[gradients],
        **options,
    )
    trainer.fit(tuner, train_dataloaders=DataLoader(batches, batch_size=None) if isinstance(batches, list) else batches)
    return gradients


def _expected(tuner, batches):
    """Return the gradient of the mean over all tokens of the batches."""
    sums = [supervised_loss(tuner.model, batch) * num_supervised(batch) for batch in batches]
    loss = torch.stack(sums).sum() / sum(num_supervised(batch) for batch in batches)
    layers = sparse_layers(tuner.model).values()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [layer.support.values for layer in layers])])


@pytest.mark.parametrize(("accumulate", "cuts"), [(1, [1] * 6), (3, [3, 3]), (4, [4, 2]), (6, [6])])
def test_a_step_follows_the_mean_over_the_tokens_of_its_batches(tiny_model, batches, tmp_path, accumulate, cuts):
    tuner = _tuner(tiny_model, batches)
    rest = iter(batches)
    groups = [[next(rest) for _ in range(cut)] for cut in cuts]
    expected = [_expected(tuner, group) for group in groups]
    steps = _fit(tuner, batches, tmp_path, accumulate_grad_batches=accumulate).steps
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-6)


def test_batches_of_unequal_tokens_are_not_averaged_as_if_they_were_equal(tiny_model, batches, tmp_path):
    tuner = _tuner(tiny_model, batches)
    unweighted = torch.stack([_expected(tuner, [batch]) for batch in batches]).mean(0)
    (step,) = _fit(tuner, batches, tmp_path, accumulate_grad_batches=6).steps
    assert torch.linalg.vector_norm(step - unweighted) > 0.1 * torch.linalg.vector_norm(step)


def test_the_gradient_of_the_mean_is_what_is_clipped(tiny_model, batches, tmp_path):
    tuner = _tuner(tiny_model, batches)
    expected = _expected(tuner, batches)
    norm = torch.linalg.vector_norm(expected)
    (step,) = _fit(tuner, batches, tmp_path, accumulate_grad_batches=6, gradient_clip_val=float(norm) / 2).steps
    torch.testing.assert_close(step, expected / 2, rtol=1e-4, atol=1e-6)


def test_a_gradient_below_the_limit_is_not_clipped(tiny_model, batches, tmp_path):
    tuner = _tuner(tiny_model, batches)
    expected = _expected(tuner, batches)
    limit = 1.01 * float(torch.linalg.vector_norm(expected))
    (step,) = _fit(tuner, batches, tmp_path, accumulate_grad_batches=6, gradient_clip_val=limit).steps
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)


def test_the_logged_loss_is_the_mean_over_tokens_whatever_is_accumulated(tiny_model, batches, tmp_path):
    tuner = _tuner(tiny_model, batches)
    expected = [float(supervised_loss(tuner.model, batch).detach()) for batch in batches]
    losses = _fit(tuner, batches, tmp_path, accumulate_grad_batches=3).losses
    assert losses == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_the_mean_over_all_tokens(tiny_model, batches, tmp_path):
    tuner = _tuner(tiny_model, batches)
    sums = [supervised_loss(tuner.model, batch) * num_supervised(batch) for batch in batches]
    expected = float(torch.stack(sums).sum().detach() / sum(num_supervised(batch) for batch in batches))
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    (metrics,) = trainer.validate(tuner, dataloaders=DataLoader(batches, batch_size=None), verbose=False)
    assert metrics["val_loss_nats"] == pytest.approx(expected, rel=1e-5)


def test_cutting_an_epoch_into_other_batches_gives_the_same_step(make_model, make_samples, tmp_path):
    samples = make_samples(12)
    steps = []
    for size in (2, 3, 12):
        loader = BatchLoader(samples, batch_size=size, pad_id=0, seed=0)
        tuner = _tuner(make_model("llama"), chain([collate(samples, pad_id=0)]))
        (step,) = _fit(tuner, loader, tmp_path, accumulate_grad_batches=12 // size).steps
        steps.append(step)
    torch.testing.assert_close(steps[0], steps[2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(steps[1], steps[2], rtol=1e-4, atol=1e-6)
