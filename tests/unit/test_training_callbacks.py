import logging

import lightning as L
import pytest
import torch

from sparsegate.data.datamodule import SampleDataModule
from sparsegate.training.callbacks import CostMeter, ProgressLog, StderrProgressBar, peak_memory_bytes, progress
from sparsegate.training.module import SparseFineTuner


@pytest.fixture
def fit(make_model, make_samples, tmp_path):
    def fit(*callbacks, **options):
        trainer = L.Trainer(
            **{
                "accelerator": "cpu",
                "max_epochs": 2,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "limit_val_batches": 0,
                "default_root_dir": tmp_path,
                "callbacks": list(callbacks),
                **options,
            }
        )
        data = SampleDataModule(make_samples(24), batch_size=4, pad_id=0)
        trainer.fit(SparseFineTuner(make_model("llama")), datamodule=data)

    return fit


def test_the_meter_counts_real_tokens_time_and_memory(fit, make_samples):
    meter = CostMeter()
    fit(meter)
    assert meter.tokens == 2 * sum(len(sample.prompt_ids) + len(sample.response_ids) for sample in make_samples(24))
    assert meter.seconds > 0
    assert meter.peak_bytes > 10 * 2**20


def test_a_meter_that_takes_over_adds_to_what_was_measured(fit):
    first, second = CostMeter(), CostMeter()
    fit(first)
    second.load_state_dict({**first.state_dict(), "seconds": 1000.0, "peak_bytes": 1 << 60})
    fit(second)
    assert second.tokens == 2 * first.tokens
    assert second.seconds > 1000
    assert second.peak_bytes == 1 << 60


def test_peak_memory_is_at_least_what_is_held_now():
    held = torch.ones(8 * 2**20)
    assert peak_memory_bytes(torch.device("cpu")) >= held.numel() * held.element_size()


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_log_has_about_ten_lines_and_each_step_once(fit, caplog, accumulated):
    with caplog.at_level(logging.INFO, logger="sparsegate.training.callbacks"):
        fit(ProgressLog(), max_epochs=5, accumulate_grad_batches=accumulated)
    lines = [record.message for record in caplog.records if record.name == "sparsegate.training.callbacks"]
    steps = [int(line.split()[1]) for line in lines]
    total = 5 * 6 // accumulated
    assert steps == list(range(total // 10, total + 1, total // 10))
    assert lines[-1].startswith(f"step {total} of {total}, training loss ")


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, StderrProgressBar), (False, ProgressLog)])
def test_a_terminal_gets_the_bar_and_a_file_the_log(monkeypatch, is_terminal, kind):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    assert isinstance(progress(), kind)


def test_the_bar_is_on_stderr_and_stdout_stays_empty(fit, capfd):
    fit(StderrProgressBar(), enable_progress_bar=True)
    out, err = capfd.readouterr()
    assert "train_loss_nats" in err
    assert "train_loss_nats" not in out
