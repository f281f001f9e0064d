"""The page of a sweep: its trials, what mattered, and what is gained for what."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dyefreenet.report.charts import Line, line_chart, parallel_chart, scatter_chart
from dyefreenet.store import Folder

STYLES = {"best": "t-best", "front": "t-front", "done": "t-done", "stopped": "t-stopped"}


def write_sweep(sweep: Folder, found: dict[str, Any]) -> None:
    """Write ``index.html`` into a sweep's folder.

    Args:
        found: What ``trials.json`` holds.
    """
    script_free = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    script_free.filters.update(short=short)
    judged = [number for number, row in enumerate(found["trials"]) if row["state"] == "done"]
    content = script_free.from_string(
        _asset("sweep.html")
    ).render(
        style=Markup(_asset("page.css") + _asset("sweep.css")),  # our own: not escaped
        found=found,
        counts={
            state: sum(row["state"] == state for row in found["trials"])
            for state in ("done", "stopped", "failed")
        },
        names=list(found["trials"][0]["values"]),
        kinds=[_kind(found, number) for number in range(len(found["trials"]))],
        parallel=_parallel(found),
        curves=_curves(found),
        fronts=[_front(found, judged, other) for other in found["aims"][1:]],
    )
    sweep.write("index.html", content.encode())


def _asset(name: str) -> str:
    return (files("dyefreenet.report") / name).read_text()


def _kind(found: dict[str, Any], number: int) -> str:
    """Of a trial, what it is drawn as; the rarer comes first."""
    if number == found["best"]:
        return "best"
    return "front" if number in found["front"] else str(found["trials"][number]["state"])


def _order(found: dict[str, Any]) -> list[int]:
    """Trials in the order of drawing: the best last, above the others."""
    kinds = list(STYLES)
    drawn = [n for n in range(len(found["trials"])) if _kind(found, n) in STYLES]
    return sorted(drawn, key=lambda number: -kinds.index(_kind(found, number)))


def _parallel(found: dict[str, Any]) -> Markup:
    """A line a trial over its settings and figures."""
    rows = found["trials"]
    axes: list[tuple[str, list[Any]]] = [
        (name, [row["values"].get(name) for row in rows]) for name in rows[0]["values"]
    ]
    axes += [(aim["title"], [row[aim["figure"]] for row in rows]) for aim in found["aims"]]
    lines = [(STYLES[_kind(found, number)], number) for number in _order(found)]
    return Markup(parallel_chart("Settings and figures of every trial", axes, lines))  # escaped


def _curves(found: dict[str, Any]) -> Markup:
    lines = [
        Line(f"trial {number + 1}", STYLES[_kind(found, number)], *zip(*curve, strict=True))
        for number in _order(found)
        if (curve := found["trials"][number]["curve"])
    ]
    return Markup(line_chart(found["aims"][0]["title"], lines))


def _front(
    found: dict[str, Any], judged: list[int], other: dict[str, Any]
) -> tuple[str, str, Markup]:
    """Titles of two aims and the finished trials by both."""
    first = found["aims"][0]
    points = [
        (row[first["figure"]], row[other["figure"]], STYLES[_kind(found, number)], str(number + 1))
        for number in _order(found)
        if number in judged
        for row in [found["trials"][number]]
    ]
    title = f"{first['title']} and {other['title']}"
    return first["title"], other["title"], Markup(scatter_chart(title, points))


def short(value: Any) -> str:
    """A setting or figure with three digits; what there is none of, as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return json.dumps(value).strip('"')
