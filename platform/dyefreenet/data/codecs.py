"""Compressed frames of a DICOM file: where they lie, and the stored values that they hold.

Only the frame that is asked for is read. What a codestream says of its own size is held against
the file's header before a decoder takes memory for it. No HU here.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import parse_basic_offsets
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dyefreenet.errors import SeriesError

JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
JPEG_2000 = (JPEG2000Lossless, JPEG2000)
HIGH_THROUGHPUT = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
SYNTAXES = (RLELossless, *JPEG, *JPEG_LS, *JPEG_2000, *HIGH_THROUGHPUT)
# Start of frame of JPEG (ISO 10918-1 table B.1: all of C0 to CF but three) and of JPEG-LS
SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: its start, and the segment that always follows
END = b"\xff\xd9"  # of a codestream of any JPEG
PADDING = 64  # bytes after it; one is what PS3.5 allows
SIZ, COD, QCD, SOT = 0x51, 0x52, 0x5C, 0x90  # size, coding, quantization, start of a tile's part
REPEATED = {0x55, 0x64}  # lengths of parts, comments
HEADER = {0x50, 0x59, SIZ, COD, QCD} | REPEATED  # and capabilities, profile
MAX_SEGMENTS = 1000  # before the start of frame, or parts of a tile
ITEM, SEQUENCE_END = 0xE000FFFE, 0xE0DDFFFE  # little endian: the group comes first

Fragments = list[tuple[int, int]]  # where each one's content lies: first byte and length


class Declared(NamedTuple):
    """What a codestream says of itself."""

    rows: int
    columns: int
    samples: int  # a pixel
    bits: int  # a sample
    signed: bool


# ---- where ---------------------------------------------------------------------------------------


def frames_at(stream: BinaryIO, header: pydicom.Dataset, frames: int) -> list[Fragments]:
    """Where the fragments of each frame lie (PS3.5 A.4).

    Frames are told apart by an offset table; without one, by their number if there are as many
    fragments; else a frame ends with the fragment that holds the end of a codestream.

    Args:
        stream: At the Basic Offset Table.
        header: Where an Extended Offset Table (PS3.3 C.7.6.3.1.8) would stand.
        frames: As the header declares them.

    Raises:
        Exception: Of any kind, as what is there is not what was announced.
    """
    offsets = parse_basic_offsets(stream)
    start = stream.tell()
    fragments = _fragments(stream)
    if frames == 1:
        return [fragments]
    extended = header.get("ExtendedOffsetTable")
    if extended:
        offsets = np.frombuffer(extended, "<u8").tolist()
    if offsets:
        numbers = {at - 8 - start: number for number, (at, _) in enumerate(fragments)}
        bounds = [*(numbers[offset] for offset in offsets), len(fragments)]
        found = [fragments[first:last] for first, last in pairwise(bounds)]
    elif len(fragments) == frames:
        found = [[fragment] for fragment in fragments]
    else:
        found = [[]]
        for at, length in fragments:
            found[-1].append((at, length))
            stream.seek(at + max(0, length - PADDING))
            if END in stream.read(min(length, PADDING)):
                found.append([])
        found = [own for own in found if own]
    if len(found) != frames:
        raise ValueError(f"expected {frames} frames, found {len(found)}")
    return found


def _fragments(stream: BinaryIO) -> Fragments:
    """All fragments of Pixel Data; the stream stands at the first one's item."""
    found = []
    while len(item := stream.read(8)) == 8:
        tag, length = struct.unpack("<II", item)
        if tag == SEQUENCE_END:
            break
        if tag != ITEM:
            raise ValueError(f"expected an item, found {tag:08x}")
        found.append((stream.tell(), length))
        stream.seek(length, 1)
    size = stream.seek(0, 2)
    for at, length in found[-1:]:  # all others are followed by one
        if at + length > size:
            raise ValueError(f"a fragment of {length} bytes, of which {size - at} are there")
    return found


def read_frame(stream: BinaryIO, fragments: Fragments) -> bytes:
    """A codestream, from where its fragments lie."""
    parts = []
    for at, length in fragments:
        stream.seek(at)
        parts.append(stream.read(length))
    return b"".join(parts)


# ---- what ----------------------------------------------------------------------------------------


def decode(
    frame: bytes, syntax: UID, signed: bool, bits: int, room: NDArray[np.int16]
) -> NDArray[np.generic]:
    """Stored values of a codestream, int16 or uint16 [H, W], as pydicom's raw decode gives them.

    The sign is the header's: JPEG and JPEG-LS know of none, and JPEG 2000 may tell another.

    Args:
        syntax: One of ``SYNTAXES``.
        signed: Pixel Representation.
        bits: Bits Stored; of RLE and JPEG, bits above are cut.
        room: Rows x Columns of the file's header, overwritten; the values lie in it if they can.

    Raises:
        SeriesError: "unreadable" if the codestream is of another size; "pixels" if it decodes to
            anything but one whole number a pixel.
        ImportError: The installed imagecodecs was built without this codec.
        Exception: Of any kind, as each codec has its own, where it does not decode.
    """
    wavelet = syntax in JPEG_2000 or syntax in HIGH_THROUGHPUT
    if syntax == RLELossless:
        values = _run_lengths(frame, room)
    else:
        if wavelet:  # without the boxes of a JP2 file, which some write
            frame = frame[frame.index(CODESTREAM) :]
        declared = _of_jpeg_2000(frame) if wavelet else _of_jpeg(frame)
        if declared[:3] != (*room.shape, 1) or declared.bits > 16:
            raise SeriesError(
                "unreadable",
                f"expected {room.shape[0]} x {room.shape[1]} x 1 numbers of 16 bits or fewer, "
                f"found a codestream of {declared.rows} x {declared.columns} x {declared.samples} "
                f"of {declared.bits} bits",
            )
        # Decoders fill what is missing from a codestream cut short, and do not say so.
        if END not in frame[-PADDING:]:
            raise ValueError("no end of the codestream")
        values = _image(frame, syntax, declared, room)
        # What pydicom does, each in its way: where a sign has to be found, and above Bits Stored.
        if wavelet:
            bits = 16 if declared.signed == signed else declared.bits
        elif syntax in JPEG_LS:
            bits = declared.bits if signed else 16
    if values.shape != room.shape or values.dtype.kind not in "iu":
        raise SeriesError(
            "pixels",
            f"expected {room.shape[0]} x {room.shape[1]} whole numbers, found {values.dtype} "
            f"{values.shape}",
        )
    kind = "i" if signed else "u"
    stored = values.view(f"{kind}{values.itemsize}")
    if values.itemsize == 1:
        room[:] = stored
        stored = room.view(f"{kind}2")
    if 0 < bits < 16 and signed:  # the shift back carries the sign
        stored <<= 16 - bits
        stored >>= 16 - bits
    elif 0 < bits < 16:
        stored &= (1 << bits) - 1
    return stored


def _image(
    frame: bytes, syntax: UID, declared: Declared, room: NDArray[np.int16]
) -> NDArray[np.generic]:
    out = room.view(np.int16 if declared.signed else np.uint16) if declared.bits > 8 else None
    if syntax in JPEG:
        return imagecodecs.jpeg8_decode(frame, out=out)  # also lossless, also 12 bits
    if syntax in JPEG_LS:
        return imagecodecs.jpegls_decode(frame, out=out)
    if syntax in HIGH_THROUGHPUT and _is_plain(frame, declared):
        return _high_throughput(frame, out)
    return imagecodecs.jpeg2k_decode(frame, out=out)


def _high_throughput(frame: bytes, out: NDArray[Any] | None) -> NDArray[np.generic]:
    """Decoded by OpenJPH in half of OpenJPEG's time.

    imagecodecs 2026.3.6 prints an error amid the image and passes over it: the rows from there on
    are 0. Where the last one is, OpenJPEG is asked too; lossy images may differ by rounding.
    """
    try:
        values = imagecodecs.htj2k_decode(frame, out=out)
    except (AttributeError, ImportError):  # imagecodecs for Python 3.10 has none
        return imagecodecs.jpeg2k_decode(frame, out=out)
    if not values[-1].any():
        other = imagecodecs.jpeg2k_decode(frame)
        if other.shape != values.shape or np.abs(other.astype(int) - values).max() > 1:
            raise ValueError("an error amid the image")
    return values


def _is_plain(frame: bytes, declared: Declared) -> bool:
    """Whether a codestream's headers are such as encoders write for one slice of CT.

    OpenJPH 0.26.3 takes others at their word: tiles and offsets beyond the image, or 31 bits of a
    coefficient, crash it or hold it up for minutes. One tile, one layer, no exception for parts of
    the image (ISO 15444-1 annex A, 15444-15).
    """
    segments: dict[int, bytes] = {}
    at = 2  # behind the start of the codestream
    for _ in range(MAX_SEGMENTS):
        first, marker, length = struct.unpack_from(">BBH", frame, at)
        if marker == SOT:
            break
        if first != 0xFF or marker not in HEADER or marker in segments.keys() - REPEATED:
            return False
        segments[marker] = frame[at + 4 : at + 2 + length]
        at += 2 + length
    if not {SIZ, COD, QCD} <= segments.keys():
        return False
    rows, columns = declared.rows, declared.columns
    extent = struct.pack(">8I", columns, rows, 0, 0, columns, rows, 0, 0)  # image, then tile
    if segments[SIZ][2:34] != extent or segments[SIZ][37:] != b"\1\1":
        return False
    style, _, layers, mixed, levels, width, height, blocks, reversible = struct.unpack_from(
        ">BBHBBBBBB", segments[COD]
    )
    if len(segments[COD]) != 10 + (levels + 1 if style & 1 else 0):  # sizes of precincts
        return False
    if (layers, mixed, blocks) != (1, 0, 0x40) or levels > 10 or width + height > 8:
        return False
    quantized = segments[QCD]
    entry = "B" if reversible else "H"
    if quantized[0] & 31 != (0 if reversible else 2) or len(quantized) != 1 + (
        (3 * levels + 1) * struct.calcsize(entry)
    ):
        return False
    exponents = struct.unpack_from(f">{3 * levels + 1}{entry}", quantized, 1)
    bits = (quantized[0] >> 5) + (max(exponents) >> (3 if reversible else 11)) - 1
    return bits <= 24 and _is_one_tile(frame, at)


def _is_one_tile(frame: bytes, at: int) -> bool:
    """Whether what follows are parts of one tile, without headers of their own, and the end."""
    for _ in range(MAX_SEGMENTS):
        if frame[at : at + 2] == END:
            return True
        start, length, tile, part = struct.unpack_from(">2sHHI", frame, at)
        data = frame[at + 12 : at + 14] == b"\xff\x93"
        if (start, length, tile, data) != (bytes((0xFF, SOT)), 10, 0, True) or part < 14:
            return False
        at += part
    return False


def _run_lengths(frame: bytes, room: NDArray[np.int16]) -> NDArray[np.generic]:
    """RLE Lossless (PS3.5 annex G) of 16 bits, high bytes and low bytes apart."""
    decoded = imagecodecs.dicomrle_decode(frame, "<u2", out=room.data.cast("B"))
    if len(decoded) != room.nbytes:
        raise ValueError(f"expected {room.nbytes} bytes, found {len(decoded)}")
    return room


def _of_jpeg(frame: bytes) -> Declared:
    """From the start of frame of JPEG (ISO 10918-1 B.2.2) or JPEG-LS (ISO 14495-1 C.2.2)."""
    if not frame.startswith(b"\xff\xd8"):
        raise ValueError("no start of image")
    at = 2
    for _ in range(MAX_SEGMENTS):
        first, marker, length = struct.unpack_from(">BBH", frame, at)
        if first != 0xFF:
            raise ValueError("no marker where one is due")
        if marker in SOF:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return Declared(rows, columns, samples, bits, signed=False)
        at += 1 if marker == 0xFF else 2 + length  # a marker may stand behind fill bytes
    raise ValueError(f"no start of frame in {MAX_SEGMENTS} segments")


def _of_jpeg_2000(frame: bytes) -> Declared:
    """From the segment SIZ (ISO 15444-1 A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    samples, depth = struct.unpack_from(">HB", frame, 40)
    return Declared(bottom - top, right - left, samples, (depth & 0x7F) + 1, depth >= 0x80)
