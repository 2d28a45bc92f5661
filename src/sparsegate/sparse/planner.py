"""Where back-propagation stops, and how much is trained above it.

The saliency of a layer is the sum of its highest unit scores, as many as the density takes. With a density, the planner
takes the cut where the share of the saliency that the trained layers hold stands furthest above their share of the cost
of training all layers (the knee of the curve of saliency over cost), or the first that comes close to it. With a limit
of memory or time, it gives each cut the largest density that meets the limit, and takes the cut that then holds the
most saliency.

Source of the knee: Satopaa et al., Finding a "Kneedle" in a Haystack, ICDCSW 2011, section III.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sparsegate.errors import UsageError
from sparsegate.sparse.budget import DEFAULT_DENSITY, Budget
from sparsegate.sparse.cost_model import CostModel

_GRID = tuple(2.0 ** (step / 2 - 10) for step in range(21))  # densities from 1/1024 to 1
_LEAST = 1e-9  # density that takes one unit of each weight
_HALVINGS = 30
_MARGIN = 0.05  # a deeper cut must gain more than this; flat saliency would else be cut by its noise


class Plan(NamedTuple):
    """What is trained: the layers from ``first_layer`` up, at a density."""

    first_layer: int
    density: float


class Saliency:
    """How much saliency the layers above a cut hold at a density.

    Args:
        scores: For each weight its layer and the scores of its units, shape (units).
        num_layers: Number of decoder layers.

    Raises:
        UsageError: If the best scores of a layer sum to less than zero, or all sum to zero.
    """

    def __init__(self, scores: Iterable[tuple[int, Tensor]], *, num_layers: int) -> None:
        sums = torch.zeros(num_layers, len(_GRID), dtype=torch.float64)
        for layer, values in scores:
            running = values.flatten().double().sort(descending=True).values.cumsum(0).cpu()
            counts = torch.tensor([max(1, round(len(running) * density)) for density in _GRID])
            sums[layer] += running[counts - 1]
        if not bool((sums >= 0).all()) or float(sums.sum()) == 0:
            raise UsageError(
                "frozen_depth 'auto' sums scores over layers, and this selector's are below zero, all zero or not "
                "finite; give a number, or choose another selector"
            )
        self._above = sums.flip(0).cumsum(0).flip(0)

    def captured(self, plan: Plan) -> float:
        """Return the share of all layers' scores that the plan trains, in [0, 1]."""
        place = min(max(2 * (math.log2(plan.density) + 10), 0.0), len(_GRID) - 1.0)
        low = min(int(place), len(_GRID) - 2)
        row = self._above[plan.first_layer]
        return float(torch.lerp(row[low], row[low + 1], place - low) / self._above[0, -1])


def make_plan(
    costs: CostModel, budget: Budget, *, first_layer: int | None, cached: bool, saliency: Saliency | None
) -> Plan:
    """Choose the cut, the density, or both.

    Args:
        costs: Costs of the model's steps.
        budget: What training may cost.
        first_layer: First layer to train; None lets the planner choose it.
        cached: Outputs of the frozen layers are kept, so that steps do not run them.
        saliency: Saliency of the layers; needed where the planner chooses the cut.

    Raises:
        UsageError: If the budget can't be met (the message says the smallest), or tells nothing about the density.
    """
    cuts = range(costs.num_layers) if first_layer is None else [first_layer]
    if budget.limit is not None:
        plans = [plan for cut in cuts if (plan := _largest(costs, budget, cut, cached)) is not None]
        if not plans:
            raise UsageError(_unmet(costs, budget, list(cuts), cached))
    else:
        plans = [Plan(cut, budget.density or DEFAULT_DENSITY) for cut in cuts]
    if len(plans) == 1:
        return plans[0]
    assert saliency is not None
    if budget.limit is not None:
        return max(plans, key=lambda plan: (saliency.captured(plan), plan.first_layer))
    gains = [_gain(costs, plan, plans[0], cached, saliency) for plan in plans]
    return next(plan for plan, gain in zip(plans, gains, strict=True) if gain >= max(gains) - _MARGIN)


def _gain(costs: CostModel, plan: Plan, whole: Plan, cached: bool, saliency: Saliency) -> float:
    """Return the share of the saliency captured, less the share of the cost, both relative to training all layers."""
    flops = [costs.step_flops(**each._asdict(), cached=cached) for each in (plan, whole)]
    return saliency.captured(plan) / saliency.captured(whole) - flops[0] / flops[1]


def _spent(costs: CostModel, budget: Budget, plan: Plan, cached: bool) -> float:
    """Return what a plan takes, in the unit of the budget's limit."""
    if budget.memory_limit_gb is not None:
        return costs.memory_bytes(**plan._asdict()) / 1e9
    return costs.step_flops(**plan._asdict(), cached=cached) / costs.full_step_flops()


def _largest(costs: CostModel, budget: Budget, cut: int, cached: bool) -> Plan | None:
    """Return the plan of the largest density that meets the limit at a cut; None if there is none."""
    limit = budget.limit
    assert limit is not None
    if budget.time_limit is not None and costs.kind == "element":
        raise UsageError(
            "time_limit can't choose a density of element supports, whose time does not depend on it; "
            "give density or memory_limit_gb, or choose another support"
        )
    if _spent(costs, budget, Plan(cut, 1.0), cached) <= limit:
        return Plan(cut, 1.0)
    low, high = _LEAST, 1.0
    if _spent(costs, budget, Plan(cut, low), cached) > limit:
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _spent(costs, budget, Plan(cut, middle), cached) <= limit:
            low = middle
        else:
            high = middle
    return Plan(cut, low)


def _unmet(costs: CostModel, budget: Budget, cuts: list[int], cached: bool) -> str:
    name = "time_limit" if budget.time_limit is not None else "memory_limit_gb"
    least, cut = min((_spent(costs, budget, Plan(cut, _LEAST), cached), cut) for cut in cuts)
    shown = math.ceil(least * 10 ** (3 - math.floor(math.log10(least)))) / 10 ** (3 - math.floor(math.log10(least)))
    batch = costs.batch
    return (
        f"{name} {budget.limit:g} can't be met with batches of {batch.sequences} x {batch.width} tokens; the smallest "
        f"is {shown:g}, for layers {cut} to {costs.num_layers - 1}; raise it, or choose smaller batches or a deeper cut"
    )
