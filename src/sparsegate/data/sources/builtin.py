"""Data that ships with sparsegate: ``builtin:support_routing/train.jsonl``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from sparsegate.errors import DataError, did_you_mean


def find(name: str) -> Path:
    """Return the file of a shipped data set.

    Args:
        name: Path below the shipped data, with forward slashes.

    Raises:
        DataError: Listing what ships.
    """
    root = _root()
    shipped = {
        path.relative_to(root).as_posix(): path
        for suffix in ("jsonl", "csv", "parquet")
        for path in root.rglob(f"*.{suffix}")
    }
    if name not in shipped:
        raise DataError(f"no data named 'builtin:{name}' ships with sparsegate{did_you_mean(name, shipped)}")
    return shipped[name]


def _root() -> Path:
    package = Path(str(files("sparsegate")))
    installed = package / "shipped_data"
    # in a source checkout the data lies at the top of the repository; the wheel carries it inside the package
    return installed if installed.is_dir() else package.parents[1] / "data"
