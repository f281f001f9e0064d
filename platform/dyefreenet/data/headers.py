"""What the headers of an archive's files say, file by file: the part of a scan that is spread out.

``read_headers`` takes some files and gives facts, plain numbers and text, so that a scan of
millions of files holds none of their headers. What the facts come to is ``archive.py``'s.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.datadict import tag_for_keyword
from pydicom.tag import BaseTag

from dyefreenet.data.dicom import is_localizer
from dyefreenet.data.files import (
    GONE,
    IMAGES,
    INSIDE,
    MAX_FILE,
    NO_DICOM,
    PACKAGES,
    PIXEL_DATA,
    Known,
    is_dicom,
    opened,
    read_header,
    split_packed,
    unpacked,
)
from dyefreenet.data.frames import GROUPS, frames_of
from dyefreenet.data.images import NIFTI
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.store import Folder

DICOMDIR = "DICOMDIR"
HEAD = 64 * 1024  # bytes of a remote file read at first; a header rarely is longer
TAGS = [
    "ImageType",
    "SOPClassUID",
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
_NUMBERS = {word: BaseTag(tag_for_keyword(word) or 0) for word in TAGS}
NO_UID = "no Series Instance UID in"  # and a folder: what stands for a series without a name
SAME_MM = 1e-3  # of two pixel spacings
SAME_DIRECTION = 1e-3  # of two direction cosines


@dataclass(frozen=True)
class Portion:
    """Some files of an archive: names below its root, each with the stamp of its content."""

    root: str
    files: tuple[tuple[str, str], ...]


class Common(NamedTuple):
    """What all images of a series say, more or less; ``stack`` tells its blocks apart."""

    stack: str
    modality: str
    patient_id: str
    study_uid: str
    description: str
    manufacturer: str
    trial: str
    rows: int
    columns: int
    spacing: tuple[float | None, float, float] | None  # mm; z is None where slices tell it
    thickness: float | None  # mm
    kernel: str
    virtual: bool
    contrast_start: str


class Facts(NamedTuple):
    """What one file says: of an image, of frames, or of a whole volume.

    Attributes:
        series: Series Instance UID; the name of an image file.
        name: Below the archive's root.
        images: Slices; scouts and projections do not count.
        frames: With them.
        z: Places of the slices along their normal, mm; empty where the header does not tell.
    """

    series: str
    name: str
    stamp: str
    images: int
    frames: int
    z: list[float]
    place: str
    acquisition: str
    time: str
    agent: str
    common: Common


class Skipped(NamedTuple):
    """A file that is none of a series, and why."""

    why: str


def read_headers(portion: Portion) -> list[Facts | Skipped]:
    """The facts of some files. Names may name patients, and so may some of the facts."""
    root, stamps = portion.root, dict(portion.files)
    found: list[Facts | Skipped] = []
    for name, stamp in portion.files:
        if name.lower().endswith(IMAGES):
            try:
                found.append(_image_facts(root, name, stamp))
            except ValueError as error:
                found.append(Skipped(str(error)))
            except InputError:
                if "://" in root and Folder(root).exists(name):
                    raise
                found.append(Skipped(GONE if "://" in root else "cannot be opened"))
    for name, headers in _headers(root, stamps):
        if isinstance(headers, str):
            found.append(Skipped(headers))
            continue
        try:
            found.append(_facts(name, stamps[split_packed(name)[0]], headers))
        except Exception as error:  # pydicom understands a value when it is first asked for
            found.append(Skipped(f"{type(error).__name__} in its header"))
    return found


def is_hidden(name: str) -> bool:
    """Files of the operating system, and a DICOMDIR, which only points at the others."""
    parts = name.split("/")
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1] == DICOMDIR


def _headers(
    root: str, stamps: dict[str, str]
) -> Iterator[tuple[str, list[pydicom.Dataset] | str]]:
    """Name and headers of each DICOM file, one header a frame, or why there is none."""
    known = Known()  # files of a series say much in the same bytes
    plain = [name for name in stamps if not name.lower().endswith((*IMAGES, *PACKAGES))]
    for name in stamps:
        if name.lower().endswith(PACKAGES):
            for inside, content in unpacked(f"{root}/{name}"):
                if not is_hidden(inside):
                    yield f"{name}{INSIDE}{inside}", _header(content, known)
    if "://" not in root:
        for name in plain:
            yield name, _header(Path(root, name), known)
        return
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: _remote(root, name, stamps[name], known), plain)
        yield from zip(plain, found, strict=True)


def _remote(root: str, name: str, stamp: str, known: Known) -> list[pydicom.Dataset] | str:
    """Headers of a remote file, of which no more is read than they need.

    Args:
        stamp: Begins with its size, in bytes.
    """
    size = stamp.partition("-")[0]
    if size.isdecimal() and int(size) > MAX_FILE:
        return f"a file of {int(size) >> 20} MiB; expected {MAX_FILE >> 20} or less"
    try:
        content = Folder(root).read(name, first=HEAD, label="one of its files")
    except InputError:
        if Folder(root).exists(name):
            raise
        return GONE
    if len(content) == HEAD:
        if not is_dicom(content):
            return NO_DICOM
        try:
            stream = io.BytesIO(content)
            header, _, inflated = read_header(stream, TAGS, known)
            if inflated is None and stream.read(4) in PIXEL_DATA:
                return frames_of(header)
        except SeriesError:
            pass  # cut within its header, in any of many ways: the whole file tells more
        content = Folder(root).read(name, label="one of its files")
    return _header(content, known)


def _header(file: bytes | Path | SeriesError, known: Known) -> list[pydicom.Dataset] | str:
    """Headers of a file's frames; a text says why there are none."""
    if isinstance(file, SeriesError):
        return file.detail
    try:
        with opened(file) as stream:
            header, _, _ = read_header(stream, TAGS, known)
        return frames_of(header)
    except SeriesError as error:
        return error.detail
    except FileNotFoundError:
        return GONE
    except OSError as error:
        return f"cannot be opened ({error.strerror})"


# ---- DICOM ---------------------------------------------------------------------------------------


def _facts(name: str, stamp: str, headers: list[pydicom.Dataset]) -> Facts | Skipped:
    folder = name.rpartition("/")[0] or "."
    series = _text(headers[0], "SeriesInstanceUID")
    if not series and not _value(headers[0], "Rows"):
        return Skipped("no Series Instance UID, and no image")
    images = [header for header in headers if not is_localizer(header)]
    first = (images or headers)[0]
    spacing = [_number(value) for value in _value(first, "PixelSpacing") or ()]
    y, x = spacing if len(spacing) == 2 else (None, None)
    return Facts(
        series=series or f"{NO_UID} {folder}",
        name=name,
        stamp=stamp,
        images=len(images),
        frames=len(headers),
        z=_places(images),
        place=_text(headers[0], "ImagePositionPatient"),
        acquisition=_text(headers[0], "AcquisitionNumber"),
        time=min(filter(None, (_text(header, "AcquisitionTime") for header in images)), default=""),
        agent=next(filter(None, (_text(header, "ContrastBolusAgent") for header in images)), ""),
        common=Common(
            stack=_stack(first) if images else "",
            modality=_text(first, "Modality"),
            # Two that say nothing are not one: each folder is then a patient and study of its own.
            patient_id=_text(first, "PatientID") or _text(first, "StudyInstanceUID") or folder,
            study_uid=_text(first, "StudyInstanceUID") or folder,
            description=_text(first, "SeriesDescription"),
            manufacturer=_text(first, "Manufacturer"),
            trial=_text(first, "ClinicalTrialProtocolID"),
            rows=int(_value(first, "Rows") or 0),
            columns=int(_value(first, "Columns") or 0),
            spacing=(None, y, x) if y and x else None,
            thickness=_number(_value(first, "SliceThickness")),
            kernel=_text(first, "ConvolutionKernel"),
            virtual="VIRTUAL_CONTRAST" in _text(first, "ImageType"),
            contrast_start=_text(first, "ContrastBolusStartTime"),
        ),
    )


def _stack(header: pydicom.Dataset) -> str:
    """What is the same in all images of a stack, in steps that forgive a last digit."""
    numbers = [
        [_number(value) for value in _value(header, word) or ()]
        for word in ("PixelSpacing", "ImageOrientationPatient")
    ]
    steps = [
        [round((value or 0.0) / step) for value in values]
        for values, step in zip(numbers, (SAME_MM, SAME_DIRECTION), strict=True)
    ]
    kind = _text(header, "ImageType").split("\\")[2:3]
    words = [_text(header, word) for word in ("FrameOfReferenceUID", "Rows", "Columns")]
    return repr([*words, *steps, kind])


def _places(images: Sequence[pydicom.Dataset]) -> list[float]:
    try:
        vectors = np.array(images[0].ImageOrientationPatient, float)
        normal = np.cross(vectors[:3], vectors[3:])
        z = np.array([header.ImagePositionPatient for header in images], float) @ normal
    except (AttributeError, IndexError, TypeError, ValueError):
        return []  # the reader will say what is missing, if the series is ever read
    return [round(float(place), 4) for place in z] if np.isfinite(z).all() else []


def _text(header: pydicom.Dataset, word: str) -> str:
    value = _value(header, word)
    if value is None:
        return ""
    many = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
    return "\\".join(map(str, value)) if many else str(value).strip()


def _value(header: pydicom.Dataset, word: str) -> Any:
    element = header.get(_NUMBERS[word])  # by number: a third of the time that a keyword takes
    return None if element is None else element.value


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


# ---- whole volumes -------------------------------------------------------------------------------


def _image_facts(root: str, name: str, stamp: str) -> Facts:
    """An image file as a series; its folder below the root stands for the patient."""
    head = Folder(root).read(name, first=HEAD, label="an image file")
    if name.lower().endswith(NIFTI):
        size, spacing = _nifti_size(name, head)
    else:
        size, spacing = _image_size(name, head)
    if len(size) != 3:
        raise ValueError("an image that is not a volume")
    common = Common(
        stack="",
        modality="CT",
        patient_id=name.rpartition("/")[0] or name,
        study_uid="",
        description="",
        manufacturer="",
        trial="",
        rows=size[1],
        columns=size[0],
        spacing=(spacing[2], spacing[1], spacing[0]),
        thickness=None,
        kernel="",
        virtual=False,
        contrast_start="",
    )
    return Facts(name, name, stamp, size[2], size[2], [], "", "", "", "", common)


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
