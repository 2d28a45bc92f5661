"""Adaptive supports: does a support still capture the gradient, and which units change places if it does not.

Units are dropped by how little they moved and grown by their squared gradients, as in RigL (arXiv:1911.11134, section
3), with ``|values - originals|`` for the magnitude: a dropped entry goes back to its original and not to zero. The
number of units never changes, so that the trained parameter and the optimizer's state keep their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsegate.sparse.layouts import Layout
from sparsegate.sparse.support import SparseSupport, top_k


def gradient_retention(unit_scores: Tensor, ids: Tensor) -> float:
    """Return the share of the squared gradient that a support captures, relative to the best support of its size.

    Args:
        unit_scores: Squared gradients of all units, shape (units).
        ids: Ascending indices of the support's units.

    Raises:
        ValueError: If a score is not finite.

    Example:
        >>> gradient_retention(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 2]))
        0.7142857313156128
    """
    best = unit_scores[top_k(unit_scores, len(ids)).long()].sum()
    return float(unit_scores[ids.long()].sum() / best) if best > 0 else 1.0


def choose_exchange(
    support: SparseSupport, unit_scores: Tensor, *, fraction: float, margin: float, minimum_age: int
) -> Tensor:
    """Return the ids that a support should have: as many, ascending; its own if no exchange is worth it.

    The units that moved least may be dropped and those outside with the largest scores may be grown; the weakest of the
    former meets the strongest of the latter, and so on. Ties are decided by the lowest index.

    Args:
        support: The support as it is.
        unit_scores: Squared gradients of all units, shape (units).
        fraction: Largest share of the support's units to exchange; at least one may be.
        margin: A new unit's score must be above this multiple of the score of the unit it replaces.
        minimum_age: Units younger than so many steps stay.

    Raises:
        ValueError: If a score or a trained value is not finite.
    """
    ids = support.ids.long()
    old_enough = torch.nonzero(support.age >= minimum_age).flatten()
    is_outside = torch.ones(len(unit_scores), dtype=torch.bool, device=ids.device)
    is_outside[ids] = False
    outside = torch.nonzero(is_outside).flatten()
    count = min(max(1, round(fraction * len(ids))), len(old_enough), len(outside))
    if count == 0:
        return support.ids
    moved = support.layout.by_unit(support.values.detach() - support.originals.float()).square().sum(1)
    dropped = ids[old_enough[top_k(-moved[old_enough], count).long()]]
    grown = outside[top_k(unit_scores[outside], count).long()]
    dropped = dropped[torch.argsort(unit_scores[dropped], stable=True)]
    grown = grown[torch.argsort(unit_scores[grown], descending=True, stable=True)]
    wins = unit_scores[grown] > margin * unit_scores[dropped]
    stay = ids[~torch.isin(ids, dropped[wins])]
    return torch.cat([stay, grown[wins]]).sort().values.to(support.ids.dtype)


@torch.no_grad()
def exchange(support: SparseSupport, weight: Tensor, new_ids: Tensor, moments: Mapping[str, Tensor | float]) -> Tensor:
    """Give a support other units, in place: dropped ones get their original bits back, new ones start untrained.

    Values, age and Adam's moments of the units that stay go with them; those of new units are zero.

    Args:
        support: The support; its trained values must stand in the weight.
        weight: Its weight, shape (out, in).
        new_ids: Ascending indices, as many as the support has.
        moments: The optimizer's state of the support's values; empty before the first step.

    Returns:
        Which of the units are new, shape (units of the support).
    """
    if len(new_ids) != len(support.ids):
        raise ValueError(f"new_ids must be as many as the support's {len(support.ids)}, got {len(new_ids)}")
    stays, stayed = torch.isin(support.ids, new_ids), torch.isin(new_ids, support.ids)
    support.revert(weight)
    support.ids.copy_(new_ids)
    support.originals.copy_(support.gather(weight))
    layout = support.layout
    _carry(layout.by_unit(support.values.detach()), layout.by_unit(support.originals), stays, stayed)
    _carry(support.age, torch.zeros_like(support.age), stays, stayed)
    for name in ("exp_avg", "exp_avg_sq"):
        if isinstance(moment := moments.get(name), Tensor):
            _carry(layout.by_unit(moment), torch.zeros_like(layout.by_unit(moment)), stays, stayed)
    support.commit(weight)
    return ~stayed


def _carry(units: Tensor, fresh: Tensor, stays: Tensor, stayed: Tensor) -> None:
    """Move the units that stay to where they now stand, in place; ``fresh`` fills the other places."""
    kept = units[stays]
    units.copy_(fresh)
    units[stayed] = kept


@torch.no_grad()
def seed_moments(
    layout: Layout,
    moments: Mapping[str, Tensor],
    is_new: Tensor,
    *,
    mean: Tensor,
    mean_square: Tensor,
    betas: tuple[float, float],
) -> None:
    """Give new units the moments they would have if they had always seen their gradients of now.

    Adam's ``step`` is that of the whole tensor, so zero moments would count as an average over many steps without any
    gradient. A steady gradient would then move a new entry by up to 2.1 times the learning rate at betas (0.9, 0.99),
    12 steps later (at 0.999: by 3.2 times in its first step, and up to 6.6). Seeded with the bias that Adam will take
    out, it moves by the learning rate from its first step.

    Gradients in a run are clipped and accumulated; those measured are not. Both are known for the units that stay, and
    the root of the ratio of their sums of squares brings the seeds to the scale of the run.

    Args:
        layout: The support's layout.
        moments: The optimizer's state of the support's values, changed in place.
        is_new: What :func:`exchange` returned.
        mean: Mean gradient over the batches, in the layout's shape.
        mean_square: Mean squared gradient over the batches, in the layout's shape.
        betas: Adam's decay rates.
    """
    step = float(moments["step"])
    first_bias, second_bias = (1 - beta**step for beta in betas)
    first, second = layout.by_unit(moments["exp_avg"]), layout.by_unit(moments["exp_avg_sq"])
    means, squares = layout.by_unit(mean), layout.by_unit(mean_square)
    running, measured = float(second[~is_new].sum()) / second_bias, float(squares[~is_new].sum())
    scale_sq = running / measured if running > 0 and measured > 0 else 1.0
    first[is_new] = means[is_new] * math.sqrt(scale_sq) * first_bias
    second[is_new] = squares[is_new] * scale_sq * second_bias
