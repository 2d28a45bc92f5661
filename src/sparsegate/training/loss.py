"""The loss on supervised tokens only: no logits are computed for the prompt, and little of the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsegate.data.datamodule import IGNORED, Batch
from sparsegate.models.heads import logits_at, split_at_head
from sparsegate.training.last_layer import last_layer_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGIT_ROWS = 512
"""Most rows of logits that exist at once; at a vocabulary of 49,152 they take 100 MB."""


def num_supervised(batch: Batch) -> int:
    """Return the number of tokens of a batch that the loss is taken over."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def supervised_loss(model: PreTrainedModel, batch: Batch, *, max_logit_rows: int = MAX_LOGIT_ROWS) -> Tensor:
    """Return the mean negative log-likelihood, in nats, of the supervised tokens of a batch.

    Args:
        model: A causal language model.
        batch: The batch; without supervised tokens its loss is zero.
        max_logit_rows: Beyond so many supervised tokens, logits are made, used and freed for so many at a time, and
            again in the backward pass.
    """
    labels = batch["labels"][:, 1:]  # position t predicts token t + 1
    supervised = labels != IGNORED
    targets, positions = labels[supervised], F.pad(supervised, (0, 1))
    inputs = (model, batch["input_ids"], batch["attention_mask"], positions)
    position_ids = batch.get("position_ids")
    if len(targets) <= max_logit_rows:
        with last_layer_at(model, positions):
            logits = logits_at(*inputs, position_ids=position_ids)
        return _sum_nats(logits, targets) / max(1, len(targets))
    with last_layer_at(model, positions):
        hidden, head = split_at_head(*inputs, position_ids=position_ids)
    parts = [
        checkpoint(_head_nats, head, rows, row_targets, use_reentrant=False)
        for rows, row_targets in zip(
            torch.split(hidden, max_logit_rows), torch.split(targets, max_logit_rows), strict=True
        )
    ]
    return torch.stack(parts).sum() / len(targets)


def _head_nats(head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor) -> Tensor:
    return _sum_nats(head(rows), targets)


def _sum_nats(logits: Tensor, targets: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="sum")
