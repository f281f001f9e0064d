#!/usr/bin/env python3
"""Compare the phantom with real CT: HU histogram, noise spectrum, HU by organ, slices.

    PYTHONPATH=platform python benchmarks/phantom_realism.py --real ../shared/data --out docs/images

Writes phantom-*.png and prints the table of docs/phantom.md. Noise is measured where nothing should
change: in 26 mm squares inside liver and muscle, less their own slow trend.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.config import PhantomConfig
from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import read_image, read_labels
from dyefreenet.data.phantom import LABELS, make_chest, make_patient
from dyefreenet.data.volume import Volume

ABDOMEN, CHEST = "acrin_flt001_abdpelvis_nc", "nlst_101287_lowdose_nc"
TILE_MM = 26.0
# TotalSegmentator's classes; the phantom's names.
ORGANS = {
    "aorta": (52,),
    "liver": (5,),
    "spleen": (1,),
    "kidney": (2, 3),
    "muscle": (86, 87, 88, 89),
    "portal_vein": (64,),
    "ivc": (63,),
}
OURS = {name: (name,) for name in ORGANS} | {"kidney": ("kidney_cortex", "kidney_medulla")}


def real_series(folder: Path) -> Volume:
    """The one DICOM series of a folder, which has notes and masks beside it."""
    files = sorted(p for p in folder.iterdir() if p.suffix not in (".txt", ".gz"))
    return read_series(files).volume


def tiles(volume: Volume) -> Iterator[NDArray[np.float64]]:
    """Squares of even soft tissue: no edge, no fat, no bone."""
    size = round(TILE_MM / volume.spacing[1])
    for image in volume.hu[:: max(1, len(volume.hu) // 40)]:
        smooth = ndimage.gaussian_filter(image.astype(np.float32), 5.0 / volume.spacing[1])
        for top in range(0, image.shape[0] - size, size // 2):
            for left in range(0, image.shape[1] - size, size // 2):
                part = np.s_[top : top + size, left : left + size]
                if smooth[part].min() > 15 and smooth[part].max() < 85:
                    yield image[part] - smooth[part]


def noise(volumes: list[Volume]) -> tuple[list[float], NDArray, NDArray]:
    """Sd of every square, and the mean radial noise power spectrum over cycles per mm."""
    edges = np.linspace(0, 0.9, 31)
    power, count, sds = np.zeros(30), np.zeros(30), []
    for volume in volumes:
        step = volume.spacing[1]
        for tile in tiles(volume):
            sds.append(float(tile.std()))
            spectrum = np.abs(np.fft.fft2(tile - tile.mean())) ** 2 * step**2 / tile.size
            f = np.fft.fftfreq(len(tile), step)
            radius = np.hypot(f[:, None], f)
            power += np.histogram(radius, edges, weights=spectrum / tile.var())[0]
            count += np.histogram(radius, edges)[0]
    with np.errstate(invalid="ignore"):
        return sds, (edges[1:] + edges[:-1]) / 2, power / count


def span(values: list[float]) -> str:
    """Median and range, whole HU."""
    return f"{np.median(values):.0f} ({min(values):.0f} to {max(values):.0f})" if values else "–"


def inside(volume: Volume, mask: NDArray[np.bool_]) -> float | None:
    """Median HU one pixel away from the edge, or None where there is too little."""
    mask = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
    return float(np.median(volume.hu[mask])) if mask.sum() > 40 else None


def organ_table(config: PhantomConfig, real: Path) -> None:
    """HU by organ and phase, phantom against the segmented real series."""
    native = read_image(real / "ts_native_ct" / "example_ct_sm.nii.gz")
    portal = real_series(real / "ts_portal_dicom20")
    measured = {
        "plain": (native, read_labels(real / "ts_native_ct" / "example_seg.nii.gz", native)),
        "portal": (
            portal,
            read_labels(real / "ts_portal_dicom20" / "seg_totalsegmentator.nii.gz", portal),
        ),
    }
    found: dict[tuple[str, str], list[float]] = {}
    for index in range(config.patients):
        patient = make_patient(config, index)
        for phase, volume in patient.phases.items():
            for name, labels in OURS.items():
                mask = np.isin(patient.labels, [LABELS[label] for label in labels])
                value = inside(volume, mask)
                if value is not None:
                    found.setdefault((name, phase), []).append(value)
    print("| organ | phase | real, HU | phantom, HU: median (range) |\n|---|---|---|---|")
    for name, numbers in ORGANS.items():
        for phase in ("plain", "arterial", "portal"):
            value = None
            if phase in measured:
                volume, labels = measured[phase]
                value = inside(volume, np.isin(labels, numbers))
            shown = "–" if value is None else f"{value:.0f}"
            print(f"| {name} | {phase} | {shown} | {span(found.get((name, phase), []))} |")


def histogram_figure(pairs: dict[str, tuple[list[Volume], list[Volume]]], path: Path) -> None:
    """HU histograms and noise spectra side by side."""
    figure, axes = plt.subplots(2, len(pairs), figsize=(5 * len(pairs), 6.4), dpi=80)
    edges = np.arange(-1000, 1000, 20)
    for column, (name, (real, made)) in enumerate(pairs.items()):
        for label, volumes, colour in (("real", real, "black"), ("phantom", made, "tab:red")):
            hu = np.concatenate([v.hu[v.hu > -980].ravel() for v in volumes])
            axes[0, column].hist(
                hu, edges, density=True, histtype="step", label=label, color=colour
            )
            sds, frequency, power = noise(volumes)
            print(f"{name}, {label}: noise sd {span(sds)} HU over {len(sds)} squares")
            axes[1, column].plot(frequency, power, label=label, color=colour)
        axes[0, column].set(title=name, xlabel="HU", yscale="log")
        axes[1, column].set(
            xlabel="cycles / mm", ylabel="noise power, unit variance", xlim=(0, 0.9)
        )
        axes[0, column].legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def grey(image: NDArray, size: int = 150) -> NDArray[np.float32]:
    """A slice at window 400, level 40, as a square of ``size`` pixels."""
    scaled = ndimage.zoom(image.astype(np.float32), size / image.shape[0], order=1)
    return np.clip((scaled + 160) / 400, 0, 1)[:size, :size]


def slices_figure(rows: list[list[NDArray]], path: Path) -> None:
    """Rows of slices as one picture."""
    picture = np.concatenate([np.concatenate([grey(i) for i in row], axis=1) for row in rows])
    levels = np.rint(picture * 31) / 31  # few greys keep the file small
    plt.imsave(path, levels, cmap="gray", vmin=0, vmax=1, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--patients", type=int, default=16)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    config = PhantomConfig(
        patients=args.patients, slices=12, matrix=(384,), phases=("plain", "arterial", "portal")
    )
    organ_table(config, args.real)
    abdomen, chest = real_series(args.real / ABDOMEN), real_series(args.real / CHEST)
    made = [make_patient(config, i) for i in range(10)]
    chests = [make_chest(config, i) for i in range(4)]
    histogram_figure(
        {
            "abdomen": ([abdomen], [p.phases["plain"] for p in made]),
            "low-dose chest": ([chest], [p.phases["plain"] for p in chests]),
        },
        args.out / "phantom-histogram.png",
    )
    heights = np.linspace(0.06, 0.94, 7)
    slices_figure(
        [[v.hu[int(at * len(v.hu))] for at in heights] for v in (abdomen, chest)],
        args.out / "phantom-real.png",
    )
    rows = []
    for first in (0, 7):
        patients = [make_patient(config, first + i) for i in range(7)]
        rows += [[p.phases[phase].hu[6] for p in patients] for phase in ("plain", "arterial")]
    slices_figure(rows, args.out / "phantom-made.png")


if __name__ == "__main__":
    main()
