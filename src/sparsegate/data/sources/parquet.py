"""Parquet files."""

from __future__ import annotations

from pathlib import Path

from sparsegate.data.sources.values import text_row
from sparsegate.errors import DataError


def read(path: Path) -> list[dict[str, str]]:
    """Read all rows.

    Raises:
        DataError: If the file is missing, damaged or has text that is not UTF-8.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path} does not exist" if not path.exists() else f"{path} can't be read: it is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it must have at least one row")
    try:
        # a lone file: read_table(path) would take name=value parts of the path for partition columns
        with path.open("rb") as file:
            rows = pyarrow.parquet.read_table(file).to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start} of a value") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet: {' '.join(str(error).split())}") from None
    return [text_row(row) for row in rows]
