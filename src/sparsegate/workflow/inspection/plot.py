"""What was found in a delta as a picture: two heat maps, layer by module, readable in black and white."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsegate.files import atomic_path
from sparsegate.workflow.inspection.result import Inspection, Part
from sparsegate.workflow.inspection.table import short_names

_HEADROOM = 1.4  # so that equal figures are grey and not black


def write_inspection_plot(found: Inspection, path: Path) -> None:
    """Draw the share of each weight that is trained, and how far it moved; write a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(found.layers), len(found.modules)
    figure = Figure(figsize=(4 + 1.1 * columns, 2.2 + 0.28 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw(left, found, "trained, % of the weight", lambda part: 100 * part.density)
    _draw(right, found, "change, % of the trained entries before", _change)
    figure.suptitle(f"{found.path.name}, base {found.base_digest[:12]}", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _change(part: Part) -> float:
    return math.nan if part.relative_change is None else 100 * part.relative_change


def _draw(axes: Any, found: Inspection, title: str, figure_of: Callable[[Part], float]) -> None:
    values = [
        [
            math.nan if (part := found.part(layer=layer, module=module)) is None else figure_of(part)
            for module in found.modules
        ]
        for layer in found.layers
    ]
    known = [value for row in values for value in row if math.isfinite(value)]
    top = _HEADROOM * max(known, default=0.0) or 1.0
    axes.imshow(values, cmap="Greys", vmin=0, vmax=top, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            text = f"{value:.3g}" if math.isfinite(value) else "-"
            dark = math.isfinite(value) and value > top / 2
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    shown = short_names(found.modules)
    axes.set_xticks(range(len(found.modules)), [shown[module] for module in found.modules], rotation=45, ha="right")
    axes.set_yticks(range(len(found.layers)), ["outside" if layer is None else str(layer) for layer in found.layers])
    axes.tick_params(labelsize=7)
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize=9)
