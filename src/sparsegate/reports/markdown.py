"""The report as markdown, for a job summary or a pull request comment."""

from __future__ import annotations

from collections.abc import Iterable

from sparsegate.contracts import Check, GateResult, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.wording import NEXT_STEP, measured, needed, why


def to_markdown(report: GateReport) -> str:
    """Return the verdict, the table of gates, and every check of the gates that did not pass."""
    lines = [
        f"## {report.verdict}: {_cell(report.subject)}",
        "",
        NEXT_STEP[report.verdict],
        "",
        f"Policy `{report.policy_name}` (`{report.policy_sha256[:12]}`), {report.created_at}",
        "",
    ]
    lines += [f"- **{Verdict.ERROR}** {_cell(problem)}" for problem in report.problems]
    if report.problems:
        lines.append("")
    lines += gate_rows(report)
    for result in report.results:
        if result.verdict is not Verdict.PASS:
            lines += ["", f"### {result.gate}: {result.verdict}", "", *_checks(result)]
    return "\n".join(lines) + "\n"


def gate_rows(report: GateReport) -> list[str]:
    """Return the table of gates, line by line."""
    return _rows("gate", ((result.gate, result.deciding, why(result), result.verdict) for result in report.results))


def _checks(result: GateResult) -> list[str]:
    lines = _rows("question", ((check.name, check, check.reason, check.verdict) for check in result.checks))
    for check in result.checks:
        if check.items and check.verdict is not Verdict.PASS:
            lines += [
                "",
                f"Items behind *{_cell(check.name)}*: " + ", ".join(f"`{_cell(item)}`" for item in check.items),
            ]
    return lines


def _rows(first: str, rows: Iterable[tuple[str, Check | None, str, Verdict]]) -> list[str]:
    lines = [f"| {first} | verdict | measured | needed | n | why |", "|---|---|---|---|---:|---|"]
    for name, check, reason, verdict in rows:
        figures = ("-", "-", "-") if check is None else (measured(check), needed(check), str(check.n))
        lines.append("| " + " | ".join(_cell(text) for text in (name, str(verdict), *figures, reason)) + " |")
    return lines


def _cell(text: str) -> str:
    """Keep a text on one line and inside its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
