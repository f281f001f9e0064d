#!/usr/bin/env python3
"""Triplets a second through Ray Data, against decoding alone and against MONAI's CacheDataset.

    python benchmarks/feeding.py --run RUN [--rounds 3]

RUN is a run folder whose ingest is done. All give the same int16 triplets of the same shards, whole
slices, in batches of 4; nothing trains. MONAI caches each volume decoded and draws random triplets
of it, with two loader processes: one of each volume at a time, scaled to [-1, 1], or 4 of a volume
together, as int16. The time to fill its cache is told apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dyefreenet import runtime
from dyefreenet.data.shards import Slab, SlabRecord, read_records, read_slab
from dyefreenet.data.slices import batches, schedule
from dyefreenet.store import Folder

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Triplets a second through Ray Data.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    ingest = Folder(options.run) / "ingest"
    records = [one for one in read_records(ingest) if one.split == "train"]
    contents = {one.path: ingest.read(one.path) for one in records}
    runtime.connect()
    from dyefreenet.stages.launch import fetch

    plan = schedule(records, BATCH, options.epochs, 0)
    by_path = {one.path: one for one in records}
    order = [by_path[path] for path in plan.paths(range(BATCH))]
    triplets = plan.steps * BATCH

    def through(slabs: Iterator[Slab]) -> float:
        began = time.perf_counter()
        for _ in batches(plan, slabs, range(BATCH)):
            pass
        return triplets / (time.perf_counter() - began)

    rates: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        alone = through(read_slab(contents[one.path]) for one in order)
        rates.setdefault("decoded here, bytes in memory", []).append(alone)
        rates.setdefault("through Ray Data", []).append(through(fetch(ingest, order)))
    side = next(iter(map(read_slab, contents.values()))).plain.shape[-1]
    print(f"{triplets} triplets of plain and contrast, {side} pixels wide, {len(records)} shards")
    for name, found in rates.items():
        print(f"{name:32} {statistics.median(found[1:]):8.0f} triplets/s")
    pairs = zip(*rates.values(), strict=True)
    print(f"through Ray Data / decoded here: {statistics.median(b / a for a, b in pairs):.2f}")
    for name, at_once in (("MONAI, a window at a time", False), ("MONAI, 4 of a volume", True)):
        filled, rate = monai(records, contents, min(triplets, 2000), at_once)
        if rate:
            print(f"{name:32} {rate:8.0f} triplets/s, after {filled:.1f} s to fill its cache")


def monai(
    records: list[SlabRecord], contents: dict[str, bytes], triplets: int, at_once: bool
) -> tuple[float, float]:
    """Seconds to fill the cache, and triplets a second from it; 0 where MONAI is missing.

    Args:
        at_once: Several windows of a volume together, int16; else one of each volume, scaled to
            [-1, 1] in the cache, as its tutorials have it.
    """
    try:
        import monai.transforms as mt
        from monai.data import CacheDataset, DataLoader
    except ImportError:
        return 0.0, 0.0
    keys = ["plain", "contrast"]
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for number, one in enumerate(records):
            slab, item = read_slab(contents[one.path]), {}
            for key in keys:
                item[key] = str(Path(folder, f"{number}-{key}.npy"))
                np.save(item[key], getattr(slab, key)[None])  # a channel, then slices
            items.append(item)
        window = (3, *slab.plain.shape[1:])
        if at_once:
            steps = [
                mt.LoadImaged(keys, dtype=np.int16),
                mt.RandSpatialCropSamplesd(keys, window, BATCH, random_size=False),
            ]
        else:
            steps = [
                mt.LoadImaged(keys),
                mt.ScaleIntensityRanged(keys, -200, 600, -1, 1, clip=True),
                mt.RandSpatialCropd(keys, window, random_size=False),
            ]
        began = time.perf_counter()
        dataset = CacheDataset(items, mt.Compose(steps), cache_rate=1.0, progress=False)
        filled = time.perf_counter() - began
        batch = 1 if at_once else BATCH
        loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=2)
        began, given = time.perf_counter(), 0
        while given < triplets:
            for found in loader:
                given += len(found["plain"])
        return filled, given / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
