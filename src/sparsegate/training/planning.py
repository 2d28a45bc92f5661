"""The plan of one training run: the planner, asked with the sizes of the run's batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from sparsegate.contracts import SupportKind
from sparsegate.data.datamodule import Batch
from sparsegate.errors import DataError, UsageError
from sparsegate.sparse.budget import Budget
from sparsegate.sparse.cost_model import BatchShape, CostModel
from sparsegate.sparse.planner import Plan, Saliency, make_plan
from sparsegate.training.loss import num_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)


def check_depth(frozen_depth: float | Literal["auto"], *, train_embeddings: bool, is_limited: bool) -> None:
    """Check where back-propagation is to end.

    Raises:
        UsageError: If that is no share of the depth, or above an embedding that is to be trained.
    """
    if frozen_depth != "auto" and not 0 <= frozen_depth < 1:
        raise UsageError(f"frozen_depth must be in [0, 1), or 'auto', got {frozen_depth:g}")
    if train_embeddings and (frozen_depth != 0 or is_limited):
        raise UsageError(
            f"train_embeddings needs frozen_depth 0, got {frozen_depth}, and no limit: gradients must reach the "
            "embedding, and its costs are not planned"
        )


def plan_training(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    scores: Iterable[tuple[int, Tensor]],
    *,
    budget: Budget,
    kind: SupportKind,
    first_layer: int | None,
    cached: bool,
    shared: Callable[[Batch], int],
) -> Plan:
    """Choose the cut, the density, or both.

    Args:
        model: The base model.
        batches: Batches of the run; costs are those of the largest.
        scores: For each weight its layer and the scores of its units; read where the planner chooses the cut.
        budget: What training may cost.
        kind: Shape of the supports.
        first_layer: First layer to train; None lets the planner choose it.
        cached: Outputs of the frozen layers are kept.
        shared: Tells how many tokens run once for all samples of a batch.

    Raises:
        DataError: If there is no batch.
        UsageError: If the budget can't be met, or there is nothing to plan by.
    """
    if not batches:
        raise DataError("no batch to plan by; the training set is empty")
    shapes = [_shape(batch, shared(batch)) for batch in batches]
    costs = CostModel(model, kind=kind, batch=max(shapes, key=lambda shape: shape.tokens))
    saliency = Saliency(scores, num_layers=costs.num_layers) if first_layer is None else None
    plan = make_plan(costs, budget, first_layer=first_layer, cached=cached, saliency=saliency)
    _LOG.info(
        "planned layers %d to %d at density %.3g: %.0f%% of the work of a full fine-tuning step%s",
        plan.first_layer,
        costs.num_layers - 1,
        plan.density,
        100 * costs.step_flops(**plan._asdict(), cached=cached) / costs.full_step_flops(),
        f", {saliency.captured(plan):.0%} of the saliency" if saliency else "",
    )
    return plan


def _shape(batch: Batch, shared: int) -> BatchShape:
    sequences, width = batch["input_ids"].shape
    return BatchShape(sequences, width, num_supervised(batch), shared)
