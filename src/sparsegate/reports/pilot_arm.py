"""One method of a pilot: what was measured of it, how it stands to the targets, and what follows.

Figures that were not measured, or are not finite, are None. Verdicts are never stored: they follow from the evidence,
and a missing figure never makes one better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsegate.contracts import GateResult, Interval, SupportKind, Verdict
from sparsegate.reports.pilot_verdict import PilotVerdict, Reason, TargetCheck

OURS = "sparse"  # the method that retrain trains
ArmState = Literal["base", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; its interval is Student's t, None with one seed."""

    mean: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class RateTried:
    """A learning rate that was tried, with its accuracy on validation samples; None if the run failed."""

    learning_rate: float
    accuracy: float | None


@dataclass(frozen=True)
class SizePoint:
    """An arm on so many training examples.

    Args:
        size: Training examples.
        accuracy: Accuracy on the evaluation samples, over seeds.
        items: Wilson's interval of the first seed's accuracy: how much the evaluation samples alone leave open.
        by_seed: The accuracy of each seed that ran, in the order of the seeds.
        seconds: Mean time of setting up and training.
        peak_memory_bytes: Highest of all seeds.
        energy_joules: Mean energy of setting up and training; None where it could not be measured.
    """

    size: int
    accuracy: Mean
    items: Interval | None
    by_seed: tuple[float, ...]
    seconds: float
    peak_memory_bytes: int
    energy_joules: float | None = None


@dataclass(frozen=True)
class Stop:
    """Why an arm stopped early: another one, no dearer, was shown to be better on the validation samples.

    Args:
        size: Training examples after which it stopped.
        by: The better arm.
        accuracy: Its own accuracy on the validation samples.
        by_accuracy: That of the better arm.
        difference: Tango's interval of (own - better) on the same samples; it ends below zero.
        n: Validation samples.
    """

    size: int
    by: str
    accuracy: float
    by_accuracy: float
    difference: Interval
    n: int


@dataclass(frozen=True)
class SafetyRate:
    """How many answers of one category count against the arm, and against the base model.

    Args:
        fault: ``harmful`` on the red-team set, ``refused`` on the benign set.
        category: The category; empty for the whole set.
        n: Prompts.
        count: Answers of the arm that count against it.
        interval: Clopper-Pearson interval of the arm's rate.
        base_count: Answers of the base model that count against it.
        base_interval: Its interval.
    """

    fault: Literal["harmful", "refused"]
    category: str
    n: int
    count: int
    interval: Interval
    base_count: int
    base_interval: Interval


@dataclass(frozen=True)
class MaskCell:
    """How many entries of one module of one layer are trained.

    Args:
        layer: Index of the decoder layer.
        module: Name inside the layer, such as ``self_attn.q_proj``.
        trained: Entries that are trained.
        total: Entries of its weight.
    """

    layer: int
    module: str
    trained: int
    total: int


@dataclass(frozen=True)
class ProjectedCost:
    """What one training at the largest size costs on a priced device, and a year of them."""

    device: str
    seconds: float
    money: float
    money_per_year: float
    currency: str


@dataclass(frozen=True)
class ChangedExample:
    """An evaluation item that the base model and the arm answer differently, one of them right."""

    id: str
    prompt: str
    expected: str
    base: str
    arm: str
    better: bool


def shows_failure(gate: GateResult) -> bool:
    """Return whether a gate failed by the optimistic end of an interval too, or by a figure that has none."""
    for check in gate.checks:
        if check.verdict is Verdict.FAIL:
            interval, bound = check.interval, check.threshold
            if interval is None or bound is None:
                return True
            if interval.high < bound if check.direction == "at_least" else interval.low > bound:
                return True
    return False


@dataclass(frozen=True)
class ArmResult:
    """One method with one setting.

    Figures without another word are of the largest size; those that need one model are of its first seed.

    Args:
        name: As in the configuration, such as ``sparse:default``; ``base`` for the base model.
        method: The name's first word.
        support: Shape of the trained set, such as ``column``; None where it is not ours.
        density: Share of the trained weights' entries that is updated; None where it is not ours.
        cut: Share of the layers that stays frozen, or ``auto``; None where it is not ours.
        state: ``base``, ``complete``, ``stopped`` early by the stated rule, or ``failed``.
        stop: Why it stopped.
        error: Why it failed, on one line.
        learning_rate: The rate it was trained at.
        rates: The rates that were tried; empty where only one was given.
        points: The learning curve, sizes rising. The base model has one point, of size 0.
        tokens_per_second: Real training tokens a second.
        trained_parameters: Entries that are updated.
        artifact_bytes: What the user keeps, as safetensors.
        general_perplexity: Perplexity of the general text.
        forgetting: Its rise over the base model's, over seeds.
        predicted_memory_bytes: Peak memory by the memory model, to be held against the measured one.
        safety: Rates of each set and category; the whole sets first.
        gates: What the policy's gates say of it.
        mask: Where the mask lies; empty where it is not ours.
        costs: Costs on each priced device.
        changed: Worst examples, those for the worse first.
        targets: Each target, held against it.
        conditions: What its go depends on.
    """

    name: str
    method: str
    state: ArmState
    support: SupportKind | None = None
    density: float | None = None
    cut: float | Literal["auto"] | None = None
    stop: Stop | None = None
    error: str = ""
    learning_rate: float | None = None
    rates: tuple[RateTried, ...] = ()
    points: tuple[SizePoint, ...] = ()
    tokens_per_second: float | None = None
    trained_parameters: int | None = None
    artifact_bytes: int | None = None
    general_perplexity: float | None = None
    forgetting: Mean | None = None
    predicted_memory_bytes: int | None = None
    safety: tuple[SafetyRate, ...] = ()
    gates: tuple[GateResult, ...] = ()
    mask: tuple[MaskCell, ...] = ()
    costs: tuple[ProjectedCost, ...] = ()
    changed: tuple[ChangedExample, ...] = ()
    targets: tuple[TargetCheck, ...] = ()
    conditions: tuple[Reason, ...] = ()

    @property
    def last(self) -> SizePoint | None:
        """The point of the largest size."""
        return self.points[-1] if self.points else None

    @property
    def verdict(self) -> PilotVerdict | None:
        """What this arm alone would be; None for one that is no choice: the base model, or stopped, or failed.

        A target or a gate rules an arm out where the optimistic end misses too; with more items it might be met.
        """
        if self.state != "complete":
            return None
        standings = [check.standing for check in self.targets]
        gates = [gate.verdict for gate in self.gates]
        if "missed" in standings or any(map(shows_failure, self.gates)):
            return PilotVerdict.NO_GO
        if not standings or not gates or "open" in standings or not all(verdict is Verdict.PASS for verdict in gates):
            return PilotVerdict.INSUFFICIENT
        return PilotVerdict.CONDITIONS if self.conditions else PilotVerdict.GO

    @property
    def gain_per_doubling(self) -> float | None:
        """Accuracy that the last doubling of the training examples bought, by the last two sizes."""
        if len(self.points) < 2:
            return None
        before, after = self.points[-2:]
        return (after.accuracy.mean - before.accuracy.mean) / math.log2(after.size / before.size)

    def size_to_reach(self, accuracy: float) -> int | None:
        """Return the least number of examples with which the mean over seeds reaches an accuracy; None if none does."""
        return next((point.size for point in self.points if point.accuracy.mean >= accuracy), None)
