#!/usr/bin/env python3
"""PSNR and SSIM against other libraries, and what every protocol costs: one table, one core.

    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/metrics.py
    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/metrics.py --compiled --part libraries

Against others: CPU milliseconds a slice of ours, of scikit-image and, where it is installed, of
torchmetrics, and the largest difference. They take turns on the same slices, so that a busy machine
slows all; the figure to hold on to is the ratio. ``--compiled`` adds the SSIM that is not in the
package, a fused kernel that torch.compile makes where there is a C++ compiler.

The protocols: CPU seconds of each on a made-up pair of 512x512x300 voxels, and how far memory rises
above the arrays that are given, in a process of its own for each and for all together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dyefreenet.evaluate.metrics import RADIUS, psnr, ssim
from dyefreenet.evaluate.protocols import PROTOCOLS, Case

SPAN = 600.0  # HU

Scan = NDArray[np.float64]  # [Z, H, W] from 0 to SPAN, or a figure of each slice, [Z]
Measure = Callable[[Scan, Scan], Any]


def scans(slices: int, size: int) -> tuple[Scan, Scan]:
    """Smooth tissue with noise in air, and a second take, 0 to SPAN, [Z, size, size]."""
    generator = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(generator.normal(size=(slices, size, size)), (0, 12, 12))
    tissue = 300.0 + 4000.0 * tissue
    tissue[:, :, : size // 5] = -1000.0
    first, second = (tissue + generator.normal(0.0, 20.0, tissue.shape) for _ in range(2))
    return first.clip(0.0, SPAN), second.clip(0.0, SPAN)


def hard_scans(size: int) -> tuple[Scan, Scan]:
    """Where digits are lost: flat, black, noise, steps small and large; [8, size, size]."""
    generator = np.random.default_rng(1)
    half = size // 2
    first, second = np.zeros((2, 8, size, size))
    first[0], second[0] = 500.0, 530.0
    second[2] = generator.uniform(0.0, SPAN, (size, size))
    first[3, :, half:] = SPAN
    second[3] = first[3] * (590.0 / SPAN)
    first[4], second[4] = generator.uniform(0.0, SPAN, (2, size, size))
    first[5], second[5] = SPAN, SPAN / 2
    first[6, :, :half], second[6, :, :half], second[6, :, half:] = SPAN, SPAN / 2, SPAN
    first[7, :, :half], second[7, :, :half], second[7, :, half:] = 517.3, 311.7, 590.0
    return first, second


def psnr_ours(first: Scan, second: Scan) -> Scan:
    return np.array([psnr(first, second, SPAN)])


def psnr_skimage(first: Scan, second: Scan) -> Scan:
    return np.array([peak_signal_noise_ratio(first, second, data_range=SPAN)])


def ssim_skimage(first: Scan, second: Scan) -> Scan:
    return np.array(
        [
            structural_similarity(
                x, y, data_range=SPAN, gaussian_weights=True, use_sample_covariance=False
            )
            for x, y in zip(first, second, strict=True)
        ]
    )


def psnr_torchmetrics(first: Scan, second: Scan) -> Any:
    from torchmetrics.functional.image import peak_signal_noise_ratio as measure

    return measure(torch.from_numpy(second), torch.from_numpy(first), data_range=SPAN).numpy()


def ssim_torchmetrics(first: Scan, second: Scan) -> Any:
    """The same measure in float64, [Z]; the rim of mirrored pixels, which it counts, is cut off."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (torch.from_numpy(volume)[:, None] for volume in (first, second))
    _, maps = structural_similarity_index_measure(
        x, y, sigma=1.5, data_range=SPAN, reduction="none", return_full_image=True
    )
    return maps[:, 0, RADIUS:-RADIUS, RADIUS:-RADIUS].mean(dim=(1, 2)).numpy()


class CompiledSsim:
    """SSIM in float32 as a fused kernel over strips of rows, which stay in the core's cache.

    Of u = x - y and v = x + y, and not of x and y: 2 s_xy = (s_v^2 - s_u^2) / 2 and
    s_x^2 + s_y^2 = (s_v^2 + s_u^2) / 2. Where a region is flat and bright, E[v^2] - E[v]^2 loses
    its digits, but above and below the line alike: what is left of the loss is multiplied by s_u^2,
    which is small there. x and y themselves are read, subtracted and added in float64.
    """

    def __init__(self, strip: int) -> None:
        taps = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
        self.weights: list[float] = (taps / taps.sum()).tolist()
        self.strip = strip
        self.kernel = torch.compile(self._strip, dynamic=False)

    def __call__(self, first: Scan, second: Scan) -> Scan:
        """Mean of each slice, [Z]; slices have at least ``strip`` + 10 rows."""
        height, width = first.shape[1] - 2 * RADIUS, first.shape[2] - 2 * RADIUS
        means = np.empty(len(first))
        sums = torch.empty(height, dtype=torch.float64)
        x, y = torch.from_numpy(first), torch.from_numpy(second)
        with torch.inference_mode():
            for z in range(len(first)):
                for top in range(0, height, self.strip):
                    row = min(top, height - self.strip)  # the last strip overlaps: one shape
                    tall = slice(row, row + self.strip + 2 * RADIUS)
                    sums[row : row + self.strip] = self.kernel(x[z, tall], y[z, tall])
                means[z] = sums.sum() / (height * width)
        return means

    def _strip(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Sum of each row's similarities, [strip]."""
        x, y = x * (1 / SPAN), y * (1 / SPAN)
        u, v = (x - y).float(), (x + y - 1).float()
        images = torch.stack((u, v, u * u, v * v))  # else each tap makes them again: half the speed
        mean_u, mean_v, square_u, square_v = self._blur(self._blur(images, 1), 2)
        variance_u, variance_v = square_u - mean_u * mean_u, square_v - mean_v * mean_v
        square_u, square_v = mean_u * mean_u, (mean_v + 1) * (mean_v + 1)  # of the means
        above = (square_v - square_u + 2 * 0.01**2) * (variance_v - variance_u + 2 * 0.03**2)
        below = (square_v + square_u + 2 * 0.01**2) * (variance_v + variance_u + 2 * 0.03**2)
        return (above / below).double().sum(1)

    def _blur(self, image: torch.Tensor, axis: int) -> torch.Tensor:
        """The Gaussian along an axis; equal weights on both sides share a product."""
        size = image.shape[axis] - 2 * RADIUS
        out = self.weights[RADIUS] * image.narrow(axis, RADIUS, size)
        for k in range(RADIUS):
            both = image.narrow(axis, k, size) + image.narrow(axis, 2 * RADIUS - k, size)
            out = out + self.weights[k] * both
        return out


def compare(slices: int, size: int, rounds: int, compiled: bool) -> None:
    """Print what a slice costs in each library, and how far it lies from scikit-image.

    The differences are those of the slices that are timed and of those where digits are lost.
    """
    libraries: dict[str, dict[str, Measure]] = {
        "PSNR": {"ours": psnr_ours, "scikit-image": psnr_skimage},
        "PSNR of int16": {"ours": psnr_ours, "scikit-image": psnr_skimage},
        "SSIM": {"ours": lambda x, y: ssim(x, y, SPAN), "scikit-image": ssim_skimage},
    }
    if find_spec("torchmetrics"):
        libraries["PSNR"]["torchmetrics"] = psnr_torchmetrics
        libraries["SSIM"]["torchmetrics"] = ssim_torchmetrics
    if compiled:
        libraries["SSIM"]["fused"] = CompiledSsim(strip=32)  # rows; 64 fill the cache: 1.5 or 3 ms
    print(f"{size}x{size} pixels, {rounds} rounds of {slices} slices, float64, CPU time\n")
    print("| figure | by | ms a slice | ours is faster by | largest difference |")
    print("|---|---|---|---|---|")
    for figure, measures in libraries.items():
        dtype = np.int16 if "int16" in figure else np.float64  # the evaluation holds int16 HU
        timed, hard = (
            tuple(scan.astype(dtype) for scan in pair)
            for pair in (scans(slices, size), hard_scans(size))
        )
        apart = dict.fromkeys(measures, 0.0)
        for pair in (timed, hard):
            expected = measures["scikit-image"](*pair)
            for name, measure in measures.items():
                apart[name] = max(apart[name], float(np.abs(measure(*pair) - expected).max()))
        seconds: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(rounds):
            for name, measure in measures.items():
                began = time.process_time()
                measure(*timed)
                seconds[name].append(time.process_time() - began)
        for name in measures:
            slice_ms = 1e3 * statistics.median(seconds[name]) / slices
            ratios = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
            spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            print(f"| {figure} | {name} | {slice_ms:.2f} | {spread} | {apart[name]:.0e} |")


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


def peak_gb() -> float:
    """The most memory that this process has had; getrusage would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def cost(names: Sequence[str], slices: int, size: int, answer: Any) -> None:
    """CPU seconds, and GB by which memory rises above the arrays of the case."""
    case = made_up_case(slices, size)
    before, began = peak_gb(), time.process_time()
    for name in names:
        PROTOCOLS[name].measure(case)
    answer.send((time.process_time() - began, peak_gb() - before))


def protocols(slices: int, size: int) -> None:
    """Print what each protocol costs, and all together."""
    pair_gb = 2 * 2 * slices * size**2 / 1e9
    print(f"\n{size}x{size}x{slices} voxels, CPU time; a pair is {pair_gb:.3f} GB of int16\n")
    print("| protocol | s | GB above the arrays | of a pair |")
    print("|---|---|---|---|")
    context = multiprocessing.get_context("spawn")  # the peak of a process is its own
    for names in [tuple(PROTOCOLS), *((name,) for name in PROTOCOLS)]:
        here, there = context.Pipe()
        worker = context.Process(target=cost, args=(names, slices, size, there))
        worker.start()
        seconds, gigabytes = here.recv()
        worker.join()
        title = names[0] if len(names) == 1 else "all"
        print(f"| `{title}` | {seconds:.1f} | {gigabytes:.2f} | {gigabytes / pair_gb:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="PSNR and SSIM against others; the protocols.")
    parser.add_argument("--compiled", action="store_true", help="SSIM by torch.compile, too")
    parser.add_argument("--part", choices=("libraries", "protocols"), help="(default: both)")
    parser.add_argument("--slices", type=int, default=4, help="of a round")
    parser.add_argument("--depth", type=int, default=300, help="slices of the protocols' pair")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part != "protocols":
        compare(options.slices, options.size, options.rounds, options.compiled)
    if options.part != "libraries":
        protocols(options.depth, options.size)


if __name__ == "__main__":
    main()
