"""The benchmark as a picture: step time against peak memory, readable in black and white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsegate.errors import UsageError
from sparsegate.files import atomic_path
from sparsegate.workflow.bench.result import BenchReport

# points; where none is free the last is taken
_OFFSETS = ((6, 6), (6, -13), (-6, 6), (-6, -13), (6, 18), (6, -25), (-6, 18), (-6, -25), (6, 30), (6, -37))


def check_plotting() -> None:
    """Check that plots can be made.

    Raises:
        UsageError: If matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise UsageError("--plot needs the package matplotlib: pip install 'sparsegate[bench]'") from None


def write_plot(report: BenchReport, path: Path) -> None:
    """Draw every method that was measured, by its number in a key, and write a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    measured = [(row.method, row.figures) for row in report.rows if row.figures is not None]
    points: list[tuple[str, float, float]] = []
    for number, (method, figures) in enumerate(measured, start=1):
        points.append((str(number), figures.step_seconds, figures.peak_memory_bytes / 1e6))
        look = marker(method)
        axes.plot(*points[-1][1:], linestyle="none", color="black", label=f"{number}  {method}", **look)
    if measured:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.set_xlim(left=0, right=1.1 * max((seconds for _, seconds, _ in points), default=1.0))
    axes.set_ylim(bottom=0, top=1.1 * max((megabytes for *_, megabytes in points), default=1.0))
    axes.set_xlabel("time of a training step, s")
    axes.set_ylabel("peak memory, MB")
    work = report.work
    axes.set_title(
        f"{report.environment['model']}, batch {work['batch_size']} x {work['tokens']}, {report.environment['device']}",
        fontsize=9,
    )
    axes.grid(color="0.9")
    canvas.draw()
    label_points(axes, canvas.get_renderer(), points)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def marker(method: str) -> dict[str, Any]:
    """Ours are filled triangles, adapters are hollow circles, full fine-tuning hollow squares."""
    if method.startswith("sparse"):
        return {"marker": "^", "markersize": 8}
    return {"marker": "s" if method.startswith("full") else "o", "markersize": 8, "markerfacecolor": "white"}


def label_points(axes: Any, renderer: Any, points: list[tuple[str, float, float]]) -> None:
    """Write each name beside its point, at the first place where it covers neither a name nor a point."""
    taken = []
    for _, seconds, megabytes in points:
        x, y = axes.transData.transform((seconds, megabytes))
        taken.append((x - 8, y - 8, x + 8, y + 8))
    for method, seconds, megabytes in points:
        for place, offset in enumerate(_OFFSETS, start=1):
            text = axes.annotate(
                method,
                (seconds, megabytes),
                xytext=offset,
                textcoords="offset points",
                fontsize=8,
                ha="left" if offset[0] > 0 else "right",
            )
            box = tuple(text.get_window_extent(renderer).extents)
            inside = axes.bbox.x0 <= box[0] and box[2] <= axes.bbox.x1 and axes.bbox.y0 <= box[1]
            free = inside and not any(_overlap(box, other) for other in taken)
            if free or place == len(_OFFSETS):
                taken.append(box)
                break
            text.remove()


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
