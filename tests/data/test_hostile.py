"""Series that are broken or that lie: each is refused for its reason, soon and in little memory."""

import io
import os
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless

from dyefreenet.data.dicom import read_series
from dyefreenet.errors import REASONS, SeriesError

SLICES, SIDE = 24, 512
SECONDS = 5.0
MEMORY = 1.5  # times what the sound series takes
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXELS = b"\xe0\x7f\x10\x00OW"  # Pixel Data's tag, explicit little endian


@pytest.fixture(scope="module")
def image():
    """Noise about water, [Z, H, W] in HU."""
    return np.random.default_rng(0).integers(-100, 200, (SLICES, SIDE, SIDE)).astype(np.int16)


def changed(**attributes):
    """The third slice has these attributes; None leaves one out."""

    def change(ds, number):
        if number == 2:
            for word, value in attributes.items():
                if value is None:
                    delattr(ds, word)
                else:
                    setattr(ds, word, value)

    return lambda ct, image: ct(image, changes=change)


def everywhere(**attributes):
    return lambda ct, image: ct(image, **attributes)


def third(edit):
    """The third file's bytes are edited."""

    def files(ct, image):
        found = ct(image)
        return [*found[:2], edit(found[2]), *found[3:]]

    return files


def text(word, value):
    """A number's text in the third file, as no library would write it."""

    def change(ds, number):
        if number == 2:
            element = ds[word]
            raw = value.encode() + b" " * (len(value) % 2)
            ds[word] = pydicom.dataelem.RawDataElement(
                element.tag, element.VR, len(raw), raw, 0, False, True
            )

    return lambda ct, image: ct(image, changes=change)


def before_pixels(content, element):
    at = content.index(PIXELS)
    return content[:at] + element + content[at:]


def with_syntax(content, syntax):
    """Another transfer syntax in the file meta, nothing else changed."""
    ds = pydicom.dcmread(io.BytesIO(content))
    data = content[content.index(b"\x08\x00\x08\x00CS") :]
    ds.file_meta.TransferSyntaxUID = syntax
    sink = io.BytesIO(b"\0" * 128 + b"DICM")
    sink.seek(132)
    pydicom.filewriter.write_file_meta_info(sink, ds.file_meta, enforce_standard=bool(syntax))
    return sink.getvalue() + data


def deflated(tail):
    """The third file deflated, with ``tail`` behind its pixels or in their place."""

    def edit(content):
        data = content[content.index(b"\x08\x00\x08\x00CS") :]
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = squeeze.compress(data) + squeeze.compress(tail) + squeeze.flush()
        head = with_syntax(content, DEFLATED)
        return head[: -len(data)] + packed

    return third(edit)


def of_other_size(ct, image):
    """JPEG-LS frames that say 65535 x 65535 of themselves."""

    def edit(content):
        at = content.rindex(b"\xff\xf7") + 5  # SOF55: length, precision, then the two sides
        return content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]

    return [edit(content) for content in ct(image[:4], syntax=JPEGLSLossless)]


def cut_when_compressed(ct, image):
    files = ct(image[:4], syntax=RLELossless)
    return [*files[:2], files[2][: len(files[2]) // 2], files[3]]


def broken_rle(ct, image):
    files = ct(image[:4], syntax=RLELossless)
    at = files[2].rindex(b"\xfe\xff\x00\xe0") + 8
    files[2] = files[2][:at] + b"\xff" * 64 + files[2][at + 64 :]
    return files


def frames(number, sop_class):
    def files(ct, image):
        return ct(image[:4], NumberOfFrames=number, SOPClassUID=sop_class)

    return files


def placed(place):
    """Every slice's Image Position from its number."""

    def change(ds, number):
        ds.ImagePositionPatient = [str(value) for value in place(number)]

    return lambda ct, image: ct(image, changes=change)


def two_series(ct, image):
    return ct(image[:8]) + ct(image[:8], SeriesInstanceUID="1.2.9.9", FrameOfReferenceUID="1.2.8")


def deep(content):
    """100,000 sequences, one in the other."""
    return before_pixels(
        content,
        b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100_000,
    )


def long_element(content):
    return before_pixels(content, b"\x09\x00\x10\x00UN\0\0" + struct.pack("<I", 0xFFFFFFF0))


CT, ENHANCED = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
BAD = {
    "empty file": ("unreadable", third(lambda content: b"")),
    "text": ("unreadable", third(lambda content: b"not found\n" * 50)),
    "zeros": ("unreadable", third(lambda content: bytes(1 << 20))),
    "noise": ("unreadable", third(lambda content: random.Random(0).randbytes(1 << 20))),
    "noise after a preamble": (
        "syntax",
        third(lambda content: content[:132] + random.Random(1).randbytes(1 << 16)),
    ),
    "preamble alone": ("syntax", third(lambda content: content[:132])),
    "cut in the file meta": ("syntax", third(lambda content: content[:170])),
    "cut in the header": ("geometry", third(lambda content: content[:560])),
    "cut before the pixels": ("unreadable", third(lambda c: c[: c.index(PIXELS)])),
    "cut in the pixels": ("unreadable", third(lambda content: content[: len(content) // 2])),
    "cut by a byte": ("unreadable", third(lambda content: content[:-1])),
    "an element longer than the file": ("unreadable", third(long_element)),
    "sequences without end": ("unreadable", third(deep)),
    "no transfer syntax": ("syntax", third(lambda content: with_syntax(content, ""))),
    "a private syntax": ("syntax", third(lambda content: with_syntax(content, "1.2.3.4.5"))),
    "video": ("syntax", third(lambda c: with_syntax(c, "1.2.840.10008.1.2.4.100"))),
    "native pixels called JPEG 2000": (
        "unreadable",
        third(lambda content: with_syntax(content, "1.2.840.10008.1.2.4.90")),
    ),
    "a deflate bomb": ("limit", deflated(bytes(400 << 20))),
    "deflated noise": (
        "unreadable",
        third(lambda c: with_syntax(c, DEFLATED)[:400] + random.Random(2).randbytes(1 << 12)),
    ),
    "JPEG-LS of another size": ("unreadable", of_other_size),
    "broken RLE": ("unreadable", broken_rle),
    "cut in compressed pixels": ("unreadable", cut_when_compressed),
    "2^31 frames": ("pixels", frames("2147483648", CT)),
    "2^31 frames, enhanced": ("pixels", frames("2147483648", ENHANCED)),
    "-1 frames, enhanced": ("pixels", frames("-1", ENHANCED)),
    "65535 x 65535": ("limit", everywhere(Rows=65535, Columns=65535)),
    "no rows": ("limit", everywhere(Rows=0)),
    "rows left out": ("geometry", changed(Rows=None)),
    "rows that differ": ("mixed", changed(Rows=SIDE - 1)),
    "no bits": ("pixels", changed(BitsStored=0)),
    "17 bits": ("pixels", changed(BitsStored=17)),
    "32 bits": ("pixels", changed(BitsAllocated=32)),
    "a sign that is none": ("pixels", changed(PixelRepresentation=7)),
    "colour": ("pixels", changed(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
    "NaN slope": ("rescale", text("RescaleSlope", "nan")),
    "endless slope": ("rescale", text("RescaleSlope", "1e999")),
    "a huge slope": ("rescale", text("RescaleSlope", "1e30")),
    "an intercept of words": ("rescale", text("RescaleIntercept", "about -1000")),
    "no intercept": ("rescale", changed(RescaleIntercept=None)),
    "HU beyond 16 bits": ("rescale", text("RescaleSlope", "1000")),
    "NaN position": ("geometry", text("ImagePositionPatient", "-10\\-20\\nan")),
    "two numbers of a position": ("geometry", text("ImagePositionPatient", "-10\\-20")),
    "a position of words": ("geometry", text("ImagePositionPatient", "left\\back\\up")),
    "a position beyond the moon": ("gap", text("ImagePositionPatient", "-10\\-20\\4e11")),
    "no spacing": ("geometry", changed(PixelSpacing=None)),
    "spacing of zero": ("geometry", everywhere(PixelSpacing=["0", "0"])),
    "negative spacing": ("geometry", everywhere(PixelSpacing=["-0.8", "0.8"])),
    "orientation of zeros": ("geometry", everywhere(ImageOrientationPatient=["0"] * 6)),
    "long orientation": (
        "geometry",
        everywhere(ImageOrientationPatient=["2", "0", "0", "0", "2", "0"]),
    ),
    "one slice turned": (
        "not-axial",
        changed(ImageOrientationPatient=["0", "1", "0", "-1", "0", "0"]),
    ),
    "coronal": ("not-axial", everywhere(ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])),
    "every slice in one place": ("duplicate", placed(lambda n: (-10, -20, 100))),
    "a slice is missing": ("gap", placed(lambda n: (-10, -20, 2.5 * n + (n > 5) * 2.5))),
    "sheared": ("tilt", placed(lambda n: (-10, -20 + n, 2.5 * n))),
    "MR": ("not-ct", everywhere(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    "MR by its class alone": ("not-ct", everywhere(SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    "a secondary capture": ("not-ct", everywhere(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
    "scouts alone": ("localizer", everywhere(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "two slices": ("short", lambda ct, image: ct(image[:2])),
    "two series as one": ("mixed", two_series),
}


def measured(files):
    """Seconds and peak bytes of a read, and what came of it."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        found = read_series(files)
    except SeriesError as error:
        found = error
    seconds = time.monotonic() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak, found


@pytest.fixture(scope="module")
def room(ct, image):
    """Bytes that the sound series takes."""
    _, peak, found = measured(ct(image))
    np.testing.assert_array_equal(found.volume.hu, image)
    return peak


@pytest.mark.parametrize("name", BAD)
def test_a_bad_series_is_refused_soon_and_in_little_memory(name, ct, image, room):
    reason, make = BAD[name]
    seconds, peak, found = measured(make(ct, image))
    assert isinstance(found, SeriesError), "it was read"
    assert found.reason == reason, found
    assert seconds < SECONDS
    assert peak < MEMORY * room


def mutated(files, draw):
    """One file with a few bytes of its header changed, cut out, doubled or set to extremes."""
    number = draw.randrange(len(files))
    content = bytearray(files[number])
    end = content.find(PIXELS) + 12
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(128, min(end, len(content)))
        match draw.randrange(5):
            case 0:
                content[at] = draw.randrange(256)
            case 1:
                content[at : at + 2] = draw.choice((b"\xff\xff", b"\0\0", b"\xff\x7f", b"\x00\x80"))
            case 2:
                del content[at : min(at + draw.randint(1, 64), len(content) - 1)]
            case 3:
                content[at:at] = content[at : at + draw.randint(1, 64)]
            case 4:
                del content[draw.randrange(max(at, 129), len(content) + 1) :]
    return [*files[:number], bytes(content), *files[number + 1 :]]


def test_a_mutated_header_is_read_or_refused(ct, steps):
    """``DYEFREENET_FUZZ`` says how many; each follows from its number."""
    files = ct(steps)
    read = 0
    for seed in range(int(os.environ.get("DYEFREENET_FUZZ", "1500"))):
        try:
            found = read_series(mutated(files, random.Random(seed)))
        except SeriesError as error:
            assert error.reason in REASONS, seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            assert found.volume.hu.dtype == np.int16, seed
            assert np.isfinite(found.volume.spacing).all(), seed
            read += 1
    assert read > 0
