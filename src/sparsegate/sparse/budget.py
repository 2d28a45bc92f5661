"""How many units of each weight are trained.

All allocations spend the same number of entries: what a uniform density takes. ``rank`` gives a weight of shape (m, n)
``r (m + n)`` entries, as a LoRA of rank r would have; ``global`` takes the highest scores of all weights together, each
weight's scores divided by their mean, so that weights with a few outstanding units get more and flat ones less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsegate.contracts import SupportKind
from sparsegate.errors import UsageError
from sparsegate.sparse.layouts import LAYOUTS
from sparsegate.sparse.support import num_chosen

DEFAULT_DENSITY = 0.1
"""Share of the entries that is trained where neither a density nor a limit is given."""

_FLOOR = 0.25  # of a weight's uniform count: no weight is left out on the word of a few calibration batches
_CAP = 4.0  # times its uniform count


class Budget(NamedTuple):
    """What training may cost, in one of three ways; :func:`check_budget` refuses more than one.

    Args:
        density: Share of the entries of the trained weights, in (0, 1].
        memory_limit_gb: Trainable state and saved activations, in 10**9 bytes.
        time_limit: Time of a step over that of a full fine-tuning step with the same loss, in (0, 1].
    """

    density: float | None = None
    memory_limit_gb: float | None = None
    time_limit: float | None = None

    @property
    def limit(self) -> float | None:
        """The limit, of memory or of time; None with a density."""
        return self.memory_limit_gb if self.memory_limit_gb is not None else self.time_limit


def check_budget(budget: Budget) -> None:
    """Check that a budget is in range and of one kind.

    Raises:
        UsageError: If it is not.
    """
    given = {name: value for name, value in budget._asdict().items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"give one of density, memory_limit_gb and time_limit, got {' and '.join(given)}")
    for name, value in given.items():
        high = math.inf if name == "memory_limit_gb" else 1
        if not (0 < value <= high and math.isfinite(value)):
            rule = "above 0" if high == math.inf else "in (0, 1]"
            raise UsageError(f"{name} must be {rule}, got {value:g}")


class TensorUnits(NamedTuple):
    """A weight as a support sees it: shape (out, in), number of units, entries in each unit."""

    shape: tuple[int, int]
    units: int
    unit_entries: int


def tensor_units(kind: SupportKind, shape: Sequence[int]) -> TensorUnits:
    """Return the units of a weight of shape (out, in)."""
    rows, columns = shape
    layout = LAYOUTS[kind]
    return TensorUnits(
        (rows, columns), layout.num_units((rows, columns)), math.prod(layout.entries_shape((rows, columns), 1))
    )


def uniform_counts(tensors: Sequence[TensorUnits], density: float) -> list[int]:
    """Return how many units of each weight a density takes: the same share everywhere, at least one."""
    return [num_chosen(tensor.units, density) for tensor in tensors]


def rank_counts(tensors: Sequence[TensorUnits], density: float) -> list[int]:
    """Return counts in proportion to m + n, for as many entries as :func:`uniform_counts` takes.

    What rounding leaves over in one weight goes to the next, so that the sum falls short by less than one unit.
    """
    budget = _entries(tensors, uniform_counts(tensors, density))
    wanted = _fill([sum(tensor.shape) for tensor in tensors], [t.units * t.unit_entries for t in tensors], budget)
    counts: list[int] = []
    carried = 0.0
    for tensor, entries in zip(tensors, wanted, strict=True):
        carried += entries
        count = max(1, min(tensor.units, math.floor(carried / tensor.unit_entries + 1e-9)))
        carried -= count * tensor.unit_entries
        counts.append(count)
    return counts


def _fill(weights: Sequence[int], limits: Sequence[int], total: int) -> list[float]:
    """Share out a total in proportion to weights; what is above a limit goes to the others."""
    shares = [0.0] * len(weights)
    left, weight_left = float(total), float(sum(weights))
    for index in sorted(range(len(weights)), key=lambda i: limits[i] / weights[i]):  # the first to be full come first
        shares[index] = min(float(limits[index]), left * weights[index] / weight_left)
        left -= shares[index]
        weight_left -= weights[index]
    return shares


def global_counts(tensors: Sequence[TensorUnits], density: float, scores: Iterable[Tensor]) -> list[int]:
    """Return how many of each weight's units are among the highest normalised scores of all weights.

    A weight gets at least a quarter and at most four times its uniform count. Units are taken from the highest score
    down, equal scores in the order of the weights, until the next one would exceed the entries that
    :func:`uniform_counts` takes.

    Args:
        tensors: The weights.
        density: Share of all entries to take.
        scores: Unit scores of each weight, shape (units).
    """
    uniform = uniform_counts(tensors, density)
    floors = [max(1, math.floor(count * _FLOOR)) for count in uniform]
    caps = [min(t.units, math.ceil(count * _CAP)) for t, count in zip(tensors, uniform, strict=True)]
    candidates = [_normalised(values, low, high) for values, low, high in zip(scores, floors, caps, strict=True)]
    sizes = torch.tensor([len(part) for part in candidates])
    owners = torch.repeat_interleave(torch.arange(len(tensors)), sizes)
    order = torch.sort(torch.cat(candidates), descending=True, stable=True).indices
    spent = torch.tensor([t.unit_entries for t in tensors])[owners[order]].cumsum(0)
    left = _entries(tensors, uniform) - _entries(tensors, floors)
    taken = torch.bincount(owners[order[spent <= left]], minlength=len(tensors)).tolist()
    return [low + more for low, more in zip(floors, taken, strict=True)]


def _normalised(scores: Tensor, low: int, high: int) -> Tensor:
    """Return the scores ranked ``low`` to ``high``, descending, over the mean size of all."""
    mean = scores.abs().mean().clamp_min(torch.finfo(scores.dtype).tiny)
    return (torch.topk(scores, high).values[low:] / mean).cpu()


def _entries(tensors: Sequence[TensorUnits], counts: Sequence[int]) -> int:
    return sum(tensor.unit_entries * count for tensor, count in zip(tensors, counts, strict=True))
