"""A learning-rate range test: the loss while the rate rises from step to step, and what that suggests.

Source: Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3, as Lightning runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.tuner.tuning import Tuner

from sparsegate.config import TrainingConfig
from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import SampleDataModule
from sparsegate.errors import SparsegateError
from sparsegate.training.run import make_tuner, quiet_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOWEST, _HIGHEST = 1e-6, 1e-1
_UNEVEN = 10


@dataclass(frozen=True)
class RateTest:
    """What a range test found.

    Args:
        suggested: The rate at which the smoothed loss fell most steeply.
        default: The default for the density and the depth.
        density: Share of the entries of the trained weights.
        first_layer: First trained layer.
        rates: Rate of each step.
        losses_nats: Smoothed loss of each step.
    """

    suggested: float
    default: float
    density: float
    first_layer: int
    rates: tuple[float, ...]
    losses_nats: tuple[float, ...]


def find_learning_rate(
    model: PreTrainedModel, samples: Sequence[EncodedSample], *, config: TrainingConfig, pad_id: int, steps: int = 100
) -> RateTest:
    """Train for a while at rising rates, and put every weight back, bit for bit.

    Args:
        model: The base model.
        samples: Samples to train on.
        config: How to train; its learning rate plays no part.
        pad_id: Token id used for padding.
        steps: Optimizer steps, over which the rate rises from 1e-6 to 0.1 unless the loss diverges before.

    Raises:
        SparsegateError: If the loss broke off before there was anything to suggest.
    """
    L.seed_everything(config.seed, verbose=False)
    tuner = make_tuner(model, replace(config, learning_rate=None))
    data = SampleDataModule(samples, batch_size=config.batch_size, pad_id=pad_id, seed=config.seed)
    precision: Any = config.precision
    with tempfile.TemporaryDirectory() as scratch, quiet_warnings():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=precision,
            max_epochs=-1,
            max_steps=steps,
            accumulate_grad_batches=config.accumulate_batches,
            gradient_clip_val=config.gradient_clip,
            default_root_dir=scratch,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        found = Tuner(trainer).lr_find(
            tuner, datamodule=data, min_lr=_LOWEST, max_lr=_HIGHEST, num_training=steps, update_attr=False
        )
    assert found is not None  # None is for Lightning's fast_dev_run
    tuner.finish()
    rates, losses = tuple(found.results["lr"]), tuple(found.results["loss"])
    return RateTest(
        suggested=rates[steepest(losses)],
        default=tuner.learning_rate,
        density=tuner.plan.density,
        first_layer=tuner.plan.first_layer,
        rates=rates,
        losses_nats=losses,
    )


def steepest(losses: Sequence[float]) -> int:
    """Return the step at which the loss falls most, the first ten (whose smoothing is uneven) and the last left out.

    The slope is taken over the step, that is over the logarithm of the rate. Lightning's own suggestion takes it over
    the rate, which in a sweep over five powers of ten picks the lowest rates whatever the loss does.

    Raises:
        SparsegateError: If there are too few finite losses.

    Example:
        >>> steepest([5.0] * 12 + [4.9, 4.6, 4.0, 3.9, 3.9])
        13
    """
    kept = torch.tensor(losses[_UNEVEN:-1], dtype=torch.float64)
    if len(kept) < 2 or not bool(torch.isfinite(kept).all()):
        raise SparsegateError(
            "the range test's loss broke off or was not finite before there was a learning rate to suggest; "
            "the data or the precision may be at fault"
        )
    return _UNEVEN + int(torch.gradient(kept)[0].argmin())
