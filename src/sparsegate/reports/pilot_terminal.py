"""A pilot as a table for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_lines import ARM_COLUMNS, answer_line, arm_row, reason_lines
from sparsegate.reports.pilot_verdict import PilotVerdict
from sparsegate.reports.pilot_words import Words

_STYLES = {
    PilotVerdict.GO: "bold green",
    PilotVerdict.CONDITIONS: "bold yellow",
    PilotVerdict.INSUFFICIENT: "bold yellow",
    PilotVerdict.NO_GO: "bold red",
}


def print_pilot(result: PilotResult, console: Console) -> None:
    """Print the arms, the reasons and the answer.

    Args:
        result: The result.
        console: Where to; it decides on width and colours.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(ARM_COLUMNS):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for arm in result.arms:
        table.add_row(*map(Text, arm_row(arm, Words("en", result))))
    console.print(table)
    console.print()
    for line in reason_lines(result):
        console.print(Text(line))
    console.print(Text(answer_line(result), style=_STYLES[result.verdict]))
