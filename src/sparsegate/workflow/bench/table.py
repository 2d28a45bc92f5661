"""The benchmark as tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsegate.workflow.bench.result import REFERENCES, BenchReport, Measurement, Row

_REFERENCE_HEADERS = [f"of\n{name}" for name in REFERENCES]
_PEAKS = {
    "load": "load_peak_memory_bytes",
    "selection": "selection_peak_memory_bytes",
    "steps": "steps_peak_memory_bytes",
}


def print_bench(report: BenchReport, console: Console) -> None:
    """Print what each method costs against the references, where it goes, and what failed.

    Args:
        report: The report.
        console: Where to; it decides on width and colours.
    """
    work, environment = report.work, report.environment
    console.print(
        Text(
            f"{environment['model']}, batch {work['batch_size']} x {work['tokens']} tokens, {work['supervised']} of "
            f"them supervised, {work['dtype']}\n{environment['processor']}, device {environment['device']}, "
            f"threads {environment['threads']}, torch {environment['torch']}; median of {work['steps']} steps, "
            f"rounds {work['rounds']}"
        )
    )
    console.print()
    measured = [row for row in report.rows if row.figures is not None]
    if measured:
        console.print(_cost_table(report, measured))
        console.print()
        console.print(_parts_table(measured))
        console.print()
    for row in report.rows:
        if row.error:
            console.print(Text.assemble(("failed ", "bold red"), f"{row.method}: {row.error}"))


def render(report: BenchReport, *, width: int = 120) -> str:
    """Return what :func:`print_bench` prints, without colours."""
    text = StringIO()
    print_bench(report, Console(file=text, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _cost_table(report: BenchReport, rows: Sequence[Row]) -> Table:
    table = new_table("trained", "step\ns", *_REFERENCE_HEADERS)
    for header in ("peak\nMB", *_REFERENCE_HEADERS):
        table.add_column(header, justify="right")
    table.add_column("reached\nin")
    for row in rows:
        figures = _figures(row)
        table.add_row(
            row.method,
            f"{figures.trainable_parameters / 1e6:.2f} M",
            _seconds(figures.step_seconds),
            *_ratios(report, row, "step_seconds"),
            f"{figures.peak_memory_bytes / 1e6:,.0f}",
            *_ratios(report, row, "peak_memory_bytes"),
            max(_PEAKS, key=lambda phase: int(getattr(figures, _PEAKS[phase]))),
        )
    return table


_PARTS: dict[str, Callable[[Measurement], str]] = {
    "forward\ns": lambda figures: _seconds(figures.forward_seconds),
    "backward\ns": lambda figures: _seconds(figures.backward_seconds),
    "optimizer\ns": lambda figures: _seconds(figures.optimizer_seconds),
    "refresh\ns": lambda figures: _seconds(figures.refresh_seconds),
    "selection\ns": lambda figures: _seconds(figures.selection_seconds),
    "steps\npeak\nMB": lambda figures: _megabytes(figures.steps_peak_memory_bytes),
    "state\nMB": lambda figures: _megabytes(figures.trainable_state_bytes),
    "saved\nMB": lambda figures: _megabytes(figures.saved_activation_bytes),
    "artifact\nMB": lambda figures: _megabytes(figures.artifact_bytes),
}


def _parts_table(rows: Sequence[Row]) -> Table:
    table = new_table(*_PARTS)
    for row in rows:
        table.add_row(folded(row.method), *(show(_figures(row)) for show in _PARTS.values()))
    return table


def folded(method: str, *, width: int = 38) -> str:
    """Return a method's name on lines of at most ``width`` characters, broken before colons where possible.

    Example:
        >>> folded("sparse:column:cut=0.667:cached", width=24)
        'sparse:column:cut=0.667\\n  :cached'
    """
    lines = [""]
    for part in re.findall(r":?[^:]+", method):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def new_table(*headers: str) -> Table:
    """Return a table without lines whose first column is the method and whose others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("method", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _figures(row: Row) -> Measurement:
    assert row.figures is not None
    return row.figures


def _ratios(report: BenchReport, row: Row, figure: str) -> list[str]:
    ratios = (report.ratio(row, reference, figure) for reference in REFERENCES)
    return ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]


def _seconds(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"
