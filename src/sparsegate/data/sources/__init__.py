"""Where rows come from: one file for each kind of source, found by scheme or by suffix."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sparsegate.data.sources import builtin, csv, hub, jsonl, parquet
from sparsegate.errors import DataError, did_you_mean

Row = dict[str, str]

FILES: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": csv.read,
    ".jsonl": jsonl.read,
    ".parquet": parquet.read,
}
SCHEMES: dict[str, Callable[[str], list[Row]]] = {
    "builtin": lambda location: _read_file(builtin.find(location)),
    "hf": hub.read,
}


def read_rows(source: str) -> list[Row]:
    """Read all rows of a source; every value is text, and a missing value's column is absent from its row.

    Args:
        source: A ``.jsonl``, ``.csv`` or ``.parquet`` file, ``hf:ORG/NAME@REVISION:SPLIT`` or ``builtin:NAME``.

    Raises:
        DataError: If the source is unknown, missing, damaged or has no rows.
    """
    scheme, location = _split(source)
    if scheme and scheme not in SCHEMES:
        raise DataError(
            f"data source '{source}' has the unknown scheme '{scheme}:'{did_you_mean(scheme, SCHEMES)}, or a file"
        )
    rows = SCHEMES[scheme](location) if scheme else _read_file(Path(location))
    if not rows:
        raise DataError(f"{source} has no rows; it must have at least one")
    return rows


def local_path(source: str) -> Path | None:
    """Return the file behind a source, or None if it lies on the hub.

    Raises:
        DataError: If it is ``builtin:`` data that does not ship.
    """
    scheme, location = _split(source)
    if scheme == "builtin":
        return builtin.find(location)
    return None if scheme else Path(location).expanduser()


def _split(source: str) -> tuple[str, str]:
    # one letter is a Windows drive
    match = re.match(r"([A-Za-z][A-Za-z0-9+-]+):(.*)", source)
    return (match[1], match[2]) if match else ("", source)


def _read_file(path: Path) -> list[Row]:
    path = path.expanduser()
    reader = FILES.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} has the unknown suffix '{path.suffix}'{did_you_mean(path.suffix, FILES)}")
    return reader(path)
