"""How grainy and how steady a CT looks: noise and edges that blur takes away and PSNR rewards.

Arrays are int16 HU, [Z, H, W], clipped to a window by the caller. Power and steps are compared as
predicted / true, so that 1 is the aim and not "more"; gradients by the distance of their
distributions, so that 0 is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

HALF_NYQUIST = 0.25  # cycles/pixel
CHUNK = 8  # slices: their gradients fill a histogram about once


def high_frequency_power(volume: NDArray[np.int16]) -> float:
    """Power above half of Nyquist in the spectra of the axial slices, summed over slices.

    Of each slice the mean is taken off, and a Hann window laid over it, so that neither the level
    nor the jump from one edge of the picture to the other counts. Frequency is radial:
    sqrt(f_y^2 + f_x^2) > 0.25 cycles/pixel.

    Args:
        volume: HU, [Z, H, W].

    Returns:
        Sum of |FFT|^2, HU^2; only ratios of two volumes of one shape mean anything.
    """
    height, width = volume.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    rows, columns = fft.fftfreq(height)[:, None], fft.rfftfreq(width)
    weights = (np.hypot(rows, columns) > HALF_NYQUIST).astype(np.float32)
    # Half of the plane is not computed: a column stands for its mirror image too, but the first
    # and, of an even width, the last, which are their own.
    weights[:, 1 : (width + 1) // 2] *= 2
    power = 0.0
    for image in volume:
        spectrum = fft.rfft2((image - image.mean()).astype(np.float32) * window)
        power += float(((spectrum.real**2 + spectrum.imag**2) * weights).sum(dtype=np.float64))
    return power


def gradient_distance(
    real: NDArray[np.int16], fake: NDArray[np.int16], mask: NDArray[np.bool_]
) -> float | None:
    """1-Wasserstein distance between the distributions of in-plane gradients, HU/pixel.

    The gradient is that of central differences, sqrt(d_y^2 + d_x^2) / 2. Of whole HU, 4 times its
    square is a whole number: the histograms have one bin for each, and the distance is exact. The
    outermost pixels of a slice lack a neighbour and do not count.

    Args:
        real: Measured CT, HU, [Z, H, W].
        fake: Virtual CT on the same grid.
        mask: True where gradients count, [Z, H, W].

    Returns:
        Integral of the difference of the two cumulative distributions; None: no pixel to measure.
    """
    counts = [_gradient_counts(volume, mask) for volume in (real, fake)]
    total = counts[0].sum()
    if not total:
        return None
    size = max(map(len, counts))
    steps = sum(
        sign * np.pad(count, (0, size - len(count)))
        for sign, count in zip((1, -1), counts, strict=True)
    )
    widths = np.diff(np.sqrt(np.arange(size)) / 2)
    return float(np.abs(np.cumsum(steps)[:-1]) @ widths / total)


def _gradient_counts(volume: NDArray[np.int16], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many pixels have d_y^2 + d_x^2 = 0, 1, 2, ... HU^2, [largest + 1]."""
    counts = np.zeros(1, np.int64)
    for start in range(0, len(volume), CHUNK):
        slices = volume[start : start + CHUNK].astype(np.int32)
        inside = mask[start : start + CHUNK, 1:-1, 1:-1]
        down = (slices[:, 2:, 1:-1] - slices[:, :-2, 1:-1])[inside]
        across = (slices[:, 1:-1, 2:] - slices[:, 1:-1, :-2])[inside]
        found = np.bincount(down * down + across * across, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def step_between_slices(volume: NDArray[np.int16], mask: NDArray[np.bool_]) -> float | None:
    """Mean |difference| between a slice and the next, HU, where the mask holds in both.

    Returns:
        None where no voxel of the mask has another above it.
    """
    total, count = 0, 0
    for below, above, low, high in zip(volume, volume[1:], mask, mask[1:], strict=False):
        both = low & high
        total += int(np.abs(above[both].astype(np.int32) - below[both]).sum())
        count += int(both.sum())
    return total / count if count else None


def ratio(fake: float | None, real: float | None) -> float | None:
    """Predicted / true; None where the true scan has nothing to compare with."""
    if fake is None or real is None or real == 0.0 or not math.isfinite(fake):
        return None
    return fake / real
