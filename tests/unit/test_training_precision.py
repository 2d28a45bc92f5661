from pathlib import Path

import lightning as L
import pytest
import torch

from sparsegate.config import TrainingConfig
from sparsegate.data.datamodule import SampleDataModule, collate
from sparsegate.errors import UsageError
from sparsegate.sparse.delta import apply_delta, read_delta
from sparsegate.sparse.layers import sparse_layers
from sparsegate.training.module import SparseFineTuner
from sparsegate.training.run import train

PRECISIONS = [
    "32-true",
    "bf16-true",
    "bf16-mixed",
    pytest.param(
        "16-mixed", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed computes on GPUs only")
    ),
]


@pytest.fixture
def fit(make_model, make_samples, tmp_path):
    """Trains a fresh model of four layers for six steps and returns its tuner."""

    def fit(precision, model=None, **options):
        tuner = SparseFineTuner(
            model or make_model("llama"), **{"density": 0.25, "learning_rate": 1e-3, "frozen_depth": 0.5, **options}
        )
        trainer = L.Trainer(
            precision=precision,
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            limit_val_batches=0,
        )
        trainer.fit(tuner, datamodule=SampleDataModule(make_samples(24), batch_size=4, pad_id=0))
        return tuner

    return fit


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_trained_is_fp32_and_the_rest_keeps_its_bits(fit, make_model, weights_of, precision):
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    base = make_model("llama").to(dtype)
    tuner = fit(precision)
    for layer in sparse_layers(tuner.model).values():
        values, moments = layer.support.values, tuner.trainer.optimizers[0].state[layer.support.values]
        assert layer.linear.weight.dtype == layer.support.originals.dtype == dtype
        assert values.dtype == values.grad.dtype == torch.float32
        assert moments["exp_avg"].dtype == moments["exp_avg_sq"].dtype == torch.float32
        assert not torch.equal(values, layer.support.originals.float())
        assert torch.equal(layer.support.gather(layer.linear.weight), values.detach().to(dtype))
    delta = tuner.delta(base_digest="abc")
    assert {entry.new.dtype for entry in delta.entries.values()} == {dtype}
    trained = weights_of(tuner.finish())
    apply_delta(base, delta)  # refused unless all old values are the base's
    assert all(torch.equal(weight, trained[name]) for name, weight in weights_of(base).items())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_trains_about_what_full_precision_trains(fit, precision):
    full = fit("32-true", selector="magnitude")
    half = fit(precision, selector="magnitude")
    changes = []
    for tuner in (full, half):
        layers = sparse_layers(tuner.model).values()
        changes.append(torch.cat([(a.support.values - a.support.originals.float()).detach().flatten() for a in layers]))
    if precision == "bf16-true":  # its columns may tie otherwise
        assert changes[1].abs().mean() == pytest.approx(float(changes[0].abs().mean()), rel=0.2)
    else:
        assert torch.nn.functional.cosine_similarity(*changes, dim=0) > 0.9


def test_updates_too_small_for_bf16_add_up(fit):
    rate = 1e-6  # bf16 drops what is below |w| / 512, and most weights are larger than 1e-3
    tuner = fit("bf16-true", learning_rate=rate)
    for layer in sparse_layers(tuner.model).values():
        moved = (layer.support.values - layer.support.originals.float()).abs()
        large = layer.support.originals.abs() > 0.05
        assert 0 < moved.max() < 6.1 * rate
        assert moved[large].gt(2 * rate).float().mean() > 0.2  # more than any single step moves a value
        assert torch.equal(layer.support.gather(layer.linear.weight)[large], layer.support.originals[large])


def test_turning_a_model_keeps_trained_values_in_fp32_bit_for_bit(fit):
    tuner = fit("bf16-true")
    values = [layer.support.values.detach().clone() for layer in sparse_layers(tuner.model).values()]
    tuner.to(torch.bfloat16)
    tuner.bfloat16()
    for before, layer in zip(values, sparse_layers(tuner.model).values(), strict=True):
        assert torch.equal(layer.support.values, before)


def test_a_bf16_run_that_is_resumed_ends_with_the_same_bits(make_model, make_samples, tmp_path):
    def run(folder: Path, **options):
        config = TrainingConfig(
            precision="bf16-true", epochs=2, batch_size=4, learning_rate=1e-2, accelerator="cpu", **options
        )
        return train(
            make_model("llama"),
            make_samples(24),
            validation=[],
            config=config,
            pad_id=0,
            base_digest="abc",
            output_dir=folder,
            callbacks=[] if folder.name == "whole" or (folder / "checkpoints").exists() else [_Stop()],
        )

    whole = run(tmp_path / "whole", checkpoint_every_steps=4)
    with pytest.raises(_StoppedError):
        run(tmp_path / "killed", checkpoint_every_steps=4)
    resumed = run(tmp_path / "killed", checkpoint_every_steps=4)
    expected = read_delta(whole.delta).entries
    for name, entry in read_delta(resumed.delta).entries.items():
        assert torch.equal(entry.ids, expected[name].ids)
        assert torch.equal(entry.new, expected[name].new)


class _StoppedError(Exception):
    pass


class _Stop(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            raise _StoppedError


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can compute at 16-mixed")
def test_a_precision_that_the_machine_lacks_is_refused(tiny_model, make_samples, tmp_path):
    config = TrainingConfig(precision="16-mixed", accelerator="cpu")
    with pytest.raises(UsageError, match="16-mixed needs a GPU; use bf16-mixed here"):
        train(
            tiny_model,
            make_samples(4),
            validation=[],
            config=config,
            pad_id=0,
            base_digest="abc",
            output_dir=tmp_path,
        )


# --- activation checkpointing -------------------------------------------------------------------


@pytest.mark.parametrize("support", ["column", "row", "element"])
@pytest.mark.parametrize("frozen_depth", [0.0, 0.5])
def test_checkpointed_activations_give_equal_gradients_from_a_cached_prefix_too(
    make_model, make_samples, support, frozen_depth
):
    batches = [collate(make_samples(6, seed=seed, prefix=f"{seed}-"), pad_id=0) for seed in range(2)]
    gradients = []
    for checkpoint_activations in (False, True):
        tuner = SparseFineTuner(
            make_model("llama"),
            support=support,
            density=0.25,
            frozen_depth=frozen_depth,
            checkpoint_activations=checkpoint_activations,
        )
        tuner._set_modes()
        passes = _count_passes(tuner.model.model.layers[3].mlp)
        tuner.select(batches)
        for batch in (*batches, batches[0]):  # the last one from the cache
            passes.clear()
            tuner.loss(batch).backward()
            assert len(passes) == 1 + checkpoint_activations  # the layer ran again in the backward pass
        layers = sparse_layers(tuner.model).values()
        gradients.append([(layer.support.ids, layer.support.values.grad) for layer in layers])
    for (ids, plain), (other_ids, checkpointed) in zip(*gradients, strict=True):
        assert torch.equal(ids, other_ids)
        assert torch.equal(plain, checkpointed)


def _count_passes(module):
    passes = []
    module.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize("selector", ["fisher", "separable", "lift", "adam"])
def test_selection_does_not_depend_on_checkpointing(make_model, make_samples, selector):
    chosen = []
    for checkpoint_activations in (False, True):
        tuner = SparseFineTuner(
            make_model("llama"),
            selector=selector,
            support="element",
            density=0.1,
            frozen_depth=0.25,
            checkpoint_activations=checkpoint_activations,
        )
        tuner._set_modes()
        tuner.select([collate(make_samples(6), pad_id=0)])
        chosen.append([layer.support.ids for layer in sparse_layers(tuner.model).values()])
    assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))


def test_a_finished_model_does_not_checkpoint_any_more(tiny_model):
    SparseFineTuner(tiny_model, checkpoint_activations=True).finish()
    assert not tiny_model.is_activation_checkpointing


def test_a_model_that_cannot_checkpoint_is_refused(tiny_model):
    tiny_model.supports_gradient_checkpointing = False
    with pytest.raises(UsageError, match=r"turn training\.checkpoint_activations off"):
        SparseFineTuner(tiny_model, checkpoint_activations=True)
