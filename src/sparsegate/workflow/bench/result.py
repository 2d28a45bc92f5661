"""What a benchmark found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from sparsegate.contracts import JSON
from sparsegate.errors import ExitCode

REFERENCES = ("lora", "lora-ours")  # the methods that the others are compared with
_COMPARED = ("step_seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Measurement:
    """The figures of one method; times are medians over the measured steps, that of a refresh their mean.

    Where the platform can't start a new measurement of resident memory, the peak of a phase includes those before it.

    Args:
        step_seconds: One training step.
        forward_seconds: Its forward pass with the loss.
        backward_seconds: Its backward pass.
        optimizer_seconds: The optimizer's step and the clearing of the gradients.
        refresh_seconds: What the method does to its choice, spread over the steps; part of ``step_seconds``.
        selection_seconds: From the loaded model to a method that is ready to step: selection, or building adapters.
        peak_memory_bytes: Highest of the three peaks that follow: resident memory of the whole process (CPU), or
            allocated memory (CUDA).
        load_peak_memory_bytes: Peak until the model is loaded.
        selection_peak_memory_bytes: Peak from there until the method is ready to step.
        steps_peak_memory_bytes: Peak of the training steps.
        trainable_parameters: Entries that are updated.
        total_parameters: Entries of the base model.
        trainable_state_bytes: Everything kept beside the frozen base: trained values, gradients, moments, indices.
        saved_activation_bytes: What the forward pass keeps for the backward pass, parameters excluded.
        artifact_bytes: What the user keeps, as written in safetensors.
        first_loss_nats: Loss of the first step; equal for all methods that start at the base model.
    """

    step_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    refresh_seconds: float
    selection_seconds: float
    peak_memory_bytes: int
    load_peak_memory_bytes: int
    selection_peak_memory_bytes: int
    steps_peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    trainable_state_bytes: int
    saved_activation_bytes: int
    artifact_bytes: int
    first_loss_nats: float


@dataclass(frozen=True)
class Row:
    """One method: its figures, or why there are none.

    Args:
        method: The method as it was asked for.
        rounds: One measurement for each round; empty if the method failed.
        error: Why it failed, on one line; empty if it did not.
    """

    method: str
    rounds: tuple[Measurement, ...] = ()
    error: str = ""

    def __post_init__(self) -> None:
        assert bool(self.rounds) != bool(self.error)

    @property
    def figures(self) -> Measurement | None:
        """Median over the rounds, or None if the method failed."""
        return median(self.rounds) if self.rounds else None


def median(rounds: Sequence[Measurement]) -> Measurement:
    """Return the median of each figure over rounds."""
    values: dict[str, float] = {}
    for name in (entry.name for entry in fields(Measurement)):
        measured = [getattr(one, name) for one in rounds]
        whole = all(isinstance(value, int) for value in measured)
        values[name] = round(statistics.median(measured)) if whole else statistics.median(measured)
    return Measurement(**values)  # type: ignore[arg-type]  # whole numbers stay whole


@dataclass(frozen=True)
class BenchReport:
    """All rows, with the work they did and where.

    Args:
        work: The options.
        environment: Versions, processor, device, threads and date.
        rows: One for each method, in the order in which they ran.
    """

    work: Mapping[str, JSON]
    environment: Mapping[str, JSON]
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.ERROR if any(row.error for row in self.rows) else ExitCode.PASSED

    def ratio(self, row: Row, reference: str, figure: str) -> float | None:
        """Return a method's figure over a reference's, or None if either was not measured."""
        base = next((other.figures for other in self.rows if other.method == reference), None)
        if base is None or row.figures is None:
            return None
        return float(getattr(row.figures, figure) / getattr(base, figure))

    def to_json(self) -> dict[str, JSON]:
        return {
            "work": dict(self.work),
            "environment": dict(self.environment),
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: Row) -> dict[str, JSON]:
        figures = {entry.name: None for entry in fields(Measurement)} if row.figures is None else asdict(row.figures)
        return {
            "method": row.method,
            "error": row.error or None,
            **figures,
            "step_seconds_by_round": [one.step_seconds for one in row.rounds],
            "ratios": {
                reference: {figure: self.ratio(row, reference, figure) for figure in _COMPARED}
                for reference in REFERENCES
            },
        }
