"""Verdicts, and the checks that lead to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from sparsegate.errors import ExitCode


class Verdict(StrEnum):
    """How a gate ends. Only PASS lets a model through, or WAIVED: it did not pass, and a signed waiver accepts that."""

    PASS = "PASS"
    WAIVED = "WAIVED"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT"
    ERROR = "ERROR"

    @property
    def exit_code(self) -> ExitCode:
        return _EXIT_CODES[self]

    @property
    def releases(self) -> bool:
        return self in (Verdict.PASS, Verdict.WAIVED)


_EXIT_CODES = {
    Verdict.PASS: ExitCode.PASSED,
    Verdict.WAIVED: ExitCode.PASSED,
    Verdict.FAIL: ExitCode.GATE_FAILED,
    Verdict.INSUFFICIENT: ExitCode.NOT_ENOUGH_EVIDENCE,
    Verdict.ERROR: ExitCode.ERROR,
}
_SEVERITY = (Verdict.PASS, Verdict.WAIVED, Verdict.INSUFFICIENT, Verdict.FAIL, Verdict.ERROR)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the most severe verdict; no verdict at all is ERROR."""
    return max(verdicts, key=_SEVERITY.index) if verdicts else Verdict.ERROR


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Args:
        low: Lower bound.
        high: Upper bound.
        confidence: Two-sided level, such as 0.95.
        method: Name of the method, such as ``"wilson"``.
    """

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Check:
    """One question of a gate with its answer. Build it with :meth:`at_least` or :meth:`at_most`.

    Args:
        name: What was asked, such as ``"overall"`` or ``"channel=email"``.
        verdict: The answer.
        observed: The measured figure.
        threshold: The bound from the policy.
        direction: Whether the deciding figure must be at least or at most the threshold.
        interval: Interval around ``observed``; its pessimistic end is what is compared.
        n: Items behind the figure.
        minimum_n: Items needed for a PASS.
        unscorable: Items that could not be scored; they count against the model.
        reason: One line for the user: why, and what to do next. Required unless PASS.
        items: Ids of the items that decided it, ten at most.
    """

    name: str
    verdict: Verdict
    observed: float | None = None
    threshold: float | None = None
    direction: Literal["at_least", "at_most"] = "at_least"
    interval: Interval | None = None
    n: int = 0
    minimum_n: int = 1
    unscorable: int = 0
    reason: str = ""
    items: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict is Verdict.WAIVED:
            raise ValueError(f"check '{self.name}' can't be waived; a waiver is for a whole gate")
        if self.verdict is Verdict.PASS:
            problem = self._pass_problem()
            if problem:
                raise ValueError(f"check '{self.name}' can't pass: {problem}")
        elif not self.reason:
            raise ValueError(f"check '{self.name}' is {self.verdict} and gives no reason")

    def _pass_problem(self) -> str | None:
        """Say why a PASS would not rest on evidence, or None if it does."""
        if self.observed is None or not math.isfinite(self.observed):
            return f"observed must be a finite number, got {self.observed}"
        if self.threshold is None or not math.isfinite(self.threshold):
            return f"threshold must be a finite number, got {self.threshold}"
        if self.minimum_n < 1 or self.n < self.minimum_n:
            return f"n must be at least max(1, minimum_n={self.minimum_n}), got {self.n}"
        decided_on = self.decided_on
        if not math.isfinite(decided_on):
            return f"the deciding figure must be finite, got {decided_on}"
        holds = decided_on >= self.threshold if self.direction == "at_least" else decided_on <= self.threshold
        return None if holds else f"{decided_on} is not {self.direction.replace('_', ' ')} {self.threshold}"

    @property
    def decided_on(self) -> float:
        """The figure compared with the threshold: the interval's pessimistic end, else the observed figure."""
        if self.interval is not None:
            return self.interval.low if self.direction == "at_least" else self.interval.high
        return math.nan if self.observed is None else self.observed

    @classmethod
    def at_least(cls, name: str, observed: float, threshold: float, **evidence: Any) -> Check:
        """Judge that a figure (or its interval's lower end) reaches the threshold."""
        return cls._judge(name, observed, threshold, "at_least", **evidence)

    @classmethod
    def at_most(cls, name: str, observed: float, threshold: float, **evidence: Any) -> Check:
        """Judge that a figure (or its interval's upper end) stays within the threshold."""
        return cls._judge(name, observed, threshold, "at_most", **evidence)

    @classmethod
    def _judge(
        cls,
        name: str,
        observed: float,
        threshold: float,
        direction: Literal["at_least", "at_most"],
        *,
        n: int,
        minimum_n: int = 1,
        interval: Interval | None = None,
        unscorable: int = 0,
        reason: str = "",
        items: tuple[str, ...] = (),
    ) -> Check:
        draft = cls(
            name=name,
            verdict=Verdict.ERROR,
            observed=observed,
            threshold=threshold,
            direction=direction,
            interval=interval,
            n=n,
            minimum_n=minimum_n,
            unscorable=unscorable,
            reason=reason or "not judged",
            items=items[:10],
        )
        problem = draft._pass_problem()
        figures = [observed, threshold, draft.decided_on]
        if problem is None:
            verdict, why = Verdict.PASS, reason
        elif not all(math.isfinite(figure) for figure in figures):
            verdict, why = Verdict.ERROR, problem
        elif n < max(1, minimum_n):
            verdict, why = Verdict.INSUFFICIENT, f"needs {max(1, minimum_n)} items, has {n}"
        else:
            verdict = Verdict.FAIL
            why = f"{_short(draft.decided_on)} is not {direction.replace('_', ' ')} {_short(threshold)}"
        text = why if verdict is Verdict.PASS or not reason else f"{why}: {reason}"
        return cls(**{**draft.__dict__, "verdict": verdict, "reason": text})


def _short(value: float) -> str:
    return f"{value:.4g}"
