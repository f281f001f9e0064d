"""What PSNR does not see: grain, edges, flicker, invented contrast, vessels, levels."""

from __future__ import annotations

from typing import NamedTuple

from dyefreenet.report.results import ARTERIES, Column, Results, Row
from dyefreenet.report.words import number


class Measure(NamedTuple):
    """A column of these tables.

    Attributes:
        title: What is measured, in plain words.
        unit: As it is shown.
        target: What a perfect prediction scores, as it is shown.
        digits: After the point.
        scale: From what is stored to what is shown; 100 for shares.
        where: The region, in plain words.
    """

    title: str
    unit: str
    target: str
    digits: int
    scale: float = 1.0
    where: str = ""


class Grid(NamedTuple):
    """A table of measures by method.

    Attributes:
        name: Stem of the CSV file that it is saved as.
        lines: (method, a cell {n, mean, low, high} for each measure, in the unit that is shown;
            None where there is no figure). Methods without any figure are left out.
        rows: The same for the CSV file, in the unit that was measured.
    """

    name: str
    title: str
    note: str
    measures: list[Measure]
    lines: list[tuple[str, list[Row | None]]]
    rows: list[Row]


_CELL = ("n", "mean", "low", "high")
_RATIO = "predicted / true"
_TEXTURE = {
    Column("texture/1", "high_frequency", "image"): Measure("Fine grain", _RATIO, "1", 2),
    Column("texture/1", "gradient_w1", "body"): Measure(
        "Sharpness of edges, distance from true", "HU/pixel", "0", 2
    ),
    Column("texture/1", "flicker", "body"): Measure("Flicker between slices", _RATIO, "1", 2),
}
_ENHANCEMENT = {
    Column("enhancement/1", "invented", "body"): Measure(
        "Lit up without contrast agent", "%", "0", 2, 100, "of the body"
    ),
    Column("enhancement/1", "missed", "body"): Measure(
        "Left dark where contrast agent went", "%", "0", 2, 100, "of the body"
    ),
    Column("enhancement/1", "outside_change", "outside"): Measure(
        "Change in the air", "HU", "0", 2
    ),
    Column("enhancement/1", "change_flicker", "body"): Measure(
        "Flicker of what was added", _RATIO, "1", 2
    ),
}
_VESSELS = {
    column._replace(metric=metric): measure
    for column in ARTERIES
    for metric, measure in {
        "dice": Measure("Overlap with the true vessels (Dice)", "", "1", 3),
        "hd95": Measure("Distance between outlines (HD95)", "mm", "0", 1),
        "cnr": Measure("Contrast to muscle (CNR)", "", "the true scan", 1),
    }.items()
}


def grids(results: Results) -> list[Grid]:
    """The tables of which the run has figures; an older run has none."""
    tables = [
        _means(
            results,
            "texture",
            "Grain, edges, flicker",
            "A blurred average scores a high PSNR and looks like no CT. Too much is as wrong as "
            "too little: what counts is how near a figure comes to its target.",
            _TEXTURE,
        ),
        _means(
            results,
            "enhancement",
            "What lights up, and what should have",
            "Lit up: a change of more than 100 HU where the contrast agent changed less than 30. "
            "Left dark: the reverse.",
            _ENHANCEMENT,
        ),
        _means(
            results,
            "vessels",
            "How vessels are drawn",
            "Vessel is what is brighter than half way between plain and enhanced blood, at most "
            "5 mm from the true vessels.",
            _VESSELS,
        ),
        _levels(
            results,
            "slope",
            "Whether levels follow the patient",
            "Slope β over patients of the predicted against the true median HU. Near 0, every "
            "patient gets the average level, however much contrast agent arrived; at 1, each gets "
            "their own.",
            "Slope β",
        ),
        _levels(
            results,
            "variance_ratio",
            "Whether levels differ as much as patients do",
            "Variance of the predicted median HU over patients, divided by that of the true one. "
            "It is near 0 where everyone gets the same, and above 1 where levels scatter more than "
            "patients do.",
            "Variance ratio",
        ),
    ]
    return [table for table in tables if table.measures]


def _means(
    results: Results, name: str, title: str, note: str, wanted: dict[Column, Measure]
) -> Grid:
    """A table of means over patients."""
    shown = {}
    for column, measure in wanted.items():
        if any(results.mean(method, column) for method in results.methods):
            target = _true_cnr(results, column) if column.metric == "cnr" else measure.target
            shown[column] = measure._replace(where=measure.where or column.where, target=target)
    lines: list[tuple[str, list[Row | None]]] = []
    rows: list[Row] = []
    for method in results.methods:
        found = [results.mean(method, column) for column in shown]
        rows += [
            {"method": method}
            | column._asdict()
            | {key: line[key] for key in _CELL}
            | {"target": shown[column].target}
            for column, line in zip(shown, found, strict=True)
            if line is not None
        ]
        lines.append(
            (
                method,
                [
                    _scaled(line, measure.scale)
                    for line, measure in zip(found, shown.values(), strict=True)
                ],
            )
        )
    return Grid(name, title, note, list(shown.values()), _filled(lines), rows)


def _true_cnr(results: Results, column: Column) -> str:
    """That of the true scan, over the patients of the method that the run is about."""
    true = column._replace(metric="true_cnr")
    for method in (results.final, *results.methods):
        if method is not None and (line := results.mean(method, true)) is not None:
            return number(line["mean"], _VESSELS[column].digits)
    return _VESSELS[column].target


def _levels(results: Results, name: str, title: str, note: str, short: str) -> Grid:
    """A figure of ``levels.json`` for each structure."""
    vessels = {column.region for column in ARTERIES}
    regions = list(dict.fromkeys(line["region"] for line in results.levels))
    regions.sort(key=lambda region: region not in vessels)  # they differ most: first
    measures = [
        Measure(short, "", "1", 2, where=Column("roi/1", name, region).where) for region in regions
    ]
    cells = {
        (line["method"], line["region"]): {
            "n": line["n"],
            "mean": line[name],
            "low": line[f"{name}_low"],
            "high": line[f"{name}_high"],
        }
        for line in results.levels
        if line[name] is not None
    }
    lines = [
        (method, [cells.get((method, region)) for region in regions]) for method in results.methods
    ]
    rows = [
        {"method": method, "region": region} | cell | {"target": 1}
        for (method, region), cell in cells.items()
    ]
    stem = f"levels-{name.replace('_', '-')}"
    return Grid(stem, title, note, measures, _filled(lines), rows)


def _scaled(line: Row | None, scale: float) -> Row | None:
    if line is None:
        return None
    return {
        key: line[key] if key == "n" or line[key] is None else scale * line[key] for key in _CELL
    }


def _filled(lines: list[tuple[str, list[Row | None]]]) -> list[tuple[str, list[Row | None]]]:
    return [(method, cells) for method, cells in lines if any(cells)]
