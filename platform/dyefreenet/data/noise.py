"""How noisy a scan is, from the scan alone: the global noise level of Christianson et al. 2015.

AJR 205:W93, "Automated technique to measure noise in clinical CT examinations": the standard
deviation in a small square around each pixel of soft tissue, and of all of them the most frequent.
Edges and textures make it larger in some places; the mode does not see them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SQUARE_MM = 7.0
SOFT_HU = (0, 100)
STEP_HU = 0.5  # of the histogram
MOST_HU = 200.0
SLICES = 24  # that are looked at, spread over the series
ENOUGH = 1000  # pixels of soft tissue, else nothing is said


def global_noise(plain: NDArray[np.int16], pixel: tuple[float, float]) -> float | None:
    """Global noise level of a plain CT, HU; None where there is too little soft tissue.

    Args:
        plain: HU, [Z, H, W].
        pixel: mm, (y, x).
    """
    side = max(3, round(SQUARE_MM / float(np.mean(pixel))) | 1)  # odd, and a square at least of 3
    edges = np.arange(0.0, MOST_HU + STEP_HU, STEP_HU)
    counts = np.zeros(len(edges) - 1)
    for z in np.unique(np.linspace(0, len(plain) - 1, SLICES).round().astype(int)):
        image = plain[z].astype(np.float64)
        mean = ndimage.uniform_filter(image, side)
        square = ndimage.uniform_filter(image * image, side)
        soft = (mean > SOFT_HU[0]) & (mean < SOFT_HU[1])
        deviations = np.sqrt(np.maximum(square - mean * mean, 0.0)[soft])
        counts += np.histogram(deviations, edges)[0]
    if counts.sum() < ENOUGH:
        return None
    smooth = ndimage.gaussian_filter1d(counts, 1.0)
    return float(edges[int(np.argmax(smooth))] + STEP_HU / 2)
