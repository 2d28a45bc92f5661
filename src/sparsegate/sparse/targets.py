"""Which weights of a model can be trained sparsely: the linear maps inside its decoder layers, and its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsegate.contracts import SupportKind
from sparsegate.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

MapKind = Literal["linear", "conv1d", "embedding"]
"""How a linear map is stored: ``linear`` as (out, in); ``conv1d`` (GPT-2) and ``embedding`` as (in, out).

An embedding is a linear map of one-hot vectors: its inputs are the tokens of the vocabulary.
"""

PER_TOKEN = ("q_proj", "o_proj", "mlp")
"""Parts of a decoder layer that treat each token by itself and whose output no other token reads."""


class Target(NamedTuple):
    """One trainable linear map.

    Args:
        name: Name of the module in the model.
        layer: Index of its decoder layer; -1 for the embedding, the number of layers for the output head.
        linear: The module; its ``weight`` is what is trained.
        map_kind: How the weight is stored.
        units: The only kind of units, in terms of (out, in), that can be chosen; None if any can.
        tied_head: Name of the output head that shares an embedding's weight.
    """

    name: str
    layer: int
    linear: nn.Linear | Conv1D | nn.Embedding
    map_kind: MapKind = "linear"
    units: SupportKind | None = None
    tied_head: str | None = None

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        return self.map_kind != "linear"

    @property
    def matrix(self) -> Tensor:
        """The weight, seen as (out, in)."""
        weight: Tensor = self.linear.weight
        return weight.T if self.is_transposed else weight


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


def find_targets(model: PreTrainedModel, *, first_layer: int = 0, embeddings: bool = False) -> list[Target]:
    """Return the linear maps of the decoder layers from ``first_layer`` up, in model order.

    Args:
        model: A decoder-only model.
        first_layer: Index of the first layer to train.
        embeddings: Add the token embedding, before the layers, and the output head, after them. A head that shares the
            embedding's weight is part of its target. Of both, whole tokens are chosen.

    Raises:
        ModelError: If there are none, or the embedding is more than a look-up.
    """
    from transformers.pytorch_utils import Conv1D

    prefix, layers = decoder_layers(model)
    targets = [
        Target(f"{prefix}.{index}.{name}", index, module, "conv1d" if isinstance(module, Conv1D) else "linear")
        for index, layer in enumerate(layers)
        if index >= first_layer
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    if not targets:
        raise ModelError(f"{type(model).__name__} has no linear maps in layers {first_layer} to {len(layers) - 1}")
    return _with_vocabulary(model, targets, len(layers)) if embeddings else targets


def _with_vocabulary(model: PreTrainedModel, targets: list[Target], depth: int) -> list[Target]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_lookup = isinstance(embedding, nn.Embedding) and _is_scaled_lookup(embedding)
    if not is_lookup or not isinstance(head, nn.Linear):
        raise ModelError(
            "train_embeddings needs an embedding that looks up, or looks up and scales, and a linear output head; "
            f"{type(model).__name__} has {type(embedding).__name__} and {type(head).__name__}; leave it off"
        )
    names = {module: name for name, module in model.named_modules()}
    if head.weight is embedding.weight:
        return [Target(names[embedding], -1, embedding, "embedding", "column", names[head]), *targets]
    last = Target(names[head], depth, head, "linear", "row")
    return [Target(names[embedding], -1, embedding, "embedding", "column"), *targets, last]


@torch.no_grad()
def _is_scaled_lookup(embedding: nn.Embedding) -> bool:
    """Tell whether an embedding does what :func:`embed_scale` says."""
    tokens = torch.arange(min(2, embedding.num_embeddings), device=embedding.weight.device)
    found = F.embedding(tokens, embedding.weight)
    scale = embed_scale(embedding)
    return torch.equal(embedding(tokens), found if scale is None else found * scale)


def embed_scale(embedding: nn.Embedding) -> Tensor | None:
    """Return the factor by which a model scales its embeddings, in the weight's dtype; None for one that does not.

    Source: ``GemmaTextScaledWordEmbedding`` and its like in transformers.
    """
    scale = getattr(embedding, "embed_scale", None)
    return None if scale is None else torch.as_tensor(scale, device=embedding.weight.device).to(embedding.weight.dtype)
