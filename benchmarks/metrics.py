#!/usr/bin/env python3
"""SSIM against scikit-image: slices per second of one core, and the largest difference.

    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/metrics.py

Both take turns on the same slices, so that a busy machine slows both; the figure to hold on to is
the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from dyefreenet.evaluate.metrics import ssim

SPAN = 600.0  # HU


def scans(slices: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smooth tissue with noise in air, and a second take, 0 to SPAN, [Z, size, size]."""
    generator = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(generator.normal(size=(slices, size, size)), (0, 12, 12))
    tissue = 300.0 + 4000.0 * tissue
    tissue[:, :, : size // 5] = -1000.0
    first, second = (tissue + generator.normal(0.0, 20.0, tissue.shape) for _ in range(2))
    return first.clip(0.0, SPAN), second.clip(0.0, SPAN)


def reference(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array(
        [
            structural_similarity(
                x, y, data_range=SPAN, gaussian_weights=True, use_sample_covariance=False
            )
            for x, y in zip(first, second, strict=True)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="SSIM against scikit-image.")
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    first, second = scans(options.slices, options.size)
    seconds: dict[str, list[float]] = {"ours": [], "skimage": []}
    for _ in range(options.rounds):
        began = time.process_time()
        ours = ssim(first, second, SPAN)
        middle = time.process_time()
        theirs = reference(first, second)
        seconds["ours"].append(middle - began)
        seconds["skimage"].append(time.process_time() - middle)
    rate = {name: options.slices / statistics.median(taken) for name, taken in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["skimage"], strict=True)]
    print(
        f"{options.size}x{options.size} pixels, {options.rounds} rounds of {options.slices} slices"
    )
    print(f"ours {rate['ours']:.0f} slices/s, scikit-image {rate['skimage']:.0f} slices/s")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"largest difference {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
