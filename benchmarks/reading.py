#!/usr/bin/env python3
"""A DICOM series to int16 HU against what people use instead: MB/s of HU on one core.

    OMP_NUM_THREADS=1 python benchmarks/reading.py [--series FOLDER]

All read the same files, already in the page cache, in turns. MONAI's reader is measured where MONAI
and itk are installed. Without ``--series`` a series of 512 x 512 x 100 is made.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dyefreenet.data.dicom import read_series


def make_series(folder: Path, slices: int) -> None:
    """Noise about water in a round body, one file a slice, with the usual attributes."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    series = generate_uid()
    for number in range(slices):
        hu = np.where(x**2 + y**2 < 0.7, 40, -1000) + draw.normal(0, 15, (512, 512))
        ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.StudyInstanceUID, ds.SeriesInstanceUID = series, series
        ds.FrameOfReferenceUID, ds.Modality, ds.PatientID = series, "CT", "P"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber, ds.SliceThickness = number + 1, "2.5"
        ds.ImagePositionPatient = ["-200", "-200", f"{2.5 * number}"]
        ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        ds.PixelSpacing, ds.Rows, ds.Columns = ["0.8", "0.8"], 512, 512
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
        ds.PixelData = np.rint(hu + 1024).clip(0).astype(np.uint16).tobytes()
        ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def ours(files: list[Path]) -> NDArray[np.int16]:
    return read_series(files).volume.hu


def usual(files: list[Path]) -> NDArray[np.int16]:
    """What most code does: read, sort by place, pixel_array times slope plus intercept."""
    slices = sorted(
        (pydicom.dcmread(file) for file in files), key=lambda ds: float(ds[0x00200032].value[2])
    )
    return np.stack(
        [
            (ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)).astype(np.int16)
            for ds in slices
        ]
    )


def simple_itk(files: list[Path]) -> NDArray[np.int16]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    return sitk.GetArrayFromImage(reader.Execute()).astype(np.int16)


def monai_itk(files: list[Path]) -> NDArray[np.int16]:
    from monai.data import ITKReader

    reader = ITKReader()
    array, _ = reader.get_data(reader.read(str(files[0].parent)))
    return np.asarray(array).astype(np.int16)


def monai_load_image(files: list[Path]) -> NDArray[np.int16]:
    """What MONAI's users write: the reader, and its array in MONAI's order of axes and dtype."""
    from monai.transforms import LoadImage

    load = LoadImage(reader="ITKReader", image_only=True, dtype=np.int16)
    return np.asarray(load(str(files[0].parent)))


def main() -> None:
    parser = argparse.ArgumentParser(description="A DICOM series to int16 HU, by several readers.")
    parser.add_argument("--series", help="folder of one series (default: a made-up one)")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    readers: dict[str, Callable[[list[Path]], NDArray[np.int16]]] = {
        "ours": ours,
        "pydicom as usual": usual,
        "SimpleITK": simple_itk,
    }
    try:
        import itk  # noqa: F401
        import monai.data  # noqa: F401

        readers["MONAI LoadImage, ITK"] = monai_load_image
        readers["MONAI ITKReader alone"] = monai_itk
    except ImportError:
        print("MONAI with itk is not installed: left out")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.series or made)
        if not options.series:
            make_series(folder, options.slices)
        files = sorted(folder.glob("*.dcm"))
        expected = ours(files)
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.rounds):
            for name, read in readers.items():
                began = time.process_time()
                read(files)
                seconds[name].append(time.process_time() - began)
        megabytes = expected.nbytes / 1e6
        print(f"{expected.shape} voxels, {options.rounds} rounds, CPU time, {os.cpu_count()} cores")
        for name, taken in seconds.items():
            ratio = statistics.median(b / a for a, b in zip(seconds["ours"], taken, strict=True))
            rate = megabytes / statistics.median(taken)
            print(f"{name:22} {rate:7.0f} MB/s   {ratio:5.2f} x ours' time")


if __name__ == "__main__":
    main()
