"""How well a prediction draws the vessels: the mask that lights up, against the true one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from dyefreenet.evaluate.regions import dilated

Mask = NDArray[np.bool_]
REACH_MM = 5.0  # in plane, around the labels, where vessels are looked for


def vessel_agreement(
    true: NDArray[np.int16],
    predicted: NDArray[np.int16],
    plain: NDArray[np.int16],
    labels: Mask,
    spacing: tuple[float, float, float],
) -> tuple[float, float] | None:
    """Dice and HD95 of the vessels that a prediction lights up.

    A voxel of the prediction is vessel above the HU half way between two medians within the labels:
    that of the true scan and that of the plain one. It is looked for within 5 mm of the labels, in
    plane; what is as bright on the true scan outside of them (bone, veins) counts for neither side.

    Args:
        true: Measured contrast CT, HU, [Z, H, W].
        predicted: Virtual CT on the same grid.
        plain: The plain scan.
        labels: True in the vessels, [Z, H, W], somewhere at least.
        spacing: mm, (z, y, x).

    Returns:
        Dice, 0 to 1; and HD95 in mm, as ``hausdorff95`` has it, or where the prediction lights up
        nothing the diagonal of the box around the labels. None where the true vessels are no
        brighter than the plain ones: then no threshold tells them apart.
    """
    before, after = float(np.median(plain[labels])), float(np.median(true[labels]))
    if after <= before:
        return None
    threshold = (before + after) / 2
    # A slice more at either end: a vessel that ends has a surface there, the volume's end has none.
    box = _box(labels, [1, *(int(REACH_MM / step) + 1 for step in spacing[1:])])
    real = labels[box]
    allowed = dilated(real, spacing, REACH_MM) & (real | (true[box] <= threshold))
    found = allowed & (predicted[box] > threshold)
    dice = 2 * int((found & real).sum()) / (int(found.sum()) + int(real.sum()))
    if not found.any():
        sides = np.multiply([part.stop - part.start for part in _box(labels, [0, 0, 0])], spacing)
        return dice, float(np.linalg.norm(sides))
    return dice, hausdorff95(real, found, spacing)


def hausdorff95(first: Mask, second: Mask, spacing: tuple[float, float, float]) -> float:
    """95th percentile of the distances between two surfaces, mm: the larger of both directions.

    A voxel is surface if one of its six neighbours is not of the mask. Where the volume ends, a
    mask is cut off and has no surface.

    Args:
        first: True inside, [Z, H, W], somewhere at least.
        second: The same.
        spacing: mm, (z, y, x).
    """
    points = []
    for mask in (first, second):
        inner = ndimage.binary_erosion(mask, border_value=1)
        surface = mask & ~inner
        # A mask that fills the volume has no surface at all; then all of it stands in.
        points.append(np.argwhere(surface if surface.any() else mask) * np.asarray(spacing))
    ways = (points, points[::-1])
    distances = [cKDTree(there).query(here)[0] for here, there in ways]
    return max(float(np.percentile(one, 95)) for one in distances)


def _box(mask: Mask, margin: list[int]) -> tuple[slice, ...]:
    """The smallest box that holds the mask, grown by voxels as far as the volume reaches."""
    box: list[slice] = []
    for axis, more in enumerate(margin):
        others: Any = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(np.any(mask, axis=others))
        box.append(slice(max(int(places[0]) - more, 0), int(places[-1]) + 1 + more))
    return tuple(box)
