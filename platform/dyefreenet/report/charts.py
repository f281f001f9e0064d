"""Line and dot charts as inline SVG; colours and fonts come from the CSS of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 30  # margins around the plot
ROW = 26  # height of a line of a dot chart


class Line(NamedTuple):
    """A curve; ``style`` is the CSS class that gives it its colour."""

    label: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]


class Dots(NamedTuple):
    """One method of a dot chart: a dot a patient, the mean, its interval."""

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

    parts = []
    for tick in y_ticks:
        at = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" ')
        parts.append(f'y2="{at:.1f}"/>{text(LEFT - 6, at + 4, _short(tick, y_ticks), "end")}')
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
    """A line per method: a dot a patient, and the mean with its interval above them."""
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
        parts += [
            f'<circle class="one" cx="{x_of(v):.1f}" cy="{y + 4:.1f}" r="3"/>' for v in row.values
        ]
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="bar" x1="{x_of(row.low):.1f}" x2="{x_of(row.high):.1f}" '
                f'y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
            )
        parts.append(f'<circle cx="{x_of(row.mean):.1f}" cy="{y - 4:.1f}" r="4.5"/></g>')
        value = "∞" if math.isinf(row.mean) else f"{row.mean:.{digits}f}"
        parts.append(text(width - 4, y + 4, value, "end", "strong"))
    return svg(title, width, height, parts)


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
