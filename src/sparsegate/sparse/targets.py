"""Which weights of a model can be trained sparsely: the linear maps inside its decoder layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from sparsegate.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Target(NamedTuple):
    """One trainable linear map."""

    name: str
    layer: int
    linear: nn.Linear


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and list of the model's decoder layers.

    Raises:
        ModelError: If the model has no list of ``config.num_hidden_layers`` layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ModelError(
        f"{type(model).__name__} has no list of {depth} decoder layers; sparse training needs a decoder-only model"
    )


def num_frozen_layers(model: PreTrainedModel, frozen_depth: float) -> int:
    """Return how many layers, from the bottom, stay frozen; at least one layer is always trained."""
    _, layers = decoder_layers(model)
    return min(int(len(layers) * frozen_depth + 1e-9), len(layers) - 1)


def find_targets(model: PreTrainedModel, *, first_layer: int = 0) -> list[Target]:
    """Return the linear maps of the decoder layers from ``first_layer`` up, in model order."""
    prefix, layers = decoder_layers(model)
    targets = [
        Target(f"{prefix}.{index}.{name}", index, module)
        for index, layer in enumerate(layers)
        if index >= first_layer
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not targets:
        raise ModelError(f"{type(model).__name__} has no linear maps in layers {first_layer} to {len(layers) - 1}")
    return targets
