#!/usr/bin/env python3
"""Shards against Parquet with zstd-3 over raw int16: bytes, and speed of writing and reading.

    OMP_NUM_THREADS=1 python benchmarks/shards.py [--series FOLDER]

Both hold the same slices, in memory, in turns; CPU time of one core.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.data.dicom import read_series
from dyefreenet.data.shards import decode_slice, encode_slice


def made_up(slices: int) -> NDArray[np.int16]:
    """Smooth tissue with the noise of a scanner, whose neighbours are alike, [Z, 512, 512] HU."""
    draw = np.random.default_rng(0)
    tissue = 3000 * ndimage.gaussian_filter(draw.normal(size=(slices, 512, 512)), (0, 9, 9))
    noise = 20 * ndimage.gaussian_filter(draw.normal(size=tissue.shape), (0, 0.8, 0.8)) * 2.5
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = x**2 + (1.3 * y) ** 2 < 0.8
    return (
        np.rint(np.where(body, 40 + tissue + noise, -1000 + noise / 3)).clip(-1024).astype(np.int16)
    )


def write(cells: list[bytes], compression: str, level: int | None) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"hu": pa.array(cells, pa.binary())})
    pq.write_table(
        table, sink, compression=compression, compression_level=level, use_dictionary=False
    )
    return sink.getvalue()


def cells_of(content: bytes) -> list[bytes]:
    return [bytes(cell) for cell in pq.read_table(io.BytesIO(content))["hu"].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Shards against the usual Parquet.")
    parser.add_argument("--series", help="folder of one DICOM series (default: made up)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.series:
        hu = read_series(sorted(Path(options.series).glob("*.dcm"))).volume.hu
    else:
        hu = made_up(40)
    height, width = hu.shape[1:]
    seconds: dict[str, list[float]] = {}
    encode = {
        "ours": lambda: write([encode_slice(image) for image in hu], "none", None),
        "usual": lambda: write([image.tobytes() for image in hu], "zstd", 3),
    }
    decode = {
        "ours": lambda cell: decode_slice(cell, height, width),
        "usual": lambda cell: np.frombuffer(cell, np.int16).reshape(height, width),
    }
    sizes: dict[str, int] = {}
    for _ in range(options.rounds):
        for name in ("ours", "usual"):
            began = time.process_time()
            content = encode[name]()
            middle = time.process_time()
            again = np.stack([decode[name](cell) for cell in cells_of(content)])
            seconds.setdefault(f"decode {name}", []).append(time.process_time() - middle)
            seconds.setdefault(f"encode {name}", []).append(middle - began)
            sizes[name] = len(content)
            assert np.array_equal(again, hu)
    print(f"{hu.shape} voxels, {options.rounds} rounds")
    smaller, packed = sizes["ours"] / sizes["usual"], hu.nbytes / sizes["ours"]
    print(f"bytes: {smaller:.2f} of the usual, {packed:.2f} : 1")
    for name in ("encode", "decode"):
        ratio = statistics.median(
            b / a for a, b in zip(seconds[f"{name} ours"], seconds[f"{name} usual"], strict=True)
        )
        rate = hu.nbytes / 1e6 / statistics.median(seconds[f"{name} ours"])
        print(f"{name}: {rate:.0f} MB/s, {ratio:.2f} x the usual's speed")


if __name__ == "__main__":
    main()
