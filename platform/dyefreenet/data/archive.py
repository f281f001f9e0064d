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
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydicom
import SimpleITK as sitk

from dyefreenet.config import Phase
from dyefreenet.data.dicom import is_localizer
from dyefreenet.data.files import IMAGES, INSIDE, PACKAGES, opened, read_header, unpacked
from dyefreenet.data.frames import GROUPS, frames_of
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.store import Folder

PHASES_FILE = "phases.csv"
DICOMDIR = "DICOMDIR"
NIFTI = (".nii", ".nii.gz")
PHANTOM_MAKER = "Phantom "  # how the phantom's Manufacturer (0008,0070) begins
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
    "AcquisitionNumber",
    "NumberOfFrames",
    *GROUPS,
]
SAME_MM = 1e-3  # of two pixel spacings
SAME_DIRECTION = 1e-3  # of two direction cosines


@dataclass(frozen=True)
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
    split_at: str = field(default="", repr=False)
    stamp: str = ""
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
    def is_image(self) -> bool:
        """Whether this is one file that holds a whole volume, of a kind that SimpleITK reads."""
        return len(self.files) == 1 and self.files[0].lower().endswith(IMAGES)


@dataclass(frozen=True)
class Survey:
    """An archive's series, and the files that are none with the reason why."""

    rows: list[SeriesRow]
    skipped: list[tuple[str, str]]  # address, why


def short_hash(text: str, salt: str = "") -> str:
    """The only form in which an identifier leaves an archive: 16 hex digits.

    Without the salt nobody can try out names; with it, the same text gives the same digits.
    """
    if not salt:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    return hmac.new(salt.encode(), text.encode(), "sha256").hexdigest()[:16]


def is_phantom(manufacturer: str) -> bool:
    return manufacturer.startswith(PHANTOM_MAKER)


def scan(uri: str | Folder, salt: str = "", phases: str | None = None) -> list[SeriesRow]:
    """The series of an archive, sorted by key. See ``survey``."""
    return survey(uri, salt, phases).rows


def survey(uri: str | Folder, salt: str = "", phases: str | None = None) -> Survey:
    """The series of an archive by their headers, and what else lay there.

    Args:
        salt: Goes into every hash.
        phases: A table like ``phases.csv``, in its place; it may name series of other archives.

    Raises:
        InputError: There is no such place, it cannot be read, or it holds no series.
    """
    root, stamps = _names(str(uri))
    names = list(stamps)
    series: dict[str, list[tuple[str, list[pydicom.Dataset]]]] = {}
    rows, skipped = [], []
    wanted = [name for name in names if not _is_hidden(name) and name != PHASES_FILE]
    for name in wanted:
        if name.lower().endswith(IMAGES):
            try:
                rows.append(_image_row(root, name, salt))
            except ValueError as error:
                skipped.append((f"{root}/{name}", str(error)))
    for address, found in _headers(root, wanted):
        if isinstance(found, str):
            skipped.append((address, found))
        elif not found[0].get("SeriesInstanceUID"):
            skipped.append((address, "no Series Instance UID"))
        else:
            series.setdefault(str(found[0].SeriesInstanceUID), []).append((address, found))
    for name in names:
        if name.rpartition("/")[2] == DICOMDIR:
            absent = _absent(root, name, names)
            skipped += [(f"{root}/{name}", "listed in DICOMDIR and not there")] * absent
    rows += [
        _row(uid, stack, instances, salt, alone=len(stacks) == 1)
        for uid, stacks in ((uid, _stacks(whole)) for uid, whole in series.items())
        for stack, instances in stacks.items()
    ]
    if not rows:
        found_instead = Counter(why for _, why in skipped)
        raise InputError(
            f"{uri}: expected an archive of CT in DICOM, NIfTI, NRRD or MetaImage, found "
            + (
                ", ".join(f"{count} files: {why}" for why, count in found_instead.items())
                or "an empty folder"
            )
        )
    if phases is not None:
        rows = _declared(phases, rows, salt, whole=False)
    elif PHASES_FILE in names:
        rows = _declared(f"{root}/{PHASES_FILE}", rows, salt, whole=True)
    rows = [replace(row, stamp=_stamp(row, root, stamps)) for row in rows]
    return Survey(sorted(rows, key=lambda row: row.key), skipped)


def _stamp(row: SeriesRow, root: str, stamps: dict[str, str]) -> str:
    names = [file.removeprefix(f"{root}/") for file in row.files]
    lines = [f"{name} {stamps.get(name.partition(INSIDE)[0], '')}" for name in names]
    return short_hash("\n".join(lines))


def _names(uri: str) -> tuple[str, dict[str, str]]:
    """The archive's root, and the names below it with their stamps."""
    if uri.lower().endswith((*IMAGES, *PACKAGES)):
        parent, _, name = Folder(uri).uri.rpartition("/")
        if not Folder(parent).exists(name):
            raise InputError(f"{uri}: expected a file, found none")
        return parent, {name: Folder(parent).stamps().get(name, "")}
    root = Folder(uri.removesuffix(DICOMDIR)) if uri.endswith(f"/{DICOMDIR}") else Folder(uri)
    names = root.stamps()
    if not names:
        found = "an empty folder" if root.exists() else "nothing"
        raise InputError(f"{uri}: expected an archive of CT in DICOM or NIfTI, found {found}")
    return root.uri.rstrip("/"), names


def _is_hidden(name: str) -> bool:
    """Files of the operating system, and a DICOMDIR, which only points at the others."""
    parts = name.split("/")
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1] == DICOMDIR


def _absent(root: str, name: str, names: Sequence[str]) -> int:
    """How many files a DICOMDIR lists that are not below its folder."""
    try:
        listed = pydicom.dcmread(io.BytesIO(Folder(root).read(name))).DirectoryRecordSequence
        parts = [record.get("ReferencedFileID") for record in listed]
    except Exception:  # it is not needed: the files themselves are read
        return 0
    above = name.removesuffix(DICOMDIR)
    there = {other.upper() for other in names}
    paths = ["/".join([one] if isinstance(one, str) else one) for one in parts if one]
    return sum(f"{above}{path}".upper() not in there for path in paths)


def _headers(root: str, names: Sequence[str]) -> Iterator[tuple[str, list[pydicom.Dataset] | str]]:
    """Address and headers of each DICOM file, one header a frame, or why there is none."""
    plain = [name for name in names if not name.lower().endswith((*IMAGES, *PACKAGES))]
    for name in names:
        if name.lower().endswith(PACKAGES):
            for inside, content in unpacked(f"{root}/{name}"):
                if not _is_hidden(inside):
                    yield f"{root}/{name}{INSIDE}{inside}", _header(content)
    if "://" not in root:
        for name in plain:
            yield f"{root}/{name}", _header(Path(root, name))
        return
    folder = Folder(root)

    def remote(number: int, name: str) -> tuple[str, list[pydicom.Dataset] | str]:
        label = f"file {number} of {len(plain)}"
        content = folder.read(name, first=HEAD, label=label)
        if len(content) == HEAD and not _is_whole(content):
            content = folder.read(name, label=label)
        return f"{root}/{name}", _header(content)

    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(remote, range(1, len(plain) + 1), plain)


def _header(file: bytes | Path | str) -> list[pydicom.Dataset] | str:
    """Headers of a file's frames; a text says why there are none."""
    if isinstance(file, str):
        return file
    try:
        with opened(file) as stream:
            header, _, _ = read_header(stream, TAGS)
        return frames_of(header)
    except SeriesError as error:
        return error.detail


def _is_whole(head: bytes) -> bool:
    """Whether the first bytes of a file hold its header up to Pixel Data (7FE0,0010)."""
    try:
        stream = io.BytesIO(head)
        pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return stream.read(4) in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
    except Exception:  # cut short, in any of many ways
        return False


Instances = list[tuple[str, list[pydicom.Dataset]]]  # address, headers of its frames


def _stacks(instances: Instances) -> dict[str, Instances]:
    """The stacks of images under one Series Instance UID, by what tells them apart.

    Scouts stay with the first stack; two acquisitions of one place are two stacks.
    """
    stacks: dict[str, Instances] = {}
    scouts = [one for one in instances if all(map(is_localizer, one[1]))]
    for one in instances:
        if one not in scouts:
            stacks.setdefault(_grid_of(one[1][0]), []).append(one)
    split: dict[str, Instances] = {}
    for name, stack in stacks.items():
        numbers = {_text(headers[0], "AcquisitionNumber") for _, headers in stack}
        places = [
            tuple(map(str, headers[0].get("ImagePositionPatient") or ())) for _, headers in stack
        ]
        if len(numbers) > 1 and len(set(places)) < len(places):
            for one in stack:
                number = _text(one[1][0], "AcquisitionNumber")
                split.setdefault(f"{name} acquisition {number}", []).append(one)
        else:
            split[name] = stack
    if not split:
        return {"": instances}
    first = min(split)
    split[first] = split[first] + scouts
    return split


def _grid_of(header: pydicom.Dataset) -> str:
    """What is the same in all images of a stack, in steps that forgive a last digit."""
    numbers = [
        [_number(value) for value in header.get(word) or ()]
        for word in ("PixelSpacing", "ImageOrientationPatient")
    ]
    steps = [
        [round((value or 0.0) / step) for value in values]
        for values, step in zip(numbers, (SAME_MM, SAME_DIRECTION), strict=True)
    ]
    kind = _text(header, "ImageType").split("\\")[2:3]
    words = [_text(header, word) for word in ("FrameOfReferenceUID", "Rows", "Columns")]
    return repr([*words, *steps, kind])


def _row(uid: str, stack: str, instances: Instances, salt: str, alone: bool) -> SeriesRow:
    instances = sorted(instances, key=lambda instance: instance[0])
    headers = [header for _, frames in instances for header in frames]
    images = [header for header in headers if not is_localizer(header)]
    first = (images or headers)[0]
    patient_id = _text(first, "PatientID")
    times = sorted(filter(None, (_text(header, "AcquisitionTime") for header in images)))
    if is_phantom(_text(first, "Manufacturer")):
        salt = ""  # made-up patients need none, and without it every run of a recipe is the same
    return SeriesRow(
        key=short_hash(uid if alone else f"{uid} {stack}", salt),
        patient=short_hash(patient_id, salt),
        split_at=short_hash(patient_id),
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


# ---- whole volumes -------------------------------------------------------------------------------


def _image_row(root: str, name: str, salt: str) -> SeriesRow:
    """An image file as a series; its folder below the root stands for the patient."""
    head = Folder(root).read(name, first=HEAD, label="an image file")
    if name.lower().endswith(NIFTI):
        size, spacing = _nifti_size(name, head)
    else:
        size, spacing = _image_size(name, head)
    if len(size) != 3:
        raise ValueError("an image that is not a volume")
    parent, _, _ = name.rpartition("/")
    patient_id = parent or name
    return SeriesRow(
        key=short_hash(name, salt),
        patient=short_hash(patient_id, salt),
        split_at=short_hash(patient_id),
        modality="CT",
        slices=size[2],
        rows=size[1],
        columns=size[0],
        spacing=(spacing[2], spacing[1], spacing[0]),
        series_uid=name,
        patient_id=patient_id,
        files=(f"{root}/{name}",),
    )


def _nifti_size(name: str, head: bytes) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels and mm along x, y, z, by the first bytes of a NIfTI-1 file."""
    if name.lower().endswith(".gz"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error as error:
            raise ValueError("not gzip") from error
    if len(head) < 348 or head[344:347] not in (b"n+1", b"ni1"):
        raise ValueError("not NIfTI-1")
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    size = struct.unpack(f"{order}8h", head[40:56])
    return size[1:4], struct.unpack(f"{order}8f", head[76:108])[1:4]


def _image_size(name: str, head: bytes) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels and mm along x, y, z, by the first bytes of an NRRD or MetaImage file."""
    reader = sitk.ImageFileReader()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / f"head{Path(name).suffix.lower()}"
        local.write_bytes(head)
        reader.SetFileName(str(local))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ValueError("no header of an image") from error
    return reader.GetSize(), reader.GetSpacing()


# ---- phases.csv ----------------------------------------------------------------------------------


def _declared(place: str, rows: list[SeriesRow], salt: str, whole: bool) -> list[SeriesRow]:
    """The rows with what a table of phases says of them; ``whole``: it names no other series."""
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
                patient=short_hash(patient_id, salt),
                split_at=short_hash(patient_id),
            )
        declared.append(replace(row, declared=phase))
    return declared
