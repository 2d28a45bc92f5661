"""The files of a model that somebody else made: what may lie in its folder, and the digest of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsegate.contracts import canonical_json
from sparsegate.errors import ModelError
from sparsegate.files import sha256_bytes, sha256_file

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_BELONGS = frozenset({".jinja", ".json", ".md", ".model", ".safetensors", ".txt"})
_NAMES = frozenset({"LICENSE", "NOTICE", ".gitattributes"})


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder with any pickled file in it.

    Raises:
        ModelError: Naming the first such file.
    """
    found = sorted(name for name, path in _entries(folder) if path.suffix.lower() in _PICKLES)
    if found:
        raise ModelError(
            f"{folder} holds {found[0]}, a pickled file, which can run code when it is read; save weights with"
            " safe_serialization (safetensors) and remove it"
        )


def file_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder by its path there; of a link, that of where it points."""
    return {
        name: sha256_bytes(f"link to {path.readlink()}".encode()) if path.is_symlink() else sha256_file(path)
        for name, path in _entries(folder)
        if path.is_symlink() or path.is_file()
    }


def digest_of(files: Mapping[str, str]) -> str:
    """Return one digest over the names and digests of files."""
    return sha256_bytes(canonical_json(dict(files)).encode())


def unexpected(folder: Path) -> dict[str, str]:
    """Return what does not belong into a model folder, by its path there, and why."""
    found: dict[str, str] = {}
    for name, path in _entries(folder):
        if path.is_symlink():
            found[name] = "is a link"
        elif not path.is_file():
            found[name] = "is no plain file"
        elif "/" in name:
            found[name] = "lies in a subfolder"
        elif path.suffix not in _BELONGS and name not in _NAMES:
            found[name] = "is no file of a model"
        elif path.stat().st_mode & 0o111:
            found[name] = "is executable"
    return found


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield everything below a folder but folders, in order; links are not followed."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(parent) / name
            yield path.relative_to(folder).as_posix(), path
