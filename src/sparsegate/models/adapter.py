"""Adapters of PEFT (LoRA and others), merged into a base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate.errors import ModelError
from sparsegate.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def check_adapter_folder(folder: Path) -> None:
    """Check that a folder holds an adapter that can be read without running code that it names.

    Raises:
        ModelError: Saying what is wrong.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has {CONFIG_FILE} but no {WEIGHTS_FILE}; save the adapter as safetensors")
    settings = read_json(folder / CONFIG_FILE)
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise ModelError(f"{folder / CONFIG_FILE} names no peft_type; it is not the configuration of an adapter")
    if settings.get("megatron_config"):
        raise ModelError(f"{folder / CONFIG_FILE} sets megatron_config: peft would import a module by name; remove it")


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a base model with an adapter merged into its weights; the model given is used up.

    Args:
        model: The base model.
        folder: Adapter folder, as :func:`check_adapter_folder` passes it.

    Raises:
        ModelError: If peft is missing, if weights are missing or left over, or if this kind can't be merged.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ModelError("adapters need the package peft; install sparsegate[peft]") from None
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if config.is_prompt_learning:
            raise ValueError(f"the type {config.peft_type} changes prompts and no weights")
        adapted: Any = PeftModel(model, config, autocast_adapter_dtype=False)
        loaded = adapted.load_adapter(
            str(folder), "default", torch_device=str(model.device), autocast_adapter_dtype=False
        )
        # peft leaves the former random and drops the latter
        stray = sorted([*loaded.missing_keys, *loaded.unexpected_keys])
        if stray:
            raise ValueError(f"{len(stray)} weights are missing or have no place, first {stray[0]}")
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"the adapter {folder} can't be merged into this base model: {why}") from error
    return merged.eval()
