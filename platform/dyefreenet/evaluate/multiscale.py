"""MS-SSIM of CT volumes as SynthRAD 2025 scores it, in one pass over the slices of each scale.

A volume of 512x512x300 voxels and its filtered copies in float64 would fill 10 GB. Here a scale
holds its running sums over seven slices, and the next scale in float32. Both are exact: HU are
whole numbers, and a mean of eight of them, or of eight such means, has few enough binary digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
SIDE = 7  # voxels of the uniform filter
RIM = SIDE // 2  # voxels, where the filter leaves the volume
SMALLEST = 97  # voxels: the side that is still 7 after four halvings

Mask = NDArray[np.bool_]
Pair = NDArray[np.float32]  # a slice of both scans, [2, H, W]


def ms_ssim(
    real: NDArray[np.int16],
    fake: NDArray[np.int16],
    mask: Mask,
    low: int,
    high: int,
    published: bool = False,
) -> float | None:
    """Multi-scale structural similarity within a mask: the product over five scales.

    HU are clipped to [low, high] and counted from ``low``; outside of the mask they are ``low``. A
    side below 97 voxels is padded with its edge to 97, half of it before, mask included. At each
    scale the similarity of a voxel is l^w (c s)^w, with means and sample covariances in 7x7x7
    voxels, C1 = (0.01 span)^2, C2 = (0.03 span)^2 and C3 = C2 / 2, of which contrast times
    structure is (2 s_xy + C2) / (s_x^2 + s_y^2 + C2), and 0 where that is negative. Luminance l
    counts at the coarsest scale alone. A scale's figure is the mean within the mask, a rim of 3
    voxels left out. Voxel k of the next scale is the mean of voxels 2k - 1 and 2k in each
    direction, the first voxel standing in for the one before it; of the mask it is voxel 2k.

    Args:
        real: Measured CT, HU, [Z, H, W].
        fake: Virtual CT on the same grid.
        mask: True where similarity counts, [Z, H, W].
        low: HU that air counts as.
        high: HU at which both are cut; high - low is the span.
        published: As the published code of 2025 has it: luminance at every scale, with the scale's
            weight, and ``low`` before the first voxel where a scale is made from a finer one.

    Returns:
        At most 1, for equal volumes; None where a scale has no voxel of the mask.
    """
    padding = [((SMALLEST - n) // 2, SMALLEST - n - (SMALLEST - n) // 2) for n in mask.shape]
    padding = [(max(before, 0), max(after, 0)) for before, after in padding]
    padded = np.pad(mask, padding, mode="edge")
    pairs: Iterable[Pair] = _slices(real, fake, mask, low, high, padding)
    score, last = 1.0, len(WEIGHTS) - 1
    for scale, weight in enumerate(WEIGHTS):
        luminance = published or scale == last
        smaller = _Smaller(padded.shape, edge=not published) if scale < last else None
        mean = _scale(pairs, padded, float(high - low), weight, luminance, smaller)
        if mean is None:
            return None
        score *= mean
        if smaller is not None:
            pairs, padded = smaller.pairs, padded[::2, ::2, ::2]
    return score


def _slices(
    real: NDArray[np.int16],
    fake: NDArray[np.int16],
    mask: Mask,
    low: int,
    high: int,
    padding: list[tuple[int, int]],
) -> Iterator[Pair]:
    """The finest scale: clipped, counted from ``low``, masked and padded slice by slice."""
    before, after = padding[0]
    order = np.pad(np.arange(len(mask)), (before, after), mode="edge")
    for z in order:
        pair = np.stack([np.clip(volume[z], low, high) for volume in (real, fake)])
        counted = np.where(mask[z], pair.astype(np.float32) - np.float32(low), np.float32(0))
        yield np.pad(counted, [(0, 0), *padding[1:]], mode="edge")


class _Smaller:
    """The next scale, filled while the one before it is read.

    Attributes:
        pairs: [Z, 2, H, W].
        edge: The first voxel stands in for the one before it; else there is air, 0.
    """

    def __init__(self, shape: tuple[int, ...], edge: bool) -> None:
        self.edge = edge
        depth, height, width = ((side + 1) // 2 for side in shape)
        self.pairs = np.empty((depth, 2, height, width), np.float32)
        self._before: Pair | None = None  # the slice below, halved in plane

    def add(self, z: int, pair: Pair) -> None:
        """Slice z of the finer scale: half of slice z / 2 if z is even, else of the next."""
        flat = self._halved(self._halved(pair, axis=1), axis=2)
        if z % 2 == 0:
            before = self._before
            if before is None:
                before = flat if self.edge else np.zeros_like(flat)
            self.pairs[z // 2] = 0.5 * (before + flat)
        self._before = flat

    def _halved(self, pair: Pair, axis: int) -> Pair:
        """Mean of neighbours 2k - 1 and 2k along an axis."""
        rows = np.moveaxis(pair, axis, -1)
        halved = rows[..., ::2].copy()
        halved[..., 1:] += rows[..., 1 : rows.shape[-1] - 1 : 2]
        if self.edge:
            halved[..., 0] += rows[..., 0]
        return np.moveaxis(0.5 * halved, -1, axis)


def _scale(
    pairs: Iterable[Pair],
    mask: Mask,
    span: float,
    weight: float,
    luminance: bool,
    smaller: _Smaller | None,
) -> float | None:
    """Mean of l^w (c s)^w within the mask; fills the next scale on the way."""
    shape = mask.shape[1:]
    recent = np.zeros((SIDE, 4, *shape))  # x, y, x^2 + y^2, x y of the last seven slices
    sums = np.zeros((4, *shape))
    total, count = 0.0, 0
    for z, pair in enumerate(pairs):
        if smaller is not None:
            smaller.add(z, pair)
        newest = recent[z % SIDE]
        sums -= newest
        newest[:2] = pair
        x, y = newest[:2]
        np.multiply(x, x, out=newest[2])
        newest[2] += y * y
        np.multiply(x, y, out=newest[3])
        sums += newest
        if z < SIDE - 1:
            continue
        inside = mask[z - RIM, RIM:-RIM, RIM:-RIM]
        rows, columns = (_extent(np.any(inside, axis=axis)) for axis in (1, 0))
        inside = inside[rows, columns]
        if not inside.size:
            continue
        wide = sums[:, rows.start : rows.stop + SIDE - 1, columns.start : columns.stop + SIDE - 1]
        boxes = _summed(_summed(wide.swapaxes(1, 2)).swapaxes(1, 2))[:, inside]  # [4, voxels]
        total += float(_similarity(boxes, span, weight, luminance).sum())
        count += boxes.shape[1]
    return total / count if count else None


def _similarity(
    boxes: NDArray[np.float64], span: float, weight: float, luminance: bool
) -> NDArray[np.float64]:
    """l^w (c s)^w from sums over 7x7x7 voxels of x, y, x^2 + y^2 and x y, [4, voxels]."""
    voxels = SIDE**3
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y, squares, product = boxes / voxels
    means, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    sample = voxels / (voxels - 1)
    covariance, variances = sample * (product - means), sample * (squares - mean_squares)
    value = np.maximum(2 * covariance + second, 0.0) / (np.maximum(variances, 0.0) + second)
    if luminance:
        value *= (2 * means + first) / (mean_squares + first)
    return np.asarray(value**weight)


def _summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of seven neighbours along the last axis, which loses six."""
    twos = values[..., :-1] + values[..., 1:]
    fours = twos[..., :-2] + twos[..., 2:]
    return np.asarray(fours[..., :-3] + twos[..., 4:-1] + values[..., 6:])


def _extent(found: Any) -> slice:
    """From the first True to the last."""
    places = np.flatnonzero(found)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
