"""The supports of a model in a checkpoint: k numbers and not the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sparsegate.errors import UsageError
from sparsegate.sparse.layers import install, sparse_layers, uninstall
from sparsegate.sparse.sampled import measured_choices, recall_choices
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PARTS = ("ids", "originals", "values", "age")


def save_supports(model: PreTrainedModel, checkpoint: dict[str, Any]) -> None:
    """Put the supports of a model's sparse layers into a checkpoint, in place of its weights."""
    layers = sparse_layers(model)
    checkpoint["state_dict"] = {
        f"model.{name}.support.{part}": getattr(layer.support, part).detach()
        for name, layer in layers.items()
        for part in _PARTS
    }
    checkpoint["sparse_layers"] = {name: layer.support.kind for name, layer in layers.items()}
    checkpoint["element_gradients"] = measured_choices()


def load_supports(model: PreTrainedModel, checkpoint: dict[str, Any], find: Callable[[], list[Target]]) -> None:
    """Give a base model the sparse layers of a checkpoint, with their trained values; what it had trained is undone.

    Args:
        model: The model, as :func:`save_supports` was given it.
        checkpoint: What that has filled.
        find: Finds the maps to train in the plain model.

    Raises:
        UsageError: If the checkpoint is of another base model, or trains other maps.
    """
    state, kinds = checkpoint["state_dict"], checkpoint["sparse_layers"]
    for layer in sparse_layers(model).values():
        layer.support.revert(layer.weight)
    uninstall(model)
    targets = {target.name: target for target in find()}
    if targets.keys() != kinds.keys():
        raise UsageError(
            "the checkpoint trains other layers than this configuration; use the configuration it was made with"
        )
    for name, kind in kinds.items():
        parts = {part: state[f"model.{name}.support.{part}"] for part in _PARTS}
        weight = targets[name].linear.weight
        support = SparseSupport(kind, parts["ids"].to(weight.device), weight)
        if not torch.equal(support.originals, parts["originals"].to(weight.device)):
            raise UsageError("the checkpoint was made with another base model; load the one it was made with")
        support.values.data.copy_(parts["values"])
        support.age.copy_(parts["age"])
        install(model, targets[name], support).commit()
    recall_choices(checkpoint["element_gradients"])
