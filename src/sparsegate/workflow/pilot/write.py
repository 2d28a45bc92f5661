"""The files of a pilot's report."""

from __future__ import annotations

from pathlib import Path

from sparsegate.files import write_json, write_text
from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_markdown import pilot_markdown
from sparsegate.reports.pilot_page import pilot_page


def write_reports(result: PilotResult, folder: Path) -> list[Path]:
    """Write ``pilot.json``, ``pilot.md`` and the page in each language, each whole or not at all; return the files."""
    texts = {
        "pilot.md": pilot_markdown(result),
        "pilot.html": pilot_page(result, "en"),
        "pilot.ja.html": pilot_page(result, "ja"),
    }
    write_json(folder / "pilot.json", result.to_json())
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / "pilot.json", *(folder / name for name in texts)]
