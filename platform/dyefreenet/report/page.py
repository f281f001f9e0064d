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

from dyefreenet.report import figures, unseen, words
from dyefreenet.report.card import Section, markdown, model_card
from dyefreenet.report.panels import SHOWN, code_table, picture_of, read_panels
from dyefreenet.report.results import (
    ARTERIES,
    HEADLINE,
    METHODS,
    STEPS,
    Column,
    Results,
    read_results,
)
from dyefreenet.store import Folder

EXCLUSIONS = 200  # series left out that the page names: an archive may have ten thousands
WIDEST = 7  # columns of figures that fit a page of A4


def write_report(run: Folder) -> str:
    """Write ``index.html`` and ``MODEL_CARD.md`` into ``{run}/report``; returns the page's address.

    Raises:
        StoreError: The run has no finished evaluation, or its files cannot be read.
    """
    results = read_results(run)
    panels, left_out = read_panels(run)
    sections = model_card(results)
    card = markdown(results, sections)
    page = render(results, panels, left_out, sections, card)
    (run / "report").write("MODEL_CARD.md", card.encode())
    (run / "report").write("index.html", page.encode())  # last: it is what tells a report is there
    return f"{run}/report/index.html"


def render(
    results: Results,
    panels: list[dict[str, Any]],
    left_out: int,
    sections: list[Section],
    card: str,
) -> str:
    """The page as text. Everything that comes from the run is escaped by the template."""
    script = _asset("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["minus"] = lambda text: text.replace("-", "−")
    environment.globals.update(number=words.number, interval=words.interval)
    environment.globals.update(label=figures.label, short=_short, spans=_spans)
    evaluate = results.steps.get("evaluate", {})
    worst = _worst(results, panels)
    grids = unseen.grids(results)
    drawn = {
        "by_patient": figures.by_patient(results),
        "agreements": figures.agreements(results),
        "validation": figures.validation(results.curves),
        "ssl": figures.ssl(results.curves.get("ssl", [])),
        "losses": figures.losses(results.curves),
    }
    return environment.from_string(_asset("page.html")).render(
        style=Markup(_asset("page.css")),  # our own files: the one text that is not escaped
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=results,
        source=words.data_source(results),
        verdicts=words.verdicts(results),
        caution=words.caution(results),
        deltas=words.deltas(results),
        tables=_tables(results.columns),
        **drawn,
        boxed=figures.boxed(results),
        computed=ARTERIES[1] in results.columns,
        card=sections,
        worst=worst,
        strata=figures.by_stratum(results),
        exclusions=EXCLUSIONS,
        judged=[c for c in (HEADLINE[0], *ARTERIES) if (results.final, c) in results.values],
        pictured=_pictured(worst),
        viewer=_viewer(panels),
        left_out=left_out,
        reasons=Counter(str(row["reason"]) for row in results.excluded).most_common(),
        steps=[(figures.label(name), results.steps.get(name)) for name in STEPS],
        definitions=evaluate.get("definitions", {}),
        grids=grids,
        files=_files(results, drawn, grids, card),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
    )


def _files(
    results: Results, drawn: dict[str, Any], grids: list[unseen.Grid], card: str
) -> dict[str, str]:
    """What the page's buttons save, by file name: CSV of each figure and table, and the card."""
    shown = [*drawn["by_patient"], *drawn["agreements"], *drawn["validation"]]
    shown += [drawn["ssl"]] if drawn["ssl"] else []
    shown += [figure for _, of_stage in drawn["losses"] for figure in of_stage]
    tables = {table.name: table.rows for table in [*shown, *grids]} | {
        "summary": results.summary,
        "differences": results.differences,
        "beside-the-paper": [
            {"method": results.final, "versus": delta.rival}
            | delta.column._asdict()
            | {key: delta.ours[key] for key in ("n", "mean", "low", "high")}
            | {"paper": delta.paper}
            for delta in words.deltas(results)
        ],
        "worst-cases": figures.worst_rows(results),
        "strata": figures.strata_rows(results),
        "exclusions": results.excluded[:EXCLUSIONS],
    }
    files = {f"{name}.csv": figures.csv_text(rows) for name, rows in tables.items() if rows}
    return files | {"MODEL_CARD.md": card}


def _asset(name: str) -> str:
    return (resources.files("dyefreenet.report") / name).read_text(encoding="utf-8")


def _spans(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Protocols above the columns, each with the number of columns that it spans."""
    return list(Counter(column.protocol for column in columns).items())


def _short(patient: str) -> str:
    """A patient's name as far as it tells patients apart: most are hashes."""
    return patient if len(patient) <= 16 else f"{patient[:16]}…"


def _tables(columns: list[Column]) -> list[list[Column]]:
    """Columns table by table, so that each fits a printed page.

    Protocols stay whole, and those that the verdict rests on come first.
    """
    first = dict.fromkeys(column.protocol for column in HEADLINE)
    protocols = dict.fromkeys([*first, *(column.protocol for column in columns)])
    tables: list[list[Column]] = [[]]
    for protocol in protocols:
        group = [column for column in columns if column.protocol == protocol]
        if tables[-1] and len(tables[-1]) + len(group) > WIDEST:
            tables.append([])
        tables[-1] += group
    return [sorted(table, key=columns.index) for table in tables]


class Case(NamedTuple):
    """A patient on whom a method did badly, and on which scan it did worst.

    ``picture`` names what the viewer shows of the method.
    """

    column: Column
    patient: str
    pair: str
    value: float
    picture: str | None


def _worst(
    results: Results, panels: list[dict[str, Any]]
) -> list[tuple[Column, list[tuple[str, list[Case]]]]]:
    """Of each column and method the worst patients, and which picture of them there is to open."""
    stored = {panel["pair"]: panel["slices"][0]["images"] for panel in panels}
    found = []
    for column in results.worst_columns:
        methods = []
        for method in results.methods:
            picture = picture_of(method)
            cases = []
            for patient, value in results.worst(method, column=column):
                pair = results.worst_scan(method, patient, column)
                shown = picture if picture in stored.get(pair, {}) else None
                cases.append(Case(column, patient, pair, value, shown))
            if cases:
                methods.append((method, cases))
        found.append((column, methods))
    return found


def _pictured(
    worst: list[tuple[Column, list[tuple[str, list[Case]]]]],
) -> dict[str, list[Case]]:
    """Of each method the worst cases of which there is a picture."""
    shown: dict[str, list[Case]] = {}
    for _, methods in worst:
        for method, cases in methods:
            if pictures := [case for case in cases if case.picture]:
                shown.setdefault(method, []).extend(pictures)
    return shown


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
