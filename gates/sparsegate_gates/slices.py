"""Results by group: which items belong to each value of each slice column, and what to do with small groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from sparsegate.contracts import Check, Prediction, Verdict

SmallSlices = Literal["report", "block"]


def positions_by_slice(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Return the positions of each slice's items, keyed ``column=value``; an item without a column is ``(missing)``."""
    columns = sorted({column for line in predictions for column in line.slices})
    found: dict[str, list[int]] = {}
    for column in columns:
        for position, line in enumerate(predictions):
            found.setdefault(f"{column}={line.slices.get(column, '(missing)')}", []).append(position)
    return dict(sorted(found.items()))


def judge_groups(
    groups: dict[str, list[int]],
    judge: Callable[[str, list[int]], Check],
    *,
    minimum_n: int,
    small: SmallSlices,
) -> tuple[list[Check], list[str]]:
    """Judge each group that is large enough.

    Args:
        groups: Name to positions of its items.
        judge: Judges one group; it must apply ``minimum_n``.
        minimum_n: Items that a group needs.
        small: What a group below the minimum does: ``block`` makes it INSUFFICIENT, ``report`` only names it.

    Returns:
        The checks, and one line for each group that was not judged.
    """
    checks: list[Check] = []
    not_judged: list[str] = []
    if not groups and small == "block":
        checks.append(Check("slices", Verdict.INSUFFICIENT, reason="no group to judge; set data.slice_columns"))
    elif not groups:
        not_judged.append("no groups: the samples have no slice column")
    for name, positions in groups.items():
        if len(positions) >= minimum_n or small == "block":
            checks.append(judge(name, positions))
        else:
            not_judged.append(f"{name}: {len(positions)} items, needs {minimum_n}")
    return checks, not_judged
