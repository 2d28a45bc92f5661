"""Which learning rate does a method get? The best of those given, and of those beyond, where the best is at an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsegate.contracts import Task
from sparsegate.workflow.bench.quality.records import RunRecord

MOST_BEYOND = 2  # rates tried beyond those given


def search_rates(
    rates: Sequence[float], try_rate: Callable[[float], RunRecord], *, task: Task, expect: Callable[[int], object]
) -> tuple[float | None, list[RunRecord]]:
    """Return the best rate, None if all failed, and all runs in order.

    Where the best is the highest or the lowest tried, and better than its neighbour, a better one may lie beyond: the
    next in the ratio of these two is tried, until one does worse, at most twice. So no method loses by where its list
    happened to end.

    Args:
        rates: At least two, all different.
        try_rate: Makes a run at a rate and judges it on validation samples.
        task: Says what is better.
        expect: Told how many runs there will be beyond those given.
    """
    tried = [try_rate(rate) for rate in rates]
    for _ in range(MOST_BEYOND):
        beyond = _beyond(tried, task)
        if beyond is None:
            break
        expect(1)
        tried.append(try_rate(beyond))
    worked = [record for record in tried if record.found is not None]
    return (min(worked, key=_rank(task)).learning_rate if worked else None), tried


def _beyond(tried: Sequence[RunRecord], task: Task) -> float | None:
    """Return the next rate where the best is an end and better than its neighbour; else None."""
    ordered, rank = sorted(tried, key=lambda record: record.learning_rate), _rank(task)
    best = min((record for record in tried if record.found is not None), key=rank, default=None)
    for end, neighbour in ((ordered[0], ordered[1]), (ordered[-1], ordered[-2])):
        if end is best and neighbour.found is not None and rank(end)[:2] < rank(neighbour)[:2]:
            return float(f"{end.learning_rate**2 / neighbour.learning_rate:.4g}")
    return None


def _rank(task: Task) -> Callable[[RunRecord], tuple[float, float, float]]:
    """Return the key of an order of runs that worked: the best validation figure, then loss, then rate, comes first."""

    def rank(record: RunRecord) -> tuple[float, float, float]:
        assert record.found is not None, "what failed has no rank"
        end = record.found.end
        return (-end.quality if task == "classification" else end.quality), end.nll_nats, record.learning_rate

    return rank
