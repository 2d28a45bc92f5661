"""The lock of a registered model: one process at a time trains it or moves its aliases."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from sparsegate.errors import DataError, LockedError
from sparsegate.files import read_json, write_json


@contextmanager
def model_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock; while it is held, a file beside it says by whom.

    Args:
        folder: Folder of all runs; all processes that share it exclude each other.
        name: Registered model.

    Raises:
        LockedError: If another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = lock_holder(folder, name)
        by = f" ({holder})" if holder else ""
        raise LockedError(f"another run of '{name}' is at work in {folder}{by}; try again later") from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_holder_file(folder, name), {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        _holder_file(folder, name).unlink(missing_ok=True)
        lock.release()


def lock_holder(folder: Path, name: str) -> str | None:
    """Say who holds the lock, without taking it; None if nobody does, or whoever did was killed on this machine.

    Args:
        folder: Folder of all runs.
        name: Registered model.
    """
    try:
        found = read_json(_holder_file(folder, name))
    except DataError:  # it is free, or was freed just now
        return None
    if found["host"] == socket.gethostname() and not psutil.pid_exists(found["pid"]):
        return None
    return f"process {found['pid']} on {found['host']} since {found['since']}"


def _holder_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.holder.json"
