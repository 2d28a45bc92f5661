"""What a run costs, and its progress."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from sparsegate.data.datamodule import Batch

_LOG = logging.getLogger(__name__)
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak_memory() -> None:
    """Start a new measurement of peak memory, where the platform can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:  # not Linux, or not allowed: the peak since the process started is reported
        return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on the device (CUDA), else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CostMeter(Callback):
    """Measures the time, the tokens and the peak memory of fitting.

    A resumed run adds to what the killed one had measured.
    ``tokens`` counts real tokens of all ranks, padding excluded; ``seconds`` includes validation and checkpoints.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.peak_bytes = 0
        self._resumed_at = time.perf_counter()
        self._device = torch.device("cpu")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        reset_peak_memory()
        self._device = trainer.strategy.root_device
        self._resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.tokens += int(batch["attention_mask"].sum())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure()
        self.tokens = int(trainer.strategy.reduce(torch.tensor(self.tokens, device=self._device), reduce_op="sum"))

    def _measure(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._resumed_at
        self._resumed_at = now
        self.peak_bytes = max(self.peak_bytes, peak_memory_bytes(self._device))

    def state_dict(self) -> dict[str, Any]:
        self._measure()
        return {"seconds": self.seconds, "tokens": self.tokens, "peak_bytes": self.peak_bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.tokens = state_dict["tokens"]
        self.peak_bytes = state_dict["peak_bytes"]


class LastCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint, but none after which a resumed run would lack a loss that it has to report.

    After the last step there is no step left to run, and after the last whole pass no validation: Lightning makes the
    checkpoint first and validates then.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        left = trainer.estimated_stepping_batches - trainer.global_step
        steps_of_a_pass = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if left > 0 and not (trainer.is_last_batch and left < steps_of_a_pass):
            super().on_train_batch_end(trainer, *arguments)


class ValidationLosses(Callback):
    """Keeps what the last validation found: a resumed run may have no validation left to do."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last = {name: float(loss) for name, loss in trainer.callback_metrics.items() if name.startswith("val_")}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.last)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = dict(state_dict)


class StderrProgressBar(TQDMProgressBar):
    """Lightning's progress bar on stderr: stdout is for results."""

    def init_train_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):  # the bar takes what is stdout when it is made
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        metrics = super().get_metrics(*arguments)
        metrics.pop("v_num", None)  # MLflow's run id, which says nothing here
        return metrics


class ProgressLog(Callback):
    """Ten lines of progress for a log file, where a bar would fill it with control characters."""

    def __init__(self) -> None:
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        total, step = int(trainer.estimated_stepping_batches), trainer.global_step
        is_new, self._last_step = step > self._last_step, step  # several batches may make one step
        if is_new and trainer.is_global_zero and (step % max(1, total // 10) == 0 or step == total):
            loss = float(trainer.callback_metrics["train_loss_nats"])
            _LOG.info("step %d of %d, training loss %.3f nats", step, total, loss)


def progress() -> Callback:
    """Return the bar for a terminal, else the log."""
    return StderrProgressBar(refresh_rate=5) if sys.stderr.isatty() else ProgressLog()
