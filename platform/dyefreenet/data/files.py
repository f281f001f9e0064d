"""Files of an archive, however they are packed, opened within limits. No HU here.

Whoever sends a file may lie in it: about its size, its length once inflated, the names of what it
holds. So every size is checked before bytes are inflated or memory is taken, nothing is ever
unpacked to disk, and no name from a file becomes a path.

A file inside of a zip or tar has the address ``PACKAGE!/NAME``.
"""

from __future__ import annotations

import io
import logging
import lzma
import os
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, MutableSequence, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fsspec
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

from dyefreenet.errors import InputError, SeriesError
from dyefreenet.store import Folder

# pydicom's complaints quote header values, which may name a patient; what matters is refused here.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

File = bytes | str | Path  # a file's content, its path, or its address
Element = DataElement | RawDataElement

IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha")  # whole volumes, read by SimpleITK
PACKAGES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
INSIDE = "!/"  # between a package's address and a name in it
GONE = "gone since it was listed"
NO_DICOM = "not a DICOM file"
# Pixel Data (7FE0,0010), in either byte order
PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
LEADS_OUT = SeriesError("unreadable", "a link, or a name that leads out of its package")

PATIENT = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 10}}  # a silent store is told
MAX_FILE = 4 << 30  # bytes; Enhanced CT of 4000 slices of 512 x 512 has half of that
MAX_HEADER = 4 << 20  # bytes before the pixels of a deflated file
MAX_PACKED = 200_000  # files in one package
MAX_RATIO = 200  # of inflated to packed bytes; CT packs to a half, empty slices to a fiftieth
USED = (  # what reading a series asks of a header
    *("SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType"),
    *("InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
)
TRANSFER_SYNTAX = 0x00020010
UNDERSTOOD_FIRST = (TRANSFER_SYNTAX, 0x00080005)  # the other elements are read by these
LAYOUTS = 8  # a series alternates between few: its numbers have one digit more or less
USED_TAGS = frozenset(int(Tag(word)) for word in USED)
PIXELS = frozenset((0x7FE00010, 0x7FE00009, 0x7FE00008))  # Pixel Data, in whole or floating numbers
MAX_ELEMENT = 1 << 20  # bytes of a value; longer ones stay in their file until they are asked for
ROOM = 1 << 20  # bytes to inflate whatever the ratio, and after the pixels of a file


class Layout(NamedTuple):
    """The elements of a header, and where they lie.

    Attributes:
        meta: File Meta, by tag.
        data: What lies between it and the pixels.
        content: All of that as bytes, with the tag of Pixel Data behind it, [N].
        spans: First byte of each value at the top level, and the byte behind it, [V, 2].
        tags: Of those values: 0 in ``meta`` or 1 in ``data``, and the tag.
    """

    meta: dict[BaseTag, Element]
    data: dict[BaseTag, Element]
    syntax: UID
    characters: str | MutableSequence[str]
    content: NDArray[np.uint8] = np.empty(0, np.uint8)
    spans: NDArray[np.int64] = np.empty((0, 2), np.int64)
    tags: Sequence[tuple[int, BaseTag]] = ()


@dataclass
class Known:
    """Elements in the headers that were read so far: of ``USED``, or of the tags asked for.

    Attributes:
        elements: By tag, as bytes and as pydicom understands them.
        present: Tags that the last header has; None before there is one to compare with.
        changed: Tags whose elements in the last header are not those of the one before it.
        layouts: Of the last headers that were laid out otherwise than those before; newest first.
    """

    elements: dict[int, tuple[RawDataElement, DataElement]] = field(default_factory=dict)
    present: set[int] | None = None
    changed: set[int] = field(default_factory=set)
    layouts: list[Layout] = field(default_factory=list)


# ---- content -------------------------------------------------------------------------------------


@contextmanager
def opened(file: File) -> Iterator[BinaryIO]:
    """A file of this machine, or its content, as a stream."""
    if isinstance(file, bytes):
        yield io.BytesIO(file)
        return
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_FILE:
            raise _too_large(size)
        yield stream


def fetch(addresses: Sequence[str]) -> list[File]:
    """Local paths as they are; the content of remote and packed files, several at a time.

    Raises:
        InputError: The storage does not answer; it is named, and the file is not.
        SeriesError: A file is over a limit, or its package cannot be read.
    """
    inside: dict[str, set[str]] = {}
    for address in addresses:
        package, name = split_packed(address)
        if name:
            inside.setdefault(package, set()).add(name)
    found: dict[str, bytes] = {}
    for package, names in inside.items():
        for name, content in unpacked(package, names):
            if isinstance(content, SeriesError):
                raise content
            found[f"{package}{INSIDE}{name}"] = content
    missing = sum(bool(split_packed(one)[1]) and one not in found for one in addresses)
    if missing:
        raise SeriesError("unreadable", f"{missing} files are no longer in their package")

    def content_of(address: str) -> File:
        if address in found:
            return found[address]
        return _remote(address) if "://" in address else address

    if not any("://" in address for address in addresses):
        return [content_of(address) for address in addresses]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(content_of, addresses))


def split_packed(address: str) -> tuple[str, str]:
    """A package and a name in it; the name is "" for any other address."""
    for at in (match.start() for match in re.finditer(re.escape(INSIDE), address)):
        if address[:at].lower().endswith(PACKAGES):
            return address[:at], address[at + len(INSIDE) :]
    return address, ""


def _remote(address: str) -> bytes:
    if address.startswith("s3://"):  # a key may have two slashes in a row, a folder may not
        bucket, _, name = address.removeprefix("s3://").partition("/")
        return Folder(f"s3://{bucket}").read(name, label="a file of a series")
    folder, _, name = address.rpartition("/")
    return Folder(folder).read(name, label="a file of a series")


def unpacked(
    package: str, wanted: set[str] | None = None
) -> Iterator[tuple[str, bytes | SeriesError]]:
    """Name and content of the files in a zip or tar, or what speaks against one, in its order.

    Packages within packages stay closed, links are not followed. What comes after a file over a
    limit is not looked at: a package that lies once is not asked again.

    Args:
        wanted: Names to give; None: all.

    Raises:
        InputError: The storage does not answer.
    """
    remote = "://" in package
    try:
        with fsspec.open(package, "rb", **(PATIENT if remote else {})) as stream:
            unpack = _zipped if package.lower().endswith(".zip") else _tarred
            yield from unpack(stream, stream.size if remote else os.stat(package).st_size, wanted)
    except FileNotFoundError:
        yield "", SeriesError("unreadable", GONE)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield "", _unreadable(error)
    except Exception as error:
        # Bad packages raise almost anything; so does a store that fails, which may be asked again.
        if remote and not isinstance(error, (ValueError, RuntimeError)):
            raise InputError(
                f"a package of the archive: the storage does not give it ({type(error).__name__}); "
                "look whether the store is up, and run again"
            ) from None
        yield "", _unreadable(error)


def _unreadable(error: Exception) -> SeriesError:
    return SeriesError("unreadable", f"a package that cannot be read ({type(error).__name__})")


def _zipped(
    stream: BinaryIO, size: int, wanted: set[str] | None
) -> Iterator[tuple[str, bytes | SeriesError]]:
    with zipfile.ZipFile(stream) as package:
        members = [one for one in package.infolist() if not one.is_dir()]
        fault = _over_limit(len(members), sum(one.file_size for one in members), size)
        if fault:
            yield "", fault
            return
        for one in members:
            if wanted is not None and one.filename not in wanted:
                continue
            if one.flag_bits & 1:
                yield one.filename, SeriesError("unreadable", "encrypted")
            elif not _is_plain_name(one.filename) or (one.external_attr >> 28) == 0xA:
                yield one.filename, LEADS_OUT
            elif one.file_size > MAX_FILE:
                yield one.filename, _too_large(one.file_size)
            else:
                with package.open(one) as member:
                    yield one.filename, member.read(one.file_size)


def _tarred(
    stream: BinaryIO, size: int, wanted: set[str] | None
) -> Iterator[tuple[str, bytes | SeriesError]]:
    count = total = 0
    with tarfile.open(fileobj=stream, mode="r|*") as package:
        for one in package:
            count, total = count + 1, total + one.size
            fault = _over_limit(count, total, size)
            if fault:
                yield "", fault
                return
            if one.isdir() or (wanted is not None and one.name not in wanted):
                continue
            if not one.isfile() or not _is_plain_name(one.name):
                yield one.name, LEADS_OUT
                continue
            if one.size > MAX_FILE:
                yield one.name, _too_large(one.size)
                continue
            member = package.extractfile(one)
            yield one.name, member.read() if member is not None else b""


def _over_limit(count: int, total: int, size: int) -> SeriesError | None:
    if count > MAX_PACKED:
        return SeriesError("limit", f"a package of more than {MAX_PACKED} files")
    if total > MAX_RATIO * size + ROOM:
        return SeriesError(
            "limit",
            f"a package of {size} bytes that unpacks to more than {MAX_RATIO} times as many",
        )
    return None


def _too_large(size: int) -> SeriesError:
    return SeriesError("limit", f"a file of {size >> 20} MiB; expected {MAX_FILE >> 20} or less")


def _is_plain_name(name: str) -> bool:
    return not name.startswith(("/", "\\")) and ".." not in name.replace("\\", "/").split("/")


# ---- DICOM ---------------------------------------------------------------------------------------


def read_header(
    stream: BinaryIO, tags: list[str] | None = None, known: Known | None = None
) -> tuple[pydicom.Dataset, int | None, bytes | None]:
    """A data set up to its pixels.

    Files without the preamble of PS3.10 are read if they begin with a DICOM element. A deflated
    data set is inflated no further than the pixels that it declares.

    Args:
        tags: Keywords to read; None: all.
        known: Of the files read before; where this one has the same bytes, it shares their
            elements, which are to be replaced, never changed. Is brought up to date.

    Returns:
        The data set; the byte of Pixel Data's own tag, None where it is compressed; and the file as
        it would be without deflation, None where it is not deflated.

    Raises:
        SeriesError: Not DICOM ("unreadable"), damaged, or over a limit.
    """
    start = stream.tell()
    head = stream.read(132)
    has_preamble = head[128:] == b"DICM"
    if not is_dicom(head):
        raise SeriesError("unreadable", NO_DICOM)
    known = Known() if known is None else known
    inflated: bytes | None = None
    try:
        header = _read(stream, head, tags, known) if has_preamble else None
        if has_preamble and header is None:
            stream.seek(start + 132)
            meta = read_dataset(stream, False, True, stop_when=_is_behind_meta)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                inflated = _inflated(stream, start)
                stream, start = io.BytesIO(inflated), 0
        if header is None:
            stream.seek(start)
            header = pydicom.dcmread(
                stream,
                stop_before_pixels=True,
                specific_tags=tags,
                force=not has_preamble,
                defer_size=None if tags else MAX_ELEMENT,
            )
            for word in () if tags else USED:  # pydicom understands a value when first asked for
                header.get(word)
            known.present, known.changed = None, set(USED_TAGS)
        meta = header.file_meta
        syntax = meta.get("TransferSyntaxUID") or ""
    except SeriesError:
        raise
    except Exception as error:  # damaged files make pydicom raise almost anything
        raise SeriesError("unreadable", f"{type(error).__name__} in its header") from error
    if not has_preamble and not syntax:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = syntax = ImplicitVRLittleEndian if implicit else explicit
    if not syntax:
        raise SeriesError("syntax", "no Transfer Syntax (0002,0010)")
    known_syntax = _transfer_syntax(str(syntax))
    if known_syntax is None:
        raise SeriesError("syntax", "a Transfer Syntax (0002,0010) that is none of DICOM's")
    return header, None if known_syntax.is_encapsulated else stream.tell(), inflated


@lru_cache(maxsize=64)
def _transfer_syntax(text: str) -> UID | None:
    """A transfer syntax of DICOM; None for any other text."""
    syntax = UID(text)
    return syntax if syntax.is_transfer_syntax and not syntax.is_private else None


@lru_cache(maxsize=4)
def _numbers(words: tuple[str, ...]) -> frozenset[int]:
    return frozenset(int(Tag(word)) for word in words)


def is_dicom(head: bytes) -> bool:
    """Whether a file begins like DICOM: with the preamble, or with an element of its first groups.

    Args:
        head: At least its first 132 bytes, if it has as many.
    """
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00")


def _is_behind_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _is_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in PIXELS


def _read(
    stream: BinaryIO, head: bytes, tags: list[str] | None, known: Known
) -> pydicom.FileDataset | None:
    """What ``pydicom.dcmread`` gives, in less of its time, for a file as they usually are.

    Args:
        stream: Behind the preamble.
        head: The preamble and the prefix.

    Returns:
        None where dcmread has to look closer: deflated, no syntax of DICOM's, or a command set.
    """
    begin = stream.tell()
    laid = None if tags else _laid_out_alike(stream, known.layouts)
    if laid is None:
        laid = _parsed(stream, tags)
        if laid is None:
            return None
        if not tags:
            known.layouts = [_measured(stream, begin, laid), *known.layouts[: LAYOUTS - 1]]
    meta_found, found = dict(laid.meta), dict(laid.data)
    own, _ = _take_over(meta_found, {TRANSFER_SYNTAX}, known)
    meta = FileMetaDataset(meta_found)
    _understand(own, meta, known)
    meta.set_original_encoding(False, True)
    implicit, little = laid.syntax.is_implicit_VR, laid.syntax.is_little_endian
    own, present = _take_over(found, _numbers(tuple(tags)) if tags else USED_TAGS, known)
    # pydicom asks the file system about its file, which only matters to values that are left in it.
    whole = stream.tell() - begin <= MAX_ELEMENT
    header = pydicom.FileDataset(
        io.BytesIO() if whole else stream, found, head[:128], meta, implicit, little
    )
    header.set_original_encoding(implicit, little, laid.characters)
    known.changed = set(USED_TAGS) if known.present is None else present ^ known.present
    known.changed.update(int(tag) for tag in own)
    known.present = present
    _understand(own, header, known)
    return header


def _parsed(stream: BinaryIO, tags: list[str] | None) -> Layout | None:
    """The elements of a header, as pydicom finds them; see ``_read``."""
    meta = {one.tag: one for one in data_element_generator(stream, False, True, _is_behind_meta)}
    syntax = _transfer_syntax(str(FileMetaDataset(dict(meta)).get("TransferSyntaxUID") or ""))
    at = stream.tell()
    group = stream.read(2)
    stream.seek(at)
    if syntax in (None, DeflatedExplicitVRLittleEndian) or group in (b"", b"\0\0"):
        return None
    dataset = read_dataset(
        stream,
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=_is_pixels,
        defer_size=None if tags else MAX_ELEMENT,
        specific_tags=[*_numbers(tuple(tags))] if tags else None,
    )
    return Layout(meta, dict(dataset.items()), syntax, dataset.original_character_set)


def _measured(stream: BinaryIO, begin: int, laid: Layout) -> Layout:
    """A layout with its bytes, and where among them values lie.

    Args:
        stream: At Pixel Data; left there.
        begin: Where File Meta begins.
    """
    end = stream.tell()
    stream.seek(begin)
    content = np.frombuffer(stream.read(end + 4 - begin), np.uint8)
    stream.seek(end)
    values = sorted(
        (one.value_tell - begin, one.value_tell - begin + one.length, part, tag)
        for part, elements in enumerate((laid.meta, laid.data))
        for tag, one in elements.items()
        if isinstance(one, RawDataElement) and one.value is not None and tag not in UNDERSTOOD_FIRST
    )
    spans = np.array([value[:2] for value in values]).reshape(-1, 2)
    return laid._replace(content=content, spans=spans, tags=[value[2:] for value in values])


def _laid_out_alike(stream: BinaryIO, layouts: Sequence[Layout]) -> Layout | None:
    """The elements of a header that differs from an earlier one in nothing but values.

    Bytes are compared, which takes a tenth of the time of finding elements one by one.

    Args:
        stream: At File Meta; moved to Pixel Data if the answer is not None.
    """
    begin = stream.tell()
    ahead = stream.read(max((len(one.content) for one in layouts), default=0))
    stream.seek(begin)
    found = np.frombuffer(ahead, np.uint8)
    for one in layouts:
        size = len(one.content)
        if len(found) < size:
            continue
        different = np.flatnonzero(found[:size] != one.content)
        which = np.searchsorted(one.spans[:, 0], different, side="right") - 1
        if (which < 0).any() or (different >= one.spans[which, 1]).any():
            continue
        parts = dict(one.meta), dict(one.data)
        for number in set(which.tolist()):
            start, stop = one.spans[number]
            part, tag = one.tags[number]
            raw = parts[part][tag]
            assert isinstance(raw, RawDataElement)
            parts[part][tag] = raw._replace(value=ahead[start:stop])
        stream.seek(begin + size - 4)
        return one._replace(meta=parts[0], data=parts[1])
    return None


def _take_over(
    found: dict[BaseTag, Element], wanted: Set[int], known: Known
) -> tuple[dict[BaseTag, Element], set[int]]:
    """Put elements of the files before in place of those that have the same bytes.

    Returns:
        Those of ``wanted`` that were not replaced; and the tags of all of ``wanted`` in ``found``.
    """
    own, present = {}, set()
    for tag, raw in found.items():
        number = int(tag)  # pydicom compares its own tags in Python
        if number in wanted:
            present.add(number)
            before = known.elements.get(number)
            if before is not None and _is_same(raw, before[0]):
                found[tag] = before[1]
            else:
                own[tag] = raw
    return own, present


def _understand(own: dict[BaseTag, Element], header: pydicom.Dataset, known: Known) -> None:
    """Have pydicom understand values, which it does when it is first asked for them."""
    for tag, raw in own.items():
        understood = header[tag]
        known.elements.pop(int(tag), None)
        if isinstance(raw, RawDataElement):
            known.elements[int(tag)] = raw, understood


def _is_same(one: Element, other: RawDataElement) -> bool:
    """Whether two elements have the same bytes, wherever these lie, and so the same meaning."""
    return (
        isinstance(one, RawDataElement)  # and no sequence
        and one.value == other.value
        and one.value is not None  # longer than MAX_ELEMENT, and still in its file
        and one.VR == other.VR
        and one.is_little_endian == other.is_little_endian
        and not one.is_implicit_VR  # what VR it has may depend on other elements
        and (one.VR not in CUSTOMIZABLE_CHARSET_VR or _is_plain_text(one.value))
    )


def _is_plain_text(value: bytes) -> bool:
    """Whether text is the same in all of DICOM's character sets; escapes change to another."""
    return value.isascii() and b"\x1b" not in value


def _inflated(stream: BinaryIO, start: int) -> bytes:
    """The file with its data set inflated (PS3.5 A.5).

    Args:
        stream: Behind the file meta.
        start: Where the file begins in it.
    """
    end = stream.tell()
    stream.seek(start)
    content = stream.read()
    head, packed = content[: end - start], content[end - start :]
    head = head.replace(  # of one length, so that the group length stays right
        DeflatedExplicitVRLittleEndian.encode(), ExplicitVRLittleEndian.encode() + b"\0\0\0"
    )
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflate.decompress(packed, MAX_HEADER)
    first = pydicom.dcmread(io.BytesIO(head + data), stop_before_pixels=True)
    pixels = declared_bytes(first)
    if pixels > MAX_FILE:
        raise SeriesError("limit", f"{pixels >> 20} MiB of pixels; expected {MAX_FILE >> 20}")
    more = pixels + ROOM  # what stands before them is in ``data``
    if inflate.unconsumed_tail:
        data += inflate.decompress(inflate.unconsumed_tail, more)
    if inflate.unconsumed_tail:
        raise SeriesError(
            "limit", f"inflates beyond {len(data)} bytes; its header declares {pixels} of pixels"
        )
    return head + data


def declared_bytes(header: pydicom.Dataset) -> int:
    """Bytes of Pixel Data that a header announces, 16 bits a pixel."""
    rows, columns = (int(header.get(word) or 0) for word in ("Rows", "Columns"))
    return rows * columns * int(header.get("NumberOfFrames") or 1) * 2
