"""Histograms as inline SVG; colours and fonts come from the CSS of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyefreenet.report.charts import svg, text, ticks

BARS = 24
DECADES = 7  # that a logarithmic axis spans at most


class Curve(NamedTuple):
    """A histogram of HU; ``style`` is the CSS class that gives it its colour."""

    label: str
    style: str
    counts: list[int]


def bar_chart(title: str, values: NDArray[np.float64]) -> str:
    """How often values occur, all of them finite, on a linear scale between round numbers."""
    width, height, left, right, top, bottom = 340, 150, 46, 16, 10, 26
    marks = ticks(float(values.min()), float(values.max()), 5)
    counts, edges = np.histogram(values, BARS, (marks[0], marks[-1]))
    levels = [level for level in ticks(0, float(counts.max()), 2) if level.is_integer()]

    def x_of(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    def height_of(count: float) -> float:
        return count / levels[-1] * (height - top - bottom)

    floor = height - bottom
    parts = []
    for level in levels:
        y = floor - height_of(level)
        parts.append(_rule(left, width - right, y) + text(left - 6, y + 4, f"{level:,.0f}", "end"))
    for count, first, last in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, tall = x_of(first), max(height_of(count), 1.5)  # one among thousands is seen
            parts.append(
                f'<rect x="{x + 0.5:.1f}" y="{floor - tall:.1f}" '
                f'width="{x_of(last) - x - 1:.1f}" height="{tall:.1f}"/>'
            )
    for mark in marks:
        parts.append(text(x_of(mark), height - 8, f"{mark:.6g}".replace("-", "−"), "middle"))
    return svg(title, width, height, parts)


def step_chart(edges: Sequence[float], curves: Sequence[Curve]) -> str:
    """Share of voxels in each bin on a logarithmic scale."""
    width, height, left, right, top, bottom = 520, 260, 74, 16, 12, 44
    shares = [np.array(curve.counts) / sum(curve.counts) for curve in curves]
    seen = np.concatenate(shares)
    high = math.ceil(math.log10(seen.max()))
    low = min(max(math.floor(math.log10(seen[seen > 0].min())), high - DECADES), high - 1)

    def x_of(hu: float) -> float:
        return left + (hu - edges[0]) / (edges[-1] - edges[0]) * (width - left - right)

    def y_of(share: float) -> float:
        place = (math.log10(share) - low) / (high - low) if share > 0 else 0.0
        return height - bottom - max(place, 0.0) * (height - top - bottom)

    parts = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        label = f"{100 * 10.0**power:.{max(0, -power - 2)}f} %"
        parts.append(_rule(left, width - right, y) + text(left - 6, y + 4, label, "end"))
    for hu in ticks(edges[0], edges[-1], 6):
        if edges[0] <= hu <= edges[-1]:
            parts.append(
                text(x_of(hu), height - bottom + 18, f"{hu:.0f}".replace("-", "−"), "middle")
            )
    parts.append(text(width - right, height - 6, "HU", "end"))
    for curve, share in zip(curves, shares, strict=True):
        parts.append(f'<g class="{escape(curve.style)}">')
        for full, bins in groupby(range(len(share)), key=lambda number: share[number] > 0):
            if full:  # a run of bins that are not empty, up from the axis and down to it
                run = list(bins)
                points = [
                    (edges[run[0]], 0.0),
                    *((edges[n + d], share[n]) for n in run for d in (0, 1)),
                ]
                points.append((edges[run[-1] + 1], 0.0))
                path = " ".join(f"{x_of(x):.1f},{y_of(float(y)):.1f}" for x, y in points)
                parts.append(f'<polyline points="{path}"/>')
        parts.append("</g>")
    names = ", ".join(curve.label for curve in curves)
    return svg(f"Share of voxels by HU, logarithmic: {names}", width, height, parts)


def _rule(left: float, right: float, y: float) -> str:
    return f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
