"""A quality benchmark as a picture: quality against time, and against memory, for each data set and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsegate.files import atomic_path
from sparsegate.workflow.bench.plot import label_points, marker
from sparsegate.workflow.bench.quality.summary import QualityReport, SettingSummary


def write_quality_plot(report: QualityReport, path: Path) -> None:
    """Draw every method that was measured and write a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(report.settings)
    figure = Figure(figsize=(13, 5 * rows), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2, squeeze=False, sharey="row")
    drawn = [_draw(axes[0], axes[1], setting) for axes, setting in zip(grid, report.settings, strict=True)]
    canvas.draw()
    for axes, points in zip(grid, drawn, strict=True):
        for axis, named in zip(axes, points, strict=True):
            label_points(axis, canvas.get_renderer(), named)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(time: Any, memory: Any, setting: SettingSummary) -> tuple[list[tuple[str, float, float]], ...]:
    """Draw a setting and return the points to name, for each of its two pictures."""
    ends: list[tuple[str, float, float]] = []
    peaks: list[tuple[str, float, float]] = []
    for row in setting.rows:
        seconds, qualities = zip(*row.curve, strict=True)
        megabytes = row.peak_memory_bytes / 1e6
        bars = row.quality.interval
        reach = None if bars is None else [[row.quality.mean - bars.low], [bars.high - row.quality.mean]]
        time.errorbar(seconds[-1], row.quality.mean, yerr=reach, linestyle="none", ecolor="0.6")
        line = {"color": "0.6", "linewidth": 1, "markeredgecolor": "black", "markerfacecolor": "black"}
        time.plot(seconds, qualities, **{**line, **marker(row.method)})
        look = {"color": "black", "ecolor": "0.6", **marker(row.method)}
        memory.errorbar(megabytes, row.quality.mean, yerr=reach, linestyle="none", **look)
        ends.append((row.method, seconds[-1], qualities[-1]))
        peaks.append((row.method, megabytes, row.quality.mean))
    name = "accuracy" if setting.task == "classification" else "perplexity of the responses"
    time.set_ylabel(f"{name}, mean over seeds")
    for axes, unit in ((time, "time of setting up and training, s"), (memory, "peak memory, MB")):
        axes.set_xlim(left=0, right=1.25 * max(axes.get_xlim()[1], 1e-9))
        axes.set_xlabel(unit)
        axes.set_title(f"{setting.data}, {setting.size} training examples", fontsize=9)
        axes.grid(color="0.9")
    return ends, peaks
