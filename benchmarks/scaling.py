#!/usr/bin/env python3
"""How ingest and generation grow with the workers they are given, by a simulation of their cost.

    python benchmarks/scaling.py [--only generation ingest] [--ms 100]

A slice costs as long a sleep as it would cost work, in place of the network (generation) and beside
the cutting of shards (ingest), so that eight workers can be had on two cores; everything else is
real: Ray, reading, DICOM, shards, records. Rates are of the middle of a run, from a quarter of its
series to the last round of them: start and end have other workers at work than were asked for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray

from dyefreenet import runtime
from dyefreenet.config import GenerateConfig, GridConfig, IngestConfig, Selection
from dyefreenet.data.ingest import ingest
from dyefreenet.generation.batch import Workers, generate_archive
from dyefreenet.generation.series import model_of
from dyefreenet.store import Folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from disturbed import write_archive

WORKERS = (1, 2, 4, 8)
A_WORKER = 12  # patients; each has two series of 12 slices


class Ends:
    """When series ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, unit: str, done: int, total: int) -> None:
        if unit == "series":
            self.times.append(time.monotonic())

    def rate(self, workers: int) -> float:
        """Series a second, of the middle of the run."""
        first, last = len(self.times) // 4, len(self.times) - workers
        return (last - first) / (self.times[last - 1] - self.times[first - 1])


def generation(archive: Path, target: Path, workers: int, seconds: float) -> float:
    def slow(device: str) -> object:  # inside, so that it travels to the actors
        class Slow:
            def predict(self, volume, breaks):  # type: ignore[no-untyped-def]
                time.sleep(seconds * len(volume.hu))
                return volume.hu

        return Slow()

    ends, config = Ends(), GenerateConfig(any_phase=True, check=False)
    account = generate_archive(
        str(archive),
        Folder(str(target)),
        model_of(("shipped",), config),
        config,
        Selection(),
        workers=lambda series: Workers(False, 1.0, workers),
        loader=slow,  # type: ignore[arg-type]
        report=ends,
    )
    assert account["done"] == 2 * A_WORKER * workers, account
    return ends.rate(workers)


def ingestion(archive: Path, target: Path, workers: int) -> float:
    """On a cluster with as many CPUs as workers are wanted; a task books one."""
    ends = Ends()
    facts = ingest(
        IngestConfig(validation=0.3, test=0.3, registration="off", image_check=False),
        GridConfig(size=128),
        paired=[Folder(str(archive))],
        target=Folder(str(target)),
        salt="scaling",
        train=False,
        report=ends,
    )
    assert facts["used"] == 2 * A_WORKER * workers, facts
    return ends.rate(workers)


def start(cpus: int, seconds: float) -> None:
    """Ray with so many CPUs, whose workers sleep for every slice of a job of ingest."""

    def slow_down() -> None:
        import time

        from dyefreenet.data import ingest as module

        real = module.make_and_write

        def slow(marked, **settings):  # type: ignore[no-untyped-def]
            job = marked[0]
            time.sleep(seconds * sum(one.slices for one in (job.plain, job.contrast) if one))
            return real(marked, **settings)

        module.make_and_write = slow

    ray.shutdown()
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": slow_down},
    )
    runtime.hush(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Workers against throughput, simulated.")
    parser.add_argument("--only", nargs="+", choices=("generation", "ingest"))
    parser.add_argument("--ms", type=float, default=100.0, help="that a slice takes (default: 100)")
    options = parser.parse_args()
    wanted = options.only or ("generation", "ingest")
    scratch = Path(tempfile.mkdtemp())
    found: dict[tuple[str, int], float] = {}
    try:
        for workers in WORKERS:
            archive = scratch / f"archive{workers}"
            archive.mkdir()
            write_archive(archive, A_WORKER * workers)
            start(workers, options.ms / 1000)
            for kind in wanted:
                target = scratch / f"{kind}{workers}"
                if kind == "generation":
                    rate = generation(archive, target, workers, options.ms / 1000)
                else:
                    rate = ingestion(archive, target, workers)
                found[kind, workers] = rate
                share = rate / workers / found[kind, 1]
                told = f"{workers} workers, {rate:.2f} a second, {share:.2f} of {workers} times one"
                print(f"{kind}: {told}", flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
