"""Files that are either whole or not there: atomic writes, digests, JSON Lines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sparsegate.contracts import JSON
from sparsegate.errors import DataError, StorageError, UsageError, is_full

Record = TypeVar("Record")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over it, on failure removed.

    Raises:
        UsageError: If the folder can't be written.
        StorageError: If there is no space left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        if is_full(error):
            raise _no_space(path, error) from error
        raise UsageError(f"can't write {path}: {error.strerror}; choose a folder you can write to") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if is_full(error):
            raise _no_space(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _no_space(path: Path, error: OSError) -> StorageError:
    return StorageError(f"can't write {path}: {error.strerror}; free some space and give the same command again")


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder's subfolders what killed writers left half done; nobody else may be writing there."""
    for path in list(folder.glob("*/**/.*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: JSON) -> None:
    """Write indented JSON atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> JSON:
    """Read a JSON file.

    Raises:
        DataError: If it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass instances as JSON Lines, atomically."""
    lines = [json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_records(path: Path, record_type: type[Record]) -> list[Record]:
    """Read JSON Lines into dataclass instances.

    Raises:
        DataError: With file and line, if a line is not such a record.
    """
    records: list[Record] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(record_type(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}:{number}: not a {record_type.__name__}: {error}") from None
    return records


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
