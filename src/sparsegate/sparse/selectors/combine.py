"""Selectors made of selectors: products, and a filter of columns before entries are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from sparsegate.contracts import CalibrationStats, MaskSelector, Statistic, SupportKind
from sparsegate.errors import UsageError
from sparsegate.sparse.selectors.units import statistics_needed, unit_scores
from sparsegate.sparse.support import top_k


class ProductSelector:
    """Scores the product of the ranks that several selectors give: high where all of them are.

    Ranks and not scores are multiplied, so that no selector outweighs another by its scale or its tail.

    Args:
        parts: Two selectors or more.

    Source: rank products, Breitling et al., FEBS Letters 573 (2004).
    """

    def __init__(self, parts: Sequence[MaskSelector]) -> None:
        if len(parts) < 2:
            raise ValueError(f"a product needs at least 2 selectors, got {len(parts)}")
        self._parts = tuple(parts)
        self.name = "*".join(part.name for part in parts)
        self.needs: frozenset[Statistic] = frozenset().union(*(part.needs for part in parts))
        self.unit_needs: Mapping[SupportKind, frozenset[Statistic]] = {
            kind: frozenset().union(*(statistics_needed(part, kind) for part in parts)) for kind in _UNIT_KINDS
        }

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return reduce(torch.mul, (ranks(part.score(weight, stats)) for part in self._parts))

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        return reduce(torch.mul, (ranks(unit_scores(part, weight, stats, kind)) for part in self._parts))


class PrefilterSelector:
    """Scores entries by one selector, inside the best columns by another; all others come last.

    With a cheap statistic for the filter (``fisher`` and ``separable`` need ``in`` numbers), entries concentrate in few
    input columns.

    Args:
        scorer: Scores the entries.
        column_filter: Scores the columns.
        share: Share of the columns to keep, in (0, 1]; at least one is kept.

    Source: S2FT, arXiv:2412.06289, selects whole structures; the entries inside them are this project's addition.
    """

    def __init__(self, scorer: MaskSelector, *, column_filter: MaskSelector, share: float) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"the share of columns to keep must be in (0, 1], got {share:g}")
        self._scorer = scorer
        self._column_filter = column_filter
        self.share = share
        self.name = f"{scorer.name}@{column_filter.name}:{share:g}"
        filter_needs = statistics_needed(column_filter, "column")
        self.needs: frozenset[Statistic] = scorer.needs | filter_needs
        self.unit_needs: Mapping[SupportKind, frozenset[Statistic]] = {
            "column": statistics_needed(scorer, "column") | filter_needs
        }

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        return self._filtered(self._scorer.score(weight, stats), weight, stats)

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        assert kind == "column"
        return self._filtered(unit_scores(self._scorer, weight, stats, kind), weight, stats)

    def _filtered(self, scores: Tensor, weight: Tensor, stats: CalibrationStats) -> Tensor:
        """Return scores of shape (..., in): at least 0 in the columns kept, -1 elsewhere."""
        columns = unit_scores(self._column_filter, weight, stats, "column")
        kept = top_k(columns, max(1, round(len(columns) * self.share))).long()
        filtered = torch.full_like(scores, -1.0)
        filtered[..., kept] = scores[..., kept] - scores.min()
        return filtered


_UNIT_KINDS: tuple[SupportKind, ...] = ("column", "row")


def ranks(scores: Tensor) -> Tensor:
    """Return each score's rank over the number of scores: 1 for the highest, equal scores in index order.

    Raises:
        ValueError: If a score is not finite.

    Example:
        >>> ranks(torch.tensor([[0.5, 9.0], [0.5, -1.0]]))
        tensor([[0.7500, 1.0000],
                [0.5000, 0.2500]])
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite; the calibration loss gave NaN or infinity")
    flat = scores.flatten()
    order = torch.argsort(flat, descending=True, stable=True)
    places = torch.empty(flat.shape, dtype=torch.float32, device=flat.device)
    places[order] = torch.arange(len(flat), 0, -1, dtype=torch.float32, device=flat.device) / len(flat)
    return places.view(scores.shape)
