"""The report: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dyefreenet.report import words
from dyefreenet.report.charts import Dots, Line, dot_chart, line_chart
from dyefreenet.report.panels import SHOWN, code_table, read_panels
from dyefreenet.report.results import HEADLINE, METHODS, STEPS, Column, Results, Row, read_results
from dyefreenet.store import Folder

_VALIDATION = "validation/"
_CURVES = {
    "validation/psnr": "PSNR, dB",
    "validation/enhanced_mae_hu": "Error where contrast went, HU",
    "validation/vessel_mae": "Artery error, HU",
}
_STEP_NAMES = METHODS | {
    "ingest": "Ingest",
    "ssl": "Self-supervised pretraining",
    "evaluate": "Evaluation",
}


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
    environment.globals.update(number=words.number, interval=words.interval, label=_label)
    evaluate = results.steps.get("evaluate", {})
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
        dots=_dots(results),
        viewer=_viewer(panels),
        left_out=left_out,
        validation=_validation(results.curves),
        ssl=_ssl(results.curves.get("ssl", [])),
        losses=_losses(results.curves),
        reasons=Counter(str(row["reason"]) for row in results.excluded).most_common(),
        steps=[(_label(name), results.steps.get(name)) for name in STEPS],
        definitions=evaluate.get("definitions", {}),
        recipe=yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
    )


def _asset(name: str) -> str:
    return (resources.files("dyefreenet.report") / name).read_text(encoding="utf-8")


def _label(name: str) -> str:
    return _STEP_NAMES.get(name, name)


def _spans(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Protocols above the columns, each with the number of columns that it spans."""
    return list(Counter(column.protocol for column in columns).items())


def _dots(results: Results) -> list[tuple[Column, Markup]]:
    """Patients, means and intervals under each column that the verdict rests on."""
    values: dict[tuple[str, Column], list[float]] = {}
    for row in results.rows:
        column = Column(row["protocol"], row["metric"], row["region"])
        values.setdefault((row["method"], column), []).append(row["value"])
    charts = []
    for column in HEADLINE:
        dots = [
            Dots(
                _label(method),
                f"m-{method}",
                values.get((method, column), []),
                line["mean"],
                line["low"],
                line["high"],
            )
            for method in results.methods
            if (line := results.mean(method, column)) is not None
        ]
        if dots:
            title = f"{column.title} by patient and method"
            charts.append((column, Markup(dot_chart(title, dots, column.digits))))
    return charts


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


def _validation(curves: dict[str, list[Row]]) -> list[tuple[str, Markup, list[Line]]]:
    """One chart for each validation figure, with a curve for each trained method."""
    names = dict.fromkeys(
        key
        for step, lines in curves.items()
        if step != "ssl"
        for line in lines
        for key in line
        if key.startswith(_VALIDATION)
    )
    charts = []
    for name in names:
        lines = [
            _line(_label(step), f"m-{step}", curves[step], name)
            for step in METHODS
            if step in curves
        ]
        lines = [line for line in lines if line.xs]
        title = _CURVES.get(name, name.removeprefix(_VALIDATION).replace("_", " "))
        charts.append((title, Markup(line_chart(f"{title}, on validation", lines)), lines))
    return charts


def _ssl(rows: list[Row]) -> tuple[Markup, list[Line]] | None:
    """Accuracy of the intensity classes beside the control and chance."""
    per_class = dict.fromkeys(key for row in rows for key in row if "accuracy_class_" in key)
    lines = [_line("all classes", "m-refine", rows, "validation/accuracy")]
    lines += [
        _line(f"class {key.rsplit('_', 1)[-1]}", f"class-{number}", rows, key)
        for number, key in enumerate(per_class)
    ]
    lines.append(
        _line("control: maximum alone", "m-pix2pix", rows, "validation/accuracy_max_value")
    )
    lines = [line for line in lines if line.xs]
    if not lines:
        return None
    share = 1 / (len(per_class) or 4)
    chance = Line("chance", "m-identity", lines[0].xs, [share] * len(lines[0].xs))
    lines.append(chance)
    return Markup(line_chart("Accuracy of the intensity classes, on validation", lines)), lines


def _losses(curves: dict[str, list[Row]]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Of each training step, a small chart for each term of its losses."""
    stages = []
    for step, rows in curves.items():
        terms = dict.fromkeys(key for row in rows for key in row if key.startswith("loss/"))
        charts = []
        for term in terms:
            title = term.removeprefix("loss/").replace("_", " ")
            line = _line(title, f"m-{step}", rows, term)
            charts.append((title, Markup(line_chart(f"{title}, in training", [line]))))
        if charts:
            stages.append((_label(step), charts))
    return stages


def _line(label: str, style: str, rows: Iterable[Row], key: str) -> Line:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    return Line(label, style, [x for x, _ in points], [y for _, y in points])
