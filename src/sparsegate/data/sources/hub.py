"""Data sets on the Hugging Face hub: ``hf:ORG/NAME@REVISION:SPLIT``."""

from __future__ import annotations

import re

from sparsegate.data.sources.values import text_row
from sparsegate.errors import DataError

FORM = "hf:ORG/NAME@REVISION:SPLIT"


def read(location: str) -> list[dict[str, str]]:
    """Download one split; the revision defaults to ``main`` and the split to ``train``.

    Args:
        location: ``ORG/NAME@REVISION:SPLIT``.

    Raises:
        DataError: If the ``datasets`` package is not installed, or the split can't be fetched.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::(.+))?", location)
    if match is None:
        raise DataError(f"a data set of the hub must have the form {FORM}, got 'hf:{location}'")
    name, revision, split = match[1], match[2] or "main", match[3] or "train"
    try:
        import datasets
    except ImportError:
        raise DataError(f"'hf:{location}' needs the package 'datasets'; run: pip install 'sparsegate[hub]'") from None
    try:
        table = datasets.load_dataset(name, revision=revision, split=split)
        return [text_row(row) for row in table]
    except Exception as error:
        # every kind: besides OSError and ValueError come the transport's own, which differ between releases
        why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise DataError(
            f"can't fetch 'hf:{name}@{revision}:{split}': {why}; check the name, your access (hf auth login) and "
            "the network, or use a local JSONL, CSV or Parquet file"
        ) from error
