"""One CT series in DICOM to a Volume in HU, or a SeriesError that says why not.

Nothing is repaired in silence: what is left out (a scout image, a slice stored twice) stands in
``Series.notes``, and whatever would need a guess is refused. Multi-frame files are read frame by
frame; sizes are checked before pixels are decoded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian

from dyefreenet.data.codecs import SYNTAXES, Fragments, decode, frames_at, read_frame
from dyefreenet.data.files import PIXEL_DATA, File, Known, opened, read_header
from dyefreenet.data.frames import MULTI_FRAME, frames_of
from dyefreenet.data.volume import AIR_HU, Volume
from dyefreenet.errors import SeriesError

# Scanners fill what lies outside the round field of view with one number far below air, such as
# -2000, -2048 or -3024 HU. Noise in air reaches about -1150 HU, so nothing measured is this low.
FILL_HU = -1500
AXIAL = 0.9  # least |z| of the slice normal, a tilt of 26 degrees
TILTED = 0.85  # the same where slices are worked on one by one: gantries lean up to 30 degrees
STEP_TOLERANCE = 0.01  # of the distance between slices
STEP_TOLERANCE_MM = 0.01  # positions are often written with two decimals
SAME_PLACE_MM = 0.01
GAP = 1.5  # times the median step: a slice is missing, and the next is no neighbour
DRIFT_MM = 0.1  # sideways, over a whole series
MAX_SIDE = 4096  # pixels; the largest CT matrix in use is 2048
MAX_VOXELS = 2 << 30  # of a series, 4 GiB in 16 bits
REQUIRED = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "BitsStored",
    "PixelRepresentation",
)
PLACE = {int(Tag(word)) for word in ("ImagePositionPatient", "InstanceNumber")}
MODALITIES = (
    *("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "IO", "OT", "SC", "ES", "XC"),
    *("SR", "SEG", "REG", "PR", "KO", "DOC", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "FUSION"),
)


@dataclass(frozen=True)
class Series:
    """A CT series as it was read.

    Attributes:
        volume: HU and geometry.
        headers: Each slice's data set without pixels, in the order of the volume. They share
            elements, so these are to be replaced, never changed.
        paths: Where each slice came from, in the same order; "" where bytes were given.
        stored_padding: What the file stores where ``volume.padding`` is True, in C order, so that
            a derived series can write the same; empty where there is no padding.
        notes: What was left out, in words that name no patient.
        breaks: Slices after which one is missing, so that the next is no neighbour.
    """

    volume: Volume
    headers: list[pydicom.Dataset]
    paths: list[str]
    stored_padding: NDArray[np.int32]
    notes: tuple[str, ...] = ()
    breaks: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Slice:
    """A slice's header, and where its pixels begin."""

    file: File
    header: pydicom.Dataset  # of a multi-frame file: with this frame's attributes at the top
    pixels_at: int  # byte of Pixel Data's own tag
    compressed: bool
    frame: int = 0  # within its file
    frames: int = 1
    alike: bool = False  # its header says what the one read before it says, but for its place
    # of a compressed file, once it was looked at: where each frame lies
    places: list[Fragments] = field(default_factory=list)

    @property
    def path(self) -> str:
        return "" if isinstance(self.file, bytes) else str(self.file)

    @property
    def name(self) -> str:
        """For messages: the number within the series, never text that may name a patient."""
        number = str(self.header.get("InstanceNumber", ""))
        return f"instance {number if number.isdecimal() else '?'}"


# ---- one series ----------------------------------------------------------------------------------


def read_series(files: Sequence[File], slice_wise: bool = False) -> Series:
    """The slices of one DICOM series as a volume.

    Slices are sorted by Image Position along the normal of Image Orientation, never by file name or
    Instance Number. HU come from each slice's own Rescale Slope and Intercept. Padding (Pixel
    Padding Value and its range, or anything below ``FILL_HU``) is masked before it is rescaled;
    measured values below -1024 HU are raised to it.

    Args:
        files: Of one series, in any order.
        slice_wise: Each slice is to be worked on in its own place, so a gantry may lean and steps
            may differ: the volume's spacing along z is then the median step, its z axis not the
            true one, and ``breaks`` says where slices are missing.

    Raises:
        SeriesError: The files are not one regular axial CT series; the reason says why.
    """
    if not files:
        raise SeriesError("short", "0 files; a triplet needs at least 3 slices")
    known = Known()
    slices = [
        one
        for number, file in enumerate(files, start=1)
        for one in _open(file, number, len(files), known)
    ]
    for one in slices:
        if not one.alike:
            _require_ct(one)
    images = [one for one in slices if not is_localizer(one.header)]
    notes = []
    if not images:
        raise SeriesError("localizer", f"{len(slices)} images, all of them scouts or projections")
    if len(images) < len(slices):
        notes.append(f"{len(slices) - len(images)} localizer images left out")
    distinct = [one for one in images if not one.alike]  # the first image among them
    _require_one_series(distinct)

    row, column, normal = _orientation(distinct, TILTED if slice_wise else AXIAL)
    positions = np.array([_numbers(one, "ImagePositionPatient", 3) for one in images])  # [N, 3]
    order = np.argsort(positions @ normal, kind="stable")
    images, positions = [images[number] for number in order], positions[order]
    shape = _shape(images)  # copies are decoded to be compared
    kept = _without_copies(images, positions @ normal)
    if len(kept) < len(images):
        notes.append(f"{len(images) - len(kept)} slices stored twice, one copy left out")
        images, positions = [images[number] for number in kept], positions[kept]
    if slice_wise:
        step, breaks = median_step(positions @ normal)
    else:
        step, breaks = slice_step(positions, normal), ()

    shape = (len(images), *shape[1:])
    hu = np.empty(shape, np.int16)
    padding: NDArray[np.bool_] | None = None
    stored_padding = [np.empty(0, np.int32)]
    for number, one in enumerate(images):
        padded = _rescaled(one, _stored(one, hu[number]), hu[number])
        if padded is not None:
            padding = np.zeros(shape, np.bool_) if padding is None else padding
            padding[number] = padded[0]
            stored_padding.append(padded[1])
    spacing_y, spacing_x = _numbers(images[0], "PixelSpacing", 2)
    volume = Volume(
        hu,
        spacing=(step, spacing_y, spacing_x),
        origin=(float(positions[0][0]), float(positions[0][1]), float(positions[0][2])),
        direction=np.stack([row, column, normal]),
        padding=padding,
    )
    return Series(
        volume,
        [one.header for one in images],
        [one.path for one in images],
        np.concatenate(stored_padding),
        tuple(notes),
        breaks,
    )


def median_step(z: NDArray[np.float64]) -> tuple[float, tuple[int, ...]]:
    """Median distance of slices in mm, and the slices after which it is half as much again.

    Args:
        z: Positions along the normal in mm, rising, [N].
    """
    if len(z) < 3:
        raise SeriesError("short", f"{len(z)} slices; a triplet needs at least 3")
    steps = np.diff(z)
    median = float(np.median(steps))
    return median, tuple(int(at) for at in np.flatnonzero(steps > GAP * median))


def slice_step(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Distance between slices in mm; refuses a series with a hole, a copy or a shear.

    Args:
        positions: Image Position of each slice in mm, [N, 3], sorted along ``normal``.
        normal: Unit vector from slice to slice, [3].
    """
    if len(positions) < 3:
        raise SeriesError("short", f"{len(positions)} slices; a triplet needs at least 3")
    z = positions @ normal
    steps = np.diff(z)
    median = float(np.median(steps))
    tolerance = max(STEP_TOLERANCE * median, STEP_TOLERANCE_MM)
    worst = int(np.argmax(np.abs(steps - median)))
    if abs(steps[worst] - median) > tolerance:
        raise SeriesError(
            "gap",
            f"step of {steps[worst]:.2f} mm between z={z[worst]:.2f} and z={z[worst + 1]:.2f}; "
            f"the median step is {median:.2f} mm (tolerance {tolerance:.3f} mm)",
        )
    span = float(z[-1] - z[0])
    offsets = positions - positions[0]
    drift = float(np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max())
    if drift > DRIFT_MM:
        raise _drifted(positions, normal, drift, span)
    return span / (len(positions) - 1)


def _drifted(
    positions: NDArray[np.float64], normal: NDArray[np.float64], drift: float, span: float
) -> SeriesError:
    """Why slices lie beside each other: a steady way is a tilt or a shear, another one a fault."""
    way = positions[-1] - positions[0]
    along = np.linspace(0, 1, len(positions))
    rest = float(np.linalg.norm(positions - positions[0] - np.outer(along, way), axis=1).max())
    told = (
        f"slices drift {drift:.2f} mm sideways over {span:.1f} mm; expected {DRIFT_MM} mm at most"
    )
    if rest > DRIFT_MM:
        return SeriesError("geometry", f"{told}; they leave a straight line by {rest:.2f} mm")
    angle = np.degrees(np.arctan2(drift, span))
    tilted = abs(normal[2]) < 1 - 1e-5  # the gantry leans, the table does not
    return SeriesError(
        "tilt", f"{told}; {'gantry tilt' if tilted else 'shear'} {angle:.1f} degrees"
    )


def is_localizer(header: pydicom.Dataset) -> bool:
    """Whether Image Type (0008,0008) calls this a scout, or a projection through many slices."""
    words = {str(word).upper() for word in header.get("ImageType", None) or []}
    return "LOCALIZER" in words or any("MIP" in word or "MINIP" in word for word in words)


def _open(file: File, number: int, total: int, known: Known) -> list[_Slice]:
    """The slices of a file: one, or the frames of Enhanced CT."""
    try:
        with opened(file) as stream:
            header, plain_at, inflated = read_header(stream, known=known)
            pixels_at = stream.tell() if plain_at is None else plain_at
        frames = frames_of(header)
    except SeriesError as error:
        raise SeriesError(error.reason, f"file {number} of {total}: {error.detail}") from error
    alike = len(frames) == 1 and known.changed <= PLACE
    places: list[Fragments] = []
    return [
        _Slice(inflated or file, frame, pixels_at, plain_at is None, at, len(frames), alike, places)
        for at, frame in enumerate(frames)
    ]


def _require_ct(one: _Slice) -> None:
    header = one.header
    modality, sop_class = header.get("Modality"), header.get("SOPClassUID")
    if modality != "CT" or (sop_class and sop_class not in (CTImageStorage, *MULTI_FRAME)):
        named = UID(str(sop_class or "")).name
        found = "no known SOP class" if not named or named == sop_class else named
        raise SeriesError(
            "not-ct",
            f"{one.name}: expected CT Image Storage, found {known_modality(modality)}, {found}",
        )
    missing = [word for word in REQUIRED if header.get(word) in (None, "")]
    # A scout may lack its place; it is left out in any case.
    if missing and not is_localizer(header):
        raise SeriesError("geometry", f"{one.name}: no {', '.join(missing)}")
    expected = {
        "SamplesPerPixel": (1,),
        "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2"),  # display alone; HU are equal
        "BitsAllocated": (16,),
        "PixelRepresentation": (0, 1),
        "NumberOfFrames": (None, 1),
    }
    for word, allowed in expected.items():
        found = header.get(word)
        if found not in allowed and not is_localizer(header):
            told = (
                found if found in (None, "RGB", "PALETTE COLOR") or str(found).isdecimal() else "?"
            )
            raise SeriesError("pixels", f"{one.name}: expected {word} {allowed}, found {told}")


def known_modality(text: object) -> str:
    """A modality by its code (PS3.3 C.7.3.1.1.1); any other text may be anything."""
    return str(text) if text in MODALITIES else "no known modality"


def _shape(images: list[_Slice]) -> tuple[int, int, int]:
    """[Z, H, W] of the volume, before anything of that size is taken."""
    header = images[0].header
    shape = (len(images), int(header.Rows), int(header.Columns))
    if not all(0 < side <= MAX_SIDE for side in shape[1:]):
        raise SeriesError(
            "limit", f"slices of {shape[1]} x {shape[2]}; expected sides up to {MAX_SIDE}"
        )
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise SeriesError("limit", f"{shape} voxels; expected {MAX_VOXELS} in all or fewer")
    return shape


def _require_one_series(images: list[_Slice]) -> None:
    """Refuse files of several series, or slices that do not fit into one block."""
    for word in ("SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        found = {str(one.header.get(word, "")) for one in images}
        if len(found) > 1:
            values = "" if word.endswith("UID") else f": {', '.join(sorted(found))}"
            raise SeriesError("mixed", f"{len(found)} different values of {word}{values}")
    spacings = np.array([_numbers(one, "PixelSpacing", 2) for one in images])  # [N, 2], mm
    if spacings.min() <= 0:
        raise SeriesError("geometry", f"PixelSpacing of {spacings.min()} mm; expected more than 0")
    if np.ptp(spacings, axis=0).max() > 1e-4 * spacings.min():
        raise SeriesError(
            "mixed", f"PixelSpacing from {spacings.min():.4f} to {spacings.max():.4f} mm"
        )


def _orientation(
    images: list[_Slice], least: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, along a column, and from slice to slice (PS3.3 C.7.6.2.1.1)."""
    vectors = np.array([_numbers(one, "ImageOrientationPatient", 6) for one in images])  # [N, 6]
    row, column = vectors[0, :3], vectors[0, 3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(row @ column) > 1e-3:
        raise SeriesError(
            "geometry",
            f"Image Orientation: expected two unit vectors at right angles, found lengths "
            f"{lengths[0]:.3f} and {lengths[1]:.3f}, product {row @ column:.4f}",
        )
    differs = float(np.ptp(vectors, axis=0).max())
    if differs > 1e-4:
        raise SeriesError("not-axial", f"Image Orientation differs by {differs:.4f} between slices")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    if abs(normal[2]) < least:
        raise SeriesError(
            "not-axial",
            f"the slice normal has |z| = {abs(normal[2]):.2f}; axial CT has at least {least}",
        )
    return row, column, normal


def _without_copies(images: list[_Slice], z: NDArray[np.float64]) -> list[int]:
    """Numbers of the slices to keep: of two with one place and one content, the first."""
    kept = [0]
    for number in range(1, len(images)):
        if z[number] - z[kept[-1]] > SAME_PLACE_MM:
            kept.append(number)
            continue
        same, other = images[kept[-1]], images[number]
        if not np.array_equal(_hu_of(same), _hu_of(other)):
            raise SeriesError(
                "duplicate",
                f"{same.name} and {other.name} are both at z={z[number]:.2f} mm, with other pixels",
            )
    return kept


def _numbers(one: _Slice, word: str, count: int) -> list[float]:
    try:
        values = [float(value) for value in one.header[word].value]
    except (KeyError, TypeError, ValueError) as error:
        raise SeriesError("geometry", f"{one.name}: {word} is missing or no number") from error
    if len(values) != count or not np.isfinite(values).all():
        raise SeriesError("geometry", f"{one.name}: expected {count} numbers in {word}: {values}")
    return values


# ---- pixels --------------------------------------------------------------------------------------


def _stored(one: _Slice, room: NDArray[np.int16]) -> NDArray[np.generic]:
    """Stored values before rescale, int16 or uint16 [H, W], bits above Bits Stored as found.

    Args:
        room: Overwritten, [H, W]; the values lie in it if they can.
    """
    signed = one.header.PixelRepresentation == 1
    if one.compressed:
        return _decoded(one, signed, room)
    with opened(one.file) as stream:
        tag = _to_pixels(one, stream)
        stream.seek(one.frame * room.nbytes, 1)
        found = stream.readinto(room.data.cast("B")) if tag else 0  # type: ignore[attr-defined]
    if found < room.nbytes:
        raise SeriesError(
            "unreadable",
            f"{one.name}: expected {room.nbytes} bytes of Pixel Data, found {found}",
        )
    big = one.header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if big != (sys.byteorder == "big"):
        room.byteswap(inplace=True)
    return room if signed else room.view(np.uint16)


def _to_pixels(one: _Slice, stream: BinaryIO) -> bytes:
    """Go to the value of Pixel Data; what stands before it, or b"" where there is none."""
    stream.seek(one.pixels_at)
    implicit, _ = one.header.original_encoding
    # tag, then VR, two reserved bytes and a length of four; implicit VR: tag and length
    tag = stream.read(8 if implicit else 12)
    return tag if tag[:4] in PIXEL_DATA else b""


def _decoded(one: _Slice, signed: bool, room: NDArray[np.int16]) -> NDArray[np.generic]:
    syntax = one.header.file_meta.TransferSyntaxUID
    try:
        if syntax not in SYNTAXES:
            raise ImportError("none is known")
        with opened(one.file) as stream:
            if not _to_pixels(one, stream).endswith(b"\xff\xff\xff\xff"):  # PS3.5 A.4
                raise ValueError("no Pixel Data of undefined length")
            if not one.places:
                one.places.extend(frames_at(stream, one.header, one.frames))
            frame = read_frame(stream, one.places[one.frame])
        return decode(frame, syntax, signed, int(one.header.BitsStored), room)
    except ImportError as error:
        raise SeriesError(
            "syntax", f"{one.name}: no decoder is installed for {syntax.name}"
        ) from error
    except SeriesError as error:
        raise SeriesError(error.reason, f"{one.name}: {error.detail}") from error
    except Exception as error:  # each codec raises its own kinds
        raise SeriesError(
            "unreadable", f"{one.name}: {syntax.name} does not decode ({type(error).__name__})"
        ) from error


def _rescaled(
    one: _Slice, stored: NDArray[Any], hu: NDArray[np.int16]
) -> tuple[NDArray[np.bool_], NDArray[np.int32]] | None:
    """Stored values to HU and the mask of padding (PS3.3 C.7.5.1.1.2, C.11.1.1.2).

    Args:
        stored: int16 or uint16, [H, W].
        hu: Where HU are written, [H, W]; ``stored`` may lie there.

    Returns:
        True where the slice holds padding, [H, W], and what it stores there; None if it holds none.
    """
    header = one.header
    slope, intercept = _rescale(one)
    padding = _declared_padding(header, stored)  # before bits are cut, which would alter it
    bits = int(header.BitsStored)
    if not 1 <= bits <= 16 or header.get("HighBit", bits - 1) != bits - 1:
        raise SeriesError(
            "pixels",
            f"{one.name}: expected Bits Stored up to 16 and High Bit one less, found {bits} and "
            f"{header.get('HighBit')}",
        )
    values = stored
    low, high = int(stored.min()), int(stored.max())
    least = -(1 << (bits - 1)) if stored.dtype.kind == "i" else 0
    if low < least or high >= least + (1 << bits):
        # bits above may hold an overlay; the shift back carries the sign
        values = (stored << (16 - bits)) >> (16 - bits)
        low, high = int(values.min()), int(values.max())
    # In 16 bits all the way where these hold every HU: a third of the time of 32.
    fill: float = FILL_HU
    if slope == 1 and intercept.is_integer():
        shift = int(intercept)
        low, high = low + shift, high + shift
        short = low >= -0x8000 and high <= 0x7FFF
        if short:
            fill = FILL_HU - shift  # as stored
        else:
            values = values.astype(np.int32) + shift
    else:
        short = False
        values = np.rint(values.astype(np.float64) * slope + intercept)
        low = int(values.min())
    if low < FILL_HU:
        filled = values < fill
        padding = filled if padding is None else padding | filled
    kept = None if padding is None else stored[padding].astype(np.int32)
    if short and (shift or not np.may_share_memory(values, hu)):
        np.add(values.view(np.uint16), np.uint16(shift & 0xFFFF), out=hu.view(np.uint16))
    if short:
        values = hu
    if padding is not None:
        values[padding] = AIR_HU
    if not short and float(values.max()) > np.iinfo(np.int16).max:
        raise SeriesError("rescale", f"{one.name}: {values.max():.0f} HU; 16 bits hold up to 32767")
    if low < AIR_HU or not short:
        air = np.full(hu.shape[1], AIR_HU, np.int16)  # numpy takes five times as long with a number
        np.maximum(values, air, out=hu, casting="unsafe")
    return None if padding is None or kept is None else (padding, kept)


def _rescale(one: _Slice) -> tuple[float, float]:
    try:
        slope = float(one.header["RescaleSlope"].value)
        intercept = float(one.header["RescaleIntercept"].value)
    except (KeyError, TypeError, ValueError) as error:
        raise SeriesError("rescale", f"{one.name}: no Rescale Slope and Intercept") from error
    # 1e6: a finite slope can still carry a stored value beyond every number
    if not (0 < abs(slope) < 1e6 and abs(intercept) < 1e6):
        raise SeriesError("rescale", f"{one.name}: slope {slope}, intercept {intercept}")
    return slope, intercept


def _declared_padding(header: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where a slice holds Pixel Padding Value (0028,0120), up to its Range Limit (0028,0121)."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    limit = header.get("PixelPaddingRangeLimit", value)
    # Written with the wrong sign often enough (63536 for -2000): the 16 bits are what counts.
    ends = np.array([int(value) & 0xFFFF, int(limit) & 0xFFFF], np.uint16).view(stored.dtype)
    if ends[0] == ends[1]:
        found = stored == ends[0]
    else:
        found = (stored >= ends.min()) & (stored <= ends.max())
    return found if found.any() else None


def _hu_of(one: _Slice) -> NDArray[np.int16]:
    hu = np.empty((int(one.header.Rows), int(one.header.Columns)), np.int16)
    _rescaled(one, _stored(one, hu), hu)
    return hu
