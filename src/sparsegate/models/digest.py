"""The digest that pins a base model."""

from __future__ import annotations

from pathlib import Path

from sparsegate.contracts import canonical_json
from sparsegate.files import sha256_bytes, sha256_file

_TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


def model_digest(folder: Path) -> str:
    """Return the hex sha256 over the names and contents of weights, ``config.json`` and tokenizer files.

    It is computed from the bytes each time: a stored digest would go on vouching for a changed file.
    """
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix == ".safetensors" or path.name == "config.json" or path.name in _TOKENIZER_FILES
    )
    return sha256_bytes(canonical_json([[name, sha256_file(folder / name)] for name in names]).encode())
