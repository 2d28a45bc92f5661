"""The loss on supervised tokens only: no logits are computed for the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from sparsegate.data.datamodule import IGNORED, Batch
from sparsegate.models.heads import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def supervised_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the mean negative log-likelihood, in nats, of the supervised tokens of a batch."""
    targets = batch["labels"][:, 1:]  # position t predicts token t + 1
    supervised = targets != IGNORED
    logits = logits_at(model, batch["input_ids"], batch["attention_mask"], F.pad(supervised, (0, 1)))
    return F.cross_entropy(logits.float(), targets[supervised])
