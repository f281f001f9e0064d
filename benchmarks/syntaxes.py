#!/usr/bin/env python3
"""A compressed DICOM series to int16 HU, by every transfer syntax: CPU time a slice.

    OMP_NUM_THREADS=1 python benchmarks/syntaxes.py [--series FOLDER]

All read the same files, already in the page cache, in turns. ``pydicom`` is what most code does,
with the decoders that pydicom picks from those that are installed. ``imagecodecs`` is the least
that a reader can do: pydicom's header, the frame, the decoder, the intercept; it checks nothing and
masks nothing. Without ``--series`` the slices are noise about water in a round body.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
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
from reading import make_series

from dyefreenet.data.dicom import read_series

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from transfer_syntaxes import high_throughput, jpeg, jpeg_2000, jpeg_ls, lossless_jpeg


class Kind(NamedTuple):
    """A kind of stored values."""

    signed: bool
    bits: int
    intercept: int  # HU of a stored 0


class Syntax(NamedTuple):
    uid: UID
    encode: Callable[[NDArray, int], bytes] | None  # stored values and bits; None: pydicom's RLE
    decode: Callable[[bytes], NDArray]
    lossless: bool = True


SIGNED, UNSIGNED, BYTES = Kind(True, 16, 0), Kind(False, 12, -1024), Kind(False, 8, -128)


def jpeg_2000_near(stored: NDArray, bits: int) -> bytes:
    return jpeg_2000(6 * bits)(stored, bits)  # decibels, an error of about one step


def high_throughput_near(stored: NDArray, bits: int) -> bytes:
    return high_throughput(stored, bits, reversible=False, level=1e-4)


def jpeg_95(stored: NDArray, bits: int) -> bytes:
    return jpeg(stored, bits, level=95)


def run_lengths(frame: bytes) -> NDArray[np.uint16]:
    return np.frombuffer(imagecodecs.dicomrle_decode(frame, "<u2"), "<u2").reshape(512, 512)


SYNTAXES = {
    "RLE": Syntax(RLELossless, None, run_lengths),
    "JPEG lossless .57": Syntax(JPEGLossless, lossless_jpeg(4), imagecodecs.jpeg8_decode),
    "JPEG lossless .70": Syntax(JPEGLosslessSV1, lossless_jpeg(1), imagecodecs.jpeg8_decode),
    "JPEG-LS .80": Syntax(JPEGLSLossless, jpeg_ls(0), imagecodecs.jpegls_decode),
    "JPEG-LS near .81": Syntax(JPEGLSNearLossless, jpeg_ls(2), imagecodecs.jpegls_decode, False),
    "JPEG 2000 .90": Syntax(JPEG2000Lossless, jpeg_2000(0), imagecodecs.jpeg2k_decode),
    "JPEG 2000 .91": Syntax(JPEG2000, jpeg_2000_near, imagecodecs.jpeg2k_decode, False),
    "HTJ2K .201": Syntax(HTJ2KLossless, high_throughput, imagecodecs.htj2k_decode),
    "HTJ2K RPCL .202": Syntax(HTJ2KLosslessRPCL, high_throughput, imagecodecs.htj2k_decode),
    "HTJ2K .203": Syntax(HTJ2K, high_throughput_near, imagecodecs.htj2k_decode, False),
    "JPEG .50": Syntax(JPEGBaseline8Bit, jpeg_95, imagecodecs.jpeg8_decode, False),
    "JPEG .51": Syntax(JPEGExtended12Bit, jpeg_95, imagecodecs.jpeg8_decode, False),
}


def stored_of(hu: NDArray[np.int16], kind: Kind) -> NDArray:
    least = -(1 << (kind.bits - 1)) if kind.signed else 0
    stored = (hu.astype(int) - kind.intercept).clip(least, least + (1 << kind.bits) - 1)
    if kind.bits == 8:
        return stored.astype(np.uint8)
    return stored.astype(np.int16 if kind.signed else np.uint16)


def compressed(files: list[Path], syntax: Syntax, kind: Kind, folder: Path) -> list[Path]:
    """The slices once more, each as one frame of ``syntax``."""
    series = read_series(files)
    made = []
    for number, (hu, header) in enumerate(zip(series.volume.hu, series.headers, strict=True)):
        ds = pydicom.dcmread(files[0])
        ds.ImagePositionPatient, ds.InstanceNumber = header.ImagePositionPatient, number + 1
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, kind.bits, kind.bits - 1
        ds.PixelRepresentation = int(kind.signed)
        ds.RescaleSlope, ds.RescaleIntercept = "1", str(kind.intercept)
        for word in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if word in ds:
                del ds[word]
        stored = stored_of(hu, kind)
        if syntax.encode is None:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.PixelData = stored.tobytes()
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OW", False
            ds.compress(syntax.uid, generate_instance_uid=False)
        else:
            ds.PixelData = encapsulate([syntax.encode(stored, kind.bits)])
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
            ds.file_meta.TransferSyntaxUID = syntax.uid
        made.append(folder / f"{number:04d}.dcm")
        ds.save_as(made[-1], enforce_file_format=True)
    return made


def ours(files: list[Path]) -> NDArray[np.int16]:
    return read_series(files).volume.hu


def usual(files: list[Path], values: Callable[[pydicom.Dataset], NDArray]) -> NDArray[np.int16]:
    """Read, sort by place, decode, add the intercept."""
    slices = sorted(
        (pydicom.dcmread(file) for file in files), key=lambda ds: float(ds[0x00200032].value[2])
    )
    volume = np.empty((len(slices), slices[0].Rows, slices[0].Columns), np.int16)
    for hu, ds in zip(volume, slices, strict=True):
        hu[:] = values(ds).astype(np.int16) + np.int16(ds.RescaleIntercept)
    return volume


def pydicoms(files: list[Path]) -> NDArray[np.int16]:
    return usual(files, lambda ds: ds.pixel_array)


def bare(decode: Callable[[bytes], NDArray]) -> Callable[[list[Path]], NDArray[np.int16]]:
    return lambda files: usual(
        files, lambda ds: decode(get_frame(ds.PixelData, 0, number_of_frames=1))
    )


def measure(name: str, kind: Kind, files: list[Path], folder: Path, rounds: int) -> None:
    syntax = SYNTAXES[name]
    made = compressed(files, syntax, kind, folder)
    readers = {"ours": ours, "pydicom": pydicoms, "imagecodecs": bare(syntax.decode)}
    found = {}
    for reader, read in list(readers.items()):
        try:
            found[reader] = read(made)
        except Exception as error:
            if reader == "ours":
                raise
            print(f"    {reader} reads it not: {type(error).__name__}")
            del readers[reader]
    expected = stored_of(read_series(files).volume.hu, kind).astype(np.int16) + kind.intercept
    differ = {
        reader: int(np.abs(found["ours"].astype(int) - hu.clip(-1024)).max())
        for reader, hu in (found | {"encoded": expected}).items()
        if reader != "ours"
    }
    if syntax.lossless:
        assert not any(differ.values()), (name, differ)
    seconds: dict[str, list[float]] = {reader: [] for reader in readers}
    for _ in range(rounds):
        for reader, read in readers.items():
            began = time.process_time()
            read(made)
            seconds[reader].append(time.process_time() - began)
    milliseconds = 1e3 / len(made)
    told = "  ".join(
        f"{reader} {statistics.median(taken) * milliseconds:6.2f}"
        for reader, taken in seconds.items()
    )
    speed = min(
        statistics.median(b / a for a, b in zip(seconds["ours"], seconds[other], strict=True))
        for other in readers
        if other != "ours"
    )
    stored = f"{'signed' if kind.signed else 'unsigned'} {kind.bits}"
    print(f"{name:18} {stored:12} {told} ms   {speed:5.2f} x the faster   differs {differ}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A compressed series to int16 HU, every syntax.")
    parser.add_argument("--series", help="folder of one series of 512 x 512 (default: made up)")
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="part of a syntax's name")
    options = parser.parse_args()
    print(f"ms a slice, {options.rounds} rounds, CPU time, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.series or made)
        if not options.series:
            make_series(folder, options.slices)
        series = read_series(sorted(folder.glob("*.dcm")))
        files = [Path(path) for path in series.paths[: options.slices]]
        for name, syntax in SYNTAXES.items():
            if options.only not in name:
                continue
            kinds = [SIGNED, UNSIGNED]
            if syntax.encode is jpeg_95:  # has no sign, and no more than 12 bits
                kinds = [BYTES if syntax.uid == JPEGBaseline8Bit else UNSIGNED]
            for kind in kinds:
                with tempfile.TemporaryDirectory() as place:
                    measure(name, kind, files, Path(place), options.rounds)


if __name__ == "__main__":
    main()
