"""Writes a report in every format."""

from __future__ import annotations

from pathlib import Path

from sparsegate.files import write_json, write_text
from sparsegate.reports.junit import to_junit
from sparsegate.reports.markdown import to_markdown
from sparsegate.reports.model import GateReport
from sparsegate.reports.page import to_html
from sparsegate.reports.sarif import to_sarif
from sparsegate.reports.terminal import render


def write_all(report: GateReport, folder: Path) -> dict[str, Path]:
    """Write the report as JSON, markdown, HTML, JUnit XML, SARIF and plain text, each atomically.

    Args:
        report: The report.
        folder: Made if it is missing.

    Returns:
        Format to file.
    """
    paths = {
        "json": folder / "report.json",
        "markdown": folder / "report.md",
        "junit": folder / "junit.xml",
        "sarif": folder / "report.sarif",
        "html": folder / "report.html",
        "text": folder / "report.txt",
    }
    write_json(paths["json"], report.to_json())
    write_text(paths["markdown"], to_markdown(report))
    write_text(paths["junit"], to_junit(report))
    write_json(paths["sarif"], to_sarif(report))
    write_text(paths["html"], to_html(report))
    write_text(paths["text"], render(report))
    return paths
