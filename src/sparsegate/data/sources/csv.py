"""CSV with a header line: comma separated, quoted where needed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

from sparsegate.data.sources.text import read_utf8
from sparsegate.errors import DataError


def read(path: Path) -> list[dict[str, str]]:
    """Read all rows; blank lines are skipped.

    Raises:
        DataError: With file and line, if a row has not as many values as the header has names.
    """
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    rows: list[dict[str, str]] = []
    header: list[str] = []
    try:
        for values in reader:
            if not values:
                continue
            if not header:
                header = _checked_header(path, values)
            elif len(values) == len(header):
                rows.append(dict(zip(header, values, strict=True)))
            else:
                raise DataError(
                    f"{path}:{reader.line_num}: has {len(values)} values, the header has {len(header)} names; "
                    "quote values that contain commas"
                )
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    return rows


def _checked_header(path: Path, names: list[str]) -> list[str]:
    stripped = [name.strip() for name in names]
    repeated = [name for name, count in Counter(stripped).items() if count > 1]
    if repeated:
        raise DataError(f"{path}:1: the header names '{repeated[0]}' more than once; give each column its own name")
    return stripped
