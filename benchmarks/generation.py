#!/usr/bin/env python3
"""Generation over an archive against its parts, with the shipped network and with none at all.

    python benchmarks/generation.py [--only write identity overhead again memory]

write      CPU ms of a slice: reading, deriving; deriving against deepcopy and save_as of pydicom
identity   slices/s of an archive from S3 to S3 on this machine with an identity network on Ray; the
           server shares the cores
overhead   an archive through Ray against the bare forward loop on the same cores, in turns
again      the same command on what is finished
memory     peak of all our processes over an archive and one of ten times as many series

All of it is made-up CT (chests of 512 x 512). Ray runs before any clock does.
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom

from dyefreenet import runtime
from dyefreenet.config import GenerateConfig, PhantomConfig, Selection
from dyefreenet.data.dicom import Series, read_series
from dyefreenet.data.phantom import write_one
from dyefreenet.generation.batch import AT_ONCE, Workers, generate_archive
from dyefreenet.generation.export import Making, derive
from dyefreenet.generation.series import load, model_of
from dyefreenet.store import Folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from object_store import ObjectStore

MADE = Making("bench", "ab" * 32, "arterial", datetime(2026, 11, 27))
CORES = os.cpu_count() or 1


def make_archive(root: Path, series: int, slices: int) -> Path:
    """One made-up chest under as many names as are wanted."""
    write_one(PhantomConfig(matrix=(512,), slices=slices, jpegls=0.0), 0, root / "drawn", "chest")
    for number in range(series):
        for path in sorted((root / "drawn").rglob("*.dcm")):
            ds = pydicom.dcmread(path)
            ds.PatientID = f"copy {number}"
            for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(ds, word, f"{ds[word].value[:50]}.{number}")
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            place = root / "archive" / str(number) / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            ds.save_as(place)
    shutil.rmtree(root / "drawn")
    return root / "archive"


def generate(
    source: str, target: str, identity: bool, actors: int = 1, check: bool = True
) -> tuple[float, float]:
    """Seconds of one archive on Ray: in all, and a series once the first is done."""

    def nothing(device: str) -> object:  # inside, so that it travels to the actors
        class Identity:
            def predict(self, volume, breaks):  # type: ignore[no-untyped-def]
                return volume.hu

        return Identity()

    def report(unit: str, done: int, total: int) -> None:
        if unit == "series":
            ends.append(time.monotonic())

    config = GenerateConfig(check=check)
    began, ends = time.monotonic(), list[float]()
    account = generate_archive(
        source,
        Folder(target),
        model_of(("shipped",), config),
        config,
        Selection(),
        workers=lambda series: Workers(False, CORES / actors, actors),
        loader=nothing if identity else None,  # type: ignore[arg-type]
        report=report,
    )
    assert not account["failed"] and account["done"] == account["selected"], account
    steady = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
    return time.monotonic() - began, steady


def write(scratch: Path, slices: int) -> None:
    files = sorted(make_archive(scratch / "write", 1, slices).rglob("*.dcm"))
    found: list[Series] = []

    def read() -> None:  # anew for each: what is once understood of a header stays so
        found[:] = [read_series([path.read_bytes() for path in files])]

    def ours() -> None:
        for _, _content in derive(found[0], found[0].volume.hu, MADE):
            pass

    def usual() -> None:
        for header, hu in zip(found[0].headers, found[0].volume.hu, strict=True):
            ds = copy.deepcopy(header)
            ds.SeriesDescription, ds.SeriesInstanceUID = "VIRTUAL", "1.2.3"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.1"
            ds.PixelData = (
                (hu.astype(np.int32) - int(ds.RescaleIntercept)).astype(np.uint16).tobytes()
            )
            ds["PixelData"].VR = "OW"
            ds.save_as(io.BytesIO(), enforce_file_format=True)

    times: dict[str, list[float]] = {"read": [], "ours": [], "usual": []}
    for _ in range(7):
        for name, call in (("read", read), ("ours", ours), ("read", read), ("usual", usual)):
            began = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - began) / len(files))
    first, own, other = (statistics.median(times[name]) for name in times)
    print(
        f"write: read {first:.2f} + derive {own:.2f} = {first + own:.2f} CPU ms a slice; deepcopy "
        f"and save_as {other:.2f}, {other / own:.2f} times ours"
    )


def identity(scratch: Path, series: int, slices: int) -> None:
    store = ObjectStore(scratch)
    store.start()
    os.environ.update(store.environment)
    try:
        made = make_archive(scratch / "identity", series, slices)
        for path in made.rglob("*.dcm"):
            Folder("s3://scans/in").write(str(path.relative_to(made)), path.read_bytes())
        names = Folder("s3://scans/in").names()

        def through(name: str) -> None:
            Folder("s3://scans/bare").write(name, Folder("s3://scans/in").read(name))

        with ThreadPoolExecutor(16) as pool:
            began = time.monotonic()
            list(pool.map(through, names))
        bare = len(names) / (time.monotonic() - began)
        print(f"identity: the same objects got and put, and nothing else: {bare:.0f} slices/s")
        runtime.connect()
        for check in (True, False):
            took, steady = generate("s3://scans/in", f"s3://scans/out-{check}", True, check=check)
            kind = "with" if check else "without"
            print(
                f"identity, S3 to S3, {kind} checks: {slices / steady:.0f} slices/s once begun, "
                f"{series * slices / took:.0f} in all"
            )
    finally:
        store.stop()


def overhead(scratch: Path, series: int, slices: int, rounds: int) -> None:
    import torch

    runtime.connect()
    archive = make_archive(scratch / "overhead", series, slices)
    config = GenerateConfig()
    network = load(model_of(("shipped",), config), config)
    torch.set_num_threads(CORES)
    volume = read_series(sorted((archive / "0").iterdir())).volume
    network.predict(volume, ())
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        began = time.monotonic()
        for _ in range(3):
            network.predict(volume, ())
        bare = (time.monotonic() - began) / 3
        for check in ratios:
            target = str(scratch / f"out{number}{check}")
            whole, steady = generate(str(archive), target, identity=False, check=check)
            ratios[check].append(bare / steady)
            start = whole - series * steady
            print(
                f"bare forward {bare:.2f} s a series, through Ray {steady:.2f} s and {start:.1f} s "
                f"to begin, checks {check}",
                flush=True,
            )
    for check, found in ratios.items():
        print(f"overhead, checks {check}: {statistics.median(found):.2f} of the bare loop's speed")


def again(scratch: Path, series: int, slices: int) -> None:
    runtime.connect()
    archive, target = make_archive(scratch / "again", series, slices), str(scratch / "once")
    first, _ = generate(str(archive), target, identity=False)
    then, _ = generate(str(archive), target, identity=False)
    print(f"again, {series} series: {then:.1f} s, {then / first:.4f} of the first {first:.0f} s")


def memory(scratch: Path, slices: int) -> None:
    runtime.connect()
    peaks = []
    for series in (few := 2 * AT_ONCE, 10 * few):  # enough for every hand of an actor to be full
        archive = make_archive(scratch / f"memory{series}", series, slices)
        with peak() as found:
            generate(str(archive), str(scratch / f"m{series}"), identity=True)
        peaks.append(found[0])
    print(
        f"memory: {peaks[0] / 2**20:.0f} MiB for {few} series, {peaks[1] / 2**20:.0f} for "
        f"{10 * few}: {peaks[1] / peaks[0]:.3f}"
    )


@contextmanager
def peak() -> Iterator[list[int]]:
    """Largest proportional set size of this process and all that it started, bytes."""
    found, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            found[0] = max(found[0], _held(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _held(root: int) -> int:
    """Proportional set size of a process and of all that it started, bytes."""
    above, held = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            lines = (place / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        held[int(place.name)] = sum(int(one.split()[1]) for one in lines if one.startswith("Pss:"))

    def is_ours(process: int) -> bool:
        return process == root or (process in above and is_ours(above[process]))

    return 1024 * sum(size for process, size in held.items() if is_ours(process))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation over an archive against its parts.")
    parts = ("write", "identity", "overhead", "again", "memory")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--slices", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "write" in options.only:
            write(scratch, options.slices)
        if "identity" in options.only:
            (scratch / "store").mkdir()
            identity(scratch / "store", 40, options.slices)
        if "overhead" in options.only:
            overhead(scratch, 6, options.slices, 2)
        if "again" in options.only:
            again(scratch, 24, options.slices)
        if "memory" in options.only:
            memory(scratch, options.slices)


if __name__ == "__main__":
    main()
