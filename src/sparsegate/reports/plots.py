"""Plots of the HTML page as inline SVG: no text is scaled with the page's width, no colour carries a meaning alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from sparsegate.contracts import JSON, Check, Verdict
from sparsegate.reports.wording import measured, needed, number

INK, _FORBIDDEN = "#111", "#ddd"
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Axis(NamedTuple):
    """A linear scale from figures to percent of the plot's width."""

    low: float
    high: float

    def at(self, value: float) -> str:
        """Return a place as an SVG length; what lies outside is put at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"

    def ticks(self) -> list[float]:
        """Return a few round figures inside the axis."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in _STEPS if unit * factor >= rough)
        first = math.ceil(self.low / step)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step) + 1)]


def plotted(checks: Sequence[Check]) -> list[Check]:
    """Return the checks that a forest plot can show: those with a finite interval and threshold."""
    return [
        check
        for check in checks
        if check.interval is not None
        and check.threshold is not None
        and check.observed is not None
        and all(map(math.isfinite, (check.interval.low, check.interval.high, check.threshold, check.observed)))
    ]


def forest_plot(checks: Sequence[Check]) -> str:
    """Draw each check's interval against its threshold, all on one axis.

    The side that is not allowed is grey, the threshold a dashed line. The dot is the measured figure: filled if the
    check passed, hollow if not. The interval's end that decides has the taller mark.
    """
    figures = [figure for check in checks for figure in _figures(check)]
    margin = 0.04 * (max(figures) - min(figures)) or 0.5
    axis = Axis(min(figures) - margin, max(figures) + margin)
    return "".join(_forest_row(check, axis) for check in checks) + _axis_row(axis)


def _figures(check: Check) -> tuple[float, ...]:
    assert check.interval is not None
    assert check.observed is not None
    assert check.threshold is not None
    return check.interval.low, check.interval.high, check.observed, check.threshold


def _forest_row(check: Check, axis: Axis) -> str:
    low, high, observed, threshold = _figures(check)
    at_least = check.direction == "at_least"
    edge = axis.at(threshold)
    forbidden = f'x="0" width="{edge}"' if at_least else f'x="{edge}" width="100%"'
    marks = [
        f'<rect {forbidden} y="0" height="26" fill="{_FORBIDDEN}"/>',
        line(edge, 0, edge, 26, dashed=True),
        line(axis.at(low), 13, axis.at(high), 13),
        line(axis.at(low), 6 if at_least else 10, axis.at(low), 20 if at_least else 16),
        line(axis.at(high), 10 if at_least else 6, axis.at(high), 16 if at_least else 20),
        f'<circle cx="{axis.at(observed)}" cy="13" r="5" stroke="{INK}" stroke-width="2"'
        f' fill="{INK if check.verdict is Verdict.PASS else "#fff"}"/>',
    ]
    label = f"{check.name}: {measured(check)}, needed {needed(check)}, {check.verdict}"
    word = "" if check.verdict is Verdict.PASS else f" {check.verdict}"
    return (
        f'<div class="row {check.verdict}"><div>{escape(check.name)}</div>{svg(26, marks, label)}'
        f"<div>{escape(measured(check))}, {escape(needed(check))}{word}</div></div>\n"
    )


def _axis_row(axis: Axis) -> str:
    marks = [line("0", 1, "100%", 1)]
    for tick in axis.ticks():
        marks.append(line(axis.at(tick), 1, axis.at(tick), 5))
        marks.append(f'<text x="{axis.at(tick)}" y="17" text-anchor="middle">{escape(number(tick))}</text>')
    return f'<div class="row axis"><div></div>{svg(20, marks, "axis")}<div></div></div>\n'


def category_tables(details: Mapping[str, JSON]) -> dict[str, Mapping[str, Mapping[str, int]]]:
    """Return the tables among a gate's details that count by category: each row has ``n`` and counts up to ``n``."""
    return {name: table for name, table in details.items() if isinstance(table, Mapping) and _counts(table)}


def _counts(table: Mapping[str, JSON]) -> bool:
    return bool(table) and all(
        isinstance(row, Mapping)
        and len(row) > 1
        and all(type(figure) is int for figure in row.values())
        and all(0 <= figure <= row.get("n", 0) and row["n"] > 0 for figure in row.values())
        for row in table.values()
    )


def category_bars(table: Mapping[str, Mapping[str, int]]) -> str:
    """Draw the counts of each category as shares of its items; the candidate's bars are filled, others hollow."""
    rows = []
    for category, row in table.items():
        models = sorted((model for model in row if model != "n"), key=lambda model: (model != "candidate", model))
        for position, model in enumerate(models):
            text = f"{model} {row[model]} of {row['n']}"
            name = category if position == 0 else ""
            label = f"{category}: {text}"
            rows.append(bar_row(name, row[model] / row["n"], text, filled=model == "candidate", label=label))
    return "".join(rows)


def bar_row(name: str, share: float, text: str, *, filled: bool, label: str) -> str:
    """Draw one bar between its name and its figures.

    Args:
        name: What stands before it.
        share: Its length, in [0, 1].
        text: What stands after it.
        filled: Whether it is filled, or hollow.
        label: What is read to those who don't see it.
    """
    fill = INK if filled else "#fff"
    marks = [
        f'<rect x="0" y="3" width="{100 * share:.2f}%" height="9" fill="{fill}" stroke="{INK}"/>',
        line("0", 0, "0", 15),
    ]
    return f'<div class="row bars"><div>{escape(name)}</div>{svg(15, marks, label)}<div>{escape(text)}</div></div>\n'


def line(x1: str, y1: float, x2: str, y2: float, *, dashed: bool = False) -> str:
    """Return a line in SVG: ``x`` as SVG lengths, ``y`` in pixels."""
    dash = ' stroke-dasharray="3 2"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="2"{dash}/>'


def svg(height: int, marks: Sequence[str], label: str) -> str:
    """Return a drawing as wide as the page, with what is read to those who don't see it."""
    return f'<svg height="{height}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'
