"""The rules that thresholds in a policy must keep."""

from __future__ import annotations

import math


def collect(**problems: str | None) -> dict[str, str]:
    """Return the problems that there are, by field."""
    return {name: problem for name, problem in problems.items() if problem}


def in_range(name: str, value: float | None, low: float = 0.0, high: float = 1.0) -> str | None:
    """Say that a number is outside [low, high] or not finite; None (not asked) is always fine."""
    if value is None or (math.isfinite(value) and low <= value <= high):
        return None
    return f"{name} must be in [{low:g}, {high:g}], got {value:g}"


def positive(name: str, value: float | None) -> str | None:
    """Say that a number is not above zero and finite; None (not asked) is always fine."""
    if value is None or (math.isfinite(value) and value > 0):
        return None
    return f"{name} must be a finite number above 0, got {value:g}"


def at_least(name: str, value: int, low: int) -> str | None:
    """Say that a count is below its least value."""
    return None if value >= low else f"{name} must be at least {low}, got {value}"


def level(name: str, value: float) -> str | None:
    """Say that a confidence level is not a usual one."""
    return in_range(name, value, 0.8, 0.9999)


def given(name: str, value: str) -> str | None:
    """Say that a text is empty."""
    return None if value.strip() else f"{name} must say why these thresholds were chosen and when, got nothing"
