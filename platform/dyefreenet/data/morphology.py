"""Where a body is, and voxels grown, worn away, filled and joined over a ball. No files here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

BODY_HU = -300  # between fat, which is body, and lung, which is not
IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], bool)


def window(mask: Mask, grow: bool, side: int, axis: int) -> Mask:
    """Dilation (grow) or erosion along one axis by ``side`` voxels.

    The edge of the picture is no edge of the body: a body that it cuts is not worn away there.
    Windows are joined to ones of twice the width, which takes a fifth of what rank filters take.
    """
    if side <= 1:
        return mask
    join = np.logical_or if grow else np.logical_and
    reach = [(0, 0)] * mask.ndim
    reach[axis] = (side // 2, side - 1 - side // 2)
    mask, width = np.pad(mask, reach, mode="edge"), 1
    while width < side:
        step = min(width, side - width)
        left, right = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        left[axis], right[axis] = slice(None, -step), slice(step, None)
        mask, width = join(mask[tuple(left)], mask[tuple(right)]), width + step
    return mask


def square(mask: Mask, grow: bool, side: int) -> Mask:
    """Dilation (grow) or erosion of each slice by a square of ``side`` pixels; see ``window``."""
    out = np.empty(mask.shape, bool)
    for plane, made in zip(mask, out, strict=True):  # a slice stays in the processor's cache
        made[:] = window(window(plane, grow, side, 0), grow, side, 1)
    return out


def largest(mask: Mask) -> Mask:
    """The largest connected piece in 3-D; empty where there is none."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.zeros(count + 1, np.int64)
    for plane in pieces:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return np.asarray(pieces == 1 + int(np.argmax(sizes[1:])))


def enclosed(mask: Mask) -> Mask:
    """What is not in the mask, and has no way around it to the rim of its slice."""
    gaps, count = ndimage.label(~mask, IN_PLANE)
    inside = np.ones(count + 1, bool)
    inside[0] = False  # the mask itself
    for rim in (gaps[:, 0], gaps[:, -1], gaps[:, :, 0], gaps[:, :, -1]):
        inside[rim] = False
    return inside[gaps]


def around(mask: Mask, margin: int) -> tuple[slice, slice, slice]:
    """The smallest part of each slice that holds the mask, and so many pixels more; all of it where
    the mask is empty.
    """
    parts = [slice(None)]
    for axes in ((0, 2), (0, 1)):
        where = np.flatnonzero(mask.any(axis=axes))
        if not len(where):
            return slice(None), slice(None), slice(None)
        parts.append(slice(max(int(where[0]) - margin, 0), int(where[-1]) + 1 + margin))
    return parts[0], parts[1], parts[2]


def ball(radius_mm: float, spacing: tuple[float, float, float]) -> Mask:
    """Voxels whose centres lie within a radius of the middle one's, [z, y, x], all odd."""
    z, y, x = (
        np.arange(-int(radius_mm / mm + 1e-6), int(radius_mm / mm + 1e-6) + 1) * mm
        for mm in spacing
    )
    return (z**2)[:, None, None] + (y**2)[:, None] + x**2 <= radius_mm**2 + 1e-6


def over_ball(values: Array, around: Mask, join: np.ufunc) -> Array:
    """All values around each voxel joined: their sum, least or largest.

    A ball is a chord in each of its rows, so runs along rows are joined once for all of them; this
    takes a third of what a filter with a footprint takes. Edges are mirrored.

    Args:
        values: [Z, H, W].
        around: From ``ball``.
        join: np.add, np.minimum or np.maximum.
    """
    depth, high, wide = values.shape
    reach = [side // 2 for side in around.shape]
    far = np.pad(values, [(one, one) for one in reach], mode="symmetric")
    runs = [far[:, :, reach[2] : reach[2] + wide]]
    for step in range(1, reach[2] + 1):
        before, behind = reach[2] - step, reach[2] + step
        one = join(runs[-1], far[:, :, before : before + wide])
        runs.append(join(one, far[:, :, behind : behind + wide], out=one))
    chords = around.sum(axis=2)
    found: Array | None = None
    for z, y in np.argwhere(chords):
        part = runs[chords[z, y] // 2][z : z + depth, y : y + high]
        found = part.copy() if found is None else join(found, part, out=found)
    assert found is not None  # a ball holds its middle
    return found
