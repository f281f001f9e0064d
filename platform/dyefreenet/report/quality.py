"""The QC page of an ingest folder: what was taken and how it looks, what was refused and why.

One HTML file beside the books, that needs no network and no other file. It reads the books a column
at a time and a few dozen pictures, so that it stays small whatever the archive.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from dyefreenet.errors import StoreError
from dyefreenet.report.histograms import Curve, bar_chart, step_chart
from dyefreenet.store import Folder

PAGE = "quality.html"
ROWS = 200  # of the table of pairs
EXAMPLES = 5  # of each reason
VALUES = 12  # of kernels and the like, the most frequent
WORST, SAMPLE, PLAIN = 12, 12, 12  # pictures: worst pairs, other pairs, plain series
BUDGET = 5_000_000  # characters of all pictures together
FAILED = "failed"  # in place of a reason: the work broke off
SPLITS = ("train", "validation", "test")


class Figure(NamedTuple):
    """A column of pairs.parquet that tells how a pair fits."""

    name: str
    title: str
    short: str
    unit: str
    digits: int
    meaning: str


FIGURES = (
    Figure(
        "body_dice",
        "Body Dice",
        "Dice",
        "",
        3,
        "Overlap of the two bodies after registration; 1 is perfect. A low one means another pose, "
        "another place or another patient.",
    ),
    Figure(
        "bone_edge_mm",
        "Bone edges",
        "bone edges",
        "mm",
        2,
        "Mean way from a bone edge of the plain CT to the nearest one of the contrast CT. Contrast "
        "agent leaves bone as it is, so what is well beyond a voxel is misalignment.",
    ),
    Figure(
        "mutual_information",
        "Mutual information",
        "MI",
        "nats",
        2,
        "How well HU of one scan foretell HU of the other inside the body. Only its gain compares "
        "between pairs.",
    ),
    Figure(
        "mutual_information_gain",
        "Gain of registration",
        "MI gain",
        "nats",
        3,
        "Mutual information after registration less that of the headers' geometry. About 0: the "
        "scans lay right already, or registration is off; below 0: registration did harm.",
    ),
    Figure(
        "max_shift_mm",
        "Largest shift",
        "shift",
        "mm",
        1,
        "Of the deformable field. More than breathing moves organs is suspect.",
    ),
    Figure(
        "min_jacobian",
        "Least Jacobian",
        "Jacobian",
        "",
        2,
        "Of the deformable field: below 1 tissue was pressed together, at 0 it folds.",
    ),
    Figure(
        "landmark_mm_before",
        "Landmarks before",
        "landmarks before",
        "mm",
        2,
        "Mean error of known points before registration; of phantoms alone, whose motion is known.",
    ),
    Figure("landmark_mm", "Landmarks", "landmarks", "mm", 2, "The same after registration."),
)

# Of each reason: what was found, and what its owner may do about it.
REASONS = {
    "unreadable": (
        "Not DICOM or NIfTI, cut short, or its pixels do not decode.",
        "Copy the files again from the PACS; the rest of the archive is not touched.",
    ),
    "not-ct": ("Another modality than CT.", "Nothing: only CT is used."),
    "not-axial": (
        "Its slices are not axial, or differ in orientation.",
        "Export the axial original instead of the reformatted series.",
    ),
    "localizer": ("A scout or projection image.", "Nothing: it is no volume."),
    "short": (
        "Fewer slices than a triplet needs.",
        "If the series was longer at the scanner, export it again in full.",
    ),
    "gap": (
        "A slice is missing, or the spacing is irregular.",
        "Export the series again: most gaps arise in transfer.",
    ),
    "duplicate": (
        "Two slices in one place.",
        "Export again; if two acquisitions share one series, separate them.",
    ),
    "mixed": (
        "Matrix, pixels or frame of reference differ between slices.",
        "Separate the acquisitions that were stored as one series.",
    ),
    "rescale": (
        "HU cannot be had: rescale slope or intercept is missing, zero or out of range.",
        "Export the original: a derived copy lost these fields.",
    ),
    "pixels": (
        "Bits, samples or photometric interpretation are not those of CT.",
        "Export the original: this may be a screenshot or a colour overlay.",
    ),
    "empty": (
        "Nothing in it is as dense as fat: there is no body, or its pixels were blanked.",
        "Look at it: de-identification may have blanked it.",
    ),
    "geometry": (
        "Position, orientation or spacing are missing or impossible.",
        "Export the original: de-identification may have removed these fields.",
    ),
    "tilt": (
        "The gantry leans, or slices are sheared against each other.",
        "Nothing: such a series is not resampled here.",
    ),
    "limit": (
        "Larger than any CT, or packed tighter: not opened.",
        "Look at the file itself; it may be damaged or made to do harm.",
    ),
    "has-contrast": (
        "Plain CT was asked for; headers or image show contrast agent.",
        "Take it out of the plain archive, or say its phase in phases.csv.",
    ),
    "no-contrast": (
        "Headers speak of contrast agent; the image shows none, or another phase.",
        "Look at the series, and say its phase in phases.csv.",
    ),
    "phase-unknown": (
        "Nothing tells its contrast phase.",
        "Say it in phases.csv; “dyefreenet pairs --review” writes the table to fill in.",
    ),
    "phase-ambiguous": (
        "Several series of one study claim the same phase.",
        "Name the one that is meant in phases.csv, or ignore the others.",
    ),
    "no-partner": (
        "A pair needs another phase of this study, and it is not there.",
        "Add the other phase to the archive. Plain series still serve pretraining.",
    ),
    "virtual": ("Made by a network, so not a measurement.", "Nothing: it is never learnt from."),
    "held-out": (
        "It would show training a patient kept for validation or test.",
        "Nothing: this keeps the figures honest.",
    ),
    "ignored": ("phases.csv says ignore.", "Nothing, unless the line is a mistake."),
    "not-selected": ("The rules of --select or --limit leave it out.", "Nothing, or change them."),
    "registration": (
        "Plain and contrast could not be laid over each other well enough.",
        "Check that both are of one patient and one place; try ingest.registration=deformable.",
    ),
    "mask": (
        "The label map of the plain series cannot be read, or lies elsewhere.",
        "Mend the map in the folder of ingest.masks, or take it away: regions are then computed.",
    ),
    "syntax": (
        "A transfer syntax that no installed decoder reads.",
        "Install the decoder that the detail names, or convert the files without loss.",
    ),
    FAILED: (
        "The work broke off: time, memory or a crash. Nothing was decided about the series.",
        "Run ingest again; if it fails again, raise ingest.seconds or ingest.memory_gib.",
    ),
}

_TEXT = {
    "pairs.parquet": "key patient kernel source split phase phase_told_by contrast_key "
    "contrast_kernel registration gate",
    "plain.parquet": "key patient kernel source",
    "excluded.parquet": "key patient reason detail",
}
_SIZES = "slices spacing_z spacing_y spacing_x thickness"
_NUMBERS = {
    "pairs.parquet": " ".join([_SIZES, "contrast_thickness", *(one.name for one in FIGURES)]),
    "plain.parquet": _SIZES,
    "excluded.parquet": "",
}


def write_quality(ingest: Folder) -> str:
    """Write ``quality.html`` into an ingest folder from its books; returns its address.

    A picture, a column or the histogram that an older version did not write is left out.

    Raises:
        InputError: There are no books, or the storage refuses.
        StoreError: A book cannot be read or trusted.
    """
    ingest.write(PAGE, _page(ingest).encode())
    return f"{ingest}/{PAGE}"


def _page(ingest: Folder) -> str:
    pairs, plain, excluded = (_book(ingest, name) for name in _TEXT)
    order = _worst_first(pairs)
    cards, left_out = _cards(ingest, pairs, plain, order)
    reasons = _reasons(excluded)
    figures = [one for one in FIGURES if np.isfinite(_numbers(pairs, one.name)).any()]
    series, contrast = _series(pairs, plain)
    script = _asset("quality.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(figure=_figure, count=lambda number: f"{number:,}")
    return environment.from_string(
        _asset("quality.html")
    ).render(
        style=Markup(_asset("page.css") + _asset("quality.css")),  # our own: not escaped
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name="/".join(ingest.uri.rstrip("/").split("/")[-2:]),
        source=_source(pairs, plain),
        used=len(series) + len(contrast),
        refused=sum(one.series for one in reasons if one.reason != FAILED),
        failed=sum(one.series for one in reasons if one.reason == FAILED),
        pairs=len(pairs),
        plain=len(plain),
        patients=len({*_texts(pairs, "patient"), *_texts(plain, "patient")}),
        skipped=_account(ingest).get("skipped_files", {}),
        phases=_phases(pairs),
        splits=SPLITS,
        ssl_patients=len(set(_texts(plain, "patient"))),
        told_by=_frequent(filter(None, _texts(pairs, "phase_told_by"))),
        registration=sorted(set(filter(None, _texts(pairs, "registration")))),
        reasons=reasons,
        histogram=_histogram(ingest),
        sizes=_sizes(series),
        scanned=[
            ("Kernel", _frequent(*(_kernels(one) for one in (series, contrast)))),
            ("Slice thickness", _frequent(*(_thicknesses(one) for one in (series, contrast)))),
        ],
        figures=figures,
        distributions=[(one, *_distribution(one, pairs)) for one in figures],
        rows=_rows(pairs, order[:ROWS]),
        gated=any(_texts(pairs, "gate")),
        cards=cards,
        left_out=left_out,
        shown={card.name for card in cards},
    )


def _asset(name: str) -> str:
    return (resources.files("dyefreenet.report") / name).read_text(encoding="utf-8")


# ---- books ---------------------------------------------------------------------------------------


def _book(ingest: Folder, name: str) -> pa.Table:
    """The columns of a book that the page shows; null where an older one lacks a column."""
    try:
        table = pq.read_table(io.BytesIO(ingest.read_checked(name)))
        wanted = dict.fromkeys(_TEXT[name].split(), pa.string())
        wanted |= dict.fromkeys(_NUMBERS[name].split(), pa.float64())
        return pa.table(
            {
                column: table[column].cast(kind)
                if column in table.column_names
                else pa.nulls(len(table), kind)
                for column, kind in wanted.items()
            }
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise StoreError(f"{ingest}/{name}: expected a book of ingest, found {error}") from error


def _account(ingest: Folder) -> dict[str, Any]:
    if not ingest.exists("account.json"):
        return {}
    account: dict[str, Any] = json.loads(ingest.read_checked("account.json"))
    return account


def _texts(table: pa.Table, column: str) -> list[str]:
    """A column as text; "" for null."""
    return [value or "" for value in table[column].to_pylist()]


def _numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    """A column as numbers; NaN for null."""
    return np.asarray(table[column].to_numpy(), np.float64)


def _rows(table: pa.Table, which: Sequence[int] | NDArray[np.intp]) -> list[dict[str, Any]]:
    return table.take(pa.array(which, pa.int64())).to_pylist()


def _figure(value: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _source(pairs: pa.Table, plain: pa.Table) -> tuple[str, str]:
    """A loud headline on whose images these are, and the counts behind it."""
    patients: dict[str, set[str]] = {}
    for book in (pairs, plain):
        for source, patient in zip(_texts(book, "source"), _texts(book, "patient"), strict=True):
            patients.setdefault(source or "unknown", set()).add(patient)
    counts = " · ".join(f"{source}: {len(who):,} patients" for source, who in patients.items())
    kinds = set(patients)
    if kinds == {"phantom"}:
        return "MADE-UP PHANTOM: nothing on this page is of a patient", counts
    if kinds == {"real"}:
        return "Real CT: pictures and figures are of patients", counts
    if kinds == {"phantom", "real"}:
        return "Mixed: made-up phantoms and real patients", counts
    return "Origin of the data unknown: not every row of the books names it", counts


class Phase(NamedTuple):
    phase: str
    pairs: int
    patients: int
    splits: list[tuple[int, int]]  # of each of SPLITS: pairs, patients
    evaluate: int  # pairs that fit too poorly to be learnt from


def _phases(pairs: pa.Table) -> list[Phase]:
    """Pairs and patients of each phase and split; the phase with most pairs first."""
    found: dict[str, dict[str, list[str]]] = {}
    poor: Counter[str] = Counter()
    columns = (_texts(pairs, name) for name in ("phase", "split", "patient", "gate"))
    for phase, split, patient, gate in zip(*columns, strict=True):
        found.setdefault(phase, {}).setdefault(split, []).append(patient)
        poor[phase] += gate == "evaluate"
    lines = []
    for phase, splits in found.items():
        everybody = [patient for who in splits.values() for patient in who]
        inside = [splits.get(split, []) for split in SPLITS]
        counts = [(len(who), len(set(who))) for who in inside]
        lines.append(Phase(phase, len(everybody), len(set(everybody)), counts, poor[phase]))
    return sorted(lines, key=lambda line: (-line.pairs, line.phase))


class Reason(NamedTuple):
    reason: str
    series: int
    share: float  # of the most frequent reason
    meaning: str
    advice: str
    examples: list[dict[str, str]]


def _reasons(excluded: pa.Table) -> list[Reason]:
    """Reasons from the most frequent on, each with a few examples."""
    rows: dict[str, list[int]] = {}
    for row, reason in enumerate(_texts(excluded, "reason")):
        rows.setdefault(reason, []).append(row)
    ordered = sorted(rows.items(), key=lambda item: (item[0] == FAILED, -len(item[1]), item[0]))
    most = max(map(len, rows.values()), default=1)
    return [
        Reason(
            reason,
            len(which),
            len(which) / most,
            *REASONS.get(reason, ("", "")),
            _rows(excluded, _evenly(which, EXAMPLES)),
        )
        for reason, which in ordered
    ]


def _evenly(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` items, from all along the sequence."""
    if len(items) <= count:
        return list(items)
    return [items[len(items) * number // count] for number in range(count)]


def _frequent(*columns: Iterable[str]) -> list[tuple[str, list[int]]]:
    """Values with how often each column has them, the most frequent first, the rest as one."""
    counts = [Counter(column) for column in columns]
    total = sum(counts, Counter[str]())
    ordered = sorted(total, key=lambda value: (-total[value], value))
    lines = [(value, [one[value] for one in counts]) for value in ordered[:VALUES]]
    if rest := ordered[VALUES:]:
        lines.append((f"{len(rest):,} others", [sum(one[v] for v in rest) for one in counts]))
    return lines


# ---- how it was scanned --------------------------------------------------------------------------


def _series(pairs: pa.Table, plain: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Plain and contrast series, each once: a plain one may be of several pairs."""
    names = ["key", "kernel", "thickness", "slices", "spacing_z", "spacing_y"]
    one = pa.concat_tables([pairs.select(names), plain.select(names)])
    other = pairs.select(["contrast_key", "contrast_kernel", "contrast_thickness"])
    other = other.rename_columns(names[:3])
    return _once(one), _once(other)


def _once(table: pa.Table) -> pa.Table:
    rows = {key: row for row, key in enumerate(_texts(table, "key")) if key}
    return table.take(pa.array(rows.values(), pa.int64()))


def _sizes(series: pa.Table) -> list[tuple[str, list[str]]]:
    """Least, median and greatest of slices and spacing of the plain series."""
    lines = []
    for title, column, digits in (
        ("Slices used", "slices", 0),
        ("Slice spacing, mm", "spacing_z", 2),
        ("Pixel, mm", "spacing_y", 3),
    ):
        values = _numbers(series, column)
        values = values[np.isfinite(values)]
        if len(values):
            spread = (values.min(), np.median(values), values.max())
            lines.append((title, [_figure(value, digits) for value in spread]))
    return lines


def _kernels(series: pa.Table) -> list[str]:
    return [kernel or "not told" for kernel in _texts(series, "kernel")]


def _thicknesses(series: pa.Table) -> list[str]:
    values = _numbers(series, "thickness")
    return [f"{value:.1f} mm" if math.isfinite(value) else "not told" for value in values]


# ---- figures -------------------------------------------------------------------------------------


def _worst_first(pairs: pa.Table) -> NDArray[np.intp]:
    """Rows by the worse of two ranks: body Dice from below, bone edges from above."""
    ranks = []
    for name, sign in (("body_dice", 1), ("bone_edge_mm", -1)):
        values = sign * _numbers(pairs, name)
        values[np.isnan(values)] = np.inf
        ranks.append(np.searchsorted(np.sort(values), values))  # pairs that are worse
    worse, better = np.sort(ranks, axis=0)
    return np.lexsort((better, worse))


def _distribution(figure: Figure, pairs: pa.Table) -> tuple[Markup, str]:
    """A chart of a figure over all pairs, and its median and spread in words."""
    values = _numbers(pairs, figure.name)
    values = values[np.isfinite(values)]
    low, median, high = np.percentile(values, (5, 50, 95))
    words = " to ".join(_figure(value, figure.digits) for value in (low, high))
    without = len(pairs) - len(values)
    words = f"median {_figure(median, figure.digits)}, 5th to 95th percentile {words}"
    if without:
        words += f"; {without:,} pairs without"
    return Markup(bar_chart(f"{figure.title}: {words}", values)), words


def _histogram(ingest: Folder) -> tuple[Markup, list[Curve]] | None:
    """HU of all series together, plain and of each phase; None where nothing was counted."""
    if not ingest.exists("histogram.json"):
        return None
    content = ingest.read_json("histogram.json")
    try:
        edges = [float(edge) for edge in content["edges"]]
        named = [("plain", content["plain"]), *sorted(content["contrast"].items())]
        curves = [Curve(name, f"ph-{name}", counts) for name, counts in named if counts]
        if any(len(curve.counts) != len(edges) - 1 for curve in curves):
            raise ValueError("another number of bins than its edges enclose")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{ingest}/histogram.json: expected edges and counts, found {error}"
        ) from error
    curves = [curve for curve in curves if any(curve.counts)]
    return (Markup(step_chart(edges, curves)), curves) if curves else None


# ---- pictures ------------------------------------------------------------------------------------


class Card(NamedTuple):
    """A pair or plain series with its picture."""

    name: str  # of its job, and so of its picture
    group: str  # worst, sample or plain
    row: dict[str, Any]
    picture: str  # a data URI; "" where there is none


def _cards(
    ingest: Folder, pairs: pa.Table, plain: pa.Table, order: NDArray[np.intp]
) -> tuple[list[Card], int]:
    """The worst pairs, others from all along the rest, and plain series; and how many found no
    room. None at all where the folder holds none of their pictures."""
    chosen = [
        (f"{row['key']}-{row.get('phase') or 'plain'}", group, row)
        for group, book, which in (
            ("worst", pairs, order[:WORST].tolist()),
            ("sample", pairs, _evenly(order[WORST:].tolist(), SAMPLE)),
            ("plain", plain, _evenly(range(len(plain)), PLAIN)),
        )
        for row in _rows(book, which)
    ]
    cards: list[Card] = []
    spent = 0
    for name, group, row in chosen:
        picture = _picture(ingest, name)
        if spent + len(picture) <= BUDGET:
            spent += len(picture)
            cards.append(Card(name, group, row, picture))
    return (cards if spent else []), len(chosen) - len(cards)


def _picture(ingest: Folder, name: str) -> str:
    if not ingest.exists(f"looks/{name}.jpg"):
        return ""
    content = ingest.read(f"looks/{name}.jpg")
    if not content.startswith(b"\xff\xd8"):
        raise StoreError(f"{ingest}/looks/{name}.jpg: expected a JPEG, found other bytes")
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
