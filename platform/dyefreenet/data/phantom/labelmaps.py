"""The second source of anatomy: label maps of real CT, deformed and coloured anew.

Numbers are those of TotalSegmentator's "total" task. A map says nothing of fat, skin, organ walls
or contents, so those are made: a hull around what is labelled, and layers by distance from edges.
"""

# ruff: noqa: RUF005 - an array plus a tuple is the sum of two vectors here

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

from dyefreenet.data.phantom.canvas import Array, Canvas
from dyefreenet.data.phantom.tissue import LABEL_OF, Palette
from dyefreenet.errors import InputError

_TISSUE: dict[str, tuple[int, ...]] = {
    "spleen": (1,),
    "renal_cortex": (2, 3),
    "bile": (4,),
    "liver": (5,),
    "stomach_wall": (6,),
    "pancreas": (7,),
    "adrenal": (8, 9),
    "lung": (10, 11, 12, 13, 14),
    "oesophagus": (15,),
    "air": (16,),
    "thyroid": (17,),
    "bowel_wall": (18, 19, 20),
    "urine": (21, 23, 24),
    "uterus": (22,),
    "marrow": (25, *range(26, 51), *range(71, 79), *range(91, 117)),
    "left_blood": (53, 61),
    "myocardium": (51,),
    "aorta": (52,),
    "arch_branch": (54, 55, 56, 57, 58),
    "vein": (59, 60, 67, 68),
    "right_blood": (62,),
    "ivc": (63,),
    "portal": (64,),
    "iliac": (65, 66),
    "canal": (79,),
    "muscle": tuple(range(80, 90)),
    "cartilage": (117,),
}
#: Numbers of the "total" task by the structure of the phantom that they show.
STRUCTURES: dict[str, tuple[int, ...]] = {
    label: tuple(
        number
        for tissue, numbers in _TISSUE.items()
        if LABEL_OF[tissue] == label
        for number in numbers
    )
    for label in dict.fromkeys(LABEL_OF[tissue] for tissue in _TISSUE)
}
_BOWEL, _STOMACH, _KIDNEYS, _BONES = (18, 19, 20), (6,), (2, 3), _TISSUE["marrow"]


@dataclass(frozen=True)
class LabelMap:
    """A segmentation of real CT with what is derived from it once."""

    labels: NDArray[np.uint8]  # [Z, H, W], towards head, back, left
    spacing: tuple[float, float, float]  # mm, (z, y, x)
    depth: Array  # mm inside the hull of all that is labelled, negative outside
    rim: Array  # mm from the nearest edge of a label

    @property
    def height_mm(self) -> float:
        """Length along z."""
        return self.spacing[0] * len(self.labels)


@lru_cache(maxsize=4)
def read_label_map(path: Path) -> LabelMap:
    """Read a NIfTI label map in any orientation."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    labels = sitk.GetArrayFromImage(image)
    if labels.max(initial=0) > 117 or not labels.any():
        raise InputError(
            f"{path}: expected TotalSegmentator classes 1 to 117, found up to {labels.max()}"
        )
    labels = labels.astype(np.uint8)
    spacing = tuple(reversed(image.GetSpacing()))
    labels[np.isin(labels, (69, 70))] = 0  # raised arms are no part of the trunk's hull
    hull = np.stack([convex_hull_image(part) if part.any() else part for part in labels > 0])
    plane = spacing[1:]
    depth = np.stack(
        [ndimage.distance_transform_edt(part, plane)
         - ndimage.distance_transform_edt(~part, plane) for part in hull]
    )  # fmt: skip
    edge = np.zeros(labels.shape, bool)
    for axis in range(3):
        jump = np.diff(labels, axis=axis) != 0
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(0, -1), slice(1, None)
        edge[tuple(first)] |= jump
        edge[tuple(second)] |= jump
    rim = ndimage.distance_transform_edt(~edge, spacing)
    return LabelMap(labels, spacing, depth.astype(np.float32), rim.astype(np.float32))


def choose_label_map(places: Sequence[str], rng: Generator) -> LabelMap:
    """One of the maps that files and folders name."""
    paths: list[Path] = []
    for place in map(Path, places):
        found = sorted(place.glob("*.nii.gz")) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise InputError(f"{place}: expected a label map or a folder of *.nii.gz, found none")
        paths += found
    return read_label_map(paths[rng.integers(len(paths))])


def paint_label_map(
    canvas: Canvas, palette: Palette, rng: Generator, source: LabelMap, fat_mm: float
) -> Array:
    """Paint a map on a canvas whose canonical mm are the map's, about its middle.

    Returns:
        The slow texture of the tissues, [Z, H, W].
    """
    grain, fine, speck = (canvas.field(rng, mm) for mm in (30.0, 9.0, 4.0))
    tissue = canvas.tissue
    # A little noise in where it is looked up hides the steps of a coarse map.
    at = np.stack(
        [
            position / step + (n - 1) / 2 + 0.25 * noise
            for position, step, n, noise in zip(
                (canvas.z, canvas.y, canvas.x), source.spacing, source.labels.shape,
                (grain, fine, speck), strict=True,
            )
        ]
    )  # fmt: skip
    depth = ndimage.map_coordinates(source.depth, at, np.float32, order=1, mode="nearest")
    rim = ndimage.map_coordinates(source.rim, at, np.float32, order=1, mode="nearest")
    at = np.clip(np.rint(at), 0, (np.array(source.labels.shape) - 1)[:, None, None, None])
    z, y, x = at.astype(np.int16)
    labels = source.labels[z, y, x]

    depth += 1.5 * grain - rng.uniform(-4, 2)
    fat = fat_mm * (1 + 0.2 * grain)
    tissue[depth > -fat] = palette["fat"]
    tissue[(depth > -fat) & (depth < 1.6 - fat)] = palette["skin"]
    # The unlabelled wall is muscle in bundles; deeper, fat with strands.
    septa = np.abs(canvas.field(rng, 32.0)) > rng.uniform(0.04, 0.12)
    wall = rng.uniform(10, 20)
    tissue[(depth > 0) & (depth < wall) & septa] = palette["muscle"]
    tissue[(depth > wall) & (np.abs(fine) < 0.04)] = palette["strand"]

    lookup = np.zeros(256, np.uint16)
    for name, numbers in _TISSUE.items():
        lookup[list(numbers)] = palette[name]
    known = lookup[labels] > 0
    tissue[known] = lookup[labels[known]]

    bone = np.isin(labels, _BONES)
    tissue[bone & (rim < 1.6 + 0.5 * speck)] = palette["cortex"]
    kidney = np.isin(labels, _KIDNEYS)
    tissue[kidney & (rim > 6 + 2 * fine)] = palette["medulla"]
    tissue[kidney & (rim > 14 + 2 * fine)] = palette["fat"]
    heart = labels == 51
    tissue[heart & (rim > 11 + 2 * grain)] = palette["left_blood"]
    tissue[heart & (rim > 7) & (fine + canvas.x / 40 < rng.uniform(-0.5, 0.5))] = palette[
        "right_blood"
    ]
    inside = rim > rng.uniform(2.0, 3.5)
    for numbers, label in ((_BOWEL, "bowel"), (_STOMACH, "stomach")):
        part = inside & np.isin(labels, numbers)
        content = palette.variant("urine", rng.uniform(5, 50), label, rng.uniform(1, 10))
        tissue[part & (grain > rng.uniform(-1, 0.5))] = content
        tissue[part & (speck + fine > rng.uniform(0.2, 2.0))] = palette.variant("gas", -950, label)
    _unlabelled_arteries(canvas, palette, rng)
    return 0.7 * fine + 0.5 * grain


def _unlabelled_arteries(canvas: Canvas, palette: Palette, rng: Generator) -> None:
    """The maps lack the aorta's branches and calcium: draw them from where the aorta is."""
    aorta = canvas.tissue == palette["aorta"]
    free = np.isin(canvas.tissue, [palette["fat"], palette["strand"]])
    z_axis, y_axis, x_axis = canvas.axes
    middles = []
    for z in np.flatnonzero(aorta.sum(axis=(1, 2)) > 4):
        y, x = np.nonzero(aorta[z])
        middles.append((x_axis[x].mean(), y_axis[y].mean(), z_axis[z]))
    if len(middles) < 2:
        return
    line = np.array(middles)[:: max(1, len(middles) // 8)]
    ahead = line + (0, -rng.uniform(16, 24), 0) + rng.normal(0, 1.5, line.shape)
    canvas.tube(canvas.warp(ahead), rng.uniform(2.4, 4.5), palette["sma"], free)
    for side in (-1, 1):
        start = line[rng.integers(len(line))]
        path = np.array([start, start + (side * 20, -2, -2), start + (side * 44, 8, -6)])
        canvas.tube(
            canvas.warp(path + rng.normal(0, 2, path.shape)),
            rng.uniform(1.8, 3.2), palette["renal_artery"], free,
        )  # fmt: skip
    for _ in range(rng.integers(4, 14)):
        start = ahead[rng.integers(len(ahead))]
        path = start + np.cumsum(rng.normal(0, 1, (4, 3)) * (14, 8, 10), axis=0)
        name = "small_artery" if rng.uniform() < 0.5 else "vein"
        canvas.tube(canvas.warp(path), rng.uniform(1.0, 2.2), palette[name], free)
    edge = aorta & ~ndimage.binary_erosion(aorta, np.ones((1, 3, 3)))
    if rng.uniform() < 0.6 and edge.any():
        spots = np.argwhere(edge)
        for z, y, x in spots[rng.integers(len(spots), size=rng.integers(1, 24))]:
            dense = palette.variant("plaque", rng.uniform(320, 1200))
            canvas.tissue[z, y : y + 2, x : x + rng.integers(1, 3)] = dense
