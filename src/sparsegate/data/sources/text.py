"""Reads a text file so that a wrong byte is named by its line."""

from __future__ import annotations

from pathlib import Path

from sparsegate.errors import DataError


def read_utf8(path: Path) -> str:
    """Return a file's text; a byte order mark is dropped.

    Raises:
        DataError: If it is missing, can't be read, is empty or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty; it must have at least one row")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_start = content.rfind(b"\n", 0, error.start) + 1
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x} at column {error.start - line_start + 1}; "
            "save the file as UTF-8"
        ) from None
