"""When is an arm stopped early? Only where another one, no dearer, is shown to be better on validation samples.

An arm can win by being better or by being cheaper. So it is out once another arm needs neither more time nor more
memory, and the upper end of Tango's interval of the difference, on the same validation samples, is below zero.
Pruners that look at one figure, as those of Optuna do, would stop the cheap arms or keep the dear ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsegate.contracts import Interval
from sparsegate.evaluation.intervals import tango
from sparsegate.reports.pilot_arm import Stop

RULE = (
    "An arm is stopped once another arm needs no more time and no more memory and is shown to be better: the upper end"
    " of the 95% interval (Tango) of the paired difference on the validation samples, first seed, is below zero."
    " The reference is never stopped. Evaluation samples play no part."
)


@dataclass(frozen=True)
class Standing:
    """How an arm did at one size, with the first seed.

    Args:
        right: For each validation sample, whether it was right; the same samples for all arms.
        seconds: Time of setting up and training.
        peak_memory_bytes: Peak memory.
    """

    right: Sequence[bool]
    seconds: float
    peak_memory_bytes: int

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


def find_stops(standings: Mapping[str, Standing], *, size: int, spare: str) -> dict[str, Stop]:
    """Return the arms that can't win any more, with the reason.

    Args:
        standings: The arms that are still running.
        size: Training examples.
        spare: The arm that is never stopped.
    """
    stops = {}
    for name, own in standings.items():
        beaten = [(other.accuracy, by) for by, other in standings.items() if by != name and _is_beaten(own, other)]
        if beaten and name != spare:
            accuracy, by = max(beaten)
            interval = _difference(own, standings[by])
            stops[name] = Stop(size, by, own.accuracy, accuracy, interval, len(own.right))
    return stops


def _is_beaten(own: Standing, other: Standing) -> bool:
    no_dearer = other.seconds <= own.seconds and other.peak_memory_bytes <= own.peak_memory_bytes
    return no_dearer and is_shown_worse(own, other)


def is_shown_worse(own: Standing, other: Standing) -> bool:
    """Return whether the upper end of the interval of the difference is below zero."""
    return _difference(own, other).high < 0


def _difference(own: Standing, other: Standing) -> Interval:
    pairs = list(zip(own.right, other.right, strict=True))
    return tango(*(pairs.count(case) for case in ((True, True), (True, False), (False, True), (False, False))))
