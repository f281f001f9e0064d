"""PSNR, SSIM and MAE of CT volumes: arrays in, numbers out, nothing known of files or patients.

Arrays are [Z, H, W] in any real type. A window is not cut out here: ``protocols.py`` says which
range of HU counts, and under which name. What cannot be measured is refused: unequal shapes, an
empty mask and values that are not finite raise ValueError. Equal volumes have an infinite PSNR.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]

RADIUS = 5  # pixels; of the 11 taps of SSIM's Gaussian
SIGMA = 1.5  # pixels
STRIP = 32  # rows of output at a time: five strips of 512 columns fit a core's 1 MiB cache


def mae(real: Array, fake: Array, mask: Mask | None = None) -> float:
    """Mean absolute error in the unit of the volumes, over the mask where one is given."""
    absolute, _, count = _error_sums(real, fake, mask)
    return float(absolute.sum() / count.sum())


def psnr(real: Array, fake: Array, span: float, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio of a whole volume: 20 log10(span / RMSE).

    The span is given and never read from the volume: a metal hip would widen it and flatter that
    patient.

    Args:
        real: Measured CT, [Z, H, W].
        fake: Virtual CT on the same grid, [Z, H, W].
        span: Width of the range that counts as the peak, in the unit of the volumes.
        mask: True where errors count, [Z, H, W]; None: everywhere.

    Returns:
        Decibels; infinity where the volumes agree exactly.

    Raises:
        ValueError: Shapes differ, the mask is empty, or a value is not finite.
    """
    _, squared, count = _error_sums(real, fake, mask)
    return float(_decibels(squared.sum() / count.sum(), span))


def psnr_per_slice(
    real: Array, fake: Array, span: float, mask: Mask | None = None
) -> NDArray[np.float64]:
    """PSNR of each slice by itself, [Z]; infinity where a slice agrees exactly.

    NaN for a slice without a pixel of the mask.
    """
    _, squared, count = _error_sums(real, fake, mask)
    return _decibels(_per_pixel(squared, count), span)


def mae_per_slice(real: Array, fake: Array, mask: Mask | None = None) -> NDArray[np.float64]:
    """Mean absolute error of each slice, [Z]; NaN for one without a pixel of the mask."""
    absolute, _, count = _error_sums(real, fake, mask)
    return _per_pixel(absolute, count)


def ssim(real: Array, fake: Array, span: float, mask: Mask | None = None) -> NDArray[np.float64]:
    """Mean structural similarity of each slice, [Z]; NaN for a slice without a pixel of the mask.

    As ``skimage.metrics.structural_similarity`` with ``gaussian_weights=True`` and
    ``use_sample_covariance=False``: a rim of 5 pixels, where the Gaussian leaves the slice, does
    not count.

    Raises:
        ValueError: Shapes differ, a slice is smaller than the Gaussian, the mask is empty, or a
            value is not finite.
    """
    return ssim_by_region(real, fake, span, {"": mask})[""]


def ssim_by_region(
    real: Array, fake: Array, span: float, masks: Mapping[str, Mask | None]
) -> dict[str, NDArray[np.float64]]:
    """``ssim`` within several masks; the map of a slice, which costs the most, is made once."""
    for mask in masks.values():
        _check(real, fake, mask)
    means = {name: np.full(len(real), np.nan) for name in masks}
    for z in range(len(real)):
        similarity = ssim_map(real[z], fake[z], span)
        for name, mask in masks.items():
            counted = similarity
            if mask is not None:
                counted = similarity[mask[z, RADIUS:-RADIUS, RADIUS:-RADIUS]]
            if counted.size:
                means[name][z] = counted.mean()
    return means


def ssim_map(real: Array, fake: Array, span: float) -> NDArray[np.float64]:
    """Structural similarity at each pixel of one slice (Wang et al. 2004, eq. 13).

    (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)), with means and
    population covariances under a Gaussian of 11 taps, sigma 1.5; C1 = (0.01 span)^2,
    C2 = (0.03 span)^2. The m's ask for values that start at 0: HU do not, so the caller shifts.

    Only the sum of the two variances occurs, so four blurred images suffice and not five. A blur is
    a product with a banded matrix, a strip of rows at a time. Float64 throughout: in float32 the
    difference s^2 = E[x^2] - m^2 of a flat region is off by up to 3e-5.

    Args:
        real: One slice, [H, W], from 0 to ``span``.
        fake: The same, [H, W].
        span: Width of the range of values.

    Returns:
        [H - 10, W - 10]: pixels at which the whole Gaussian lies inside the slice.
    """
    height, width = (side - 2 * RADIUS for side in real.shape)
    if height < 1 or width < 1:
        raise ValueError(f"SSIM: expected slices of 11x11 pixels or more, found {real.shape}")
    band = _gaussian_band(STRIP)  # [STRIP + 10, STRIP]
    similarity = np.empty((height, width))
    images = np.empty((4, STRIP + 2 * RADIUS, real.shape[1]))  # x, y, x^2 + y^2, x y
    lowered, blurred = np.empty((4 * STRIP, real.shape[1])), np.empty((4 * STRIP, width))
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        tall = slice(top, top + rows + 2 * RADIUS)
        x, y, squares, product = strip = images[:, : rows + 2 * RADIUS]
        np.multiply(real[tall], 1.0 / span, out=x)
        np.multiply(fake[tall], 1.0 / span, out=y)
        np.multiply(x, y, out=product)
        np.multiply(x, x, out=squares)
        squares += y * y

        down = lowered[: 4 * rows].reshape(4, rows, -1)  # [4, rows, W]
        np.matmul(band[: rows + 2 * RADIUS, :rows].T, strip, out=down)
        across = blurred[: 4 * rows]  # [4 rows, W - 10]: one product for the four images
        for left in range(0, width, STRIP):
            columns = min(STRIP, width - left)
            wide = lowered[: 4 * rows, left : left + columns + 2 * RADIUS]
            weights = band[: columns + 2 * RADIUS, :columns]
            np.matmul(wide, weights, out=across[:, left : left + columns])
        mean_x, mean_y, squares, product = across.reshape(4, rows, width)
        means = mean_x * mean_y
        mean_x *= mean_x
        mean_y *= mean_y
        mean_x += mean_y  # now the sum of the squared means
        product -= means  # the covariance
        squares -= mean_x  # the sum of the variances
        above = similarity[top : top + rows]
        np.multiply(2 * means + 0.01**2, 2 * product + 0.03**2, out=above)
        above /= (mean_x + 0.01**2) * (squares + 0.03**2)
    return similarity


@cache
def _gaussian_band(size: int) -> NDArray[np.float64]:
    """[size + 10, size]: column j holds the Gaussian's 11 weights in rows j to j + 10."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    band = np.zeros((size + 2 * RADIUS, size))
    for column in range(size):
        band[column : column + 2 * RADIUS + 1, column] = weights / weights.sum()
    return band


def _decibels(mean_square: Any, span: float) -> Any:
    with np.errstate(divide="ignore"):  # no error at all is an infinite ratio, and meant so
        return 10.0 * np.log10(span**2 / np.asarray(mean_square))


def _per_pixel(sums: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(sums, count, out=np.full(len(sums), np.nan), where=count > 0)


def _error_sums(
    real: Array, fake: Array, mask: Mask | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Sums of |error| and error^2 and the number of pixels, per slice, [Z] each."""
    _check(real, fake, mask)
    absolute, squared = np.zeros(len(real)), np.zeros(len(real))
    count = np.zeros(len(real), np.int64)
    for z in range(len(real)):  # by slices: float64 copies of a volume would not fit the cache
        error = np.subtract(fake[z], real[z], dtype=np.float64)
        if mask is not None:
            error = error[mask[z]]
        flat = error.ravel()
        absolute[z], squared[z], count[z] = np.abs(flat).sum(), flat @ flat, flat.size
    return absolute, squared, count


def _check(real: Array, fake: Array, mask: Mask | None) -> None:
    if real.ndim != 3 or real.shape != fake.shape or not real.size:
        raise ValueError(
            f"expected two volumes [Z, H, W] of one shape, found {real.shape} and {fake.shape}"
        )
    for name, volume in (("real", real), ("fake", fake)):
        if volume.dtype.kind == "f" and not np.isfinite(volume).all():
            raise ValueError(f"{name}: expected finite values, found NaN or infinity")
    if mask is None:
        return
    if mask.shape != real.shape or mask.dtype != np.bool_:
        raise ValueError(f"mask: expected bool {real.shape}, found {mask.dtype} {mask.shape}")
    if not mask.any():
        raise ValueError("mask: expected at least one voxel, found none")
