"""Sparse fine-tuning: what is trained, and how."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from sparsegate.config.rules import at_least, collect, in_range
from sparsegate.contracts import Allocation, SupportKind


@dataclass(frozen=True)
class RefreshConfig:
    """Adaptive supports: what is trained changes during training where it no longer captures the gradient.

    Args:
        every_steps: Optimizer steps between measurements; 0 never changes what was chosen first.
        below: A weight's support is changed if it captures less than this share of the squared gradient that the best
            support of its size would, in (0, 1].
        fraction: Largest share of a support that is exchanged at once, in (0, 1].
        margin: A new unit must have more than this multiple of the squared gradient of the unit that it replaces.
        minimum_age_steps: Units that were chosen less than so many steps ago stay.
        batches: Batches of each measurement. One costs less than two steps of full fine-tuning, all in all.
    """

    every_steps: int = 0
    below: float = 0.8
    fraction: float = 0.1
    margin: float = 1.5
    minimum_age_steps: int = 100
    batches: int = 1

    def problems(self) -> dict[str, str]:
        return collect(
            every_steps=at_least("every_steps", self.every_steps, 0),
            below=in_range("below", self.below, 0, 1, open_low=True),
            fraction=in_range("fraction", self.fraction, 0, 1, open_low=True),
            margin=in_range("margin", self.margin, 1, 1e6),
            minimum_age_steps=at_least("minimum_age_steps", self.minimum_age_steps, 0),
            batches=at_least("batches", self.batches, 1),
        )


class Preset(NamedTuple):
    """What is trained where the configuration does not say; measured in CONTRIBUTING.md's log."""

    density: float
    frozen_depth: float
    selector: str


PRESETS = {"default": Preset(0.2, 0.334, "random"), "lean": Preset(0.1, 0.667, "random")}
DEFAULT_SELECTOR = "fisher"  # where no preset chooses


@dataclass(frozen=True)
class TrainingConfig:
    """Sparse fine-tuning.

    Args:
        selector: How entries are scored: random, magnitude, magnitude_bottom, lift, gradient, fisher, taylor, adam,
            movement, separable; ``fisher*magnitude`` multiplies ranks; ``magnitude@fisher:0.3`` scores by magnitude
            inside the best 30% of the columns by fisher. None takes the preset's, and ``fisher`` where the depth is
            ``auto``.
        support: Shape of the trained set: ``column``, ``row``, ``block`` (32 x 32) or ``element`` (single entries,
            slower).
        preset: What ``selector``, ``density`` and ``frozen_depth`` are where they are not given: ``default`` trains a
            random fifth of the upper two thirds of the layers, ``lean`` a random tenth of the upper third, for half
            to three quarters of the time and a quarter of the file.
        density: Share of the entries of the trained weights that is updated, in (0, 1]; None takes the preset's, or as
            much as a limit allows. Give at most one of ``density``, ``memory_limit_gb`` and ``time_limit``.
        memory_limit_gb: Most memory for trained values, their gradients and moments, and saved activations, in 10**9
            bytes; it comes on top of the model itself.
        time_limit: Longest training step, as a share of a full fine-tuning step, in (0, 1], by counted operations.
        allocation: How the entries are shared out among weights: ``uniform`` (the same share of each), ``rank`` (as a
            LoRA of one rank would have them) or ``global`` (the highest scores of all).
        frozen_depth: Share of the layers, from the bottom, that stays frozen and needs no back-propagation, in [0, 1);
            ``auto`` weighs what the layers hold of the scores against their cost; None takes the preset's.
        train_embeddings: Train rows of the token embedding and of the output head too; needs ``frozen_depth`` 0 and no
            limit.
        cache_prefix: Keep the outputs of the frozen layers, so that they run once for each sample: in a tenth of the
            free memory, and then in a file in the run's folder that is gone when the process ends.
        cache_disk_gb: Largest size of that file for each process, in 10**9 bytes; 0 for none. It takes no more than
            half of what is free on its disk.
        learning_rate: Peak learning rate; None chooses one by density, depth, and whether the selector asks gradients.
        warmup_fraction: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's decay of the trained entries towards zero.
        epochs: Passes over the training set.
        max_steps: Stop after so many optimizer steps; -1 for no limit.
        batch_size: Samples in one forward pass.
        accumulate_batches: Batches for one optimizer step.
        gradient_clip: Largest gradient norm over the trained entries.
        calibration_batches: Batches used to choose the entries.
        refresh: Whether and when the choice changes during training.
        checkpoint_activations: Run layers again in the backward pass in place of keeping what they computed: less
            memory, more time.
        trim_heap: Give freed memory back to the system during each step on a CPU (Linux): a fifth less peak memory, for
            some percent more time.
        precision: ``32-true``; ``bf16-mixed`` and ``16-mixed`` (GPUs only) compute in half precision; ``bf16-true``
            turns the weights to bf16 too. What is trained stays fp32 in all of them.
        accelerator: Lightning accelerator.
        devices: Devices to use.
        strategy: Lightning strategy where there are several devices: ``auto`` or ``ddp``.
        checkpoint_every_steps: Steps between checkpoints from which a killed run resumes.
        seed: Seed of selection, order and everything else that is random.
    """

    selector: str | None = None
    support: SupportKind = "column"
    preset: Literal["default", "lean"] = "default"
    density: float | None = None
    memory_limit_gb: float | None = None
    time_limit: float | None = None
    allocation: Allocation = "uniform"
    frozen_depth: float | Literal["auto"] | None = None
    train_embeddings: bool = False
    cache_prefix: bool = True
    cache_disk_gb: float = 8.0
    learning_rate: float | None = None
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    epochs: int = 2
    max_steps: int = -1
    batch_size: int = 16
    accumulate_batches: int = 1
    gradient_clip: float = 1.0
    calibration_batches: int = 4
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    checkpoint_activations: bool = False
    trim_heap: bool = False
    precision: Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    checkpoint_every_steps: int = 50
    seed: int = 0

    def resolved(self) -> TrainingConfig:
        """Return the configuration with the preset's values in the place of those that are not given."""
        preset = PRESETS[self.preset]
        limited = self.memory_limit_gb is not None or self.time_limit is not None
        density = preset.density if self.density is None and not limited else self.density
        depth = preset.frozen_depth if self.frozen_depth is None else self.frozen_depth
        chosen = DEFAULT_SELECTOR if depth == "auto" else preset.selector  # a depth can't be planned by random scores
        return replace(self, density=density, frozen_depth=depth, selector=self.selector or chosen)

    def problems(self) -> dict[str, str]:
        density = None if self.density is None else in_range("density", self.density, 0, 1, open_low=True)
        if density and self.density is not None and 1 < self.density <= 100:
            density += f"; did you mean {self.density / 100:g}?"
        budgets = ("density", "memory_limit_gb", "time_limit")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            one = f"{given[-1]}: give one of {', '.join(budgets)}, got {' and '.join(given)}"
            return {given[-1]: one}
        rate, depth, memory, time = self.learning_rate, self.frozen_depth, self.memory_limit_gb, self.time_limit
        embeddings = self.train_embeddings and (depth != 0 or memory is not None or time is not None)
        return collect(
            density=density,
            train_embeddings="train_embeddings needs frozen_depth 0, and no limit" if embeddings else None,
            memory_limit_gb=None if memory is None else in_range("memory_limit_gb", memory, 0, 1e6, open_low=True),
            time_limit=None if time is None else in_range("time_limit", time, 0, 1, open_low=True),
            frozen_depth=None
            if depth is None or depth == "auto"
            else in_range("frozen_depth", depth, 0, 1, open_high=True),
            cache_disk_gb=in_range("cache_disk_gb", self.cache_disk_gb, 0, 1e6),
            learning_rate=None if rate is None else in_range("learning_rate", rate, 0, 1, open_low=True),
            warmup_fraction=in_range("warmup_fraction", self.warmup_fraction, 0, 1),
            weight_decay=in_range("weight_decay", self.weight_decay, 0, 10),
            epochs=at_least("epochs", self.epochs, 1),
            max_steps=None if self.max_steps == -1 else at_least("max_steps", self.max_steps, 1),
            batch_size=at_least("batch_size", self.batch_size, 1),
            accumulate_batches=at_least("accumulate_batches", self.accumulate_batches, 1),
            gradient_clip=in_range("gradient_clip", self.gradient_clip, 0, 1e6, open_low=True),
            calibration_batches=at_least("calibration_batches", self.calibration_batches, 1),
            devices=at_least("devices", self.devices, 1),
            checkpoint_every_steps=at_least("checkpoint_every_steps", self.checkpoint_every_steps, 1),
        )
