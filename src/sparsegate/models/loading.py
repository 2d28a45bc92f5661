"""Loads a model folder for training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.errors import ModelError, did_you_mean
from sparsegate.models.folder import check_model_folder
from sparsegate.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = ("float32", "bfloat16", "float16")


def load(
    folder: Path, *, dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from safetensors, in eval mode, without touching the network.

    Args:
        folder: Model folder, as :func:`sparsegate.models.resolve` returns it.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        trust_remote_code: Run Python code that lies in the folder.

    Returns:
        The model, and its tokenizer with a padding token set.

    Raises:
        ModelError: If transformers can't load it, or weights are missing that would start out random.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype '{dtype}'{did_you_mean(dtype, _DTYPES)}")
    check_model_folder(folder)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ModelError(f"{folder} can't be loaded as a causal language model: {error}") from error
    # transformers fills these with random numbers and only warns
    damaged = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if damaged:
        raise ModelError(
            f"{folder} lacks {len(damaged)} weights of its architecture, or has them in another shape, "
            f"first {damaged[0]}; the folder is damaged or is not a causal language model"
        )
    return model.eval(), tokenizer


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, with a padding token set, without touching the network.

    Args:
        folder: Model folder.
        trust_remote_code: Run Python code that lies in the folder.

    Raises:
        ModelError: If transformers can't load it, or it has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(f"{folder} can't be loaded as a causal language model: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer in {folder} has neither a padding nor an end token; set one and save it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
