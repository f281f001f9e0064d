"""Where an error counts: the patient's body, found on the plain scan that all methods are given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BODY_HU = -300  # between fat and lung
THIN = 7  # pixels; what is thinner lets go of the body: table top, blanket, tubing

_IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], bool)


def body_mask(plain_hu: NDArray[Any]) -> NDArray[np.bool_]:
    """The patient without the table, lungs and bowel gas filled in.

    Voxels above -300 HU are opened in plane by a square of 7 pixels, so that a table which touches
    the back comes loose; the largest piece in 3-D grows back by that square within the threshold,
    and what air it encloses in a slice is filled.

    Args:
        plain_hu: Plain CT, HU, [Z, H, W]. Never the contrast scan nor a prediction: the mask may
            not depend on what is judged.

    Returns:
        [Z, H, W]; empty where nothing is denser than -300 HU.
    """
    dense = plain_hu > BODY_HU
    pieces, count = ndimage.label(_square(_square(dense, grow=False), grow=True))
    if count == 0:  # too thin for the opening, a phantom of a few pixels: take it as it is
        pieces, count = ndimage.label(dense)
    if count == 0:
        return np.zeros(plain_hu.shape, bool)
    sizes = np.bincount(pieces.ravel())
    largest = pieces == 1 + int(np.argmax(sizes[1:]))
    return _filled(_square(largest, grow=True) & dense)


def dilated(
    mask: NDArray[np.bool_], spacing: tuple[float, float, float], radius_mm: float
) -> NDArray[np.bool_]:
    """The mask grown in plane by a disc: pixels whose centre is within the radius of its centres.

    Args:
        mask: [Z, H, W].
        spacing: mm, (z, y, x).
        radius_mm: Of the disc.
    """
    _, high, wide = spacing
    height, width = mask.shape[1:]
    columns = np.arange(width, dtype=np.int32)
    reach = int(radius_mm / high + 1e-9)
    grown = np.zeros_like(mask)
    for inside, out in zip(mask, grown, strict=True):
        if not inside.any():
            continue
        last = np.maximum.accumulate(np.where(inside, columns, -width - height), axis=1)
        after = np.where(inside, columns, 2 * width + height)[:, ::-1]
        nearest = np.minimum.accumulate(after, axis=1)[:, ::-1]
        distance = np.minimum(columns - last, nearest - columns)  # along the row, pixels
        for step in range(-reach, reach + 1):  # a disc is a chord in each row
            chord = np.sqrt(max(radius_mm**2 - (step * high) ** 2, 0.0)) / wide
            above, below = max(step, 0), max(-step, 0)
            out[above : height - below] |= distance[below : height - above] <= chord + 1e-9
    return grown


def _square(mask: NDArray[np.bool_], grow: bool) -> NDArray[np.bool_]:
    """Dilation (grow) or erosion of each slice by a square of THIN pixels.

    The edge of the picture is no edge of the body: a body that it cuts is not worn away there.
    """
    rank = ndimage.maximum_filter1d if grow else ndimage.minimum_filter1d
    bytes_ = rank(mask.view(np.uint8), THIN, axis=1, mode="nearest")
    return rank(bytes_, THIN, axis=2, mode="nearest").view(bool)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Holes filled slice by slice: air that no way in the slice leads out of."""
    air, count = ndimage.label(~mask, structure=_IN_PLANE)
    rim = np.concatenate(
        [air[:, 0].ravel(), air[:, -1].ravel(), air[:, :, 0].ravel(), air[:, :, -1].ravel()]
    )
    outside = np.zeros(count + 1, bool)
    outside[rim] = True
    outside[0] = False  # the mask itself
    return ~outside[air]
