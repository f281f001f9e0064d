"""CT in every transfer syntax that a reader may meet."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

PLAIN = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def lossless_jpeg(predictor):
    return lambda stored, bits: imagecodecs.jpeg8_encode(
        stored.view(np.uint16), lossless=True, predictor=predictor, bitspersample=bits
    )


def jpeg(stored, bits, level=90):
    return imagecodecs.jpeg8_encode(stored, level=level, bitspersample=bits)


def jpeg_ls(error):
    return lambda stored, bits: imagecodecs.jpegls_encode(stored.view(np.uint16), level=error)


def jpeg_2000(decibels):
    return lambda stored, bits: imagecodecs.jpeg2k_encode(
        stored, level=decibels, reversible=decibels == 0, codecformat="j2k", bitspersample=bits
    )


def high_throughput(stored, bits, **options):
    return imagecodecs.htj2k_encode(stored, **{"reversible": True, **options})


LOSSLESS = {
    JPEGLossless: lossless_jpeg(6),
    JPEGLosslessSV1: lossless_jpeg(1),
    JPEGLSLossless: jpeg_ls(0),
    JPEGLSNearLossless: jpeg_ls(0),
    JPEG2000Lossless: jpeg_2000(0),
    JPEG2000: jpeg_2000(0),
    HTJ2KLossless: high_throughput,
    HTJ2KLosslessRPCL: lambda stored, bits: high_throughput(stored, bits, tlm=True, tilepart=1),
    HTJ2K: high_throughput,
}
LOSSY = {
    JPEGExtended12Bit: jpeg,
    JPEGLSNearLossless: jpeg_ls(3),
    JPEG2000: jpeg_2000(60),
    HTJ2K: lambda stored, bits: high_throughput(stored, bits, reversible=False, level=1e-3),
}


def with_frames(content, syntax, frames, **attributes):
    """The file with these codestreams in place of its pixels."""
    ds = pydicom.dcmread(io.BytesIO(content))
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    for word, value in attributes.items():
        setattr(ds, word, value)
    sink = io.BytesIO()
    ds.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def encoded(files, syntax, encode):
    """Uncompressed files, each compressed into one frame."""
    made = []
    for content in files:
        ds = pydicom.dcmread(io.BytesIO(content))
        made.append(with_frames(content, syntax, [encode(ds.pixel_array, ds.BitsStored)]))
    return made


def in_syntax(content, syntax, lossy=False):
    """An uncompressed little-endian file in another transfer syntax."""
    if syntax in LOSSLESS and not lossy:
        return encoded([content], syntax, LOSSLESS[syntax])[0]
    if lossy:
        return encoded([content], syntax, LOSSY[syntax])[0]
    ds = pydicom.dcmread(io.BytesIO(content))
    if syntax == RLELossless:
        ds.compress(syntax, generate_instance_uid=False)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, np.uint16).byteswap().tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, ds, enforce_file_format=True)
    return sink.getvalue()
