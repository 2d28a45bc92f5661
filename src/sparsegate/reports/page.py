"""The report as one HTML page that needs no network and no script: verdict, why, what to do, then the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from sparsegate.contracts import JSON, Check, GateResult, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.plots import category_bars, category_tables, forest_plot, plotted
from sparsegate.reports.wording import NEXT_STEP, measured, needed, number, question, why

SYMBOLS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INSUFFICIENT: "?", Verdict.WAIVED: "⚑", Verdict.ERROR: "!"}
_HEAD = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


def to_html(report: GateReport) -> str:
    """Return the page."""
    parts = [
        page_head("en", f"{report.verdict}: {report.subject}"),
        _headline(report),
        _gate_table(report.results),
        _plots(report.results),
        _questions(report.results),
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def page_head(language: str, title: str, *more_styles: str) -> str:
    """Return what stands before a page's contents.

    Args:
        language: Language of the page, such as ``en``.
        title: Its title.
        more_styles: Style sheets of this package that come after the common one.
    """
    sheets = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", *more_styles))
    head = _HEAD.format(language=language)
    return f"{head}<title>{escape(title)}</title>\n<style>\n{''.join(sheets)}</style>\n</head>\n<body>\n"


def _headline(report: GateReport) -> str:
    verdict = report.verdict
    reasons = [f"{_word(Verdict.ERROR)} {escape(problem)}" for problem in report.problems]
    reasons += [
        f"{_word(result.verdict)} <b>{escape(result.gate)}</b>: {escape(why(result))}{_items(result.deciding)}"
        for result in report.results
        if result.verdict is not Verdict.PASS
    ]
    if not reasons:
        questions = sum(len(result.checks) for result in report.results)
        reasons = [f"All {len(report.results)} gates passed, on {questions} questions, each by its pessimistic figure."]
    return (
        f'<header class="{verdict}">\n<h1>{_word(verdict)} {escape(report.subject)}</h1>\n'
        f"<ul>{''.join(f'<li>{reason}</li>' for reason in reasons)}</ul>\n"
        f'<p class="next">{escape(NEXT_STEP[verdict])}</p>\n'
        f'<p class="small">Policy {escape(report.policy_name)} (<code>{escape(report.policy_sha256[:12])}</code>), '
        f"{escape(report.created_at)}</p>\n</header>\n"
    )


def _word(verdict: Verdict) -> str:
    return f'<span class="verdict">{SYMBOLS[verdict]} {verdict}</span>'


def _items(check: Check | None) -> str:
    if check is None or not check.items:
        return ""
    codes = ", ".join(f"<code>{escape(item)}</code>" for item in check.items)
    return f'<div class="small">items: {codes}</div>'


def _gate_table(results: Sequence[GateResult]) -> str:
    rows = [(result.gate, result.verdict, result.deciding, why(result)) for result in results]
    return "<h2>Gates</h2>\n" + _table("gate", rows)


def _table(first: str, rows: Sequence[tuple[str, Verdict, Check | None, str]], *, items: bool = False) -> str:
    """Return a table whose rows become cards on a narrow screen."""
    head = "".join(f"<th>{name}</th>" for name in (first, "verdict", "measured", "needed", "n", "why"))
    lines = [f"<table><thead><tr>{head}</tr></thead>\n"]
    for name, verdict, check, reason in rows:
        figures = ("", "", "") if check is None or check.observed is None else _figures(check)
        labelled = "".join(
            f'<td class="{style}" data-label="{label}">{escape(figure)}</td>' if figure else "<td></td>"
            for label, style, figure in zip(
                ("measured", "needed", "n"), ("figure", "figure", "n"), figures, strict=True
            )
        )
        more = _items(check) if items else ""
        lines.append(
            f'<tr><td class="name">{escape(name)}</td><td>{_word(verdict)}</td>{labelled}'
            f"<td>{escape(reason)}{more}</td></tr>\n"
        )
    return "".join([*lines, "</table>\n"])


def _figures(check: Check) -> tuple[str, str, str]:
    return measured(check), needed(check), f"{check.n:,}"


def _plots(results: Sequence[GateResult]) -> str:
    parts = []
    for result in results:
        checks = plotted(result.checks)
        if checks:
            parts.append(f"<h3>{escape(result.gate)}</h3>\n{forest_plot(checks)}")
        parts += [
            f"<h3>{escape(result.gate)}, {escape(name.replace('_', ' '))}</h3>\n{category_bars(table)}"
            for name, table in category_tables(result.details).items()
        ]
    if not parts:
        return ""
    legend = (
        "Dot: measured (hollow if it did not pass). Line: interval; the end with the taller mark decides. "
        "Grey: not allowed, from the threshold (dashed)."
    )
    return f'<h2>Intervals against thresholds</h2>\n<p class="small">{legend}</p>\n{"".join(parts)}'


def _questions(results: Sequence[GateResult]) -> str:
    """List all questions of the gates that got to ask some."""
    asked = [_gate_details(result) for result in results if question(result) != "-"]
    return "<h2>Every question</h2>\n" + "".join(asked) if asked else ""


def _gate_details(result: GateResult) -> str:
    rows = [(check.name, check.verdict, check, check.reason) for check in result.checks]
    opened = "" if result.verdict is Verdict.PASS else " open"
    return (
        f"<details{opened}><summary>{_word(result.verdict)} {escape(result.gate)} ({len(result.checks)})</summary>\n"
        f"{_table('question', rows, items=True)}{_facts(result)}</details>\n"
    )


def _facts(result: GateResult) -> str:
    """List how the gate measured, and those of its details that are single values or lists of texts."""
    facts: dict[str, str] = {"method": result.method, "seconds": number(result.seconds)}
    facts |= {name: text for name, value in result.details.items() if (text := _text(value))}
    if result.items_sha256:
        facts["items sha256"] = result.items_sha256
    lines = [
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text
    ]
    return f"<dl>{''.join(lines)}</dl>\n"


def _text(value: JSON) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        simple = all(isinstance(part, bool | str | int | float) for part in value.values())
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) if simple else ""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return ""
