"""Results by group: which items belong to each value of each slice column, and how groups are judged.

Under the rule ``prove`` each group must reach its bound at the interval's pessimistic end. All of them must, so no
correction is due: the gate lets a bad group through no more often than one interval errs (Berger 1982, Technometrics
24:295-300). The price is that a sound model fails more often the more groups there are. Under the rule ``holm`` a
group blocks where it is shown to miss its bound; Holm's correction keeps the chance that a sound model is blocked by
any group at the interval's one-sided error. That is the weaker question: ask it beside a bound on all items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsegate.contracts import Check, Interval, Prediction, Verdict
from sparsegate.errors import DataError
from sparsegate.evaluation.bootstrap import cluster_bootstrap
from sparsegate.evaluation.multiplicity import holm
from sparsegate_gates.evidence import PairedCounts

SmallSlices = Literal["report", "block"]
SliceRule = Literal["prove", "holm"]


@dataclass(frozen=True)
class GroupLoss:
    """How well one group's result agrees with its bound being kept.

    Args:
        name: The group.
        p_value: Chance of a result as bad, or worse, if the group just keeps its bound.
        n: Items in the group.
        reason: What was measured and what is allowed.
        items: Ids of the items that were lost.
    """

    name: str
    p_value: float
    n: int
    reason: str
    items: tuple[str, ...]


def cluster_interval(
    lines: Sequence[Prediction],
    values: Sequence[float],
    column: str,
    *,
    bounds: tuple[float, float],
    confidence: float,
) -> Interval:
    """Return the interval of a mean over items that belong together where they share a column's value.

    Raises:
        DataError: If an item has no such column.
    """
    without = next((line.id for line in lines if column not in line.slices), None)
    if without is not None:
        raise DataError(f"item '{without}' has no column '{column}' to cluster by; add it to data.slice_columns")
    clusters = [line.slices[column] for line in lines]
    return cluster_bootstrap(values, clusters, bounds=bounds, confidence=confidence)


def paired_interval(
    ours: Sequence[Prediction], theirs: Sequence[Prediction], column: str | None, confidence: float
) -> Interval:
    """Return the interval of (our rate - theirs): Tango's, or over whole clusters where a column says which."""
    right, others = [line.correct for line in ours], [line.correct for line in theirs]
    if column is None:
        return PairedCounts.of(right, others).interval(confidence)
    change = [float(mine) - float(other) for mine, other in zip(right, others, strict=True)]
    return cluster_interval(ours, change, column, bounds=(-1.0, 1.0), confidence=confidence)


def positions_by_slice(predictions: Sequence[Prediction], *, but: str | None = None) -> dict[str, list[int]]:
    """Return the positions of each slice's items, keyed ``column=value``; an item without a column is ``(missing)``.

    Args:
        predictions: The items.
        but: A column that makes no slices: the one that items are clustered by.
    """
    columns = sorted({column for line in predictions for column in line.slices if column != but})
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
    chosen, checks, not_judged = _choose(groups, minimum_n, small)
    return checks + [judge(name, positions) for name, positions in chosen.items()], not_judged


def judge_groups_by_holm(
    groups: dict[str, list[int]],
    loss: Callable[[str, list[int]], GroupLoss],
    *,
    error: float,
    minimum_n: int,
    small: SmallSlices,
) -> tuple[list[Check], list[str]]:
    """Block the groups that are shown to miss their bound, with Holm's correction over all of them.

    Args:
        groups: Name to positions of its items.
        loss: Measures one group.
        error: Chance that a sound model is blocked by any group.
        minimum_n: Items that a group needs.
        small: What a group below the minimum does: ``block`` makes it INSUFFICIENT, ``report`` only names it.

    Returns:
        The checks, each on an adjusted p-value, and one line for each group that was not judged.
    """
    chosen, checks, not_judged = _choose(groups, minimum_n, small)
    losses = [loss(name, positions) for name, positions in chosen.items()]
    adjusted = holm([found.p_value for found in losses])
    for found, p_value in zip(losses, adjusted, strict=True):
        checks.append(
            Check.at_least(
                f"{found.name}: Holm-adjusted p",
                p_value,
                error,
                n=found.n,
                minimum_n=minimum_n,
                items=found.items,
                reason=found.reason,
            )
        )
    return checks, not_judged


def _choose(
    groups: dict[str, list[int]], minimum_n: int, small: SmallSlices
) -> tuple[dict[str, list[int]], list[Check], list[str]]:
    """Return the groups to judge, the check of there being none, and one line for each group left out."""
    if not groups and small == "block":
        return {}, [Check("slices", Verdict.INSUFFICIENT, reason="no group to judge; set data.slice_columns")], []
    if not groups:
        return {}, [], ["no groups: the samples have no slice column"]
    chosen = {name: found for name, found in groups.items() if len(found) >= minimum_n or small == "block"}
    left_out = [
        f"{name}: {len(found)} items, needs {minimum_n}" for name, found in groups.items() if name not in chosen
    ]
    return chosen, [], left_out
