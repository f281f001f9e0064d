#!/usr/bin/env python3
"""Whole ingest through Ray against its parts alone: the same pairs in a bare loop on as many cores.

    OMP_NUM_THREADS=1 python benchmarks/ingest.py [--pairs 24] [--registration rigid]

The parts are reading headers, and reading, checking, aligning, cutting and writing each pair; the
bare loop runs once on each core, each with its share of the pairs, without Ray and without the
guarded process. Ray runs before the clock does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import pydicom

from dyefreenet import runtime
from dyefreenet.config import GridConfig, IngestConfig, PhantomConfig
from dyefreenet.data.archive import scan
from dyefreenet.data.cohort import pair
from dyefreenet.data.ingest import ingest
from dyefreenet.data.phantom import write_one
from dyefreenet.data.prepare import Job, prepared
from dyefreenet.store import Folder

GRID = GridConfig(size=256, pixel_mm=1.5)


def make_archive(root: Path, pairs: int, slices: int) -> None:
    """Two made-up patients under as many names as are wanted."""
    drawn = root / "drawn"
    for index in range(2):
        write_one(PhantomConfig(matrix=(512,), slices=slices, jpegls=0.0), index, drawn)
    patients = sorted((drawn / "dicom").iterdir())
    for number in range(pairs):
        for path in sorted(patients[number % 2].rglob("*.dcm")):
            ds = pydicom.dcmread(path)
            ds.PatientID = f"copy {number}"
            for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(ds, word, f"{ds[word].value[:50]}.{number}")
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            place = root / "archive" / f"{number}" / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            ds.save_as(place)
    shutil.rmtree(drawn)


def bare(jobs: list[Job], config: IngestConfig, target: str) -> None:
    folder = Folder(target)
    for job in jobs:
        made, contents = prepared(job, config, GRID, None)
        for name, content in zip(["look", *(n for n, _ in made["files"])], contents, strict=True):
            folder.write(f"{job.name}-{name}", content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole ingest against its parts alone.")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--registration", default="rigid")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    config = IngestConfig(registration=options.registration)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        make_archive(Path(scratch), options.pairs, options.slices)
        archive = f"{scratch}/archive"
        runtime.connect()
        ratios = []
        for number in range(options.rounds):
            began = time.monotonic()
            pairs, _ = pair(scan(archive), config.keep)
            headers = time.monotonic() - began
            jobs = [Job(one.plain, one.contrast, one.phase, "test") for one in pairs]
            with spawn.Pool(cores) as pool:
                shares = [(jobs[n::cores], config, f"{scratch}/bare{number}") for n in range(cores)]
                pool.starmap(len, [([],)] * cores)  # so that all have started
                began = time.monotonic()
                pool.starmap(bare, shares, chunksize=1)
                parts = headers / cores + time.monotonic() - began
            began = time.monotonic()
            target = Folder(f"{scratch}/whole{number}")
            facts = ingest(config, GRID, paired=[Folder(archive)], target=target, train=False)
            whole = time.monotonic() - began
            assert facts["used"] == 2 * options.pairs, facts
            ratios.append(parts / whole)
            print(f"parts {parts:.1f} s (headers {headers:.1f} s of one core), whole {whole:.1f} s")
    print(
        f"{options.pairs} pairs of 512 x 512 x {options.slices}, {options.registration}, {cores} "
        f"cores: {sorted(ratios)[len(ratios) // 2]:.2f} of the parts' speed"
    )


if __name__ == "__main__":
    main()
