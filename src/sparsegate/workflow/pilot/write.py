"""The files of a pilot's report."""

from __future__ import annotations

from pathlib import Path

from sparsegate.files import write_json, write_text
from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_markdown import pilot_markdown


def write_reports(result: PilotResult, folder: Path) -> list[Path]:
    """Write ``pilot.json`` and ``pilot.md``, each whole or not at all, and return the files."""
    files = [folder / "pilot.json", folder / "pilot.md"]
    write_json(files[0], result.to_json())
    write_text(files[1], pilot_markdown(result))
    return files
