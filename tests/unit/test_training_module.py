import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sparsegate.data.datamodule import BatchLoader, SampleDataModule
from sparsegate.errors import UsageError
from sparsegate.sparse import sampled
from sparsegate.sparse.delta import apply_delta
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.optimizer import default_learning_rate
from sparsegate.training.module import SparseFineTuner


@pytest.fixture
def samples(make_samples):
    return make_samples(24)


@pytest.fixture
def data(samples, make_samples):
    return SampleDataModule(samples, make_samples(4, prefix="v", seed=1), batch_size=4, pad_id=0)


class _Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def _trainer(tmp_path, *callbacks, **options):
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 4,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            "callbacks": list(callbacks),
            **options,
        }
    )


@pytest.mark.parametrize("support", ["column", "row", "element"])
def test_a_plain_trainer_lowers_the_loss_and_leaves_frozen_weights_bit_identical(
    any_model, data, weights_of, tmp_path, support
):
    before = weights_of(any_model)
    losses = _Losses()
    tuner = SparseFineTuner(any_model, support=support, density=0.25, learning_rate=1e-2)
    _trainer(tmp_path, losses).fit(tuner, datamodule=data)
    assert sum(losses.values[-6:]) < 0.7 * sum(losses.values[:6])

    delta = tuner.delta(base_digest="abc", manifest={"why": "test"})
    model = tuner.finish()
    assert not sparse_layers(model)
    assert not model.training
    trained = weights_of(model)
    for name, weight in before.items():
        assert (name in delta.entries) == (not torch.equal(weight, trained[name]))
    model.load_state_dict(before, strict=False)
    apply_delta(model, delta)  # writes the support only
    after = weights_of(model)
    assert all(torch.equal(after[name], trained[name]) for name in trained)


def test_trained_count_and_total_are_those_of_the_model(tiny_model, data, tmp_path):
    total = tiny_model.num_parameters()
    tuner = SparseFineTuner(tiny_model, density=0.25, frozen_depth=0.5)
    _trainer(tmp_path, max_steps=1).fit(tuner, datamodule=data)
    assert tuner.num_total == total
    in_layers = sum(layer.linear.weight.numel() for layer in sparse_layers(tiny_model).values())
    assert tuner.num_trainable == in_layers / 4
    optimized = sum(p.numel() for p in tuner.trainer.optimizers[0].param_groups[0]["params"])
    assert optimized == tuner.num_trainable


def test_selecting_first_lets_any_loader_train(tiny_model, samples, tmp_path):
    loader = BatchLoader(samples, batch_size=4, pad_id=0, seed=0)
    losses = _Losses()
    tuner = SparseFineTuner(tiny_model, density=0.25, learning_rate=1e-2)
    tuner.select(BatchLoader(samples, batch_size=4, pad_id=0, seed=0))
    _trainer(tmp_path, losses).fit(tuner, train_dataloaders=loader)
    assert sum(losses.values[-6:]) < 0.7 * sum(losses.values[:6])


def test_a_plain_loader_without_selection_is_refused(tiny_model, samples, tmp_path):
    loader = BatchLoader(samples, batch_size=4, pad_id=0, seed=0)
    with pytest.raises(UsageError, match=r"call select\(batches\) first, or fit with a SampleDataModule"):
        _trainer(tmp_path).fit(SparseFineTuner(tiny_model), train_dataloaders=loader)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": float("nan")}, r"density must be in \(0, 1\], got nan"),
        ({"frozen_depth": 1.0}, r"frozen_depth must be in \[0, 1\), or 'auto', got 1"),
        ({"frozen_depth": -0.1}, r"frozen_depth must be in \[0, 1\), or 'auto', got -0.1"),
        ({"train_embeddings": True}, "train_embeddings needs frozen_depth 0, got 0.667"),
        ({"selector": "fischer"}, "did you mean 'fisher'"),
    ],
)
def test_arguments_out_of_range_are_refused(tiny_model, argument, message):
    with pytest.raises(UsageError, match=message):
        SparseFineTuner(tiny_model, **argument)


def test_a_model_that_is_being_tuned_is_refused_until_it_is_finished(tiny_model, data, tmp_path):
    tuner = SparseFineTuner(tiny_model)
    _trainer(tmp_path, max_steps=1).fit(tuner, datamodule=data)
    with pytest.raises(UsageError, match=r"has sparse layers already; call finish\(\)"):
        SparseFineTuner(tiny_model)
    SparseFineTuner(tuner.finish())


def test_the_prefix_cache_does_not_change_what_is_trained(make_model, data, make_samples, tmp_path):
    values = []
    for cache_prefix in (True, False):
        fresh = SampleDataModule(make_samples(24), batch_size=4, pad_id=0)
        tuner = SparseFineTuner(make_model("llama"), cache_prefix=cache_prefix, learning_rate=1e-3, density=0.25)
        _trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(tuner, datamodule=fresh)
        values.append([layer.support.values.detach() for layer in sparse_layers(tuner.model).values()])
    for cached, plain in zip(*values, strict=True):
        torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)


def test_frozen_layers_are_in_evaluation_and_trained_ones_in_training_mode(tiny_model, data, tmp_path):
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append([layer.training for layer in pl_module.model.model.layers])

    _trainer(tmp_path, Modes(), max_epochs=2).fit(SparseFineTuner(tiny_model, frozen_depth=0.5), datamodule=data)
    assert len(modes) == 12
    assert all(mode == [False, False, True, True] for mode in modes)


# --- checkpoints --------------------------------------------------------------------------------


def _checkpointed(model, data, tmp_path, **options):
    keep = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="last", every_n_train_steps=3)
    tuner = SparseFineTuner(model, density=0.05, learning_rate=1e-2, **options)
    _trainer(tmp_path, keep, max_steps=3).fit(tuner, datamodule=data)
    return tuner, tmp_path / "checkpoints" / "last.ckpt"


def test_a_checkpoint_holds_the_supports_and_not_the_model(tiny_model, data, tmp_path):
    tuner, path = _checkpointed(tiny_model, data, tmp_path)
    state = torch.load(path, weights_only=True)["state_dict"]
    kept = ("ids", "originals", "values", "age")
    parts = {f"model.{name}.support.{part}" for name in sparse_layers(tiny_model) for part in kept}
    assert state.keys() == parts
    model_bytes = 4 * tiny_model.num_parameters()
    values_bytes = 4 * tuner.num_trainable
    assert sum(part.numel() * part.element_size() for part in state.values()) < 2.1 * values_bytes
    assert path.stat().st_size < model_bytes


def test_a_checkpoint_loads_into_a_fresh_base_and_gives_the_trained_weights(make_model, data, weights_of, tmp_path):
    tuner, path = _checkpointed(make_model("llama"), data, tmp_path)
    again = SparseFineTuner(make_model("llama"))
    again.on_load_checkpoint(torch.load(path, weights_only=True))
    assert all((layer.support.age == 3).all() for layer in sparse_layers(again.model).values())
    expected = weights_of(tuner.finish())
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(again.finish()).items())


def test_a_checkpoint_replaces_what_a_tuner_had_trained(make_model, data, weights_of, tmp_path):
    tuner, path = _checkpointed(make_model("llama"), data, tmp_path)
    other = SparseFineTuner(make_model("llama"), density=0.5, learning_rate=1e-1, selector="random")
    _trainer(tmp_path, max_steps=2).fit(other, datamodule=data)
    other.on_load_checkpoint(torch.load(path, weights_only=True))
    expected = weights_of(tuner.finish())
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(other.finish()).items())


def test_a_checkpoint_brings_the_measured_ways_of_element_gradients_along(make_model, data, monkeypatch, tmp_path):
    monkeypatch.setattr(sampled, "_LARGEST_SHARE", 1.0)
    monkeypatch.setattr(sampled, "_sampling_wins", {})
    _, path = _checkpointed(make_model("llama"), data, tmp_path, support="element")
    choices = sampled.measured_choices()
    assert choices
    monkeypatch.setattr(sampled, "_sampling_wins", {})
    SparseFineTuner(make_model("llama")).on_load_checkpoint(torch.load(path, weights_only=True))
    assert sampled.measured_choices() == choices


def test_a_checkpoint_of_another_base_is_refused(make_model, data, tmp_path):
    _, path = _checkpointed(make_model("llama"), data, tmp_path)
    model = make_model("llama")
    model.model.layers[3].mlp.up_proj.weight.data += 1e-3
    with pytest.raises(UsageError, match="the checkpoint was made with another base model"):
        SparseFineTuner(model).on_load_checkpoint(torch.load(path, weights_only=True))


def test_a_checkpoint_of_other_layers_is_refused(make_model, data, tmp_path):
    _, path = _checkpointed(make_model("llama"), data, tmp_path, frozen_depth=0.5)
    with pytest.raises(UsageError, match="the checkpoint trains other layers than this configuration"):
        SparseFineTuner(make_model("llama"), frozen_depth=0.25).on_load_checkpoint(torch.load(path, weights_only=True))


# --- plans --------------------------------------------------------------------------------------


def _with_faint_layers(make_model, layers):
    """A model of which some layers have weights next to zero, so that their magnitude tells nothing."""
    model = make_model("llama")
    for layer in model.model.layers[layers]:
        for weight in layer.parameters():
            weight.data *= 1e-4
    return model


@pytest.mark.parametrize(("faint", "first_layer"), [(slice(1, 4), 0), (slice(0, 3), 3)])
def test_an_automatic_depth_trains_the_layers_that_hold_the_saliency(make_model, data, faint, first_layer):
    model = _with_faint_layers(make_model, faint)
    tuner = SparseFineTuner(model, selector="magnitude", frozen_depth="auto", density=0.25)
    tuner.select(data.calibration_batches())
    assert tuner.plan == (first_layer, 0.25)
    trained = {int(name.split(".")[2]) for name in sparse_layers(model)}
    assert trained == set(range(first_layer, 4))
    expected = default_learning_rate(density=0.25, frozen_depth=first_layer / 4, by_gradient=False)
    assert tuner.learning_rate == expected


@pytest.mark.parametrize("options", [{"time_limit": 0.3}, {"memory_limit_gb": 0.0004, "frozen_depth": "auto"}])
def test_a_limit_decides_the_density(make_model, data, options):
    tuner = SparseFineTuner(make_model("llama"), **options)
    tuner.select(data.calibration_batches())
    share = tuner.num_trainable / sum(layer.linear.weight.numel() for layer in sparse_layers(tuner.model).values())
    assert 0 < share < 1
    assert share == pytest.approx(tuner.plan.density, abs=0.03)
    expected = default_learning_rate(
        density=tuner.plan.density,
        frozen_depth=tuner.plan.first_layer / 4 if "frozen_depth" in options else 0.667,
    )
    assert tuner.learning_rate == expected


@pytest.mark.parametrize("allocation", ["uniform", "rank", "global"])
def test_every_allocation_trains_as_many_entries(make_model, data, allocation):
    tuner = SparseFineTuner(make_model("llama"), allocation=allocation, density=0.25, frozen_depth=0.5)
    tuner.select(data.calibration_batches())
    in_layers = sum(layer.linear.weight.numel() for layer in sparse_layers(tuner.model).values())
    assert in_layers / 4 - 48 < tuner.num_trainable <= in_layers / 4
    shares = {
        len(layer.support.ids) / layer.support.layout.num_units(layer.support.shape)
        for layer in sparse_layers(tuner.model).values()
    }
    assert (len(shares) == 1) == (allocation == "uniform")


def test_kept_outputs_of_frozen_layers_are_dropped_when_the_cut_moves(make_model, data, tmp_path):
    options = {"selector": "magnitude", "frozen_depth": "auto"}
    keep = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1)
    lower = SparseFineTuner(_with_faint_layers(make_model, slice(0, 2)), **options, density=0.25, cache_prefix=False)
    _trainer(tmp_path, keep, max_steps=1).fit(lower, datamodule=data)
    tuner = SparseFineTuner(_with_faint_layers(make_model, slice(0, 2)), **options, time_limit=0.2)
    batch = next(iter(data.calibration_batches()))
    tuner.select([batch])
    tuner.loss(batch)
    cuts = [tuner.plan.first_layer]
    tuner.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    cuts.append(tuner.plan.first_layer)
    assert cuts == [3, 2]
    torch.testing.assert_close(tuner.loss(batch), lower.eval().loss(batch))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second writes no checkpoints
def test_a_checkpoint_restores_the_plan_and_what_follows_from_it(make_model, data, tmp_path):
    options = {"selector": "magnitude", "frozen_depth": "auto", "memory_limit_gb": 0.0004}
    keep = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=3)
    tuner = SparseFineTuner(_with_faint_layers(make_model, slice(0, 2)), **options)
    _trainer(tmp_path, keep, max_steps=3).fit(tuner, datamodule=data)
    assert tuner.plan.first_layer > 0
    again = SparseFineTuner(_with_faint_layers(make_model, slice(0, 2)), **options)
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append([layer.training for layer in pl_module.model.model.layers])

    _trainer(tmp_path, Modes(), max_steps=5).fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert again.plan == tuner.plan
    assert again.learning_rate == tuner.learning_rate
    assert sparse_layers(again.model).keys() == sparse_layers(tuner.model).keys()
    assert modes == [[index >= tuner.plan.first_layer for index in range(4)]] * 2
