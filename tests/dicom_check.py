"""What a derived image must say and must not: the tests ask it of every image they write.

And what dciodvfy and dcentvfy say of it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

FILLED = (  # type 1 of CT Image Storage (PS3.3 A.3), and what this project adds to it
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope"),
    *("PixelData", "InstanceNumber", "Manufacturer", "SeriesNumber", "BurnedInAnnotation"),
)
THERE = ("KVP", "AcquisitionNumber", "PatientPosition")  # type 2: empty where nobody knows
PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
)
KEPT = (
    "PatientID",
    "PatientName",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "AccessionNumber",
)
LONGEST = {"SH": 16, "LO": 64, "CS": 16, "UI": 64, "DS": 16, "IS": 12}  # PS3.5 6.2
FORM = {
    "UI": r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+",
    "DA": r"(\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?",
    "TM": r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?)?",
}
CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")


def faults(image: Dataset, source: Dataset, drawn: bool = False) -> list[str]:
    """What is wrong with a derived image, in words.

    Args:
        source: The image that it was derived from.
        drawn: The warning is in the pixels.
    """
    return list(_faults(image, source, drawn))


def _faults(image: Dataset, source: Dataset, drawn: bool) -> Iterator[str]:
    for word in FILLED:
        if word not in image or image[word].value in (None, "", b""):
            yield f"{word} is missing or empty"
    for word in THERE:
        if word not in image:
            yield f"{word} is missing"
    for element in image.iterall():
        if element.tag.is_private or 0x6000 <= element.tag.group <= 0x60FF:
            yield f"{element.tag} is private or an overlay"
        values = element.value if element.VM > 1 else [element.value]
        for value in map(str, values) if element.VR in (LONGEST | FORM) else ():
            if len(value) > LONGEST.get(element.VR, 64):
                yield f"{element.keyword} is too long for {element.VR}"
            if element.VR in FORM and not re.fullmatch(FORM[element.VR], value):
                yield f"{element.keyword} is no {element.VR}"
        if "Contrast" in element.keyword:
            yield f"{element.keyword}: no contrast agent was given"
    try:
        axes = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
            yield "ImageOrientationPatient is not two unit vectors at right angles"
        if len(image.PixelData) != image.Rows * image.Columns * 2:
            yield "PixelData has another length than Rows and Columns say"
        if (image.BitsAllocated, image.HighBit) != (16, image.BitsStored - 1):
            yield "HighBit or BitsAllocated"
    except (AttributeError, ValueError, TypeError) as error:
        yield f"cannot be read: {error}"
    exactly = {
        "SOPClassUID": CTImageStorage,
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST"],
        "SyntheticData": "YES",
        "ContentQualification": "RESEARCH",
        "Manufacturer": "DyeFreeNet",
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "BurnedInAnnotation": "YES" if drawn else "NO",
        "Modality": "CT",
    }
    for word, value in exactly.items():
        if image.get(word) != value:
            yield f"{word} is {image.get(word)}, expected {value}"
    if not image.get("SeriesDescription", "").endswith("NOT FOR DIAGNOSTIC USE"):
        yield "SeriesDescription has no warning"
    if "not for diagnosis" not in image.get("ImageComments", ""):
        yield "ImageComments has no warning"
    for word in (*PLACE, *KEPT):
        if image.get(word) != source.get(word):
            yield f"{word} is not the source's"
    for word in ("SeriesInstanceUID", "SOPInstanceUID"):
        if image.get(word) == source.get(word):
            yield f"{word} is the source's"
    if image.file_meta.get("MediaStorageSOPInstanceUID") != image.get("SOPInstanceUID"):
        yield "MediaStorageSOPInstanceUID is another"
    sources = image.get("SourceImageSequence") or [Dataset()]
    if sources[0].get("ReferencedSOPInstanceUID") != source.SOPInstanceUID:
        yield "SourceImageSequence does not begin with the source"
    for item in sources:
        codes = item.get("PurposeOfReferenceCodeSequence") or [Dataset()]
        if "ReferencedSOPClassUID" not in item or any(word not in codes[0] for word in CODE):
            yield "SourceImageSequence has an item that is not complete"
    codes = image.get("DerivationCodeSequence") or [Dataset()]
    if any(word not in codes[0] for word in CODE):
        yield "DerivationCodeSequence is not complete"
    if "No contrast agent was given" not in image.get("DerivationDescription", ""):
        yield "DerivationDescription does not say what was done"
    if len(image.get("ContributingEquipmentSequence") or []) < 1:
        yield "ContributingEquipmentSequence is missing"


def complaints(paths: Iterable[Path]) -> set[str]:
    """Errors of dciodvfy, but for Synthetic Data, which is younger than Debian's copy of it."""
    errors = set()
    for path in paths:
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        errors |= {
            line
            for line in (done.stdout + done.stderr).splitlines()
            if line.startswith("Error") and "(0008,001c)" not in line
        }
    return errors


def disagreements(paths: Iterable[Path]) -> str:
    """What dcentvfy finds to differ between files of one patient and study."""
    done = subprocess.run(["dcentvfy", *map(str, paths)], capture_output=True, text=True)
    return done.stdout + done.stderr + (f"ended with {done.returncode}" if done.returncode else "")
