"""What proofs by kills share: a small archive, clusters, drivers, and what they have made."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dyefreenet.store import Folder

ROOT = Path(__file__).resolve().parents[1]
PATIENTS = 12


def write_archive(root: Path, patients: int = PATIENTS) -> None:
    """Patients with a plain and an arterial series each, noise about water."""
    draw = np.random.default_rng(0)
    for patient in range(patients):
        for number, words in enumerate(("NATIV", "ART")):
            series = f"1.2.{patient}.{number}"
            for at in range(12):
                ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
                ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.{at + 1}"
                ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.3.{patient}", series
                ds.FrameOfReferenceUID, ds.Modality = f"1.4.{patient}", "CT"
                ds.PatientID, ds.SeriesDescription = f"P{patient}", words
                ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], at + 1
                ds.ImagePositionPatient = ["0", "0", str(3 * at)]
                ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
                ds.PixelSpacing, ds.Rows, ds.Columns = ["1", "1"], 128, 128
                ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
                ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
                ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
                ds.PixelData = draw.integers(900, 1200, (128, 128)).astype(np.uint16).tobytes()
                path = root / series / f"{at}.dcm"
                path.parent.mkdir(exist_ok=True)
                pydicom.dcmwrite(path, ds, enforce_file_format=True)


def digests(folder: Folder) -> dict[str, str]:
    """Of all files, but those that hold times, and trial objects that a killed store still has."""
    return {
        name: hashlib.sha256(folder.read(name)).hexdigest()
        for name in folder.names()
        if not name.startswith(("ledger", "records/", "job.json", ".writable-"))
    }


@contextmanager
def several_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster of a head with one CPU, and its two nodes with two each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield made, [made.add_node(num_cpus=2) for _ in range(2)]
    finally:
        made.shutdown()


def begin(address: str, *words: str) -> subprocess.Popen[str]:
    """A driver: a command of ours on a cluster, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dyefreenet.cli", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address, "DYEFREENET_SALT": "soak"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(driver: subprocess.Popen[str]) -> None:
    """Wait until a driver ends well."""
    _, err = driver.communicate(timeout=900)
    assert driver.returncode == 0, err[-3000:]
