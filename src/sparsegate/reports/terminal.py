"""The report as a table for a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsegate.contracts import GateResult, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.wording import NEXT_STEP, measured, needed, question, why

_STYLE = {
    Verdict.PASS: "bold green",
    Verdict.WAIVED: "bold cyan",
    Verdict.FAIL: "bold red",
    Verdict.INSUFFICIENT: "bold yellow",
    Verdict.ERROR: "bold magenta",
}


def print_report(report: GateReport, console: Console) -> None:
    """Print the table, the reason of each gate that did not pass, and what to do next.

    Args:
        report: The report.
        console: Where to; it decides on width and colours (none where it is no terminal).
    """
    console.print(_table(report))
    console.print()
    for result in report.results:
        if result.verdict is not Verdict.PASS:
            style = _STYLE[result.verdict]
            console.print(Text.assemble((f"{result.verdict} ", style), f"{result.gate}: {why(result)}"))
    for problem in report.problems:
        console.print(Text.assemble((f"{Verdict.ERROR} ", _STYLE[Verdict.ERROR]), problem))
    verdict = report.verdict
    policy = f"{report.subject}, policy {report.policy_name} ({report.policy_sha256[:12]})"
    console.print(Text.assemble((str(verdict), _STYLE[verdict]), f"  {policy}. {NEXT_STEP[verdict]}"))


def render(report: GateReport, *, width: int = 100) -> str:
    """Return the table as plain text without colours."""
    text = StringIO()
    print_report(report, Console(file=text, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _table(report: GateReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("gate", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("question", overflow="fold")
    table.add_column("measured", no_wrap=True)
    table.add_column("needed", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for result in report.results:
        table.add_row(*_row(result))
    return table


def _row(result: GateResult) -> tuple[Text, ...]:
    check = result.deciding
    figures = ("-", "-", "-") if check is None else (measured(check), needed(check), f"{check.n:,}" if check.n else "-")
    return (
        Text(result.gate),
        Text(str(result.verdict), style=_STYLE[result.verdict]),
        Text(question(result)),
        *(Text(figure) for figure in figures),
    )
