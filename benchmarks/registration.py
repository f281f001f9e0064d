#!/usr/bin/env python3
"""What registration leaves of a known warp, and what it costs.

    OMP_NUM_THREADS=1 PYTHONPATH=platform python benchmarks/registration.py
    ... --matrix 512 --slices 400 --slice-mm 1 --seeds 1                  # time and memory
    ... --gate                                                           # figures against mm left
    ... --gate --real ../shared/data/acrin_flt001_abdpelvis_nc           # a series against itself

A phantom's plain and arterial phase, without motion of their own, noise and bias drawn anew for
each, and over the arterial one a smooth warp of B-splines: control points KNOT mm apart, normal
draws, scaled to a mean displacement inside the body. Made-up CT: how well it follows a patient's
breath, nobody has measured here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dyefreenet.config import PhantomConfig
from dyefreenet.data.align import Mode, find_motion, gate, register, resample_like
from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import to_image
from dyefreenet.data.morphology import BODY_HU
from dyefreenet.data.phantom import make_patient
from dyefreenet.data.phantom.tissue import ARTERIES, LABELS
from dyefreenet.data.volume import Volume
from dyefreenet.evaluate.regions import body_mask

SPARE = 6  # slices at either end, so that the warp brings in what lies beyond the scan
POINTS = 6000

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """``before`` in the plain scan are the points that the warp took to ``after``, mm, [N, 3]."""

    plain: Volume
    contrast: Volume
    before: dict[str, Points]
    after: dict[str, Points]


def middle(volume: Volume) -> Volume:
    """Without the spare slices."""
    part = np.s_[SPARE:-SPARE]
    x, y, z = volume.origin
    origin = (x, y, z + SPARE * volume.spacing[0])
    padding = None if volume.padding is None else volume.padding[part].copy()
    return Volume(volume.hu[part].copy(), volume.spacing, origin, volume.direction, padding)


def places(mask: NDArray[np.bool_], volume: Volume, rng: np.random.Generator) -> Points:
    """Some of a mask's voxels as points, mm (x, y, z)."""
    at = np.argwhere(mask)
    at = at[rng.choice(len(at), min(POINTS, len(at)), replace=False)]
    return volume.origin + (at * volume.spacing)[:, ::-1] @ volume.direction


def through(transform: sitk.Transform, points: Points) -> Points:
    return np.array([transform.TransformPoint(point) for point in points.tolist()]).reshape(-1, 3)


def smooth_warp(image: sitk.Image, knot: float, seed: int) -> sitk.BSplineTransform:
    extent = [n * step for n, step in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    mesh = [max(1, round(length / knot)) for length in extent]
    warp = sitk.BSplineTransformInitializer(image, mesh, 3)
    draws = np.random.default_rng(seed).standard_normal(len(warp.GetParameters()))
    warp.SetParameters(draws.tolist())
    return warp


def warped(
    plain: Volume, contrast: Volume, masks: dict[str, NDArray[np.bool_]], knot: float, mean: float,
    seed: int,
) -> Pair:  # fmt: skip
    """The contrast scan after a known warp; all arguments have the spare slices."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(plain.hu.shape, np.bool_)
    inside[SPARE:-SPARE] = True
    after = {name: places(mask & inside, contrast, rng) for name, mask in masks.items()}
    # It says for each place of the new scan where that came from, so that nothing is inverted.
    warp = smooth_warp(to_image(contrast), knot, seed)
    moved = np.linalg.norm(through(warp, after["body"]) - after["body"], axis=1).mean()
    warp.SetParameters([value * mean / moved for value in warp.GetParameters()])
    before = {name: through(warp, points) for name, points in after.items()}
    return Pair(middle(plain), middle(resample_like(contrast, contrast, warp)), before, after)


def phantom_scans(
    seed: int, matrix: int, slices: int, slice_mm: float
) -> tuple[Volume, Volume, dict[str, NDArray[np.bool_]]]:
    config = PhantomConfig(
        phases=("plain", "arterial"), matrix=(matrix,), slices=slices + 2 * SPARE,
        slice_mm=(slice_mm, slice_mm), motion_mm=(0.0, 0.0), seed=seed,
    )  # fmt: skip
    patient = make_patient(config, 0)
    masks = {
        "body": patient.labels > 0,
        "arteries": np.isin(patient.labels, [LABELS[name] for name in ARTERIES]),
    }
    return patient.phases["plain"], patient.phases["arterial"], masks


def left(transform: sitk.Transform, pair: Pair) -> dict[str, NDArray[np.float64]]:
    """Distance to the truth at every point, mm."""
    return {
        name: np.linalg.norm(through(transform, pair.before[name]) - pair.after[name], axis=1)
        for name in pair.before
    }


def in_words(misses: dict[str, NDArray[np.float64]]) -> str:
    return ", ".join(
        f"{name} {miss.mean():.2f} / {np.percentile(miss, 95):.2f}"
        for name, miss in misses.items()
        if len(miss)
    )


def accuracy(pair: Pair, mode: Mode) -> str:
    began = time.process_time()
    transform = find_motion(pair.contrast, pair.plain, mode)[0]
    seconds = time.process_time() - began
    return f"{mode:10} {in_words(left(transform, pair))} mm, {seconds:.1f} CPU s"


def peak_mib() -> float:
    """Of this process alone; Linux's ``ru_maxrss`` would count the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def cost(pair: Pair, mode: Mode) -> str:
    """Of ``register`` as ingest calls it; in a process of its own, for the memory."""
    before = peak_mib()
    began = time.process_time()
    _, qc = register(pair.contrast, pair.plain, mode)
    seconds = time.process_time() - began
    figures = ", ".join(f"{name} {value:.3f}" for name, value in qc.items())
    return (
        f"{mode:10} {seconds:.1f} CPU s, peak {peak_mib():.0f} MiB ({before:.0f} before); {figures}"
    )


def alone(task: Callable[..., str], *arguments: Any) -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def known_warps(options: argparse.Namespace) -> None:
    size = (options.matrix, options.matrix, options.slices)
    for seed in options.seeds:
        plain, contrast, masks = phantom_scans(seed, options.matrix, options.slices,
                                               options.slice_mm)  # fmt: skip
        pair = warped(plain, contrast, masks, options.knot, options.mean, seed)
        pixel, noise = plain.spacing[1], plain.hu[masks["body"]].std()
        print(f"seed {seed}: {size}, pixel {pixel:.2f} mm, {noise:.0f} HU sd in the body")
        print(f"  {'before':10} {in_words(left(sitk.Transform(), pair))} mm")
        for mode in ("rigid", "deformable"):
            print(f"  {accuracy(pair, mode)}")
            print(f"  {alone(cost, pair, mode)}", flush=True)


# ---- the gate ------------------------------------------------------------------------------------


def lit(volume: Volume, seed: int) -> Volume:
    """A plain series as if scanned again after an injection.

    Soft tissue gains 15 HU, what is denser than muscle 60 more, and noise of 10 HU comes on top.
    """
    rng = np.random.default_rng(seed)
    image = sitk.SmoothingRecursiveGaussian(to_image(volume), 4.0)  # mm
    soft = sitk.GetArrayFromImage(image)
    gain = 15.0 * ((soft > 10) & (soft < 100)) + 60.0 * ((soft > 58) & (soft < 100))
    hu = volume.hu + gain + rng.normal(0, 10, volume.hu.shape)
    hu = np.where(volume.hu < BODY_HU, volume.hu, np.rint(hu))
    return volume.with_hu(np.clip(hu, -1024, 3071).astype(np.int16))


def shifted(pair: Pair, way: Points) -> Pair:
    """The contrast scan moved as a whole, mm (x, y, z); header geometry tells, so no resampling."""
    x, y, z = np.array(pair.contrast.origin) + way
    contrast = pair.contrast
    contrast = Volume(contrast.hu, contrast.spacing, (x, y, z), contrast.direction,
                      contrast.padding)  # fmt: skip
    return Pair(pair.plain, contrast, pair.before, {n: p + way for n, p in pair.after.items()})


def row(name: str, mode: Mode, pair: Pair) -> str:
    """Figures against what is left; also of pairs that ``register`` would refuse."""
    transform, _, qc = find_motion(pair.contrast, pair.plain, mode)
    miss = left(transform, pair)["body"]
    return (
        f"| {name} | {mode} | {miss.mean():.2f} / {np.percentile(miss, 95):.1f} | "
        f"{qc['body_dice']:.3f} | {qc['bone_edge_mm']:.2f} | {qc['mutual_information']:.2f} | "
        f"{qc.get('min_jacobian', 1.0):.2f} | {gate(qc)[0]} |"
    )


def gate_table(options: argparse.Namespace) -> None:
    print("| pair | mode | left, mean / p95 mm | Dice | bone edge mm | MI | min Jacobian | gate |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        if options.real:
            plain = read_series(sorted(Path(options.real).rglob("*.dcm"))).volume
            contrast, masks = lit(plain, seed), {"body": body_mask(plain.hu)}
        else:
            plain, contrast, masks = phantom_scans(seed, options.matrix, options.slices,
                                                   options.slice_mm)  # fmt: skip
        rng = np.random.default_rng(seed)
        still = warped(plain, contrast, masks, options.knot, 0.0, seed)
        for length in (0, 1, 2, 3, 4, 6, 12, 20):
            way = rng.normal(size=3)
            way *= length / np.linalg.norm(way)
            print(row(f"{seed}, shift {length} mm", "off", shifted(still, way)), flush=True)
        for mean in (0, 1, 3, 6, 9):
            pair = warped(plain, contrast, masks, options.knot, mean, seed)
            modes: tuple[Mode, ...] = ("off", "deformable") if mean else ("deformable",)
            for mode in modes:
                print(row(f"{seed}, warp {mean} mm", mode, pair), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Registration of a known warp.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--matrix", type=int, default=256, help="pixels")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--slice-mm", type=float, default=3.0)
    parser.add_argument("--knot", type=float, default=100.0, help="mm between control points")
    parser.add_argument("--mean", type=float, default=2.85, help="mm inside the body")
    parser.add_argument("--gate", action="store_true", help="figures against what is left")
    parser.add_argument("--real", help="with --gate: folder of a plain DICOM series")
    options = parser.parse_args()
    (gate_table if options.gate else known_warps)(options)


if __name__ == "__main__":
    main()
