"""Plots of the pilot's page as inline SVG: letters and fills tell the arms apart, so that black and white is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from sparsegate.contracts import Interval
from sparsegate.reports.pilot_arm import MaskCell, SizePoint
from sparsegate.reports.plots import INK, Axis, line, svg
from sparsegate.reports.wording import number

_HEIGHT, _BOTTOM, _TOP = 260, 236, 12  # pixels: of a plot, and of its lowest and highest figure
_GRID = "#ddd"
_PHONE = 330  # pixels: labels must not collide on the narrowest page
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4")
_CELL = 18  # pixels: height of a row of the heat map
_HEADROOM = 1.4  # equal shares are grey and not black


class Dot(NamedTuple):
    """One arm in a plot of accuracy over cost."""

    letter: str
    cost: float
    accuracy: float
    interval: Interval | None
    filled: bool


class Curve(NamedTuple):
    """One arm in a plot of accuracy over the number of training examples."""

    letter: str
    points: Sequence[SizePoint]


def uncertainty(point: SizePoint) -> Interval | None:
    """Return the interval to draw: over seeds, or with one seed that of the evaluation items."""
    return point.accuracy.interval or point.items


def undominated(costs_and_accuracies: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell for each point whether no other is as cheap and as accurate, and better in one of these.

    Example:
        >>> undominated([(1.0, 0.8), (2.0, 0.7), (3.0, 0.9)])
        [True, False, True]
    """
    return [
        not any(
            other != (cost, accuracy) and other[0] <= cost and other[1] >= accuracy for other in costs_and_accuracies
        )
        for cost, accuracy in costs_and_accuracies
    ]


def pareto_plot(dots: Sequence[Dot], *, goal: float, unit: str, label: str) -> str:
    """Draw accuracy over a cost, from zero.

    Args:
        dots: The arms.
        goal: The accuracy that is asked, a dashed line.
        unit: What the cost axis counts, such as ``seconds``.
        label: What is read to those who don't see it.
    """
    across = Axis(0.0, 1.12 * max(dot.cost for dot in dots) or 1.0)
    up = _accuracy_axis([(dot.accuracy, dot.interval) for dot in dots], goal)
    marks = _frame(up, goal)
    for tick in across.ticks():
        text = f"{number(tick)} {unit}" if tick == 0 else number(tick)
        marks.append(_text(across.at(tick), _HEIGHT - 6, text, anchor="start" if tick == 0 else "middle"))
    taken = [_box(across, up, dot, 0, 0) for dot in dots]
    for dot in dots:
        x, y = across.at(dot.cost), _y(up, dot.accuracy)
        marks += _whisker(x, up, dot.interval)
        fill = INK if dot.filled else "#fff"
        marks.append(f'<circle cx="{x}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{INK}" stroke-width="2"/>')
        places = ((13, 0), (-13, 0), (13, 14), (-13, 14), (13, -14), (-13, -14))
        dx, dy = next((p for p in places if _is_free(_box(across, up, dot, *p), taken)), places[0])
        taken.append(_box(across, up, dot, dx, dy))
        marks.append(_text(x, y + dy + 4, dot.letter, dx=dx, style="letter"))
    return svg(_HEIGHT, marks, label)


def curve_plot(curves: Sequence[Curve], *, goal: float, label: str) -> str:
    """Draw accuracy over the number of training examples, which doubles at equal distances.

    Args:
        curves: The arms; each has a dash of its own and is drawn a little beside the others.
        goal: The accuracy that is asked, a dashed line.
        label: What is read to those who don't see it.
    """
    sizes = sorted({point.size for curve in curves for point in curve.points})
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    margin = 0.08 * (high - low) or 1.0
    across = Axis(low - margin, high + 1.6 * margin)
    up = _accuracy_axis([(p.accuracy.mean, uncertainty(p)) for curve in curves for p in curve.points], goal)
    marks = _frame(up, goal)
    marks += [_text(across.at(math.log2(size)), _HEIGHT - 6, f"{size:,}", anchor="middle") for size in sizes]
    ends = _spread([_y(up, curve.points[-1].accuracy.mean) for curve in curves])
    for index, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        places = [(across.at(math.log2(p.size)), _y(up, p.accuracy.mean)) for p in curve.points]
        dash = f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if index % len(_DASHES) else ""
        drawn = [
            f'<line x1="{a}" y1="{b:.1f}" x2="{c}" y2="{d:.1f}" stroke="{INK}" stroke-width="1.5"{dash}/>'
            for (a, b), (c, d) in pairwise(places)
        ]
        for (x, y), point in zip(places, curve.points, strict=True):
            drawn += _whisker(x, up, uncertainty(point))
            drawn.append(f'<circle cx="{x}" cy="{y:.1f}" r="3.5" fill="{INK}"/>')
        drawn.append(_text(places[-1][0], end + 4, curve.letter, dx=9 + 4 * (len(curves) - index), style="letter"))
        marks.append(f'<g transform="translate({4 * index - 2 * (len(curves) - 1)} 0)">{"".join(drawn)}</g>')
    return svg(_HEIGHT, marks, label)


def mask_plot(cells: Sequence[MaskCell], *, layer: str, label: str) -> str:
    """Draw the share of each module of each layer that is trained, in percent: the darker the more.

    Args:
        cells: The mask.
        layer: The word for a layer.
        label: What is read to those who don't see it.
    """
    layers = sorted({cell.layer for cell in cells})
    modules = list(dict.fromkeys(cell.module for cell in cells))
    shares = {(cell.layer, cell.module): cell.trained / cell.total for cell in cells}
    top = _HEADROOM * max(shares.values()) or 1.0
    width = 100 / (len(modules) + 1)
    names = [layer, *(module.rpartition(".")[2].removesuffix("_proj") for module in modules)]
    marks = [_text(f"{(i + 0.5) * width:.2f}%", 13, name, anchor="middle") for i, name in enumerate(names)]
    for row, number_of_layer in enumerate(layers, start=1):
        y = row * _CELL
        marks.append(_text(f"{width / 2:.2f}%", y + 13, str(number_of_layer), anchor="middle"))
        for column, module in enumerate(modules, start=1):
            share = shares.get((number_of_layer, module))
            if share is None:
                continue
            grey = round(255 * (1 - share / top))
            place = f'x="{column * width:.2f}%" y="{y}" width="{width:.2f}%" height="{_CELL}"'
            marks.append(f'<rect {place} fill="rgb({grey},{grey},{grey})" stroke="#fff"/>')
            style = "light" if share > 0.55 * top else "ink"
            marks.append(
                _text(f"{(column + 0.5) * width:.2f}%", y + 13, f"{100 * share:.3g}", anchor="middle", style=style)
            )
    return svg(_CELL * (len(layers) + 1), marks, label)


# --- parts --------------------------------------------------------------------------------------


def _accuracy_axis(figures: Sequence[tuple[float, Interval | None]], goal: float) -> Axis:
    values = [goal, *(mean for mean, _ in figures)]
    values += [end for _, interval in figures if interval is not None for end in (interval.low, interval.high)]
    low, high = max(0.0, min(values)), min(1.0, max(values))
    margin = 0.06 * (high - low) or 0.05
    return Axis(low - margin, high + margin)


def _y(axis: Axis, value: float) -> float:
    share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _frame(up: Axis, goal: float) -> list[str]:
    """Draw the grid with its figures, and the goal."""
    marks = [line("0", _BOTTOM, "100%", _BOTTOM)]
    for tick in up.ticks():
        y = _y(up, tick)
        marks.append(f'<line x1="0" y1="{y:.1f}" x2="100%" y2="{y:.1f}" stroke="{_GRID}"/>')
        marks.append(_text("0", y - 3, number(tick), anchor="start"))
    return [*marks, line("0", round(_y(up, goal), 1), "100%", round(_y(up, goal), 1), dashed=True)]


def _whisker(x: str, up: Axis, interval: Interval | None) -> list[str]:
    if interval is None:
        return []
    low, high = _y(up, interval.low), _y(up, interval.high)
    return [f'<line x1="{x}" y1="{low:.1f}" x2="{x}" y2="{high:.1f}" stroke="{INK}"/>']


def _text(x: str, y: float, text: str, *, anchor: str = "middle", dx: float = 0, style: str = "") -> str:
    shift = f' dx="{dx:g}"' if dx else ""
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x}" y="{y:.1f}" text-anchor="{anchor}"{shift}{kind}>{escape(text)}</text>'


def _box(across: Axis, up: Axis, dot: Dot, dx: float, dy: float) -> tuple[float, float]:
    """Return the middle of a mark or letter on a phone, in pixels."""
    share = (dot.cost - across.low) / (across.high - across.low)
    return share * _PHONE + dx, _y(up, dot.accuracy) + dy


def _is_free(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    return all(abs(place[0] - x) > 11 or abs(place[1] - y) > 11 for x, y in taken)


def _spread(heights: Sequence[float]) -> list[float]:
    """Move labels apart where they would cover each other, from the top down."""
    placed = list(heights)
    last = -math.inf
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        placed[index] = last = max(heights[index], last + 13)
    return placed
