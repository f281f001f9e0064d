"""Tiny CT series, made slice by slice with every attribute open to change."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

MakeCt = Callable[..., list[bytes]]
WriteCt = Callable[..., Path]


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


@pytest.fixture(scope="session")
def ct() -> MakeCt:
    """``make_ct``."""
    return make_ct


@pytest.fixture
def write_ct() -> WriteCt:
    """``make_ct`` into a folder: takes the folder first, and returns it."""

    def write(folder: Path, hu: NDArray[Any], **attributes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(make_ct(hu, **attributes)):
            (folder / f"{number + 1:04d}.dcm").write_bytes(content)
        return folder

    return write


@pytest.fixture
def steps() -> NDArray[np.int16]:
    """HU that tell every voxel from every other along all axes, [4, 6, 8]."""
    return np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8) * 5 - 500
