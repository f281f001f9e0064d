"""What an archive holds: one row a series, from headers alone. Nothing is decoded here.

An archive is a folder, an ``s3://`` prefix, a zip or tar, a DICOMDIR with its folder, or one NIfTI,
NRRD or MetaImage file; headers are trusted and names are not. A file ``phases.csv`` at its root may
say what the headers do not:

    series,phase,patient
    1.2.840.113619.2.55.3,arterial,
    case7/native.nii.gz,plain,case7

``series`` is a Series Instance UID, a key of the tables, or an image file's path below the root;
``phase`` is plain,
arterial, portal, delayed or ignore; ``patient`` may stay empty.

One Series Instance UID may cover several stacks (two acquisitions, a reformat beside its source):
each becomes a row of its own.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import get_args

import numpy as np
import pydicom

from dyefreenet.config import Phase
from dyefreenet.data.files import IMAGES, PACKAGES
from dyefreenet.data.headers import (
    DICOMDIR,
    Common,
    Facts,
    Portion,
    Skipped,
    is_hidden,
    read_headers,
)
from dyefreenet.errors import InputError
from dyefreenet.store import Folder

PHASES_FILE = "phases.csv"
PHANTOM_MAKER = "Phantom "  # how the phantom's Manufacturer (0008,0070) begins
IGNORE = "ignore"  # a phase of phases.csv: leave this series alone
PORTION = 256  # files whose headers are read in one go

Looked = Iterable[list[Facts | Skipped]]
Spread = Callable[[Callable[[Portion], list[Facts | Skipped]], Iterable[Portion]], Looked]


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """One series by its headers.

    What may name a patient (UIDs, texts, paths) is kept out of ``repr``, and only ``key`` and
    ``patient`` may be logged or stored.

    Attributes:
        key: ``short_hash`` of the Series Instance UID; of an image file's path.
        patient: The same of the Patient ID.
        split_at: A hash that is never stored, for the split by patient; it needs no salt.
        stamp: Hash of the files' names, sizes and times: another one means other content.
        spacing: mm, (z, y, x), z being the median step; None where the header does not tell.
        declared: Phase that ``phases.csv`` gives, or "ignore"; "" where it says nothing.
        declared_patient: Patient ID that it gives.
        stack: Which of several stacks under one Series Instance UID; "" where it is the only one.
        seen: Phase that the image shows, where it was looked at; "" where that tells none.
        seen_by: What of the image tells it, or why nothing does.
        packed: Addresses of its files, compressed: an archive may have twenty million.
    """

    key: str
    patient: str
    modality: str
    slices: int
    rows: int = 0
    columns: int = 0
    spacing: tuple[float, float, float] | None = None
    thickness: float | None = None  # mm
    kernel: str = ""
    localizer: bool = False  # every image is a scout or a projection
    virtual: bool = False  # made by a network
    declared: str = ""
    declared_patient: str = field(default="", repr=False)
    seen: str = ""
    seen_by: str = ""
    split_at: str = field(default="", repr=False)
    stack: str = field(default="", repr=False)
    stamp: str = ""
    series_uid: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    manufacturer: str = field(default="", repr=False)
    trial: str = field(default="", repr=False)
    contrast_agent: str = field(default="", repr=False)
    contrast_start: str = field(default="", repr=False)  # DICOM TM
    acquired: str = field(default="", repr=False)  # DICOM TM of the first slice in time
    packed: bytes = field(default=b"", repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Addresses, sorted by name."""
        return tuple(_text(zlib.decompress(self.packed)).split("\0")) if self.packed else ()

    @property
    def is_image(self) -> bool:
        """Whether this is one file that holds a whole volume, of a kind that SimpleITK reads."""
        return len(self.files) == 1 and self.files[0].lower().endswith(IMAGES)


@dataclass(frozen=True)
class Survey:
    """An archive's series, and the number of files that are none by the reason why."""

    rows: list[SeriesRow]
    skipped: Counter[str]
    unnamed: frozenset[str] = frozenset()  # series that the table of phases names and are not here


def short_hash(text: str, salt: str = "") -> str:
    """The only form in which an identifier leaves an archive: 16 hex digits.

    Without the salt nobody can try out names; with it, the same text gives the same digits.
    """
    if not salt:
        return hashlib.sha256(_bytes(text)).hexdigest()[:16]
    return hmac.new(salt.encode(), _bytes(text), "sha256").hexdigest()[:16]


def _bytes(text: str) -> bytes:
    """A name as it is on disk, where it need not be UTF-8."""
    return text.encode(errors="surrogateescape")


def _text(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def is_phantom(manufacturer: str) -> bool:
    return manufacturer.startswith(PHANTOM_MAKER)


def scan(uri: str | Folder, salt: str = "", phases: str | None = None) -> list[SeriesRow]:
    """The series of an archive, sorted by key. See ``survey``."""
    return survey(uri, salt, phases).rows


def survey(
    uri: str | Folder,
    salt: str = "",
    phases: str | None = None,
    spread: Spread = map,
    seen: Callable[[int], None] = lambda count: None,
) -> Survey:
    """The series of an archive by their headers, and what else lay there.

    Args:
        salt: Goes into every hash.
        phases: A table like ``phases.csv``, in its place; it may name series of other archives.
        spread: Does the work of ``map``, in any order: on a cluster, say.
        seen: Called with the number of files looked at so far.

    Raises:
        InputError: There is no such place, it cannot be read, or it holds no series.
    """
    root, entries = _entries(str(uri))
    listing = _Listing(root, entries)
    index, skipped, count = _Index(), Counter[str](), 0
    for found in spread(read_headers, listing.portions()):
        facts = [one for one in found if isinstance(one, Facts)]
        skipped.update(one.why for one in found if isinstance(one, Skipped))
        index.add(facts)
        count += len(found)
        seen(count)
    if not listing.count:
        found_instead = "an empty folder" if Folder(root).exists() else "nothing"
        raise InputError(
            f"{uri}: expected an archive of CT in DICOM or NIfTI, found {found_instead}"
        )
    for name in listing.directories:
        if absent := _absent(root, name):
            skipped["listed in DICOMDIR and not there"] += absent
    rows = [
        _row(root, uid, stack, images, salt, alone=len(stacks) == 1)
        for uid, stacks in ((uid, _stacks(images)) for uid, images in index.series())
        for stack, images in stacks.items()
    ]
    if not rows:
        raise InputError(
            f"{uri}: expected an archive of CT in DICOM, NIfTI, NRRD or MetaImage, found "
            + (
                ", ".join(f"{count} files: {why}" for why, count in skipped.items())
                or "an empty folder"
            )
        )
    unnamed = frozenset[str]()
    if phases is not None:
        rows, unnamed = _declared(phases, rows, salt, whole=False)
    elif listing.has_phases:
        rows, unnamed = _declared(f"{root}/{PHASES_FILE}", rows, salt, whole=True)
    return Survey(sorted(rows, key=lambda row: row.key), skipped, unnamed)


# ---- files ---------------------------------------------------------------------------------------


class _Listing:
    """The files of an archive in portions, as they are listed, and what was noticed among them."""

    def __init__(self, root: str, entries: Iterator[tuple[str, str]]) -> None:
        self.root, self.count = root, 0
        self.directories: list[str] = []
        self.has_phases = False
        self._entries = entries

    def portions(self) -> Iterator[Portion]:
        wanted = self._wanted()
        while files := tuple(islice(wanted, PORTION)):
            yield Portion(self.root, files)

    def _wanted(self) -> Iterator[tuple[str, str]]:
        for name, stamp in self._entries:
            self.count += 1
            if name.rpartition("/")[2] == DICOMDIR:
                self.directories.append(name)
            elif name == PHASES_FILE:
                self.has_phases = True
            elif not is_hidden(name):
                yield name, stamp


def _entries(uri: str) -> tuple[str, Iterator[tuple[str, str]]]:
    """The archive's root, and the names below it with their stamps."""
    if uri.lower().endswith((*IMAGES, *PACKAGES)):
        parent, _, name = Folder(uri).uri.rpartition("/")
        if not Folder(parent).exists(name):
            raise InputError(f"{uri}: expected a file, found none")
        if "://" not in parent:  # what else lies there is nobody's business
            about = os.stat(os.path.join(parent, name))
            return parent, iter([(name, f"{about.st_size}-{about.st_mtime}")])
        return parent, (entry for entry in Folder(parent).entries() if entry[0] == name)
    root = Folder(uri.removesuffix(DICOMDIR)) if uri.endswith(f"/{DICOMDIR}") else Folder(uri)
    return root.uri.rstrip("/"), root.entries()


def _absent(root: str, name: str) -> int:
    """How many files a DICOMDIR lists that are not below its folder."""
    try:
        listed = pydicom.dcmread(io.BytesIO(Folder(root).read(name))).DirectoryRecordSequence
        parts = [record.get("ReferencedFileID") for record in listed]
    except Exception:  # it is not needed: the files themselves are read
        return 0
    above = name.removesuffix(DICOMDIR)
    there = {other.upper() for other in Folder(f"{root}/{above}".rstrip("/")).names()}
    paths = ["/".join([one] if isinstance(one, str) else one) for one in parts if one]
    return sum(path.upper() not in there for path in paths)


class _Index:
    """The facts of all files, by series. It lies on disk beyond a few megabytes: SQLite's own
    nameless file, which goes with it."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("")
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16000;"
            "CREATE TABLE common (id INTEGER PRIMARY KEY, said TEXT UNIQUE);"
            "CREATE TABLE file (series BLOB, name BLOB, common INTEGER, own TEXT);"
        )

    def add(self, facts: Sequence[Facts]) -> None:
        common = {one.common: json.dumps(one.common) for one in facts}
        self._base.executemany(
            "INSERT OR IGNORE INTO common (said) VALUES (?)", [(said,) for said in common.values()]
        )
        self._base.executemany(
            "INSERT INTO file SELECT ?, ?, id, ? FROM common WHERE said = ?",
            [
                (_bytes(one.series), _bytes(one.name), json.dumps(one[2:-1]), common[one.common])
                for one in facts
            ],
        )

    def series(self) -> Iterator[tuple[str, list[Facts]]]:
        """Each series with its files, sorted by name."""
        rows = self._base.execute(
            "SELECT series, name, own, said FROM file JOIN common ON common = id "
            "ORDER BY series, name"
        )
        for uid, files in groupby(rows, key=lambda row: row[0]):
            series = _text(uid)
            yield (
                series,
                [
                    Facts._make([series, _text(name), *json.loads(own), Common(*json.loads(said))])
                    for _, name, own, said in files
                ],
            )


# ---- series --------------------------------------------------------------------------------------


def _stacks(files: list[Facts]) -> dict[str, list[Facts]]:
    """The stacks of images under one Series Instance UID, by what tells them apart.

    Scouts stay with the first stack; two acquisitions of one place are two stacks.
    """
    stacks: dict[str, list[Facts]] = {}
    for one in files:
        if one.images:
            stacks.setdefault(one.common.stack, []).append(one)
    split: dict[str, list[Facts]] = {}
    for name, stack in stacks.items():
        places = {one.place for one in stack}
        if len({one.acquisition for one in stack}) > 1 and len(places) < len(stack):
            for one in stack:
                split.setdefault(f"{name} acquisition {one.acquisition}", []).append(one)
        else:
            split[name] = stack
    if not split:
        return {"": files}
    first = min(split)
    scouts = [one for one in files if not one.images]
    split[first] = sorted(split[first] + scouts, key=lambda one: one.name)
    return split


def _row(root: str, uid: str, stack: str, files: list[Facts], salt: str, alone: bool) -> SeriesRow:
    images = [one for one in files if one.images]
    first = (images or files)[0].common
    if is_phantom(first.manufacturer):
        salt = ""  # made-up patients need none, and without it every run of a recipe is the same
    lines = "\n".join(f"{one.name} {one.stamp}" for one in files)
    addresses = "\0".join(f"{root}/{one.name}" for one in files)
    return SeriesRow(
        key=short_hash(uid if alone else f"{uid} {stack}", salt),
        patient=short_hash(first.patient_id, salt),
        split_at=short_hash(first.patient_id),
        stack="" if alone else stack,
        modality=first.modality,
        slices=sum(one.images for one in files) or sum(one.frames for one in files),
        rows=first.rows,
        columns=first.columns,
        spacing=_spacing(images, first.spacing),
        thickness=first.thickness,
        kernel=first.kernel,
        localizer=not images,
        virtual=first.virtual,
        stamp=short_hash(lines),
        series_uid=uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        description=first.description,
        manufacturer=first.manufacturer,
        trial=first.trial,
        contrast_agent=next((one.agent for one in images if one.agent), ""),
        contrast_start=first.contrast_start,
        acquired=min((one.time for one in images if one.time), default=""),
        packed=zlib.compress(_bytes(addresses), 1),
    )


def _spacing(
    images: list[Facts], told: tuple[float | None, float, float] | None
) -> tuple[float, float, float] | None:
    if told is None:
        return None
    z, y, x = told
    if z is not None:
        return z, y, x
    places = sorted(place for one in images for place in one.z)
    if len(places) < sum(one.images for one in images):
        return None
    return (round(float(np.median(np.diff(places))), 6) if len(places) > 1 else 0.0), y, x


# ---- phases.csv ----------------------------------------------------------------------------------


def _declared(
    place: str, rows: list[SeriesRow], salt: str, whole: bool
) -> tuple[list[SeriesRow], frozenset[str]]:
    """The rows with what a table of phases says of them, and what it names that is not among them.

    Args:
        whole: It must name no other series.
    """
    folder, _, name = place.rpartition("/")
    table = csv.DictReader(io.StringIO(Folder(folder).read(name).decode("utf-8-sig")))
    if not {"series", "phase"} <= set(table.fieldnames or ()):
        raise InputError(f"{place}: expected columns series, phase and perhaps patient")
    said: dict[str, tuple[str, str]] = {}
    known = {name for row in rows for name in (row.series_uid, row.key)}
    allowed = (*get_args(Phase), IGNORE)
    for line in table:
        where = f"{place}, line {table.line_num}"
        name, phase = (line["series"] or "").strip(), (line["phase"] or "").strip().lower()
        if not phase:
            continue  # a review that was not answered here
        if phase not in allowed:
            raise InputError(f"{where}: expected a phase of {', '.join(allowed)}, found another")
        if whole and name not in known:
            raise InputError(f"{where}: expected a series of this archive, found none of that name")
        said[name] = phase, (line.get("patient") or "").strip()
    declared = []
    for row in rows:
        phase, patient_id = said.get(row.key) or said.get(row.series_uid) or ("", "")
        if patient_id:
            row = replace(
                row,
                patient_id=patient_id,
                declared_patient=patient_id,
                patient=short_hash(patient_id, salt),
                split_at=short_hash(patient_id),
            )
        declared.append(replace(row, declared=phase))
    return declared, frozenset(said.keys() - known)
