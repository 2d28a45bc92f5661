"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from pathlib import Path

from sparsegate.data.sources.text import read_utf8
from sparsegate.data.sources.values import text_row
from sparsegate.errors import DataError


def read(path: Path) -> list[dict[str, str]]:
    """Read all rows; blank lines are skipped.

    Raises:
        DataError: With file and line, if a line is not a JSON object.
    """
    rows = []
    # only \n ends a line: str.splitlines would also break at U+2028 inside a text
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: must be a JSON object, got a {type(row).__name__}")
        rows.append(text_row(row))
    return rows
