"""What an archive holds: one row a series, from headers alone. Nothing is decoded here.

An archive is a folder, an ``s3://`` prefix or one NIfTI file; headers are trusted and names are
not. A file ``phases.csv`` at its root may say what the headers do not:

    series,phase,patient
    1.2.840.113619.2.55.3,arterial,
    case7/native.nii.gz,plain,case7

``series`` is a Series Instance UID, or a NIfTI file's path below the root; ``phase`` is plain,
arterial, portal, delayed or ignore; ``patient`` may stay empty.
"""

from __future__ import annotations

import csv
import hashlib
import io
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import pydicom
from fsspec.core import url_to_fs
from pydicom.errors import InvalidDicomError

from dyefreenet.config import Phase
from dyefreenet.data.dicom import NIFTI, is_localizer
from dyefreenet.errors import InputError
from dyefreenet.store import Folder

PHASES_FILE = "phases.csv"
IGNORE = "ignore"  # a phase of phases.csv: leave this series alone
HEAD = 64 * 1024  # bytes of a remote file read at first; a header rarely is longer
TAGS = [
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "AcquisitionDate",
    "AcquisitionTime",
    "Modality",
    "Manufacturer",
    "SeriesDescription",
    "PatientID",
    "ContrastBolusAgent",
    "ContrastBolusStartTime",
    "ClinicalTrialProtocolID",
    "SliceThickness",
    "ConvolutionKernel",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "PixelSpacing",
]


@dataclass(frozen=True)
class SeriesRow:
    """One series by its headers.

    What may name a patient (UIDs, texts, paths) is kept out of ``repr``, and only ``key`` and
    ``patient`` may be logged or stored.

    Attributes:
        key: First 16 hex digits of SHA-256 of the Series Instance UID; of a NIfTI file's path.
        patient: The same of the Patient ID.
        spacing: mm, (z, y, x), z being the median step; None where the header does not tell.
        declared: Phase that ``phases.csv`` gives, or "ignore"; "" where it says nothing.
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
    transfer_syntax: str = ""
    localizer: bool = False  # every image is a scout or a projection
    virtual: bool = False  # made by a network
    declared: str = ""
    series_uid: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    frame_uid: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    manufacturer: str = field(default="", repr=False)
    trial: str = field(default="", repr=False)
    contrast_agent: str = field(default="", repr=False)
    contrast_start: str = field(default="", repr=False)  # DICOM TM
    acquired: str = field(default="", repr=False)  # DICOM TM of the first slice in time
    files: tuple[str, ...] = field(default=(), repr=False)  # addresses, sorted

    @property
    def is_nifti(self) -> bool:
        return len(self.files) == 1 and self.files[0].lower().endswith(NIFTI)


@dataclass(frozen=True)
class Survey:
    """An archive's series, and the files that are none with the reason why."""

    rows: list[SeriesRow]
    skipped: list[tuple[str, str]]  # address, why

    def why_skipped(self) -> dict[str, int]:
        """Number of skipped files by reason."""
        return dict(Counter(why for _, why in self.skipped))


def short_hash(text: str) -> str:
    """The only form in which an identifier leaves an archive."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scan(uri: str | Folder) -> list[SeriesRow]:
    """The series of an archive, sorted by key. See ``survey``."""
    return survey(uri).rows


def survey(uri: str | Folder) -> Survey:
    """The series of an archive by their headers, and what else lay there.

    Raises:
        InputError: There is no such place, it cannot be read, or it holds no series.
    """
    root, names = _names(str(uri))
    series: dict[str, list[tuple[str, pydicom.Dataset]]] = {}
    rows, skipped = [], []
    wanted = [name for name in names if not _is_hidden(name) and name != PHASES_FILE]
    dicom = [name for name in wanted if not name.lower().endswith(NIFTI)]
    for name in wanted:
        if name.lower().endswith(NIFTI):
            try:
                rows.append(_nifti_row(root, name))
            except ValueError as error:
                skipped.append((f"{root}/{name}", str(error)))
    for name, found in zip(dicom, _headers(root, dicom), strict=True):
        address = f"{root}/{name}"
        if isinstance(found, str):
            skipped.append((address, found))
        elif not found.get("SeriesInstanceUID"):
            skipped.append((address, "no Series Instance UID"))
        else:
            series.setdefault(str(found.SeriesInstanceUID), []).append((address, found))
    rows += [_row(uid, instances) for uid, instances in series.items()]
    if not rows:
        found_instead = Counter(why for _, why in skipped)
        raise InputError(
            f"{uri}: expected an archive of CT in DICOM or NIfTI, found "
            + (
                ", ".join(f"{count} files: {why}" for why, count in found_instead.items())
                or "an empty folder"
            )
        )
    if PHASES_FILE in names:
        rows = _declared(root, rows)
    return Survey(sorted(rows, key=lambda row: row.key), skipped)


def _names(uri: str) -> tuple[str, list[str]]:
    """The archive's root and the names below it."""
    if uri.lower().endswith(NIFTI):
        parent, _, name = Folder(uri).uri.rpartition("/")
        if not Folder(parent).exists(name):
            raise InputError(f"{uri}: expected a NIfTI file, found none")
        return parent, [name]
    root = Folder(uri)
    names = root.names()
    if not names:
        found = "an empty folder" if root.exists() else "nothing"
        raise InputError(f"{uri}: expected an archive of CT in DICOM or NIfTI, found {found}")
    return root.uri.rstrip("/"), names


def _is_hidden(name: str) -> bool:
    """Files of the operating system, and a DICOMDIR, which only points at the others."""
    parts = name.split("/")
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1] == "DICOMDIR"


def _headers(root: str, names: Sequence[str]) -> list[pydicom.Dataset | str]:
    """Each file's header, or why it has none, in order."""
    if "://" not in root:
        return [_header(open, f"{root}/{name}") for name in names]
    fs, base = url_to_fs(root)

    def remote(name: str) -> pydicom.Dataset | str:
        path = f"{base}/{name}"
        try:
            head = fs.cat_file(path, start=0, end=HEAD)
            if len(head) == HEAD and not _is_whole(head):
                head = fs.cat_file(path)
        except Exception as error:  # a store that fails is no reason to call a file "not DICOM"
            raise InputError(f"{root}: a file cannot be read ({type(error).__name__})") from error
        return _header(lambda content, _: io.BytesIO(content), head)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(remote, names))


def _header(opened: Any, source: Any) -> pydicom.Dataset | str:
    try:
        with opened(source, "rb") as stream:
            return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
    except InvalidDicomError:
        return "not DICOM"
    except Exception as error:  # damaged files make pydicom raise almost anything
        return f"unreadable header ({type(error).__name__})"


def _is_whole(head: bytes) -> bool:
    """Whether the first bytes of a file hold its header up to Pixel Data (7FE0,0010)."""
    try:
        stream = io.BytesIO(head)
        pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return stream.read(4) in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
    except Exception:  # cut short, in any of many ways
        return False


def _row(uid: str, instances: list[tuple[str, pydicom.Dataset]]) -> SeriesRow:
    instances = sorted(instances, key=lambda instance: instance[0])
    headers = [header for _, header in instances]
    images = [header for header in headers if not is_localizer(header)]
    first = (images or headers)[0]
    patient_id = _text(first, "PatientID")
    times = sorted(filter(None, (_text(header, "AcquisitionTime") for header in images)))
    return SeriesRow(
        key=short_hash(uid),
        patient=short_hash(patient_id),
        modality=_text(first, "Modality"),
        slices=len(images or headers),
        rows=int(first.get("Rows") or 0),
        columns=int(first.get("Columns") or 0),
        spacing=_spacing(images),
        thickness=_number(first.get("SliceThickness")),
        kernel=_text(first, "ConvolutionKernel"),
        transfer_syntax=str(first.file_meta.get("TransferSyntaxUID", "")),
        localizer=not images,
        virtual="VIRTUAL_CONTRAST" in _text(first, "ImageType"),
        series_uid=uid,
        study_uid=_text(first, "StudyInstanceUID"),
        patient_id=patient_id,
        frame_uid=_text(first, "FrameOfReferenceUID"),
        description=_text(first, "SeriesDescription"),
        manufacturer=_text(first, "Manufacturer"),
        trial=_text(first, "ClinicalTrialProtocolID"),
        contrast_agent=next(
            filter(None, (_text(header, "ContrastBolusAgent") for header in images)), ""
        ),
        contrast_start=_text(first, "ContrastBolusStartTime"),
        acquired=times[0] if times else "",
        files=tuple(address for address, _ in instances),
    )


def _spacing(images: Sequence[pydicom.Dataset]) -> tuple[float, float, float] | None:
    try:
        y, x = (float(step) for step in images[0].PixelSpacing)
        vectors = np.array(images[0].ImageOrientationPatient, float)
        normal = np.cross(vectors[:3], vectors[3:])
        z = np.sort(np.array([header.ImagePositionPatient for header in images], float) @ normal)
        return float(np.median(np.diff(z))) if len(z) > 1 else 0.0, y, x
    except (AttributeError, IndexError, TypeError, ValueError):
        return None  # the reader will say what is missing, if the series is ever read


def _text(header: pydicom.Dataset, word: str) -> str:
    value = header.get(word)
    if value is None:
        return ""
    many = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
    return "\\".join(map(str, value)) if many else str(value).strip()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# ---- NIfTI ---------------------------------------------------------------------------------------


def _nifti_row(root: str, name: str) -> SeriesRow:
    """A NIfTI file as a series; its folder below the root stands for the patient."""
    fs, base = url_to_fs(root)
    head = fs.cat_file(f"{base}/{name}", start=0, end=HEAD)
    if name.lower().endswith(".gz"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error as error:
            raise ValueError("not gzip") from error
    if len(head) < 348 or head[344:347] not in (b"n+1", b"ni1"):
        raise ValueError("not NIfTI-1")
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    dimensions = struct.unpack(f"{order}8h", head[40:56])
    steps = struct.unpack(f"{order}8f", head[76:108])
    parent, _, _ = name.rpartition("/")
    return SeriesRow(
        key=short_hash(name),
        patient=short_hash(parent or name),
        modality="CT",
        slices=dimensions[3],
        rows=dimensions[2],
        columns=dimensions[1],
        spacing=(steps[3], steps[2], steps[1]),
        series_uid=name,
        patient_id=parent or name,
        files=(f"{root}/{name}",),
    )


# ---- phases.csv ----------------------------------------------------------------------------------


def _declared(root: str, rows: list[SeriesRow]) -> list[SeriesRow]:
    """The rows with what phases.csv says of them."""
    place = f"{root}/{PHASES_FILE}"
    table = csv.DictReader(io.StringIO(Folder(root).read(PHASES_FILE).decode("utf-8-sig")))
    if not {"series", "phase"} <= set(table.fieldnames or ()):
        raise InputError(
            f"{place}: expected columns series, phase and perhaps patient, found "
            f"{', '.join(table.fieldnames or ()) or 'none'}"
        )
    by_uid = {row.series_uid: row for row in rows}
    allowed = (*get_args(Phase), IGNORE)
    for line in table:
        where = f"{place}, line {table.line_num}"
        uid, phase = (line["series"] or "").strip(), (line["phase"] or "").strip().lower()
        if phase not in allowed:
            raise InputError(f"{where}: expected a phase of {', '.join(allowed)}, found {phase!r}")
        if uid not in by_uid:
            raise InputError(f"{where}: expected a series of this archive, found none of that name")
        patient_id = (line.get("patient") or "").strip() or by_uid[uid].patient_id
        by_uid[uid] = replace(
            by_uid[uid], declared=phase, patient_id=patient_id, patient=short_hash(patient_id)
        )
    return list(by_uid.values())
