"""The lock of a registered model: one process at a time trains it or moves its aliases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsegate.errors import LockedError


@contextmanager
def model_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock.

    Args:
        folder: Folder of all runs; all processes that share it exclude each other.
        name: Registered model.

    Raises:
        LockedError: If another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise LockedError(f"another run of '{name}' is at work in {folder}; try again later") from None
