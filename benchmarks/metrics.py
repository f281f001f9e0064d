#!/usr/bin/env python3
"""SSIM against other libraries, and what every protocol costs: all on one core.

    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/metrics.py
    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/metrics.py --protocols

The first: slices per second of ours, of scikit-image and, where it is installed, of torchmetrics,
and the largest difference. They take turns on the same slices, so that a busy machine slows all;
the figure to hold on to is the ratio. The second: CPU seconds of each protocol on a made-up pair of
512x512x300 voxels, and how far memory rises above the arrays that are given, in a process of its
own for each and for all together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from dyefreenet.evaluate.metrics import RADIUS, ssim
from dyefreenet.evaluate.protocols import PROTOCOLS, Case

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


def torchmetrics_ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> Any:
    """The same measure in float64, [Z]; the rim of mirrored pixels, which it counts, is cut off."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (torch.from_numpy(volume)[:, None] for volume in (first, second))
    _, maps = structural_similarity_index_measure(
        x, y, sigma=1.5, data_range=SPAN, reduction="none", return_full_image=True
    )
    return maps[:, 0, RADIUS:-RADIUS, RADIUS:-RADIUS].mean(dim=(1, 2)).numpy()


def compare(slices: int, size: int, rounds: int) -> None:
    """Print slices per second of each library, and how far it lies from ours."""
    rivals = {"scikit-image": reference}
    if find_spec("torchmetrics"):
        rivals["torchmetrics"] = torchmetrics_ssim
    first, second = scans(slices, size)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    apart = dict.fromkeys(rivals, 0.0)
    for _ in range(rounds):
        began = time.process_time()
        ours = ssim(first, second, SPAN)
        seconds["ours"].append(time.process_time() - began)
        for name, measure in rivals.items():
            began = time.process_time()
            theirs = measure(first, second)
            seconds[name].append(time.process_time() - began)
            apart[name] = max(apart[name], float(np.abs(ours - theirs).max()))
    print(f"{size}x{size} pixels, {rounds} rounds of {slices} slices")
    print(f"ours {slices / statistics.median(seconds['ours']):.0f} slices/s")
    for name in rivals:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        print(
            f"{name} {slices / statistics.median(seconds[name]):.0f} slices/s, ratio "
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), "
            f"largest difference {apart[name]:.1e}"
        )


def made_up_case(slices: int, size: int) -> Case:
    """A trunk of soft tissue with noise, a spine, an aorta and a vein that light up."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    body = np.hypot(rows / 0.3, columns / 0.42) < 1
    plain, true, predicted = (np.empty((slices, size, size), np.int16) for _ in range(3))
    labels = np.zeros((slices, size, size), np.uint8)
    for z in range(slices):
        sway = 0.02 * np.sin(z / 20)
        aorta = np.hypot(rows - 0.05, columns - sway) < 0.03
        cava = np.hypot(rows - 0.05, columns - 0.12 - sway) < 0.035
        spine = np.hypot(rows - 0.16, columns) < 0.05
        image = np.where(body, 50.0, -1000.0) + 350.0 * spine
        for volume, contrast in ((plain, 0.0), (true, 250.0), (predicted, 200.0)):
            noise = generator.normal(0.0, 15.0, image.shape)
            volume[z] = image + contrast * aorta + 0.4 * contrast * cava + noise
        labels[z] = np.where(aorta, 1, np.where(cava, 2, np.where(body & ~spine, 3, 0)))
    structures = {"vessel": {1, 2}, "aorta": {1}, "muscle": {3}}
    inside = np.repeat(body[None], slices, axis=0)
    return Case(true, predicted, plain, inside, (1.0, 0.8, 0.8), labels, structures)


def cost(names: Sequence[str], slices: int, size: int, answer: Any) -> None:
    """CPU seconds, and GB by which memory rises above the arrays of the case."""
    case = made_up_case(slices, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for name in names:
        PROTOCOLS[name].measure(case)
    seconds = time.process_time() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send((seconds, (after - before) * 1024 / 1e9))


def protocols(slices: int, size: int) -> None:
    """Print what each protocol costs, and all together."""
    print(f"{size}x{size}x{slices} voxels; a pair is {2 * 2 * slices * size**2 / 1e9:.3f} GB")
    context = multiprocessing.get_context("spawn")  # the peak of a process is its own
    for names in [*((name,) for name in PROTOCOLS), tuple(PROTOCOLS)]:
        here, there = context.Pipe()
        worker = context.Process(target=cost, args=(names, slices, size, there))
        worker.start()
        seconds, gigabytes = here.recv()
        worker.join()
        title = names[0] if len(names) == 1 else "all"
        print(f"{title:<22}{seconds:>7.1f} s{gigabytes:>8.2f} GB above the arrays")


def main() -> None:
    parser = argparse.ArgumentParser(description="SSIM against others; cost of the protocols.")
    parser.add_argument("--protocols", action="store_true", help="cost of each protocol")
    parser.add_argument("--slices", type=int, help="(default: 4; of the protocols 300)")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.protocols:
        protocols(options.slices or 300, options.size)
    else:
        compare(options.slices or 4, options.size, options.rounds)


if __name__ == "__main__":
    main()
