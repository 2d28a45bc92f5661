"""What a command ends with: one object for the terminal, JSON and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.contracts import JSON, CostReport
from sparsegate.errors import ExitCode, SparsegateError
from sparsegate.reports.model import GateReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Outcome:
    """The result of a verb that works on a run.

    Args:
        message: One line: what happened, and why.
        exit_code: The command's exit code.
        run_dir: The run's folder.
        models: Role to figures (accuracy and so on), for the models that were evaluated.
        cost: What training cost, if it was reached.
        report: What the gates said, if they were reached.
        version: The registered version, if there is one.
    """

    message: str
    exit_code: ExitCode
    run_dir: Path
    models: Mapping[str, Mapping[str, float]]
    cost: CostReport | None = None
    report: GateReport | None = None
    version: int | None = None

    def to_json(self) -> dict[str, JSON]:
        return {
            "message": self.message,
            "exit_code": int(self.exit_code),
            "run_dir": str(self.run_dir),
            "models": {role: dict(figures) for role, figures in self.models.items()},
            "cost": asdict(self.cost) if self.cost else None,
            "report": self.report.to_json() if self.report else None,
            "version": self.version,
        }

    def print(self, console: Console) -> None:
        """Print models, cost, gates and the message."""
        from rich.text import Text

        from sparsegate.reports.terminal import print_report

        if self.models:
            console.print(_models_table(self.models))
            console.print()
        if self.cost:
            console.print(_cost_text(self.cost), highlight=False)
            console.print()
        if self.report:
            print_report(self.report, console)
            console.print()
        console.print(Text(self.message))

    def render(self, *, width: int = 100) -> str:
        """Return what :meth:`print` shows, without colours."""
        from rich.console import Console

        text = StringIO()
        self.print(Console(file=text, width=width, color_system=None, force_terminal=False))
        return text.getvalue()


def ending_of(error: Exception) -> tuple[str, ExitCode]:
    """Return message and exit code of a run that ended with an error."""
    if isinstance(error, SparsegateError):
        return str(error), error.exit_code
    return f"unexpected {type(error).__name__}, see the log", ExitCode.ERROR


def _models_table(models: Mapping[str, Mapping[str, float]]) -> Table:
    from rich.table import Table

    names = list(dict.fromkeys(name for figures in models.values() for name in figures))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for role, figures in models.items():
        table.add_row(role, *(f"{figures[name]:.3f}" if name in figures else "-" for name in names))
    return table


def _cost_text(cost: CostReport) -> str:
    share = cost.trainable_parameters / cost.total_parameters
    return (
        f"cost  {cost.train_seconds:.0f} s training ({cost.steps} steps, {cost.tokens_per_second:.0f} tokens/s),"
        f" {cost.peak_memory_bytes / 1e9:.2f} GB peak memory, on {cost.device}\n"
        f"      {cost.trainable_parameters / 1e6:.2f} M of {cost.total_parameters / 1e6:.1f} M weights trained"
        f" ({share:.1%}), delta file {cost.artifact_bytes / 1e6:.1f} MB"
        f" ({cost.artifact_bytes / cost.base_bytes:.1%} of the model)"
    )
