"""Makes Data Docs pages that open without a network: Great Expectations loads styles, scripts and images from the net.

Its pages are kept, with a small style sheet in place of what is loaded, and without scripts. Only its index needs
scripts to show anything, so it is written anew. A content security policy in each page forbids to load or run anything.
"""

from __future__ import annotations

import re
import shutil
from html import escape
from importlib import resources
from pathlib import Path

from sparsegate.files import write_text

_LOADED = re.compile(r"<script\b.*?</script\s*>|<(?:link|img|script)\b[^>]*>", re.DOTALL | re.IGNORECASE)
_STYLE_URL = re.compile(r"url\([^)]*\)|@import[^;]*;", re.IGNORECASE)
_STYLE = re.compile(r"<style\b.*?</style\s*>", re.DOTALL | re.IGNORECASE)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def make_self_contained(folder: Path) -> None:
    """Rewrite the pages of a Data Docs folder in place.

    Args:
        folder: What ``build_data_docs`` wrote: ``index.html``, ``expectations/``, ``validations/``, ``static/``.
    """
    for page in folder.rglob("*.html"):
        text = _LOADED.sub("", page.read_text(encoding="utf-8"))
        text = _STYLE.sub(lambda style: _STYLE_URL.sub("none", style[0]), text)
        write_text(page, text.replace("<head>", f"<head>{_head()}", 1))
    shutil.rmtree(folder / "static", ignore_errors=True)
    write_text(folder / "index.html", _index(folder))


def _head() -> str:
    style = resources.files("sparsegate_gates").joinpath("data_docs.css").read_text(encoding="utf-8")
    return (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{style}</style>'
    )


def _index(folder: Path) -> str:
    lines = []
    for kind in ("validations", "expectations"):
        pages = sorted(page.relative_to(folder) for page in (folder / kind).rglob("*.html"))
        links = "".join(f'<li><a href="{escape(page.as_posix())}">{escape(_name(page))}</a></li>' for page in pages)
        lines.append(f"<h2>{kind.capitalize()}</h2><ul>{links}</ul>")
    return (
        f'<!DOCTYPE html><html lang="en"><head>{_head()}<title>Data Docs</title></head>'
        f"<body><h1>Data Docs</h1>{''.join(lines)}</body></html>\n"
    )


def _name(page: Path) -> str:
    """Return the name of the table that a page is about: a validation's folder, else the file."""
    return page.parts[1].removesuffix(".html")
