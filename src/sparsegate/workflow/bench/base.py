"""The base model of a benchmark: a real one, or one of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sparsegate.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_RANDOM = "random:"
_LLAMA_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
_LLAMA_TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
RANDOM_MODELS: dict[str, dict[str, Any]] = {"llama-1b": _LLAMA_1B, "llama-tiny": _LLAMA_TINY}


def find_base(source: str) -> tuple[str, dict[str, str]]:
    """Return what :func:`load_base` takes, fetched first if needed, and what it is.

    Args:
        source: ``random:NAME``, or any source of :func:`sparsegate.models.resolve`.

    Raises:
        ModelError: If there is no such model.
    """
    if source.startswith(_RANDOM):
        name = source.removeprefix(_RANDOM)
        if name not in RANDOM_MODELS:
            raise ModelError(f"unknown random model '{name}'{did_you_mean(name, RANDOM_MODELS)}")
        return source, {"model": source}
    from sparsegate.models import resolve

    base = resolve(source)
    return str(base.folder), {"model": base.source, "model_digest": base.digest}


def load_base(found: str, *, device: torch.device, dtype: str) -> PreTrainedModel:
    """Load or build a base model on a device, in training mode.

    Args:
        found: What :func:`find_base` returned.
        device: The device.
        dtype: Type of its weights.
    """
    if not found.startswith(_RANDOM):
        from sparsegate.models import load

        return cast("PreTrainedModel", load(Path(found), dtype=dtype)[0].to(device).train())
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**RANDOM_MODELS[found.removeprefix(_RANDOM)])
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    return cast("PreTrainedModel", model.train())
