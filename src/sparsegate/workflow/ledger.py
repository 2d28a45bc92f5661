"""Which stages of a run are done: a record of their outputs with digests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparsegate.errors import DataError
from sparsegate.files import read_json, sha256_file, write_json


class Ledger:
    """The record ``ledger.json`` of a run folder.

    A stage counts as done only while every file it left is there with the digest it had.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "ledger.json"
        self._stages: dict[str, dict[str, str]] = read_json(self._path)["stages"] if self._path.exists() else {}

    def is_done(self, stage: str) -> bool:
        """Say whether a stage was recorded and its outputs are whole."""
        outputs = self._stages.get(stage)
        return outputs is not None and all(
            (self._folder / name).is_file() and sha256_file(self._folder / name) == digest
            for name, digest in outputs.items()
        )

    def record(self, stage: str, outputs: Iterable[Path]) -> None:
        """Record a stage's outputs; later stages must run again.

        Args:
            stage: Name of the stage.
            outputs: Files it left in the run's folder.

        Raises:
            DataError: If an output is missing.
        """
        digests: dict[str, str] = {}
        for path in outputs:
            if not path.is_file():
                raise DataError(f"stage {stage} left no {path}")
            digests[str(path.relative_to(self._folder))] = sha256_file(path)
        names = list(self._stages)
        earlier = names[: names.index(stage)] if stage in names else names
        self._stages = {**{name: self._stages[name] for name in earlier}, stage: digests}
        write_json(self._path, {"stages": self._stages})

    def forget(self, stage: str) -> None:
        """Take a stage's record away, so that it runs again."""
        if self._stages.pop(stage, None) is not None:
            write_json(self._path, {"stages": self._stages})
