"""Where converted models are kept, and folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sparsegate.errors import ModelError


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Return the folder for everything worth keeping between runs; it need not exist yet.

    Args:
        cache_dir: The user's choice; None takes ``SPARSEGATE_CACHE`` or else the platform's user cache folder.
    """
    if cache_dir is not None:
        return cache_dir.expanduser().absolute()
    chosen = os.environ.get("SPARSEGATE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return _user_cache() / "sparsegate"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def publish(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, built first if it isn't there; it appears whole or not at all.

    The work is done in a folder beside it under a lock: of two runs at once one builds and the other waits. What a
    killed run left behind is removed by the next one.

    Args:
        folder: The folder to publish.
        build: Fills an empty folder.

    Raises:
        ModelError: If the cache can't be written.
    """
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                _remove_leftovers(folder)
                _build_and_rename(folder, build)
    except OSError as error:
        raise ModelError(
            f"can't write the model cache {folder.parent}: {error.strerror or error}; "
            "free some space there, or set model.cache_dir or SPARSEGATE_CACHE to another folder"
        ) from error
    return folder


def _remove_leftovers(folder: Path) -> None:
    # the lock is held, so nobody is working in any of these
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _build_and_rename(folder: Path, build: Callable[[Path], None]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        build(partial)
        for path in (file for file in partial.rglob("*") if file.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
