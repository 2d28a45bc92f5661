"""Base models on the Hugging Face hub: ``hf:ORG/NAME@REVISION``."""

from __future__ import annotations

import re
from pathlib import Path

from sparsegate.errors import ModelError, NotHereError
from sparsegate.models.folder import check_model_folder

FORM = "hf:ORG/NAME@REVISION"
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model")


def parse(location: str) -> tuple[str, str]:
    """Read ``ORG/NAME@REVISION`` into name and revision; without a revision it is ``main``.

    Raises:
        ModelError: If it has another form.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", location)
    if match is None:
        raise ModelError(f"model.source must have the form {FORM}, got 'hf:{location}'")
    return match[1], match[2] or "main"


def fetch(location: str, *, trust_remote_code: bool = False, local_only: bool = False) -> tuple[Path, str]:
    """Download a model, without its pickles, into the hub's own cache.

    Args:
        location: ``ORG/NAME@REVISION``.
        trust_remote_code: Fetch the Python files that come with the model, too.
        local_only: Download nothing.

    Returns:
        The folder, and the commit that the revision stands for.

    Raises:
        NotHereError: If it would have to be downloaded, and ``local_only`` forbids it.
        ModelError: If the hub can't be reached or does not have it, or it has no safetensors.
    """
    name, revision = parse(location)
    from huggingface_hub import snapshot_download

    patterns = [*_PATTERNS, *(["*.py"] if trust_remote_code else [])]
    try:
        snapshot = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            # subfolders and 'consolidated' files hold the same weights again in other formats
            ignore_patterns=["*/*", "consolidated*"],
            local_files_only=local_only,
        )
    except Exception as error:
        if local_only:
            raise NotHereError(f"the base model hf:{name}@{revision} is not on this machine yet") from error
        # every kind: the client's transport errors have no common base and differ between its releases
        why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ModelError(
            f"can't fetch 'hf:{name}@{revision}': {why}; check the name, your access (hf auth login) and the network, "
            "or set model.source to a model folder"
        ) from error
    folder = Path(snapshot)
    check_model_folder(folder)
    return folder, folder.name
