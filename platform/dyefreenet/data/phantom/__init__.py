"""Made-up multi-phase CT as real DICOM, with the truth beside it: demo, tests, benchmarks."""

from dyefreenet.data.phantom.archive import write_archive, write_one, write_patient
from dyefreenet.data.phantom.patients import Patient, make_chest, make_patient
from dyefreenet.data.phantom.scanner import MOTION_STEP, full_motion
from dyefreenet.data.phantom.tissue import ARTERIES, LABELS

__all__ = [
    "ARTERIES",
    "LABELS",
    "MOTION_STEP",
    "Patient",
    "full_motion",
    "make_chest",
    "make_patient",
    "write_archive",
    "write_one",
    "write_patient",
]
