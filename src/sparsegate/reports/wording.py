"""The words that all formats share: figures, bounds and reasons of a check."""

from __future__ import annotations

import math

from sparsegate.contracts import Check, GateResult, Verdict

NEXT_STEP = {
    Verdict.PASS: "The model may be registered.",
    Verdict.WAIVED: "The model may be registered; what the waived gates found stands.",
    Verdict.FAIL: "The model is not registered; the champion stays. Mend what the failed gates name and train again.",
    Verdict.INSUFFICIENT: "The model is not registered for lack of evidence. Supply what the gates name and run again.",
    Verdict.ERROR: "The model is not registered: a gate could not judge. Look at its log, mend it and run again.",
}


def measured(check: Check) -> str:
    """Return the measured figure with its interval, such as ``0.871 [0.838, 0.898]``."""
    if check.observed is None:
        return "-"
    figure = number(check.observed)
    if check.interval is None:
        return figure
    return f"{figure} [{number(check.interval.low)}, {number(check.interval.high)}]"


def needed(check: Check) -> str:
    """Return the bound, such as ``low end >= 0.75``."""
    if check.threshold is None:
        return "-"
    at_least = check.direction == "at_least"
    end = "" if check.interval is None else ("low end " if at_least else "high end ")
    return f"{end}{'>=' if at_least else '<='} {number(check.threshold)}"


def number(value: float) -> str:
    """Return a figure with three digits that mean something; whole numbers and thousands are in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def why(result: GateResult) -> str:
    """Return one line: what decided the gate."""
    check = result.deciding
    if check is None:
        return "the gate asked nothing"
    if result.verdict is Verdict.PASS:
        return question(result)
    return result.reason if check.name == "gate" else f"{check.name}: {result.reason}"


def told(result: GateResult) -> str:
    """Return a gate's name and what decided it; the name stands once, though many a first question has it too."""
    said = why(result)
    return said if said.startswith(f"{result.gate}: ") else f"{result.gate}: {said}"


def question(result: GateResult) -> str:
    """Return the question that decided the gate, with the number of others it asked."""
    check = result.deciding
    if check is None or check.name == "gate":
        return "-"
    more = len(result.checks) - 1
    return f"{check.name} (+{more})" if more else check.name
