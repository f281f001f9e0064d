#!/usr/bin/env python3
"""Headers of an archive in S3, scanned through Ray: slices a second.

    python benchmarks/header_scan.py [--slices 6000]

Server (SeaweedFS), Ray and the scan share the cores of this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from object_store import ObjectStore
from reading import make_series

from dyefreenet import runtime
from dyefreenet.data.archive import survey
from dyefreenet.data.ingest import spread
from dyefreenet.store import Folder

SERIES = 100  # slices


def main() -> None:
    parser = argparse.ArgumentParser(description="Headers of an archive in S3, slices a second.")
    parser.add_argument("--slices", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = ObjectStore(Path(scratch))
        store.start()
        os.environ.update(store.environment)
        archive = Folder("s3://scans/archive")
        made = Path(scratch, "series")
        made.mkdir()
        make_series(made, SERIES)
        contents = [path.read_bytes() for path in sorted(made.iterdir())]
        with ThreadPoolExecutor(8) as pool:
            names = [f"{n // SERIES:05d}/{n % SERIES:03d}" for n in range(options.slices)]
            list(
                pool.map(lambda n: archive.write(names[n], contents[n % SERIES]), range(len(names)))
            )
        runtime.connect()
        rates = []
        for _ in range(options.rounds + 1):
            began = time.monotonic()
            found = survey(archive, spread=spread)
            rates.append(options.slices / (time.monotonic() - began))
            assert sum(row.slices for row in found.rows) == options.slices
        store.stop()
    told = ", ".join(f"{rate:.0f}" for rate in rates[1:])
    print(
        f"{options.slices} slices of {len(contents[0])} bytes in S3, {os.cpu_count()} cores with "
        f"the server: {statistics.median(rates[1:]):.0f} slices/s ({told}; first, with Ray's "
        f"processes yet to start, {rates[0]:.0f})"
    )


if __name__ == "__main__":
    main()
