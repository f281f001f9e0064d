"""CT for tests: series as files with every attribute open to change, and a trunk with an aorta."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from dyefreenet.data.volume import Volume


def make_ct(
    hu: NDArray[Any],
    step: float = 2.5,
    syntax: str = ExplicitVRLittleEndian,
    changes: Callable[[FileDataset, int], None] | None = None,
    **attributes: Any,
) -> list[bytes]:
    """A series as files, foot to head.

    Args:
        hu: HU, whole numbers, [Z, H, W].
        step: mm between slices.
        changes: Called with each slice's data set and number before it is written.
        attributes: By keyword, for all slices; None leaves one out.
    """
    files = []
    for number, image in enumerate(hu):
        slope = float(attributes.get("RescaleSlope", "1") or 1)
        intercept = float(attributes.get("RescaleIntercept", "-1024") or 0)
        signed = attributes.get("PixelRepresentation", 0) == 1
        stored = np.rint((image - intercept) / slope).astype(np.int16 if signed else np.uint16)
        ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        ds.SOPClassUID = CTImageStorage
        series = attributes.get("SeriesInstanceUID", "1.2.3.4")
        values = {
            "SOPInstanceUID": f"{series}.{number + 1}",
            "StudyInstanceUID": "1.2.3",
            "SeriesInstanceUID": series,
            "FrameOfReferenceUID": "1.2.9",
            "PatientID": "P1",
            "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "InstanceNumber": str(number + 1),
            "SliceThickness": "2.5",
            "ImagePositionPatient": ["-10", "-20", f"{100 + number * step:.4f}"],
            "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
            "PixelSpacing": ["0.8", "0.7"],
            "Rows": image.shape[0],
            "Columns": image.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(signed),
            "RescaleSlope": "1",
            "RescaleIntercept": "-1024",
        }
        for word, value in (values | attributes).items():
            if word == "PixelPaddingValue":
                ds.add_new(0x00280120, "SS" if signed else "US", value)
            elif value is not None:
                setattr(ds, word, value)
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if changes is not None:
            changes(ds, number)
        if syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5":
            ds.compress(syntax, generate_instance_uid=False)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
            if syntax == "1.2.840.10008.1.2.2":
                ds.PixelData = stored.byteswap().tobytes()
        sink = io.BytesIO()
        pydicom.dcmwrite(sink, ds, enforce_file_format=True)
        files.append(sink.getvalue())
    return files


Z, Y, X = 40, 120, 170  # voxels


def scan(aorta=45, *, lungs=True, spine=True, discs=True, noise=12.0, step=3.0, insert=None):
    """A trunk of 120 mm: muscle of 50 HU in fat, a vertebra with its canal, an aorta before it.

    Args:
        lungs: Or a belly full of fat.
        aorta: HU of a tube of 20 mm, its middle 60 mm before the canal's.
        insert: HU, first and last slice of another tube, to the left of the aorta and before it.
    """
    z, y, x = np.meshgrid(
        np.arange(Z) * step, (np.arange(Y) - 60) * 2.0, (np.arange(X) - 85) * 2.0, indexing="ij"
    )
    hu = np.full(z.shape, -1000.0)
    hu[(x / 150) ** 2 + (y / 105) ** 2 < 1] = -100
    hu[(x / 130) ** 2 + (y / 85) ** 2 < 1] = 50
    if lungs:
        hu[((np.abs(x) - 80) / 35) ** 2 + ((y + 5) / 60) ** 2 < 1] = -850
    else:
        hu[((x / 115) ** 2 + (y / 70) ** 2 < 1) & ((y < 0) | (np.abs(x) > 50))] = -100
    if spine:
        # Middle of the canal at y = 50, of the vertebra 28 mm before it.
        arch, canal = np.hypot(x, y - 50), np.hypot(x, y - 50) < 9
        hu[(arch < 14) | ((np.abs(x) < 4) & (y > 50) & (y < 78))] = 500
        vertebra = (x / 22) ** 2 + ((y - 24) / 16) ** 2
        hu[vertebra < 1] = 500
        hu[vertebra < 0.8] = 200
        if discs:
            hu[(vertebra < 1) & (z % 30 < 7)] = 80
        hu[canal] = 25
    fat = np.hypot(x - 5, y + 10) < 14
    hu[fat] = -100
    hu[np.hypot(x - 5, y + 10) < 10] = aorta
    if insert is not None:
        level, first, last = insert
        hu[first:last][np.hypot(x - 20, y + 22)[first:last] < 9] = level
    hu += np.random.default_rng(3).normal(0, noise, hu.shape)
    return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), (step, 2.0, 2.0))


def enhanced(hu, order=None):
    """Enhanced CT with its own rescale, position and number in each frame."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedCTImageStorage, "1.2.3.4.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.9"
    ds.PatientID, ds.Modality, ds.InstanceNumber = "P1", "CT", 1
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *hu.shape[1:], 1
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored = "MONOCHROME2", 16, 16
    ds.HighBit, ds.PixelRepresentation, ds.NumberOfFrames = 15, 0, len(hu)
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.7]
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups, stored = [], []
    for number in order or range(len(hu)):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -20, 100 + 2.5 * number]
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = 1
        group.PixelValueTransformationSequence[0].RescaleIntercept = -1024 - number
        group.CTImageFrameTypeSequence = [Dataset()]
        group.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        groups.append(group)
        stored.append((hu[number].astype(np.int32) + 1024 + number).astype(np.uint16))
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = np.stack(stored).tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def saved(ds):
    sink = io.BytesIO()
    ds.save_as(sink, enforce_file_format=True)
    return sink.getvalue()
