"""Line, dot, box and agreement charts as inline SVG; the page's CSS gives colours and fonts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from dyefreenet.report.words import number

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 30  # margins around the plot
ROW = 26  # height of a line of a dot chart
MANY = 12  # patients; more are drawn as a box, for dots would hide each other


class Line(NamedTuple):
    """A curve; ``style`` is the CSS class that gives it its colour."""

    label: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]


class Box(NamedTuple):
    """Tukey's box: quartiles, the last values within 1.5 box lengths of it, and those beyond."""

    low: float
    first: float
    median: float
    third: float
    high: float
    beyond: list[float]


class Dots(NamedTuple):
    """One method of a dot chart: its patients, the mean, its interval."""

    label: str
    style: str
    values: Sequence[float]
    mean: float
    low: float | None
    high: float | None


def line_chart(title: str, lines: Sequence[Line], across: str = "epoch") -> str:
    """Curves over epochs on a linear scale that fits the data.."""
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    xs = [x for line in lines for x in line.xs]
    if not ys:
        return ""
    y_ticks = ticks(min(ys), max(ys), 4)
    x_low, x_high = min(*xs, 0.0), max(*xs, 1.0)
    x_ticks = [tick for tick in ticks(x_low, x_high, 5) if tick.is_integer()]  # whole epochs
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def x_of(x: float) -> float:
        return LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = _rungs(y_ticks, y_of)
    for tick in x_ticks:
        if tick <= x_high:
            parts.append(text(x_of(tick), HEIGHT - BOTTOM + 15, f"{tick:.0f}", "middle"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 2, across, "end"))
    for line in lines:
        points = [
            (x_of(x), y_of(y)) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<g class="{escape(line.style)}"><polyline points="{path}"/>')
        if len(points) <= 12:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
        parts.append("</g>")
    return svg(title, WIDTH, HEIGHT, parts)


def dot_chart(title: str, rows: Sequence[Dots], digits: int) -> str:
    """A line per method: a dot a patient or their box, and above it the mean with its interval."""
    finite = [v for row in rows for v in row.values if math.isfinite(v)]
    finite += [
        v
        for row in rows
        for v in (row.mean, row.low, row.high)
        if v is not None and math.isfinite(v)
    ]
    if not finite:
        return ""
    width, left, right = 460, 136, 58
    height = TOP + ROW * len(rows) + BOTTOM
    marks = ticks(min(finite), max(finite), 5)
    low, high = min(marks[0], min(finite)), max(marks[-1], max(finite))

    def x_of(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)  # infinity sits at the edge
        return left + share * (width - left - right)

    parts = []
    for mark in marks:
        at, bottom = x_of(mark), height - BOTTOM + 4
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(text(at, height - BOTTOM + 18, _short(mark, marks), "middle"))
    for position, row in enumerate(rows):
        y = TOP + ROW * (position + 0.5)
        parts.append(text(left - 10, y + 4, row.label, "end"))
        parts.append(f'<g class="{escape(row.style)}">')
        single = row.values
        if len(row.values) > MANY and any(map(math.isfinite, row.values)):
            found = box(row.values)
            single = found.beyond
            ends = f'y1="{y + 4:.1f}" y2="{y + 4:.1f}"'
            parts.append(
                f'<line class="whisker" x1="{x_of(found.low):.1f}" x2="{x_of(found.high):.1f}" '
                f'{ends}/><rect class="box" x="{x_of(found.first):.1f}" y="{y:.1f}" height="9" '
                f'width="{x_of(found.third) - x_of(found.first):.1f}"/>'
                f'<line class="median" x1="{x_of(found.median):.1f}" '
                f'x2="{x_of(found.median):.1f}" y1="{y:.1f}" y2="{y + 9:.1f}"/>'
            )
        parts += [
            f'<circle class="one" cx="{x_of(v):.1f}" cy="{y + 4:.1f}" r="3"/>' for v in single
        ]
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="bar" x1="{x_of(row.low):.1f}" x2="{x_of(row.high):.1f}" '
                f'y1="{y - 6:.1f}" y2="{y - 6:.1f}"/>'
            )
        if not math.isnan(row.mean):  # infinities of both signs have no mean
            parts.append(f'<circle cx="{x_of(row.mean):.1f}" cy="{y - 6:.1f}" r="4.5"/>')
        parts.append("</g>")
        value = number(row.mean, digits)
        parts.append(text(width - 4, y + 4, value, "end", "strong"))
    return svg(title, width, height, parts)


def box(values: Sequence[float]) -> Box:
    """Quartiles as numpy's percentiles, whiskers as Tukey's; infinite values lie beyond.

    Raises:
        ValueError: No value is finite.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        raise ValueError(f"expected a finite value, found {list(values)}")
    first, median, third = (float(q) for q in np.percentile(finite, (25, 50, 75)))
    reach = 1.5 * (third - first)
    near = [value for value in finite if first - reach <= value <= third + reach]
    beyond = [value for value in values if not near[0] <= value <= near[-1]]
    return Box(near[0], first, median, third, near[-1], beyond)


def agreement_chart(
    title: str,
    style: str,
    points: Sequence[tuple[float, float]],
    levels: Sequence[float],
    span: tuple[Sequence[float], Sequence[float]],
) -> str:
    """Bland and Altman's plot: mean of two measurements across, their difference up.

    Args:
        points: (mean, difference) of each patient, HU.
        levels: Bias, and the limits of agreement where there are any, HU.
        span: Every mean and every difference of all charts that stand side by side, so that they
            share their axes.
    """
    x_ticks = ticks(min(span[0]), max(span[0]), 4)
    y_ticks = ticks(min(*span[1], 0.0), max(*span[1], 0.0), 5)
    right, top = 46, TOP + 14  # room for the values of the levels, and for the axis's name
    bottom = HEIGHT + 14 - BOTTOM

    def x_of(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + share * (WIDTH - LEFT - right)

    def y_of(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return bottom - share * (bottom - top)

    parts = [text(0, TOP, "predicted minus true, HU", "start"), *_rungs(y_ticks, y_of, right)]
    for tick in x_ticks:
        parts.append(text(x_of(tick), bottom + 15, _short(tick, x_ticks), "middle"))
    parts.append(text(WIDTH - right, bottom + 28, "mean of true and predicted, HU", "end"))
    parts.append(f'<g class="{escape(style)}">')
    parts += [
        f'<circle class="one" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5"/>' for x, y in points
    ]
    for place, level in enumerate(levels):
        kind, at = ("limit" if place else "bias"), y_of(level)
        ends = f'x1="{LEFT}" x2="{WIDTH - right}" y1="{at:.1f}" y2="{at:.1f}"'
        parts.append(f'<line class="{kind}" {ends}/>')
    parts.append("</g>")
    lowest = math.inf  # labels go from the bottom up, and none covers the one below it
    for level in sorted(levels):
        lowest = min(y_of(level) + 4, lowest - 13)
        label = f"{level:+.0f}".replace("-", "−")
        parts.append(text(WIDTH - right + 5, lowest, label, "start", "strong"))
    return svg(title, WIDTH, HEIGHT + 14, parts)


def scatter_chart(title: str, points: Sequence[tuple[float, float, str, str]]) -> str:
    """Points by two figures: across, up, CSS class and label of each."""
    points = [one for one in points if math.isfinite(one[0]) and math.isfinite(one[1])]
    if not points:
        return ""
    x_ticks = ticks(min(one[0] for one in points), max(one[0] for one in points), 4)
    y_ticks = ticks(min(one[1] for one in points), max(one[1] for one in points), 4)

    def x_of(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - 2 * RIGHT)

    def y_of(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = _rungs(y_ticks, y_of)
    for tick in x_ticks:
        parts.append(text(x_of(tick), HEIGHT - BOTTOM + 15, _short(tick, x_ticks), "middle"))
    for x, y, style, label in points:
        at = f'cx="{x_of(x):.1f}" cy="{y_of(y):.1f}"'
        parts.append(f'<g class="{escape(style)}"><circle {at} r="4.5"/></g>')
        parts.append(text(x_of(x) + 7, y_of(y) - 5, label, "start"))
    return svg(title, WIDTH, HEIGHT, parts)


def parallel_chart(
    title: str, axes: Sequence[tuple[str, Sequence[Any]]], lines: Sequence[tuple[str, int]]
) -> str:
    """Parallel coordinates: an axis a figure, a line a row.

    Args:
        axes: Name and, of each row, the value; numbers that span two powers of ten and more lie by
            logarithm, words and lists side by side, and None is left out of the line.
        lines: CSS class and row of each line, in the order of drawing.
    """
    gap, height, top, bottom = 116, 290, 58, 270
    width = gap * max(len(axes), 2)
    parts, places = [], []
    for number_of, (name, values) in enumerate(axes):
        at = gap * (number_of + 0.5)
        known = [value for value in values if value is not None]
        place, least, most = _axis(known)
        places.append(place)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        for row, word in enumerate(_folded(name)):
            parts.append(text(at, 13 + 14 * row, word, "middle", "strong"))
        parts.append(text(at, top - 4, most, "middle"))
        parts.append(text(at, bottom + 15, least, "middle"))
    for style, row in lines:
        points = [
            f"{gap * (column + 0.5):.1f},{bottom - places[column](value) * (bottom - top):.1f}"
            for column, (_, values) in enumerate(axes)
            if (value := values[row]) is not None
        ]
        joined = " ".join(points)
        parts.append(f'<g class="{escape(style)}"><polyline points="{joined}"/></g>')
    drawn = svg(title, width, height, parts)
    return drawn.replace("<svg ", '<svg class="parallel" ', 1)


def _axis(known: Sequence[Any]) -> tuple[Callable[[Any], float], str, str]:
    """Where a value lies, from 0 to 1, and what stands at both ends."""
    if known and all(isinstance(value, int | float) for value in known):
        low, high = min(known), max(known)
        if low == high:
            return lambda value: 0.5, "", f"{high:.3g}"
        by_power = low > 0 and high / low >= 100

        def scaled(value: Any) -> float:
            if by_power:
                return math.log(value / low) / math.log(high / low)
            return float((value - low) / (high - low))

        return scaled, f"{low:.3g}", f"{high:.3g}"
    words = sorted({str(value) for value in known})
    steps = max(len(words) - 1, 1)
    ends = (words[0], words[-1]) if len(words) > 1 else ("", words[0] if words else "")
    return lambda value: words.index(str(value)) / steps, *ends


def _folded(name: str, longest: int = 15) -> list[str]:
    """A name in at most three lines, at its dots, underlines and spaces."""
    pieces = re.findall(r"[^._ ]*[._ ]+|[^._ ]+$", name)
    rows = [""]
    for piece in pieces:
        if rows[-1] and len(rows[-1] + piece) > longest and len(rows) < 3:
            rows.append("")
        rows[-1] += piece
    return rows


def _rungs(marks: Sequence[float], y_of: Callable[[float], float], right: int = RIGHT) -> list[str]:
    """Horizontal grid lines with their labels on the left."""
    parts = []
    for mark in marks:
        at = y_of(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{at:.1f}" ')
        parts.append(f'y2="{at:.1f}"/>{text(LEFT - 6, at + 4, _short(mark, marks), "end")}')
    return parts


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers from at or below ``low`` to at or above ``high``."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _short(tick: float, among: Sequence[float]) -> str:
    """A tick's label with just the digits that tell it from its neighbours."""
    step = among[1] - among[0] if len(among) > 1 else abs(tick) or 1.0
    if abs(tick) >= 1e5 or (tick and step < 1e-4):
        return f"{tick:.1e}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != round(step, 12):
        digits += 1  # a step of 2.5 or 0.25
    return f"{tick:.{digits}f}".replace("-", "−")


def text(x: float, y: float, content: str, anchor: str, style: str = "") -> str:
    """A label; ``anchor`` is SVG's text-anchor."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """The whole drawing, with its title for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
