"""The answers that a pilot can give, and how a figure stands to its target: a missing figure never makes it better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sparsegate.contracts import Interval
from sparsegate.errors import ExitCode

TargetName = Literal["accuracy", "seconds", "peak_memory_gb", "money", "harmful_rate", "over_refusal_rate"]
Standing = Literal["met", "missed", "open"]
ReasonCode = Literal[
    # about a target: figures target, goal, observed, low, high, n (those that are known)
    "target_met",
    "target_missed",
    "target_open",
    # about a gate of the policy: figures gate, verdict, reason
    "gate_failed",
    "gate_open",  # it failed, and with more items it might pass
    "gate_without_evidence",
    "no_gates",
    # about an arm that is out
    "arm_stopped",  # size, by, accuracy, by_accuracy (both on validation samples), n
    "arm_failed",  # error
    "no_arm_finished",
    "forgets",  # before, after: perplexity of general text; no condition of a go
    "nothing_learnt",  # majority: the share of the most frequent label
    # conditions
    "quick",  # a quick pilot looks at less
    "few_seeds",  # seeds, wanted
    "seeds_disagree",  # goal, mean, low: the interval over seeds reaches below the goal
    "rate_at_edge",  # learning_rate: a better one may lie beyond
    "not_by_retrain",  # method: retrain trains ours only
]


class PilotVerdict(StrEnum):
    """The answer, the best first."""

    GO = "go"
    CONDITIONS = "go_with_conditions"
    INSUFFICIENT = "not_enough_evidence"
    NO_GO = "no_go"

    @property
    def exit_code(self) -> ExitCode:
        return _EXIT_CODES[self]


_EXIT_CODES = {
    PilotVerdict.GO: ExitCode.PASSED,
    PilotVerdict.CONDITIONS: ExitCode.PASSED,
    PilotVerdict.INSUFFICIENT: ExitCode.NOT_ENOUGH_EVIDENCE,
    PilotVerdict.NO_GO: ExitCode.GATE_FAILED,
}


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict, for words in any language.

    Args:
        code: What it says.
        arm: The arm that it is about; empty for the pilot as a whole.
        figures: Its figures and names, as listed beside the code.
    """

    code: ReasonCode
    arm: str = ""
    figures: Mapping[str, int | float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetCheck:
    """One target, held against one arm.

    Args:
        target: The target.
        goal: Its bound, in the target's unit (share, seconds, 10**9 bytes, or the first price's currency).
        direction: Whether the figure must be at least or at most the goal.
        observed: The measured figure.
        interval: Interval of a rate; None for a figure without one, such as seconds.
        n: Items behind the figure.
    """

    target: TargetName
    goal: float
    direction: Literal["at_least", "at_most"]
    observed: float | None
    interval: Interval | None = None
    n: int = 0

    @property
    def standing(self) -> Standing:
        """``met`` if the pessimistic end reaches the goal, ``missed`` if the optimistic end doesn't, else ``open``."""
        ends = (self.observed, self.observed) if self.interval is None else (self.interval.low, self.interval.high)
        if self.n < 1 or self.observed is None or not all(math.isfinite(x) for x in (self.observed, self.goal)):
            return "open"
        low, high = ends
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return "open"
        sign = 1 if self.direction == "at_least" else -1
        reached = [sign * end >= sign * self.goal for end in (low, high)]
        return "met" if all(reached) else "open" if any(reached) else "missed"
