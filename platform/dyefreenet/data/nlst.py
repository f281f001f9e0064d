"""Which NLST series to fetch, by the catalogue alone: one a study, no image is read.

NLST's Series Description has eleven fields between commas: year of the trial, kind of image, maker,
model, kernel, field of view (mm), slice thickness (mm), kVp, mA, effective mAs and pitch. Not all
do: ``1,024`` makes twelve, and some thicknesses are a field of view and a thickness run together
(``350.2``). What is odd is counted by kind with examples, and is unknown to us, never guessed.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, PositiveFloat, PositiveInt

from dyefreenet import recipes
from dyefreenet.config import Frozen, Share
from dyefreenet.data.archive import short_hash
from dyefreenet.data.cohort import split_of
from dyefreenet.errors import InputError
from dyefreenet.store import Folder

Reason = Literal[
    "not-nlst",  # of another collection
    "not-ct",  # modality other than CT
    "description",  # not the fields of NLST, so nothing is known of it
    "localizer",  # scout
    "derived",  # reformatted, or not axial
    "few-images",
    "kernel",  # none of the rules' kernels
    "thickness",  # thicker than the rules allow
    "other-series",  # another series of its study comes first
]
REASONS: tuple[str, ...] = get_args(Reason)

# Each column by the names that catalogues give it: the Imaging Data Commons, the NBIA retriever.
COLUMNS = {
    "series": ("SeriesInstanceUID", "Series UID"),
    "study": ("StudyInstanceUID", "Study UID"),
    "patient": ("PatientID", "Subject ID"),
    "description": ("SeriesDescription", "Series Description"),
    "images": ("instanceCount", "Number of Images"),
}
OPTIONAL = {
    "collection": ("collection_id", "Collection"),
    "modality": ("Modality",),
    "url": ("series_aws_url", "File Location"),
    "megabytes": ("series_size_MB",),
    "syntax": ("TransferSyntaxUID",),
    "maker": ("Manufacturer",),
    "sign": ("PixelRepresentation",),
}
IDC = "idc"  # in place of a file: the catalogue of the package idc-index-data

SCOUTS = ("OPL", "OSL", "DPL", "DSL")
MAKERS = {
    "GE": "GE MEDICAL SYSTEMS",
    "SE": "SIEMENS",
    "PH": "Philips",
    "TO": "TOSHIBA",
}
UNKNOWN = ("", "null", "na", "unkn")
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # uncompressed little endian

PLAN_SCHEMA = pa.schema(
    [
        ("series", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),  # by hash of the patient
        ("url", pa.string()),
        ("images", pa.int32()),
        ("megabytes", pa.float64()),
        ("kernel", pa.string()),
        ("thickness_mm", pa.float64()),
        ("syntax", pa.string()),
    ]
)


class NlstRules(Frozen):
    """Which series may be taken, and which comes first of those of a study."""

    image_types: tuple[str, ...] = Field(
        ("OPA",), description="kinds of image: original, primary, axial"
    )
    min_images: PositiveInt = Field(60, description="of a series; a chest at 5 mm has as many")
    max_thickness_mm: PositiveFloat | None = Field(
        None, description="of a slice; null: any. The thinnest of a study comes first"
    )
    kernels: tuple[str, ...] = Field(
        (
            *("STANDARD", "B30f", "B31f", "B30s", "B31s", "C", "FC10", "FC11", "FC01", "FC02"),
            *("B", "B20f", "SOFT", "A", "B35f", "B40f", "B41s", "BODY FILTER"),
        ),
        description="soft ones, the first the best; sharp ones teach noise",
    )
    any_kernel: bool = Field(
        False, description="whether a study without such a kernel gives its best other series"
    )
    validation: Share = Field(0.02, description="share of patients")
    test: Share = Field(0.0, description="share of patients")


def read_rules(path: str) -> NlstRules:
    """Rules from a YAML or JSON file that holds the fields to change.

    Raises:
        ConfigError: No such field or value; the nearest right name is told.
        InputError: There is no such file, or it is no YAML.
    """
    return recipes.read_rules("--rules", path, NlstRules)


def rules_text() -> str:
    """The rules as they are, as a YAML file to edit."""
    lines = ["# Which NLST series are taken: dyefreenet plan --rules THIS_FILE"]
    for name, value in NlstRules().model_dump(mode="json").items():
        lines.append(f"# {NlstRules.model_fields[name].description}")
        lines.append(f"{name}: {json.dumps(value)}")  # JSON is YAML
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Described:
    """A Series Description by its fields; None and "" are unknown."""

    kind: str
    maker: str
    kernel: str
    thickness_mm: float | None
    odd: tuple[str, ...] = ()  # what is not as it should be


def described(text: str) -> Described | None:
    """Fields of an NLST Series Description; None if it is not of that form."""
    fields = text.split(",")
    odd = []
    if len(fields) == 12 and fields[5].isdigit() and len(fields[6]) == 3 and fields[6].isdigit():
        odd.append("a comma within a number")
        fields[5:7] = [fields[5] + fields[6]]
    if len(fields) != 11 or fields[0] not in ("0", "1", "2") or len(fields[1]) not in (2, 3):
        return None
    kind, maker, kernel, thick = fields[1], fields[2], fields[4], fields[6]
    if len(kind) != 3:
        odd.append("a kind of image with a letter missing")
    if maker not in MAKERS:
        odd.append("a maker that is not in the list")
    thickness = None
    if thick not in UNKNOWN:
        try:
            thickness = float(thick)
        except ValueError:
            odd.append("a thickness that is no number")
    if thickness is not None and not 0.3 <= thickness <= 20:
        odd.append("a thickness beyond 0.3 to 20 mm")
        thickness = None
    if kernel in UNKNOWN or kernel == "UNK":
        kernel = ""
    return Described(kind, maker, kernel, thickness, tuple(odd))


@dataclass
class Plan:
    """What was taken, and an account of everything else."""

    taken: list[dict[str, Any]] = field(default_factory=list)
    found: int = 0
    studies: int = 0
    patients: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    odd: dict[str, list[str]] = field(default_factory=dict)  # kind: the descriptions
    attention: Counter[str] = field(default_factory=Counter)  # taken, and not quite usual

    def summary(self) -> dict[str, Any]:
        """Counts, as JSON holds them."""
        return {
            "found": self.found,
            "studies": self.studies,
            "patients": self.patients,
            "selected": len(self.taken),
            "studies_without": self.studies - len(self.taken),
            "selected_patients": len({row["patient"] for row in self.taken}),
            "images": sum(row["images"] for row in self.taken),
            "terabytes": round(sum(row["megabytes"] or 0.0 for row in self.taken) / 1e6, 3),
            "refused": dict(sorted(self.refused.items())),
            "odd": {
                kind: {"series": len(texts), "examples": sorted(set(texts))[:5]}
                for kind, texts in sorted(self.odd.items())
            },
            "attention": dict(sorted(self.attention.items())),
            "splits": dict(sorted(Counter(row["split"] for row in self.taken).items())),
        }


def select(rows: Iterable[dict[str, Any]], rules: NlstRules) -> Plan:
    """One series of each study, whatever the order of the rows.

    Args:
        rows: Of a catalogue, as ``read_catalogue`` gives them.
    """
    plan = Plan()
    studies: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    patients = set()
    for row in rows:
        plan.found += 1
        text = row["description"]
        told = described(text)
        reason = _reason(row, told, rules)
        if reason in ("not-nlst", "not-ct"):  # segmentations and reports that others added
            plan.refused[reason] += 1
            continue
        patients.add(row["patient"])
        candidates = studies.setdefault(row["study"], [])
        for kind in _odd(row, told):
            plan.odd.setdefault(kind, []).append(text)
        if reason or told is None:
            plan.refused[reason or "description"] += 1
            continue
        line = row | {"kernel": told.kernel, "thickness_mm": told.thickness_mm}
        rank = rules.kernels.index(told.kernel) if told.kernel in rules.kernels else None
        order = (
            rank is None,  # soft kernels first, whichever,
            told.thickness_mm is None,
            told.thickness_mm or 0.0,  # then the thinnest,
            -row["images"],  # then the longest,
            rank or 0,
            row["series"],
        )
        candidates.append((order, line))
    for candidates in studies.values():
        if not candidates:
            continue
        _, line = min(candidates, key=lambda one: one[0])
        plan.refused["other-series"] += len(candidates) - 1
        split = split_of(short_hash(line["patient"]), rules.validation, rules.test)
        plan.taken.append(line | {"split": split})
        for what in _attention(line):
            plan.attention[what] += 1
    plan.taken.sort(key=lambda row: (row["patient"], row["study"]))
    plan.refused = +plan.refused
    plan.studies, plan.patients = len(studies), len(patients)
    return plan


def _reason(row: dict[str, Any], told: Described | None, rules: NlstRules) -> Reason | None:
    if row.get("collection") and "nlst" not in str(row["collection"]).lower():
        return "not-nlst"
    if (row.get("modality") or "CT") != "CT":
        return "not-ct"
    if told is None:
        return "description"
    if told.kind in SCOUTS:
        return "localizer"
    if told.kind not in rules.image_types:
        return "derived"
    if row["images"] < rules.min_images:
        return "few-images"
    if told.kernel not in rules.kernels and not rules.any_kernel:
        return "kernel"
    limit = rules.max_thickness_mm
    if limit is not None and told.thickness_mm is not None and told.thickness_mm > limit:
        return "thickness"
    return None


def _odd(row: dict[str, Any], told: Described | None) -> list[str]:
    if told is None:
        return ["not the fields of NLST"]
    odd = list(told.odd)
    maker = row.get("maker")
    if maker and told.maker in MAKERS and maker != MAKERS[told.maker]:
        odd.append("a maker that the header spells otherwise")
    return odd


def _attention(row: dict[str, Any]) -> list[str]:
    told = []
    syntaxes = str(row.get("syntax") or "").split(",")
    if len(syntaxes) > 1:
        told.append("several transfer syntaxes")
    elif syntaxes[0] and syntaxes[0] not in NATIVE:
        told.append("compressed")
    if "," in str(row.get("sign") or ""):
        told.append("signed and unsigned pixels")
    if row["thickness_mm"] is None:
        told.append("thickness unknown")
    return told


# ---- catalogues ----------------------------------------------------------------------------------


def read_catalogue(place: str) -> Iterator[dict[str, Any]]:
    """Rows of a catalogue under our own column names.

    Args:
        place: CSV or Parquet file, local or ``s3://``; "idc": that of idc-index-data.

    Raises:
        InputError: Not there, without the columns that are needed, or empty.
    """
    if place == IDC:
        try:
            from idc_index_data import IDC_INDEX_PARQUET_FILEPATH
        except ImportError as error:
            raise InputError(
                "--catalogue idc: expected the package idc-index-data, found none; install it with "
                "pip install idc-index-data, or name a CSV or Parquet file"
            ) from error
        place = str(IDC_INDEX_PARQUET_FILEPATH)
    folder, _, name = Folder(place).uri.rpartition("/")
    if not Folder(folder).exists(name):
        raise InputError(f"{place}: expected a catalogue, found none")
    found = False
    for row in _parquet(place) if name.endswith(".parquet") else _csv(folder, name, place):
        found = True
        yield row
    if not found:
        raise InputError(f"{place}: expected series of NLST, found none")


def _parquet(place: str) -> Iterator[dict[str, Any]]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(place)
    with fs.open(path, "rb") as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise InputError(f"{place}: expected a Parquet file, found another") from error
        names = _names(file.schema_arrow.names, place)
        for batch in file.iter_batches(65536, columns=list(names.values())):
            table = pa.table(batch)
            if "collection" in names:  # of 180 collections, before a row is made
                kept = pc.equal(table[names["collection"]], "nlst")
                table = table.filter(kept)
            columns = {ours: table[theirs].to_pylist() for ours, theirs in names.items()}
            for values in zip(*columns.values(), strict=True):
                yield _row(dict(zip(columns, values, strict=True)), place)


def _csv(folder: str, name: str, place: str) -> Iterator[dict[str, Any]]:
    try:
        text = Folder(folder).read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: expected CSV in UTF-8, found other bytes") from error
    reader = csv.DictReader(io.StringIO(text))
    names = _names(list(reader.fieldnames or ()), place)
    for line in reader:
        yield _row({ours: line.get(theirs) for ours, theirs in names.items()}, place)


def _names(found: list[str], place: str) -> dict[str, str]:
    names = {}
    for ours, theirs in (COLUMNS | OPTIONAL).items():
        there = next((name for name in theirs if name in found), None)
        if there is not None:
            names[ours] = there
        elif ours in COLUMNS:
            raise InputError(
                f"{place}: expected a column {' or '.join(theirs)}, found {', '.join(found[:12])}"
            )
    return names


def _row(row: dict[str, Any], place: str) -> dict[str, Any]:
    for name in COLUMNS:
        row[name] = row[name] if row[name] is not None else ""
    try:
        row["images"] = int(row["images"])
    except ValueError as error:
        raise InputError(f"{place}: expected a number of images, found another") from error
    row["megabytes"] = float(row["megabytes"]) if row.get("megabytes") else None
    row["url"] = row.get("url") or ""
    row["syntax"] = row.get("syntax") or ""
    return row


def write_plan(plan: Plan, target: Folder) -> None:
    """``plan.parquet`` and ``plan.csv``, the series to fetch, and ``summary.json``.

    The tables name series and patients as the catalogue does: they are what a download needs.
    """
    table = pa.Table.from_pylist(plan.taken, schema=PLAN_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    target.write("plan.parquet", sink.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, PLAN_SCHEMA.names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(plan.taken)
    target.write("plan.csv", text.getvalue().encode())
    target.write_json("summary.json", plan.summary())
