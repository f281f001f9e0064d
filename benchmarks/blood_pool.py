#!/usr/bin/env python3
"""What the image alone says of the contrast phase, in the phantom and in real CT whole and cut.

    OMP_NUM_THREADS=1 python benchmarks/blood_pool.py --seed 202 [--real ../shared/data]

Prints tables in Markdown. The thresholds were chosen on seed 101. A wrong word is plain for a scan
with iodine, iodine for a plain scan, or arterial for another phase; each one is listed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dyefreenet.config import PhantomConfig
from dyefreenet.data.blood import BloodPool, blood_pool, phase_of_pool
from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import read_image
from dyefreenet.data.phantom import make_chest, make_patient
from dyefreenet.data.volume import Volume

PHASES = ("plain", "arterial", "portal", "delayed")
WORDS = ("plain", "arterial", "contrast", None)
PARTS_MM = (45.0, 70.0)  # of phantom scans
REAL = {  # name: true phase, file or folder
    "acrin": ("plain", "acrin_flt001_abdpelvis_nc"),
    "nlst": ("plain", "nlst_101287_lowdose_nc"),
    "native": ("plain", "ts_native_ct/example_ct.nii.gz"),
    "cta": ("arterial", "ts_arterial_cta/ct.nii.gz"),
    "portal": ("portal", "ts_portal_dicom20"),
}


def contradicts(plain: BloodPool, contrast: BloodPool) -> bool:
    """Whether ingest would refuse the two as a pair."""
    return (
        phase_of_pool(plain)[0] in ("arterial", "contrast") or phase_of_pool(contrast)[0] == "plain"
    )


class Finding(NamedTuple):
    """One scan, or a part of one."""

    name: str
    truth: str
    pool: BloodPool
    seconds: float  # CPU

    @property
    def word(self) -> str | None:
        return phase_of_pool(self.pool)[0]

    @property
    def wrong(self) -> bool:
        if self.word is None:
            return False
        missed = (self.truth == "plain") != (self.word == "plain")
        return missed or (self.word == "arterial" and self.truth != "arterial")


def look(name: str, truth: str, volume: Volume) -> Finding:
    start = time.process_time()
    pool = blood_pool(volume)
    return Finding(name, truth, pool, time.process_time() - start)


def part(volume: Volume, first: int, count: int) -> Volume:
    return Volume(volume.hu[first : first + count], volume.spacing)


def phantom(job: tuple[int, str, int]) -> tuple[list[Finding], list[Finding]]:
    """One made-up patient: every phase whole, and in parts."""
    seed, kind, index = job
    config = PhantomConfig(seed=seed, phases=PHASES)
    patient = make_chest(config, index) if kind == "chest" else make_patient(config, index)
    whole, parts = [], []
    for phase, volume in patient.phases.items():
        step = volume.spacing[0]
        whole.append(look(f"{patient.patient_id}, {step} mm", phase, volume))
        for mm in PARTS_MM:
            count = int(np.ceil(mm / step))
            for first in range(0, len(volume.hu) - count, count):
                name = f"{patient.patient_id}, slices {first} to {first + count} of {step} mm"
                parts.append(look(name, phase, part(volume, first, count)))
    return whole, parts


def real_parts(name: str, truth: str, volume: Volume) -> Iterator[Finding]:
    """A real scan as it could have been made or cut."""
    hu, (z, y, x) = volume.hu, volume.spacing
    draw = np.random.default_rng(0)
    even = len(hu) // 2 * 2
    thick = hu[:even].reshape(-1, 2, *hu.shape[1:]).mean(1).round().astype(np.int16)
    noisy = np.clip(hu + draw.normal(0, 30, hu.shape), -1024, 3071).astype(np.int16)
    side = hu.shape[1] // 8
    for what, changed, step in (
        ("every second slice", hu[::2], 2 * z),
        ("slices twice as thick", thick, 2 * z),
        ("upside down", hu[::-1], z),
        ("an eighth cut off on every side", hu[:, side:-side, side:-side], z),
        ("white noise of 30 HU added", noisy, z),
    ):
        yield look(f"{name}, {what}", truth, Volume(changed, (step, y, x)))
    for mm in (40.0, 60.0, 80.0, 120.0, 20 * z):
        count = round(mm / z)
        for first in range(0, len(hu) - count, max(1, count // 2)):
            cut = part(volume, first, count)
            yield look(f"{name}, slices {first} to {first + count}", truth, cut)


def table(title: str, findings: list[Finding]) -> None:
    count = Counter((one.truth, one.word) for one in findings)
    print(
        f"\n### {title}\n\n| truth | plain | arterial | contrast | nothing |\n|---|---|---|---|---|"
    )
    for truth in PHASES:
        row = [count[truth, word] for word in WORDS]
        if sum(row):
            print(f"| {truth} | " + " | ".join(map(str, row)) + " |")
    wrong = [one for one in findings if one.wrong]
    print(f"\nWrong: {len(wrong)} of {len(findings)}.")
    for one in wrong:
        print(f"- {one.name}: {one.truth} called {one.word}; {one.pool}")


def levels(findings: Iterable[Finding]) -> None:
    print("\n| truth | found | level, HU: median (5th to 95th percentile) |\n|---|---|---|")
    findings = list(findings)
    for truth in PHASES:
        hu = np.array([one.pool.level_hu for one in findings if one.truth == truth])
        found = hu[~np.isnan(hu)]
        low, middle, high = np.percentile(found, (5, 50, 95))
        print(f"| {truth} | {len(found)} of {len(hu)} | {middle:.0f} ({low:.0f} to {high:.0f}) |")


def pairs(whole: list[list[Finding]]) -> None:
    """What becomes of true pairs, and of pairs with a false member."""
    print(
        "\n### Pairs\n\n| given as plain | given as contrast | pairs | refused |\n|---|---|---|---|"
    )
    patients = [{one.truth: one.pool for one in found} for found in whole if len(found) > 1]
    for first in PHASES:
        for second in PHASES:
            refused = sum(contradicts(p[first], p[second]) for p in patients)
            print(f"| {first} | {second} | {len(patients)} | {refused} |")


def read(path: Path) -> Volume:
    if path.is_file():
        return read_image(path)
    return read_series(sorted(p for p in path.iterdir() if p.suffix not in (".txt", ".gz"))).volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--real", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    jobs = [(options.seed, "patient", index) for index in range(options.patients)]
    jobs += [(options.seed, "chest", index) for index in range(options.patients // 4)]
    with ProcessPoolExecutor(options.workers) as executor:
        made = list(executor.map(phantom, jobs))
    whole = [one for found, _ in made for one in found]
    table(f"Phantom, seed {options.seed}: whole scans", whole)
    levels(whole)
    pairs([found for found, _ in made])
    parts = [one for _, cut in made for one in cut]
    table(f"Phantom, seed {options.seed}: parts of 45 and 70 mm", parts)

    cuts = []
    print("\n### Real CT, whole\n\n| series | truth | said | words | CPU |\n|---|---|---|---|---|")
    for name, (truth, place) in REAL.items():
        volume = read(options.real / place)
        one = look(name, truth, volume)
        said, words = phase_of_pool(one.pool)
        print(f"| {place} | {truth} | {said} | {words} | {one.seconds:.2f} s |")
        cuts += list(real_parts(name, truth, volume))
    table("Real CT, changed and cut", cuts)
    print(f"\nCPU a phantom scan: {np.mean([one.seconds for one in whole]):.2f} s on average.")


if __name__ == "__main__":
    main()
