"""The lock of a registered model: one process at a time trains it or moves its aliases.

A file in the folder of runs excludes all who share that folder; where the tracking URI names a database, a row in it
(:mod:`sparsegate.registry.lease`) also excludes those who share only the database.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from sparsegate.config import RegistryConfig
from sparsegate.contracts import JSON
from sparsegate.errors import DataError, LockedError
from sparsegate.files import read_json, write_json
from sparsegate.registry.lease import lease
from sparsegate.registry.reachability import is_database


@contextmanager
def registry_lock(folder: Path, registry: RegistryConfig) -> Iterator[None]:
    """Hold the lock of a registered model in the folder of runs, and in the tracking database if there is one.

    Args:
        folder: Folder of all runs.
        registry: Registered model, and where it is tracked.

    Raises:
        LockedError: If another process holds either.
        RegistryError: If the database can't be read or written.
    """
    uri, name = registry.tracking_uri, registry.name
    if not is_database(uri):
        with model_lock(folder, name):
            yield
        return
    with _file_lock(folder, name):
        left = _record(folder, name)  # by a holder that was killed
        dead = None if left is None else _in_words(left)
        with _recorded(folder, name) as holder, lease(uri, name, holder=holder, dead=dead):
            yield


@contextmanager
def model_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock in a folder; while it is held, a file beside it says by whom.

    Args:
        folder: Folder of all runs; all processes that share it exclude each other.
        name: Registered model.

    Raises:
        LockedError: If another process holds it.
    """
    with _file_lock(folder, name), _recorded(folder, name):
        yield


def lock_holder(folder: Path, name: str) -> str | None:
    """Say who holds the lock, without taking it; None if nobody does, or whoever did was killed on this machine.

    Args:
        folder: Folder of all runs.
        name: Registered model.
    """
    found = _record(folder, name)
    if found is None or (found["host"] == socket.gethostname() and not psutil.pid_exists(found["pid"])):
        return None
    return _in_words(found)


@contextmanager
def _file_lock(folder: Path, name: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = lock_holder(folder, name)
        by = f" ({holder})" if holder else ""
        raise LockedError(f"another run of '{name}' is at work in {folder}{by}; try again later") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _recorded(folder: Path, name: str) -> Iterator[str]:
    """Keep a file that says who we are; yield the same in words."""
    since = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    write_json(_holder_file(folder, name), record)
    try:
        yield _in_words(record)
    finally:
        _holder_file(folder, name).unlink(missing_ok=True)


def _record(folder: Path, name: str) -> dict[str, JSON] | None:
    try:
        found: dict[str, JSON] = read_json(_holder_file(folder, name))
    except DataError:  # it is free, or was freed just now
        return None
    return found


def _in_words(record: dict[str, JSON]) -> str:
    return f"process {record['pid']} on {record['host']} since {record['since']}"


def _holder_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.holder.json"
