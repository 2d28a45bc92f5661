"""Pieces of the pilot's page. What they are given as cells or items is HTML already; headings are plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def section(heading: str, body: str) -> str:
    """Return a section; empty if it has no body."""
    return f"<h2>{escape(heading)}</h2>\n{body}" if body else ""


def listed(items: Iterable[str]) -> str:
    """Return a list; empty if it has no items."""
    lines = "".join(f"<li>{item}</li>\n" for item in items)
    return f'<ul class="reasons">\n{lines}</ul>\n' if lines else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, style: str = "") -> str:
    """Return a table whose rows become cards on a narrow screen; the first cell is a card's name.

    Args:
        headers: Plain text.
        rows: Cells of HTML; an empty one is left out of a card.
        style: Class of the table.
    """
    kind = f' class="{style}"' if style else ""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    lines = [f"<table{kind}><thead><tr>{head}</tr></thead>\n"]
    for first, *others in rows:
        cells = "".join(
            f'<td class="figure" data-label="{escape(header)}">{cell}</td>' if cell else "<td></td>"
            for header, cell in zip(headers[1:], others, strict=True)
        )
        lines.append(f'<tr><td class="name">{first}</td>{cells}</tr>\n')
    return "".join([*lines, "</table>\n"])
