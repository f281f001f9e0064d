"""Ten thousand series from object storage: one end state each, bounded memory. ``make soak``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dyefreenet.store import Folder

SERIES = 10_000
GROWTH = 0.10  # of memory after the first thousand series
INGEST = """
import json, os, sys
from pathlib import Path
from dyefreenet import runtime
from dyefreenet.config import GridConfig, IngestConfig
from dyefreenet.data.ingest import ingest
from dyefreenet.store import Folder


def taken():
    "MiB of this process, and of all that it started; shared pages count in shares."
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                parents[int(place.name)] = int(fields[1])
            except OSError:
                pass
    family, more = set(), {os.getpid()}
    while more:
        family |= more
        more = {child for child, parent in parents.items() if parent in more} - family
    sizes = {}
    for process in family:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kibibytes = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
        sizes[process] = sum(kibibytes) / 1024
    return [round(sizes[os.getpid()]), round(sum(sizes.values()))]


def report(unit, done, total):
    if done % 500 == 0:
        print(json.dumps([unit, done, *taken()]), file=sys.stderr, flush=True)


runtime.connect()
facts = ingest(
    IngestConfig(), GridConfig(size=32), paired=[Folder("s3://scans/many")],
    target=Folder("s3://scans/out"), salt="soak", train=False, report=report,
)
print(json.dumps(facts))
"""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

# Of a hundred series in turn: what is wrong with those that are not sound, and their end.
FAULTS = {
    7: ("gap", "gap"),
    23: ("slope", "rescale"),
    41: ("scout", "localizer"),
    58: ("words", "phase-unknown"),
    77: ("short", "short"),
}


def series(number: int, draw: np.random.Generator) -> list[bytes]:
    """Four slices of 32 x 32; even numbers are plain, the next one is their arterial partner."""
    fault = FAULTS.get(number % 100, ("", ""))[0]
    files = []
    for at in range(2 if fault == "short" else 4):
        ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        uid = f"1.2.{number}.{at + 1}"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.3.{number // 2}", f"1.4.{number}"
        ds.FrameOfReferenceUID, ds.Modality, ds.PatientID = "1.5", "CT", f"P{number // 2}"
        ds.SeriesDescription = "" if fault == "words" else ("NATIV", "ART")[number % 2]
        kind = "LOCALIZER" if fault == "scout" else "AXIAL"
        ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", kind], at + 1
        ds.ImagePositionPatient = ["0", "0", str(3 * at + 3 * (fault == "gap" and at > 1))]
        ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        ds.PixelSpacing, ds.Rows, ds.Columns = ["1", "1"], 32, 32
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = "0" if fault == "slope" else "1", "-1024"
        ds.PixelData = draw.integers(900, 1200, (32, 32)).astype(np.uint16).tobytes()
        sink = io.BytesIO()
        pydicom.dcmwrite(sink, ds, enforce_file_format=True)
        files.append(sink.getvalue())
    return files


@pytest.mark.usefixtures("own_store")
def test_ten_thousand_series_each_have_one_end():
    archive, draw = Folder("s3://scans/many"), np.random.default_rng(0)
    with ThreadPoolExecutor(8) as pool:
        for number in range(SERIES):
            for at, content in enumerate(series(number, draw)):
                pool.submit(archive.write, f"{number % 97}/{number}-{at}", content)
    done = subprocess.run(
        [sys.executable, "-c", INGEST],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    print("\n".join(map(str, lines)), facts)
    assert facts["series"] == SERIES
    assert facts["used"] + sum(facts["refused"].values()) + facts["failed"] == SERIES
    assert facts["failed"] == 0
    for fault, reason in FAULTS.values():
        assert facts["refused"][reason] >= SERIES // 100, fault
    books = [
        pq.read_table(io.BytesIO(Folder("s3://scans/out").read(f"{name}.parquet"))).to_pylist()
        for name in ("pairs", "plain", "excluded")
    ]
    ends = [row["key"] for book in books for row in book]
    ends += [row["contrast_key"] for row in books[0]]
    assert len(ends) == len(set(ends)) == SERIES
    sizes = {count: size for unit, count, *size in lines if unit == "series"}
    for which in range(2):  # the driver, and all processes; a job is two series
        first, last = sizes[500][which], max(size[which] for size in sizes.values())
        assert last < (1 + GROWTH) * first, (which, sizes)
