"""Made-up patients as DICOM CT series, with the truth beside them.

    folder/dicom/<patient id>/<series number>/0001.dcm ...
    folder/truth/<key>.nii.gz           structures on the plain grid, numbers as in labels.json
    folder/truth/<key>_<phase>_motion.nii.gz    motion plain -> that phase, mm (z, y, x)
    folder/truth/labels.json

``key`` is the first 16 hex digits of SHA-256 of the plain SeriesInstanceUID.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.random import Generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless

from dyefreenet.config import PhantomConfig, Phase
from dyefreenet.data.phantom.patients import Patient, generator, make_chest, make_patient
from dyefreenet.data.phantom.scanner import MOTION_STEP
from dyefreenet.data.phantom.tissue import ARTERIES, LABELS, LANDMARKS
from dyefreenet.data.volume import Volume

Kind = Literal["patient", "chest"]

# maker, model, kernels, soft ones alone
_SCANNERS = (
    ("Phantom Siemens-like", "MADE-UP 64", ("B30f", "B31f", "Br36d")),
    ("Phantom GE-like", "MADE-UP LS", ("STANDARD", "SOFT")),
    ("Phantom Philips-like", "MADE-UP iCT", ("B", "C")),
    ("Phantom Toshiba-like", "MADE-UP One", ("FC08", "FC13")),
)
# As hospitals name the phases; {mm} is the thickness, {kernel} the kernel.
_NAMES: dict[Phase, tuple[str, ...]] = {
    "plain": ("ABD NATIVE {mm}", "NON CONTRAST {mm} {kernel}", "W/O CONTRAST {mm}", "NATIV {mm}"),
    "arterial": (
        "ART {mm} {kernel}",
        "ARTERIAL PHASE {mm}",
        "ABD ARTERIELL {mm}",
        "ART PHASE {mm}",
    ),
    "portal": ("PORTAL VENOUS {mm} {kernel}", "PV PHASE {mm}", "VENOUS {mm}", "PORTALVENOES {mm}"),
    "delayed": ("DELAYED {mm} {kernel}", "DELAY 5 MIN {mm}", "LATE PHASE {mm}", "DELAYED {mm}"),
}
_SECONDS: dict[Phase, int] = {"plain": 0, "arterial": 95, "portal": 130, "delayed": 370}
_INJECTION = 65  # seconds after the plain scan


def _uid(*parts: object) -> str:
    """A UID from what it stands for, so that a second run writes the same bytes."""
    digest = hashlib.sha256("/".join(map(str, ("dyefreenet phantom", *parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.000000"


def _decimal(value: float) -> str:
    """A number as a decimal string of at most 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _study(patient: Patient, config: PhantomConfig, rng: Generator) -> Dataset:
    """What all images of a patient share."""
    maker, model, kernels = _SCANNERS[rng.integers(len(_SCANNERS))]
    chest = patient.kind == "chest"
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.StudyInstanceUID = _uid(config.seed, patient.patient_id, "study")
    ds.FrameOfReferenceUID = _uid(config.seed, patient.patient_id, "frame")
    ds.PatientName = f"Phantom^{'Chest' if chest else 'Made-Up'} {patient.patient_id[-4:]}"
    ds.PatientID = patient.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = str(rng.choice(["F", "M", "O"]))
    ds.PatientAge = f"{rng.integers(40, 85):03d}Y"
    ds.StudyDate = (
        "19990102" if chest else f"2020{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    )
    ds.StudyTime = _clock(8 * 3600 + int(rng.integers(0, 30000)))
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.StudyID = "1"
    ds.StudyDescription = "NLST-LSS" if chest else str(
        rng.choice(["CT ABDOMEN W/O + W CONTRAST", "CT ABDOMEN MULTIPHASE", "CT BAUCH 3 PHASEN"])
    )  # fmt: skip
    ds.Modality = "CT"
    ds.Manufacturer = maker
    ds.ManufacturerModelName = model
    ds.SoftwareVersions = "phantom"
    ds.BodyPartExamined = "CHEST" if chest else "ABDOMEN"
    ds.PatientPosition = "FFS" if rng.uniform() < 0.3 else "HFS"
    ds.PositionReferenceIndicator = ""
    ds.KVP = str(rng.choice(["100", "120", "140"]))
    ds.XRayTubeCurrent = str(int(rng.integers(40, 80) if chest else rng.integers(120, 400)))
    ds.ExposureTime = "500"
    ds.ConvolutionKernel = str(rng.choice(kernels))
    ds.ImageComments = "Made-up image of a phantom: not a patient"
    return ds


def _series(
    patient: Patient,
    phase: Phase,
    number: int,
    study: Dataset,
    config: PhantomConfig,
    rng: Generator,
) -> Dataset:
    """What all images of a series share."""
    ds = Dataset()
    ds.update(study)
    volume = patient.phases[phase]
    slice_mm, pixel, _ = volume.spacing
    ds.SeriesInstanceUID = _uid(config.seed, patient.patient_id, phase)
    ds.SeriesNumber = str(number)
    ds.AcquisitionNumber = str(number)
    start = int(study.StudyTime[:2]) * 3600 + int(study.StudyTime[2:4]) * 60 + 300
    begins = start + _SECONDS[phase]
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = study.StudyDate
    ds.SeriesTime = ds.AcquisitionTime = _clock(begins)
    ds.ContentTime = _clock(begins + 5)
    fov = pixel * volume.hu.shape[1]
    if patient.kind == "chest":
        ds.SeriesDescription = (
            f"0,OPA,PH,MADEUP,{study.ConvolutionKernel},{fov:.0f},{slice_mm:g},"
            f"{study.KVP},{study.XRayTubeCurrent},{int(study.XRayTubeCurrent) // 2},1.5"
        )
    else:
        name = _NAMES[phase][int(rng.integers(len(_NAMES[phase])))]
        ds.SeriesDescription = name.format(mm=f"{slice_mm:.1f}", kernel=study.ConvolutionKernel)
        ds.ProtocolName = "ABDOMEN MULTIPHASE"
    if phase != "plain":
        ds.ContrastBolusAgent = "MADE-UP AGENT 350"
        ds.ContrastBolusRoute = "Intravenous"
        ds.ContrastBolusVolume = "100"
        ds.ContrastBolusStartTime = _clock(start + _INJECTION)
        ds.ContrastFlowRate = "4"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SliceThickness = _decimal(slice_mm)
    ds.SpacingBetweenSlices = _decimal(slice_mm)
    ds.ReconstructionDiameter = _decimal(fov)
    ds.PixelSpacing = [_decimal(volume.spacing[1]), _decimal(pixel)]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = volume.hu.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    return ds


def _write_series(
    volume: Volume, shared: Dataset, padding_value: int, jpegls: bool, rng: Generator, folder: Path
) -> None:
    """One file per slice, named in an order that says nothing of where the slices are."""
    folder.mkdir(parents=True, exist_ok=True)
    signed = volume.padding is not None or rng.uniform() < 0.5
    stored = volume.hu.astype(np.int32) + 1024
    shared.RescaleIntercept = "-1024"
    shared.PixelRepresentation = int(signed)
    if volume.padding is not None:
        stored[volume.padding] = padding_value
        shared.add_new("PixelPaddingValue", "SS", padding_value)
    stored = stored.astype(np.int16 if signed else np.uint16)
    count = len(stored)
    names = rng.permutation(count) if rng.uniform() < 0.5 else np.arange(count)
    x, y, z = volume.origin
    for i in range(count):
        ds = FileDataset("", {}, preamble=b"\0" * 128)
        ds.update(shared)
        ds.SOPInstanceUID = _uid(shared.SeriesInstanceUID, i)
        at = z + i * volume.spacing[0]
        ds.ImagePositionPatient = [_decimal(x), _decimal(y), _decimal(at)]
        ds.SliceLocation = _decimal(at)
        ds.InstanceNumber = str(i + 1)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.PixelData = stored[i].tobytes()
        ds["PixelData"].VR = "OW"
        if jpegls:
            ds.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
        ds.save_as(folder / f"{int(names[i]) + 1:04d}.dcm", enforce_file_format=True)


def _write_nifti(array: NDArray[Any], spacing: tuple[float, ...], origin: Any, path: Path) -> None:
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing([float(step) for step in reversed(spacing)])
    image.SetOrigin([float(at) for at in origin])
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def write_patient(patient: Patient, config: PhantomConfig, index: int, folder: Path) -> str:
    """Write all series of one patient and the truth; returns the truth's key."""
    rng = generator(config.seed, patient.kind, index, "dicom")
    study = _study(patient, config, rng)
    key = ""
    for number, (phase, volume) in enumerate(patient.phases.items(), start=2):
        draw = generator(config.seed, patient.kind, index, f"dicom/{phase}")
        shared = _series(patient, phase, number, study, config, draw)
        if phase == "plain":
            key = hashlib.sha256(shared.SeriesInstanceUID.encode()).hexdigest()[:16]
        jpegls = bool(draw.uniform() < config.jpegls)
        place = folder / "dicom" / patient.patient_id / str(number)
        _write_series(volume, shared, patient.protocol.stored_padding, jpegls, draw, place)
    if "plain" in patient.phases:
        truth = folder / "truth"
        truth.mkdir(parents=True, exist_ok=True)
        plain = patient.phases["plain"]
        _write_nifti(patient.labels, plain.spacing, plain.origin, truth / f"{key}.nii.gz")
        z, y, x = plain.spacing
        coarse = (z, y * MOTION_STEP, x * MOTION_STEP)
        for phase, motion in patient.motions_mm.items():
            _write_nifti(motion, coarse, plain.origin, truth / f"{key}_{phase}_motion.nii.gz")
        names = {"labels": LABELS, "arteries": ARTERIES, "landmarks": LANDMARKS}
        (truth / "labels.json").write_text(json.dumps(names, indent=1) + "\n")
    return key


def write_one(config: PhantomConfig, index: int, folder: Path, kind: Kind = "patient") -> str:
    """Make and write one patient; returns the truth's key. Patients may be made in any order."""
    patient = make_patient(config, index) if kind == "patient" else make_chest(config, index)
    return write_patient(patient, config, index, Path(folder))


def write_archive(
    config: PhantomConfig, folder: Path, report: Callable[[str], None] | None = None
) -> None:
    """Write every patient and chest series that the config asks for, one after the other."""
    kinds: tuple[tuple[Kind, int], ...] = (("patient", config.patients), ("chest", config.chests))
    for kind, count in kinds:
        for index in range(count):
            write_one(config, index, folder, kind)
            if report is not None:
                report(f"{kind} {index + 1}/{count}")
