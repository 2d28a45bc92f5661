"""Turns a quantised GGUF file into a folder of float32 safetensors with tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsegate.errors import ModelError
from sparsegate.files import read_json, write_json, write_text
from sparsegate.models.quiet import quiet_transformers


def dequantise(gguf_file: Path, output_dir: Path) -> None:
    """Write the model of a GGUF file as an ordinary float32 model folder.

    Args:
        gguf_file: The quantised model.
        output_dir: An existing folder that takes the files.

    Raises:
        ModelError: If transformers can't read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
            )
        except (ValueError, KeyError, NotImplementedError, IndexError, ImportError) as error:
            raise ModelError(f"{gguf_file.name} can't be converted: {error}; use a model folder instead") from error
        _forget_quantisation(model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        _set_generation_tokens(model, tokenizer)
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
        _forget_surroundings(output_dir)


def _forget_quantisation(model: Any) -> None:
    # the weights are plain float32 now, but save_pretrained refuses while these marks are left
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)


def _forget_surroundings(folder: Path) -> None:
    # the digest of the base model must not change with the installed version of transformers, or with HF_HUB_OFFLINE
    settings = read_json(folder / "config.json")
    settings.pop("transformers_version", None)
    write_json(folder / "config.json", settings)
    text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    write_text(folder / "tokenizer_config.json", text.replace('"local_files_only": true', '"local_files_only": false'))


def _set_generation_tokens(model: Any, tokenizer: Any) -> None:
    """Make generation stop where the chat template ends an answer, and give it a padding token."""
    ends = model.generation_config.eos_token_id
    known = [ends] if isinstance(ends, int) else list(ends or [])
    turn_end = _turn_end_id(tokenizer)
    stops = [*known, *({turn_end} - {None, *known})]
    model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def _turn_end_id(tokenizer: Any) -> int | None:
    """Return the special token that the chat template puts after an answer, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("answer")[2]
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in tokenizer.encode(after, add_special_tokens=False) if token in marks), None)
