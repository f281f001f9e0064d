"""Where an error counts: the body, and, where nobody drew labels, regions from the scans."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.data.morphology import BODY_HU, around, enclosed, largest, square

BONE_HU, AIR_HU = 300, -500  # on the plain scan; lung and bowel gas are air
SOFT_HU = 130  # on the plain scan: what is denser is no blood
BRIGHT_HU = 100  # the least by which blood vessels light up
SHARE = 2 / 3  # of the change of the brightest blood, above which a voxel is vessel
BRIGHTEST = 0.998  # quantile of the change in the body that stands for the brightest blood
LEAST_MM3 = 1000.0  # of a piece of vessel
COMPUTED = {"computed_bone": {1}, "computed_air": {2}, "computed_vessel": {3}}
THIN = 7  # pixels; what is thinner lets go of the body: table top, blanket, tubing


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
    body = largest(square(square(dense, False, THIN), True, THIN))
    if not body.any():  # too thin for the opening, a phantom of a few pixels: take it as it is
        body = largest(dense)
    cut = around(body, THIN)  # all of it that the square below reaches, and a rim
    body[cut] = square(body[cut], True, THIN) & dense[cut]
    body[cut] |= enclosed(body[cut])
    return body


def computed_labels(
    plain: NDArray[np.int16],
    true: NDArray[np.int16],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> NDArray[np.uint8]:
    """Bone, air and vessels of a pair that nobody labelled; ``COMPUTED`` has their numbers.

    Inside the body: bone is above 300 HU on the plain scan, air below -500. Vessels are where the
    mean of 3x3 pixels of true - plain exceeds two thirds of its 99.8th percentile in the body, and
    100 HU; not where the plain scan is denser than 130 HU. They are opened in plane by a square of
    3 pixels, which takes the rims away that motion leaves; of the pieces in 3-D those of 1 mL or
    more count.

    Vessels come from the true scan: they say how a method fills what the contrast agent filled, and
    never what it fills besides.

    Args:
        plain: HU, [Z, H, W].
        true: Contrast CT on the same grid.
        body: True inside the patient.
        spacing: mm, (z, y, x).

    Returns:
        [Z, H, W]; 0 elsewhere. A pair without such a change has no vessels.
    """
    labels = np.zeros(plain.shape, np.uint8)
    labels[body & (plain > BONE_HU)] = 1
    labels[body & (plain < AIR_HU)] = 2
    blood = body & (plain <= SOFT_HU) & (plain >= AIR_HU)
    change = np.empty(plain.shape, np.int16)
    for z in range(len(plain)):
        change[z] = sum_of_nine(np.subtract(true[z], plain[z], dtype=np.int32)) // 9
    if not blood.any():
        return labels
    brightest = float(np.quantile(change[blood], BRIGHTEST))
    lit = blood & (change > max(SHARE * brightest, BRIGHT_HU))
    pieces, count = ndimage.label(square(square(lit, False, 3), True, 3) & blood)
    volumes = np.bincount(pieces.ravel(), minlength=count + 1) * float(np.prod(spacing))
    large = volumes >= LEAST_MM3
    large[0] = False  # the rest of the scan
    labels[large[pieces]] = 3
    return labels


def sum_of_nine(image: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sum of the 3x3 pixels around each, edges repeated: whole numbers, so thresholds are exact."""
    wide = np.pad(image, 1, mode="edge")
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    return np.asarray(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])


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
