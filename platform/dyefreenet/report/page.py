"""The report: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dyefreenet.report import figures, words
from dyefreenet.report.panels import SHOWN, code_table, picture_of, read_panels
from dyefreenet.report.results import METHODS, STEPS, Column, Results, read_results
from dyefreenet.store import Folder


def write_report(run: Folder) -> str:
    """Write ``{run}/report/index.html`` from what the run folder holds; returns its address.

    Raises:
        StoreError: The run has no finished evaluation, or its files cannot be read.
    """
    results = read_results(run)
    panels, left_out = read_panels(run)
    page = render(results, panels, left_out)
    (run / "report").write("index.html", page.encode())
    return f"{run}/report/index.html"


def render(results: Results, panels: list[dict[str, Any]], left_out: int) -> str:
    """The page as text. Everything that comes from the run is escaped by the template."""
    script = _asset("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["minus"] = lambda text: text.replace("-", "−")
    environment.globals.update(number=words.number, interval=words.interval)
    environment.globals.update(label=figures.label, short=_short)
    evaluate = results.steps.get("evaluate", {})
    worst = _worst(results, panels)
    return environment.from_string(_asset("page.html")).render(
        style=Markup(_asset("page.css")),  # our own files: the one text that is not escaped
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=results,
        source=words.data_source(results),
        verdicts=words.verdicts(results),
        caution=words.caution(results),
        deltas=words.deltas(results),
        spans=_spans(results.columns),
        by_patient=figures.by_patient(results),
        boxed=figures.boxed(results),
        agreements=figures.agreements(results),
        worst=worst,
        pictured=[
            (method, shown)
            for method, cases in worst
            if (shown := [case for case in cases if case.picture])
        ],
        viewer=_viewer(panels),
        left_out=left_out,
        validation=figures.validation(results.curves),
        ssl=figures.ssl(results.curves.get("ssl", [])),
        losses=figures.losses(results.curves),
        reasons=Counter(str(row["reason"]) for row in results.excluded).most_common(),
        steps=[(figures.label(name), results.steps.get(name)) for name in STEPS],
        definitions=evaluate.get("definitions", {}),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
    )


def _asset(name: str) -> str:
    return (resources.files("dyefreenet.report") / name).read_text(encoding="utf-8")


def _spans(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Protocols above the columns, each with the number of columns that it spans."""
    return list(Counter(column.protocol for column in columns).items())


def _short(patient: str) -> str:
    """A patient's name as far as it tells patients apart: most are hashes."""
    return patient if len(patient) <= 16 else f"{patient[:16]}…"


class Case(NamedTuple):
    """A patient on whom a method did badly; ``picture`` names what the viewer shows of it."""

    patient: str
    value: float
    picture: str | None


def _worst(results: Results, panels: list[dict[str, Any]]) -> list[tuple[str, list[Case]]]:
    """Of each method its worst patients, and which picture of them there is to open."""
    stored = {panel["patient"]: panel["slices"][0]["images"] for panel in panels}
    found = []
    for method in results.methods:
        picture = picture_of(method)
        cases = [
            Case(patient, value, picture if picture in stored.get(patient, {}) else None)
            for patient, value in results.worst(method)
        ]
        if cases:
            found.append((method, cases))
    return found


def _viewer(panels: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the script draws from; None where the run stored no slices."""
    if not panels:
        return None
    titles = METHODS | {"plain": "Plain CT", "true": "True contrast CT"}
    stored = {name for panel in panels for entry in panel["slices"] for name in entry["images"]}
    return {
        "hu": code_table(),
        "methods": [[name, titles[name]] for name in SHOWN if name in stored],
        "patients": panels,
    }
