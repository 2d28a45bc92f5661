"""One training run: from encoded samples to a delta file and what it cost."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from sparsegate.config import TrainingConfig
from sparsegate.contracts import CostReport, EncodedSample
from sparsegate.data.datamodule import SampleDataModule
from sparsegate.errors import SparsegateError, UsageError
from sparsegate.sparse.delta import write_delta
from sparsegate.training.callbacks import CostMeter, LastCheckpoint, StderrProgressBar, ValidationLosses, progress
from sparsegate.training.module import SparseFineTuner
from sparsegate.training.refresh import RefreshCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
_BYTES_PER_TRAINED_VALUE = 16  # fp32 value, gradient and two moments


class TrainingOutcome(NamedTuple):
    """What :func:`train` left behind."""

    delta: Path
    cost: CostReport
    metrics: dict[str, float]


def train(
    model: PreTrainedModel,
    samples: Sequence[EncodedSample],
    *,
    validation: Sequence[EncodedSample],
    config: TrainingConfig,
    pad_id: int,
    base_digest: str,
    output_dir: Path,
    logger: Logger | None = None,
    callbacks: Iterable[Callback] = (),
) -> TrainingOutcome:
    """Fine-tune a model and write ``delta.safetensors``; go on from the last checkpoint if there is one.

    With several devices each process runs this function on all samples and trains on its share; the first one writes.

    Args:
        model: The base model; it is trained in place and has plain layers again at the end.
        samples: Samples to train on.
        validation: Samples for the validation loss; may be empty.
        config: How to train.
        pad_id: Token id used for padding.
        base_digest: Digest of the base model, recorded in the delta.
        output_dir: Folder for the delta and, while training, checkpoints.
        logger: Lightning logger for curves.
        callbacks: Further Lightning callbacks.

    Raises:
        SparsegateError: If training was interrupted or diverged.
        UsageError: If the machine lacks what the precision needs.
    """
    config = config.resolved()
    L.seed_everything(config.seed, verbose=False)
    tuner = make_tuner(model, config, cache_folder=output_dir)
    data = SampleDataModule(samples, validation, batch_size=config.batch_size, pad_id=pad_id, seed=config.seed)
    meter, validated = CostMeter(), ValidationLosses()
    checkpoints = output_dir / "checkpoints"
    resume_from = checkpoints / "last.ckpt"
    with quiet_warnings():
        trainer = _make_trainer(
            config, checkpoints, logger, [meter, validated, progress(), *_refresh(config), *callbacks]
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(
                tuner,
                datamodule=data,
                ckpt_path=resume_from if resume_from.exists() else None,
                weights_only=True if resume_from.exists() else None,
            )
        except SystemExit:  # how Lightning ends on Ctrl+C, deaf to further ones, and on SIGTERM
            signal.signal(signal.SIGINT, on_interrupt)
            raise SparsegateError(
                "training was interrupted; the same command goes on from the last checkpoint"
            ) from None
    outcome: TrainingOutcome | SparsegateError | None = None
    if trainer.is_global_zero:
        try:
            losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
            metrics = validated.last | losses
            outcome = _write_outcome(trainer, tuner, meter, metrics, config, base_digest, output_dir)
        except SparsegateError as error:
            outcome = error
    outcome = trainer.strategy.broadcast(outcome)  # so that all ranks end alike, and when the file is there
    if not isinstance(outcome, TrainingOutcome):
        assert outcome is not None
        raise outcome
    tuner.finish()
    if trainer.is_global_zero:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return outcome


def _write_outcome(
    trainer: L.Trainer,
    tuner: SparseFineTuner,
    meter: CostMeter,
    metrics: dict[str, float],
    config: TrainingConfig,
    base_digest: str,
    output_dir: Path,
) -> TrainingOutcome:
    if not all(math.isfinite(value) for value in metrics.values()):
        raise SparsegateError(
            f"training diverged ({metrics}); lower training.learning_rate from {tuner.learning_rate:g}"
        )
    path = output_dir / "delta.safetensors"
    manifest = {
        "training": asdict(config),
        "plan": tuner.plan._asdict(),
        "learning_rate": tuner.learning_rate,
        "steps": trainer.global_step,
    }
    write_delta(tuner.delta(base_digest=base_digest, manifest=manifest), path)
    return TrainingOutcome(path, _cost(config, tuner, meter, trainer.global_step, path), metrics)


def _refresh(config: TrainingConfig) -> list[Callback]:
    if config.refresh.every_steps == 0:
        return []
    return [RefreshCallback(**asdict(config.refresh))]


def make_tuner(model: PreTrainedModel, config: TrainingConfig, *, cache_folder: Path | None = None) -> SparseFineTuner:
    """Return the module that trains a model as configured."""
    config = config.resolved()
    assert config.frozen_depth is not None
    assert config.selector is not None
    return SparseFineTuner(
        model,
        selector=config.selector,
        support=config.support,
        density=config.density,
        memory_limit_gb=config.memory_limit_gb,
        time_limit=config.time_limit,
        allocation=config.allocation,
        frozen_depth=config.frozen_depth,
        train_embeddings=config.train_embeddings,
        cache_prefix=config.cache_prefix,
        cache_disk_gb=config.cache_disk_gb,
        cache_folder=cache_folder,
        learning_rate=config.learning_rate,
        warmup_fraction=config.warmup_fraction,
        weight_decay=config.weight_decay,
        calibration_batches=config.calibration_batches,
        checkpoint_activations=config.checkpoint_activations,
        trim_heap=config.trim_heap,
        seed=config.seed,
    )


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Silence Lightning's warnings about what is on purpose."""
    with warnings.catch_warnings():
        # batches come ready from memory, frozen layers are in evaluation mode, validation may be absent,
        # a killed run's checkpoints are gone on from
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
        warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU.*")  # an error here
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
        yield


def _make_trainer(
    config: TrainingConfig, checkpoints: Path, logger: Logger | None, callbacks: list[Callback]
) -> L.Trainer:
    keep_last = LastCheckpoint(
        dirpath=checkpoints,
        filename="last",
        every_n_train_steps=config.checkpoint_every_steps,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision=config.precision,
        max_epochs=config.epochs,
        max_steps=config.max_steps,
        accumulate_grad_batches=config.accumulate_batches,
        gradient_clip_val=config.gradient_clip,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
        logger=logger or False,
        callbacks=[*callbacks, keep_last],
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, StderrProgressBar) for callback in callbacks),
    )
    if trainer.precision != config.precision:  # Lightning has put another in its place
        raise UsageError(f"training.precision {config.precision} needs a GPU; use {trainer.precision} here")
    return trainer


def _cost(config: TrainingConfig, tuner: SparseFineTuner, meter: CostMeter, steps: int, delta: Path) -> CostReport:
    device = tuner.model.device
    return CostReport(
        method=f"sparse {config.support} {tuner.plan.density:.0%} ({config.selector})",
        train_seconds=meter.seconds,
        selection_seconds=tuner.selection_seconds,
        tokens_per_second=meter.tokens / meter.seconds,
        steps=steps,
        peak_memory_bytes=meter.peak_bytes,
        trainable_parameters=tuner.num_trainable,
        total_parameters=tuner.num_total,
        trainable_state_bytes=tuner.num_trainable * _BYTES_PER_TRAINED_VALUE,
        artifact_bytes=delta.stat().st_size,
        base_bytes=tuner.base_bytes,
        device=str(device) if device.type != "cpu" else f"cpu ({torch.get_num_threads()} threads)",
    )
