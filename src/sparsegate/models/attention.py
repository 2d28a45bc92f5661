"""What the tokens of a model see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED_ATTENTION = "sparsegate_shared_start"
"""``sdpa``, which takes the packed batches of training as well."""

MASKED_ATTENTIONS = frozenset({"eager", "sdpa", PACKED_ATTENTION})
"""Implementations of attention that let each token have a mask of its own."""


def sees_all_before(model: PreTrainedModel) -> bool:
    """Say whether each token sees all tokens before it, in every layer: no window, chunk or recurrence."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ()
    return not getattr(config, "sliding_window", None) and all(kind == "full_attention" for kind in layer_types)
