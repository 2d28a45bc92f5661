"""The results file: a line for each finished run, known by a digest of everything that decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsegate.contracts import JSON
from sparsegate.errors import DataError
from sparsegate.files import read_records, write_records
from sparsegate.workflow.bench.quality.job import Outcome

Purpose = Literal["base", "search", "final"]


@dataclass(frozen=True)
class RunRecord:
    """A line of the results file.

    Args:
        key: Digest of the run's job, its model, and the versions and the processor that it ran on; hex.
        purpose: ``base`` judges the base model, ``search`` a learning rate on validation samples, ``final`` the method.
        data: Name of the data set.
        size: Training examples; 0 for the base model.
        method: The method.
        learning_rate: Peak learning rate.
        seed: The seed.
        error: Why the run failed, on one line; empty if it did not.
        wall_seconds: Time of the whole process, loading and judging included.
        outcome: Fields of :class:`~sparsegate.workflow.bench.quality.job.Outcome`; None if the run failed.
        environment: Versions, processor, device, threads and date.
    """

    key: str
    purpose: Purpose
    data: str
    size: int
    method: str
    learning_rate: float
    seed: int
    error: str
    wall_seconds: float
    outcome: Mapping[str, JSON] | None
    environment: Mapping[str, JSON]

    def __post_init__(self) -> None:
        if (self.outcome is None) == (not self.error):
            raise ValueError("a run has either an outcome or an error")
        if self.outcome is not None:
            Outcome.from_json(self.outcome)

    @property
    def found(self) -> Outcome | None:
        return None if self.outcome is None else Outcome.from_json(self.outcome)

    def __str__(self) -> str:
        return run_name(self.purpose, self.data, self.size, self.method, self.learning_rate, self.seed)


def run_name(purpose: Purpose, data: str, size: int, method: str, learning_rate: float, seed: int) -> str:
    """Return a run in words."""
    if purpose == "base":
        return f"{data}, base model"
    return f"{data} {size}, {method}, {purpose} at {learning_rate:g}, seed {seed}"


class Results:
    """What stands in a results file. Each change writes the whole file, so that it is never half a line.

    Args:
        path: The file; it need not be there yet.

    Raises:
        DataError: If a line is no run, or a run stands twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        records = read_records(path, RunRecord) if path.exists() else []
        self._records = {record.key: record for record in records}
        if len(self._records) < len(records):
            raise DataError(f"{path} has the same run twice; remove one of its lines")

    def get(self, key: str) -> RunRecord | None:
        """Return a run that has succeeded; one that failed is worth another try."""
        record = self._records.get(key)
        return record if record is not None and not record.error else None

    def add(self, record: RunRecord) -> None:
        """Write a run into the file, in the place of an earlier try."""
        self._records[record.key] = record
        write_records(self._path, self._records.values())
