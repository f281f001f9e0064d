"""The page's figures: each a drawing, its words, and the numbers behind it for a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from dyefreenet.report.charts import MANY, Dots, Line, agreement_chart, dot_chart, line_chart
from dyefreenet.report.results import (
    ARTERIES,
    HEADLINE,
    METHODS,
    STEPS,
    Agreement,
    Part,
    Results,
    Row,
    Stratum,
)
from dyefreenet.report.words import number

_VALIDATION = "validation/"
_CURVES = {
    "validation/psnr": "PSNR, dB",
    "validation/psnr_window600": "PSNR in −200…400 HU, dB",
    "validation/texture_distance": "Texture: ln of fine power, off by",
    "validation/enhanced_mae_hu": "Error where contrast went, HU",
    "validation/vessel_mae": "Artery error, HU",
}
_STEP_NAMES = METHODS | {
    "ingest": "Ingest",
    "ssl": "Self-supervised pretraining",
    "evaluate": "Evaluation",
}


@dataclass(frozen=True)
class Figure:
    """One drawing of the page.

    Attributes:
        name: Stem of the file that it is downloaded as.
        note: What stands in small letters behind the title.
        drawing: SVG.
        rows: The numbers that are drawn, as ``csv_text`` takes them.
        legend: (CSS class, label) of each curve, where the drawing does not name them itself.
    """

    name: str
    title: str
    note: str
    drawing: Markup
    rows: list[Row]
    legend: list[tuple[str, str]] = field(default_factory=list)


def label(name: str) -> str:
    """A method or a step as it is shown."""
    return _STEP_NAMES.get(name, name)


def csv_text(rows: Sequence[Row]) -> str:
    """Rows of the same keys as CSV, at full precision.

    Text that a spreadsheet would run as a formula gets an apostrophe in front: reasons of
    exclusions quote what stood in headers.
    """
    if not rows:
        return ""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return sink.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def by_patient(results: Results) -> list[Figure]:
    """Patients, means and intervals under each column that the verdict rests on."""
    figures = []
    for column in HEADLINE:
        dots, rows = [], []
        for method in results.methods:
            line = results.mean(method, column)
            if line is None:
                continue
            found = results.values.get((method, column), {})
            rows += [
                {"method": method} | column._asdict() | {"patient": patient, "value": value}
                for patient, value in found.items()
            ]
            dots.append(
                Dots(
                    label(method),
                    f"m-{method}",
                    list(found.values()),
                    line["mean"],
                    line["low"],
                    line["high"],
                )
            )
        if dots:
            better = "lower" if column.lower_is_better else "higher"
            drawing = dot_chart(f"{column.title} by patient and method", dots, column.digits)
            figures.append(
                Figure(
                    f"patients-{column.metric}-{column.region}",
                    f"{column.title}, {column.unit}" if column.unit else column.title,
                    f"{column.where} · {column.protocol} · {better} is better",
                    Markup(drawing),
                    rows,
                )
            )
    return figures


def boxed(results: Results) -> bool:
    """Whether a figure by patient has so many that it draws boxes."""
    return any(
        len(found) > MANY for (_, column), found in results.values.items() if column in HEADLINE
    )


def agreements(results: Results) -> list[Figure]:
    """Bland and Altman's plot of the arteries' median HU, one a method, on the same axes.

    Drawn arteries and vessels found on the true scan have plots of their own.
    """
    found = [
        (one, column)
        for column in ARTERIES
        for method in results.methods
        if (one := results.agreement(method, column.region)) is not None
    ]
    points = [
        [((true + made) / 2, made - true) for _, true, made in one.points] for one, _ in found
    ]
    levels = [[v for v in (one.bias, one.low, one.high) if v is not None] for one, _ in found]
    span = (
        [x for drawn in points for x, _ in drawn],
        [y for drawn in points for _, y in drawn] + [v for vs in levels for v in vs],
    )
    figures = []
    for (one, column), drawn, lines in zip(found, points, levels, strict=True):
        title = f"{label(one.method)}: agreement of median HU, {column.where}"
        figures.append(
            Figure(
                f"bland-altman-{one.method}" + ("" if column is ARTERIES[0] else "-computed"),
                label(one.method),
                f"{_agreement_words(one)} · {column.where} · {column.protocol}",
                Markup(agreement_chart(title, f"m-{one.method}", drawn, lines, span)),
                [
                    {"method": one.method, "region": column.region, "patient": patient}
                    | {"true_median_hu": true}
                    | {"predicted_median_hu": made, "mean_hu": (true + made) / 2}
                    | {"difference_hu": made - true, "bias_hu": one.bias}
                    | {"lower_limit_hu": one.low, "upper_limit_hu": one.high}
                    for patient, true, made in one.points
                ],
            )
        )
    return figures


def _agreement_words(one: Agreement) -> str:
    said = f"bias {number(one.bias, 1, sign=True)} HU, "
    if one.low is None or one.high is None:
        said += "no limits with fewer than three patients"
    else:
        said += f"limits {number(one.low, 1, sign=True)} to {number(one.high, 1, sign=True)} HU"
    return f"{said}, n={len(one.points)}".replace("-", "−")


def worst_rows(results: Results) -> list[Row]:
    """Of each method every patient, worst first."""
    return [
        {"method": method, "rank": rank} | column._asdict() | {"patient": patient, "value": value}
        for column in results.worst_columns
        for method in results.methods
        for rank, (patient, value) in enumerate(
            results.worst(method, len(results.rows), column), start=1
        )
    ]


def by_stratum(results: Results) -> list[tuple[Stratum, list[tuple[str, Part]]]]:
    """Of each stratum its parts, each with how it is called."""
    found: dict[Stratum, list[tuple[str, Part]]] = {}
    for part in results.strata:
        name, digits = part.group, part.stratum.digits
        if part.low is not None and part.high is not None and digits is not None:
            low, high = number(part.low, digits), number(part.high, digits)
            span = low if low == high else f"{low} to {high}"
            name = f"{name}: {span} {part.stratum.unit}".rstrip()
        found.setdefault(part.stratum, []).append((name, part))
    return list(found.items())


def strata_rows(results: Results) -> list[Row]:
    """The same for a CSV file."""
    return [
        {"method": results.final, "stratum": part.stratum.name, "group": part.group}
        | {"low": part.low, "high": part.high}
        | column._asdict()
        | {"n": n, "mean": mean}
        for part in results.strata
        for column, (mean, n) in part.means.items()
    ]


def validation(curves: dict[str, list[Row]]) -> list[Figure]:
    """One chart for each validation figure, with a curve for each trained method."""
    names = dict.fromkeys(
        key
        for step, lines in curves.items()
        if step != "ssl"
        for line in lines
        for key in line
        if key.startswith(_VALIDATION)
    )
    figures = []
    for name in names:
        lines = [
            _line(label(step), f"m-{step}", curves[step], name)
            for step in METHODS
            if step in curves
        ]
        short = name.removeprefix(_VALIDATION)
        title = _CURVES.get(name, short.replace("_", " "))
        figures.append(_curves(f"validation-{short}", title, "on validation patients", lines))
    return figures


def ssl(rows: list[Row]) -> Figure | None:
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
    lines.append(Line("chance", "m-identity", lines[0].xs, [share] * len(lines[0].xs)))
    return _curves(
        "validation-ssl", "Accuracy of the intensity classes", "pretraining, on validation", lines
    )


def losses(curves: dict[str, list[Row]]) -> list[tuple[str, list[Figure]]]:
    """Of each training step, a small chart for each term of its losses."""
    stages = []
    for step in STEPS:
        rows = curves.get(step, [])
        terms = dict.fromkeys(key for row in rows for key in row if key.startswith("loss/"))
        figures = []
        for term in terms:
            title = term.removeprefix("loss/").replace("_", " ")
            line = _line(title, f"m-{step}", rows, term)
            figures.append(_curves(f"{step}-loss-{title}", title, "in training", [line]))
        if figures:
            stages.append((label(step), figures))
    return stages


def _curves(name: str, title: str, note: str, lines: Sequence[Line]) -> Figure:
    drawn = [line for line in lines if line.xs]
    return Figure(
        name.replace("/", "-").replace(" ", "-"),
        title,
        note,
        Markup(line_chart(f"{title}, {note}", drawn)),
        [
            {"curve": line.label, "epoch": x, "value": y}
            for line in drawn
            for x, y in zip(line.xs, line.ys, strict=True)
        ],
        [(line.style, line.label) for line in drawn],
    )


def _line(title: str, style: str, rows: Iterable[Row], key: str) -> Line:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    return Line(title, style, [x for x, _ in points], [y for _, y in points])
