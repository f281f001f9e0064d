#!/usr/bin/env python3
"""What virtual contrast does to two real plain series, region by region.

    python benchmarks/real_ct.py --real ../shared/data --out docs/images [--run runs/real]

The aorta's course, and squares inside liver and muscle, were marked by hand on the plain slices
(slices counted from the lowest). No true contrast scan of these patients exists, so this
tells what lights up and what stays, not whether the HU are right. Writes real-*.png and a table.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.cascade import Cascade
from dyefreenet.data.dicom import read_series
from dyefreenet.evaluate.regions import body_mask
from dyefreenet.store import Folder

ABDOMEN, CHEST = "acrin_flt001_abdpelvis_nc", "nlst_101287_lowdose_nc"
AORTA = {  # slice, column, row of the centre
    ABDOMEN: [
        *((40, 247, 279), (45, 250, 274), (50, 251, 271), (55, 247, 280), (60, 251, 284)),
        *((65, 251, 285), (70, 252, 287), (75, 254, 291), (80, 257, 291), (85, 260, 292)),
        *((90, 256, 298), (95, 259, 300)),
    ],
    CHEST: [
        *((2, 261, 221), (10, 261, 222), (18, 268, 236), (26, 271, 249), (34, 275, 257)),
        *((42, 282, 271), (50, 285, 280), (58, 287, 296), (66, 290, 305), (74, 288, 317)),
        *((82, 287, 326), (90, 285, 333), (98, 283, 328)),  # descending, from below
        *((104, 260, 250), (106, 254, 246), (106, 274, 286)),  # arch
        *((98, 245, 217), (90, 232, 204), (82, 233, 200), (74, 236, 200)),  # ascending
    ],
}
BOXES = {  # slices, rows, columns
    ABDOMEN: {
        "liver": np.s_[80:90, 220:280, 150:200],
        "back muscle": np.s_[38:62, 345:362, 198:225],
        "psoas": np.s_[37:44, 298:312, 188:204],
    },
    CHEST: {
        "liver": np.s_[4:24, 150:210, 110:170],
        "back muscle": np.s_[2:8, 355:385, 190:220],
    },
}
RADIUS_MM = 4.0  # of the disc inside the aorta


def aorta(volume: NDArray[np.int16], name: str, pixel: float) -> NDArray[np.float64]:
    """Median HU of a disc at each marked place, from below upwards and down the arch."""
    rows, columns = np.indices(volume.shape[1:])
    return np.array(
        [
            np.median(volume[z][np.hypot(rows - y, columns - x) * pixel < RADIUS_MM])
            for z, x, y in AORTA[name]
        ]
    )


def soft_tissue(plain: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Everything in the body between 0 and 90 HU once noise is averaged: muscle, organs, blood."""
    smooth = ndimage.gaussian_filter(plain.astype(np.float32), (0, 2, 2))
    return (smooth > 0) & (smooth < 90) & body_mask(plain)


def figure(plain: NDArray, virtual: NDArray, where: list[int], path: Path) -> None:
    """Plain above, virtual below, W400 L40, from the lowest slice on."""
    rows = [np.concatenate([v[z, ::2, ::2] for z in where], axis=1) for v in (plain, virtual)]
    plt.imsave(path, np.concatenate(rows), cmap="gray", vmin=-160, vmax=240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", default="../shared/data", type=Path)
    parser.add_argument("--out", default="docs/images", type=Path)
    parser.add_argument("--run", help="run folder (default: the shipped weights)")
    parser.add_argument("--method", default="refine")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Folder(options.run or str(files("dyefreenet") / "weights"))
    cascade = Cascade.load(folder, precision="exact")
    for name in (ABDOMEN, CHEST):
        folder = options.real / name
        source = read_series(sorted(p for p in folder.iterdir() if p.suffix == ".dcm")).volume
        plain, virtual = source.hu, cascade.predict(source, options.method).hu
        change = np.abs(virtual.astype(np.int32) - plain)
        before, after = (aorta(v, name, source.spacing[1]) for v in (plain, virtual))
        print(f"\n{name}, {options.method}")
        print(f"aorta at {len(after)} places, plain: median {np.median(before):.0f} HU")
        print("aorta, virtual: " + " ".join(f"{value:.0f}" for value in after))
        inside = ((after >= 150) & (after <= 450)).mean()
        print(f"aorta, virtual: median {np.median(after):.0f} HU, {inside:.0%} in 150 to 450")
        masks = {"soft tissue, blood too": soft_tissue(plain), "bone": plain > 300}
        masks["air and lung"] = plain < -400
        regions = {key: change[box] for key, box in BOXES[name].items()}
        for key, values in (regions | {k: change[m] for k, m in masks.items()}).items():
            median, high = np.percentile(values, [50, 95])
            print(f"{key:<24} change: median {median:.0f} HU, 95th percentile {high:.0f} HU")
        where = np.linspace(2, len(plain) - 3, 8).round().astype(int).tolist()
        figure(plain, virtual, where, options.out / f"real-{name.split('_')[0]}.png")


if __name__ == "__main__":
    main()
