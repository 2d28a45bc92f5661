import json
import signal
from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sparsegate.config import RefreshConfig, TrainingConfig
from sparsegate.errors import ExitCode, SparsegateError
from sparsegate.sparse.delta import apply_delta, read_delta
from sparsegate.training import batch_loss
from sparsegate.training.run import train

STEPS_PER_PASS = 10  # 40 samples in batches of 4
EAGER = {"below": 1.0, "fraction": 0.5, "margin": 1.0, "minimum_age_steps": 4, "batches": 2}
REFRESH = RefreshConfig(every_steps=3, **EAGER)


class _KilledError(Exception):
    """Stands for whatever ends a process."""


class _Kill(Callback):
    def __init__(self, step, error):
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise self.error


@pytest.fixture(scope="module")
def train_in(make_model, make_samples):
    """Trains a fresh base in a folder, which may hold what an earlier run left."""

    def train_in(folder, *callbacks, **options):
        config = TrainingConfig(
            **{
                "epochs": 3,
                "batch_size": 4,
                "density": 0.2,
                "learning_rate": 1e-2,
                "accelerator": "cpu",
                "checkpoint_every_steps": 4,
                **options,
            }
        )
        return train(
            make_model("llama"),
            make_samples(40),
            validation=make_samples(5, prefix="v", seed=1),
            config=config,
            pad_id=0,
            base_digest="abc",
            output_dir=folder,
            callbacks=callbacks,
        )

    return train_in


@pytest.fixture
def run(train_in, tmp_path):
    """Trains in a folder of the test."""
    return lambda name, *callbacks, **options: train_in(tmp_path / name, *callbacks, **options)


@pytest.fixture(scope="module")
def whole(train_in, tmp_path_factory):
    """Gives the outcome of a run that was not killed; trained once for the same options."""
    return cache(lambda **options: train_in(tmp_path_factory.mktemp("whole"), **options))


def _values(outcome):
    return {name: (entry.ids, entry.old, entry.new) for name, entry in read_delta(outcome.delta).entries.items()}


def _assert_same(left, right):
    assert left.keys() == right.keys()
    for name, parts in left.items():
        assert all(torch.equal(a, b) for a, b in zip(parts, right[name], strict=True)), name


def test_a_run_leaves_a_delta_that_turns_the_base_into_the_trained_model_and_no_checkpoint(
    make_model, make_samples, weights_of, tmp_path
):
    model = make_model("qwen2")
    config = TrainingConfig(epochs=1, batch_size=8, learning_rate=1e-2, accelerator="cpu")
    outcome = train(
        model, make_samples(24), validation=[], config=config, pad_id=0, base_digest="abc", output_dir=tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["delta.safetensors"]
    delta = read_delta(outcome.delta)
    assert delta.base_digest == "abc"
    assert delta.manifest["training"]["batch_size"] == 8
    assert delta.manifest["steps"] == 3
    base = make_model("qwen2")
    apply_delta(base, delta)
    trained = weights_of(model)
    assert all(torch.equal(weight, trained[name]) for name, weight in weights_of(base).items())


@pytest.mark.parametrize("max_steps", [-1, 25])
def test_every_epoch_passes_over_every_batch(whole, max_steps):
    assert whole(max_steps=max_steps).cost.steps == (3 * STEPS_PER_PASS if max_steps == -1 else 25)


def test_the_cost_report_tells_what_was_trained(whole, tiny_model, make_samples):
    outcome = whole()
    cost, entries = outcome.cost, read_delta(outcome.delta).entries
    assert cost.method == "sparse column 20% (random)"
    assert cost.trainable_parameters == sum(entry.new.numel() for entry in entries.values())
    assert cost.total_parameters == tiny_model.num_parameters()
    assert cost.base_bytes == 4 * tiny_model.num_parameters()
    assert cost.trainable_state_bytes == 16 * cost.trainable_parameters
    assert cost.artifact_bytes == outcome.delta.stat().st_size
    tokens = 3 * sum(len(sample.prompt_ids) + len(sample.response_ids) for sample in make_samples(40))
    assert cost.tokens_per_second * cost.train_seconds == pytest.approx(tokens)
    assert cost.peak_memory_bytes > 0
    assert 0 <= cost.selection_seconds < cost.train_seconds
    assert outcome.metrics.keys() >= {"train_loss_nats", "val_loss_nats"}


def test_the_same_seed_gives_the_same_bits(whole, run):
    _assert_same(_values(run("again")), _values(whole()))


def test_another_seed_gives_another_order(whole, run):
    first, second = _values(whole()), _values(run("other", seed=1))
    assert any(not torch.equal(first[name][2], second[name][2]) for name in first)


@pytest.mark.parametrize(
    ("step", "options"),
    [
        pytest.param(7, {}, id="in the first pass"),
        pytest.param(14, {}, id="in a later pass"),
        pytest.param(12, {"checkpoint_every_steps": 10}, id="right after a pass"),
        pytest.param(14, {"max_steps": 25}, id="with a limit of steps"),
        pytest.param(14, {"checkpoint_every_steps": 10, "max_steps": 25}, id="with a limit, right after a pass"),
        pytest.param(14, {"cache_prefix": False}, id="without a prefix cache"),
        pytest.param(14, {"frozen_depth": 0.0}, id="with all layers trained"),
        pytest.param(14, {"frozen_depth": "auto", "density": None, "time_limit": 0.4}, id="with a plan"),
        pytest.param(14, {"allocation": "global"}, id="with a global allocation"),
        pytest.param(14, {"support": "element", "weight_decay": 0.1}, id="with elements and decay"),
        pytest.param(6, {"accumulate_batches": 3}, id="with several batches to a step"),
        pytest.param(14, {"refresh": REFRESH}, id="after refreshes, with a prefix cache"),
        pytest.param(14, {"refresh": REFRESH, "checkpoint_every_steps": 6}, id="right at a refresh"),
        pytest.param(14, {"refresh": REFRESH, "support": "element", "frozen_depth": 0.0}, id="after refreshes of all"),
        pytest.param(
            6, {"refresh": RefreshConfig(2, **EAGER), "accumulate_batches": 3}, id="after refreshes, several batches"
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_very_same_bits(whole, run, tmp_path, step, options):
    expected = whole(**options)
    with pytest.raises(_KilledError):
        run("killed", _Kill(step, _KilledError()), **options)
    assert (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "killed" / "delta.safetensors").exists()
    resumed = run("killed", **options)
    assert resumed.cost.steps == expected.cost.steps
    _assert_same(_values(resumed), _values(expected))
    assert resumed.metrics == expected.metrics


def test_a_run_that_keeps_frozen_outputs_on_disk_ends_with_the_very_same_bits_killed_or_not(
    whole, run, monkeypatch, tmp_path
):
    expected = _values(whole())
    monkeypatch.setattr(batch_loss, "available_bytes", lambda _: 3000)  # a few of the samples
    _assert_same(_values(run("on disk")), expected)
    with pytest.raises(_KilledError):
        run("killed", _Kill(14, _KilledError()))
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoints"]
    _assert_same(_values(run("killed")), expected)


def test_a_run_with_refreshes_ends_with_other_entries_and_as_many(whole):
    static, refreshed = _values(whole()), _values(whole(refresh=REFRESH))
    assert static.keys() == refreshed.keys()
    assert any(not torch.equal(static[name][0], refreshed[name][0]) for name in static)
    assert all(static[name][0].shape == refreshed[name][0].shape for name in static)


def test_a_run_that_is_killed_twice_goes_on_to_the_very_same_bits(whole, run):
    for step in (9, 21):
        with pytest.raises(_KilledError):
            run("killed", _Kill(step, _KilledError()))
    _assert_same(_values(run("killed")), _values(whole()))


def test_a_run_killed_after_its_last_step_ends_with_the_very_same_bits_and_losses(whole, run, monkeypatch, tmp_path):
    def die(*_):
        raise _KilledError

    expected = whole(max_steps=24)
    assert set(expected.metrics) == {"train_loss_nats", "val_loss_nats"}
    with monkeypatch.context() as patched:
        patched.setattr("sparsegate.training.run.write_delta", die)
        with pytest.raises(_KilledError):
            run("killed", max_steps=24)
    assert (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists()
    resumed = run("killed", max_steps=24)
    _assert_same(_values(resumed), _values(expected))
    assert resumed.metrics == expected.metrics


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole, run):
    with pytest.raises(_KilledError):
        run("killed", _Kill(2, _KilledError()))
    _assert_same(_values(run("killed")), _values(whole()))


def test_a_resumed_run_adds_to_the_tokens_and_the_time_of_the_killed_one(run, make_samples):
    with pytest.raises(_KilledError):
        run("killed", _Kill(14, _KilledError()))
    cost = run("killed").cost
    tokens = 3 * sum(len(sample.prompt_ids) + len(sample.response_ids) for sample in make_samples(40))
    assert cost.tokens_per_second * cost.train_seconds == pytest.approx(tokens)


def test_an_interrupt_ends_in_one_clear_error_goes_on_later_and_leaves_the_next_interrupt_working(whole, run):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SparsegateError, match="the same command goes on from the last checkpoint") as caught:
        run("killed", _Kill(14, KeyboardInterrupt()))
    assert caught.value.exit_code is ExitCode.ERROR
    assert signal.getsignal(signal.SIGINT) is handler
    _assert_same(_values(run("killed")), _values(whole()))


def test_training_that_diverges_says_so_and_writes_no_delta(run, tmp_path):
    with pytest.raises(SparsegateError, match=r"lower training\.learning_rate"):
        run("diverged", learning_rate=1e30, gradient_clip=1e6)
    assert not (tmp_path / "diverged" / "delta.safetensors").exists()


def test_the_manifest_is_plain_json(whole):
    manifest = read_delta(whole().delta).manifest
    assert json.loads(json.dumps(manifest)) == manifest
