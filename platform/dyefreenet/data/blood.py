"""Iodine in the blood, told by the image alone: how bright is what lies before the spine?

The spinal canal is the one hole in bone that runs through the whole trunk, so it is found with and
without iodine. The aorta, its arch or the left atrium lie at a known distance before it. What is
even there, no more textured than soft tissue, and long, is blood or an organ; it is not bone, and
not a bowel full of oral contrast. No files are read or written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.config import Phase
from dyefreenet.data.morphology import (
    BODY_HU,
    IN_PLANE,
    around,
    ball,
    enclosed,
    largest,
    over_ball,
    square,
    window,
)
from dyefreenet.data.volume import Volume

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Triple = tuple[float, float, float]

# Lengths in mm, levels in HU. "Before" and "left" are the patient's own.
PLANE_MM, SLICE_MM = 2.0, 3.0  # voxels of the averaged copy; thicker slices stay as they are
BONE_HU = 180
TABLE = 5  # voxels; what is thinner lets go of the body
RIM = 2  # voxels around the body
RING_MM = 24.0  # along z: the bony ring around the canal closes once a vertebra
CANAL_MM2 = (50.0, 900.0)
CANAL_HU = (-60.0, 65.0)  # cord, fluid and fat; marrow is above
CANAL_DEPTH_MM = (20.0, 150.0)  # below the skin of the back
CANAL_SHARE = 0.7  # of the slices from its first to its last, in which it must be seen
LEAST_MM = 39.0  # of canal, and of a pool beside it: longer than a vertebra
VERTEBRA_MM = 44.0  # from the canal to the front of a vertebra; half as wide
FAR_MM, ASIDE_MM = 78.0, 32.0  # how far before and beside the canal: most bowel is beyond
DOUBT_MM, DOUBT_ASIDE_MM = 110.0, 45.0  # where bright pieces make a plain scan doubtful
BALL_MM = 4.5  # radius of what must be even: less than an aorta's
TEXTURE = 1.35  # sd over that of soft tissue; real CT: blood to 1.2, marrow from 1.4
PIECE_MM, PIECE_ML = 12.0, 0.1  # smaller ones are not looked at
POOL_SHARE = 0.6  # of the canal's length, that a pool must accompany
HEART_ML, HEART_MM = 10.0, 36.0  # or this large between lungs, where no bowel is
LEVELS = (450, 400, 350, 300, 250, 220, 200, 180, 160, 140, 120, *range(110, 10, -10))

LUNG_HU, LUNG_MM2 = (-950, -500), 6000.0
ORGAN_HU, ORGAN_MM = (20, 120), 35.0  # a liver holds a disc of this radius; muscle does not
TRUNK_MM2 = 35000.0  # of a slice; a head has less
TRUNK_MM = 40.0  # with lungs or liver: the aorta is there as well
ROSE_HU = 60.0  # by which virtual contrast lights up blood, and no organ
AORTA_MM2 = (
    60.0  # the least of what rose that counts as a vessel: the iliac arteries' forks have less
)
PLAIN_HU = 72.0  # phantom: a liver before the spine gives up to 77, delayed blood 80 and more
PLAIN_ML = 2.0  # less is no proof: 0.3 ml beside a delayed aorta had 65 HU
STRAY_HU = 100.0  # the least of bright pieces that make a plain scan doubtful
CONTRAST_HU = 110.0  # far above every plain pool that was seen
ARTERIAL_HU = 280.0  # portal aorta: phantom up to 185, real 180; less tube voltage raises it


@dataclass(frozen=True)
class BloodPool:
    """The brightest large even tissue before the spine.

    Attributes:
        level_hu: Median over its slices; NaN where no spine is found, or nothing long before it.
        volume_ml: Of its voxels that lie ``BALL_MM`` inside it.
        length_mm: Along z, of the slices that it is in.
        stray_hu: The brightest voxel of even pieces before or beside the spine, however short
            (bowel, a vessel cut off); NaN where none is brighter than ``STRAY_HU``.
        trunk_mm: Length of the slices with lungs or a liver, where an aorta must be.
        spine_mm: Length of the spinal canal that was found.
    """

    level_hu: float = np.nan
    volume_ml: float = 0.0
    length_mm: float = 0.0
    stray_hu: float = np.nan
    trunk_mm: float = 0.0
    spine_mm: float = 0.0

    @property
    def words(self) -> str:
        """For a line of a report."""
        if np.isnan(self.level_hu):
            return "no blood pool found"
        return f"blood pool of {self.level_hu:.0f} HU over {self.length_mm:.0f} mm"


def phase_in_image(volume: Volume) -> tuple[Phase | Literal["contrast"] | None, str]:
    """What the image alone says of the contrast phase; see ``phase_of_pool``."""
    return phase_of_pool(blood_pool(volume))


def phase_of_pool(pool: BloodPool) -> tuple[Phase | Literal["contrast"] | None, str]:
    """The phase that a blood pool proves, and the figures for a report line.

    "contrast" is iodine in a phase that the level does not tell. None: too little of the trunk, no
    spine, or a level between the phases. Most delayed scans end there. A pulmonary angiogram is
    not told from an aortic one, nor oral contrast along the aorta's whole way from blood.
    """
    level = pool.level_hu
    if level >= ARTERIAL_HU:
        return "arterial", pool.words
    if level >= CONTRAST_HU:
        return "contrast", pool.words
    if not level <= PLAIN_HU:  # NaN, too
        return None, pool.words
    if pool.trunk_mm < TRUNK_MM:
        return None, f"{pool.words}; lungs or liver over {pool.trunk_mm:.0f} mm"
    if pool.volume_ml < PLAIN_ML:
        return None, f"{pool.words}, but of {pool.volume_ml:.1f} ml"
    if pool.stray_hu >= STRAY_HU:
        return None, f"{pool.words}; beside it something of {pool.stray_hu:.0f} HU"
    return "plain", pool.words


class Spine(NamedTuple):
    """A scan averaged to voxels of about 3 x 2 x 2 mm and cut around the body, with its canal.

    Attributes:
        image: HU, [Z, h, w]; x rises to the patient's left, y to the back.
        body: Without the table; lungs are not filled, [Z, h, w].
        canal: Middle of the spinal canal, (z, y, x) in voxels, a row for each slice of its course;
            None where none was found.
        spacing: mm, (z, y, x).
        steps: Voxels of the scan along each axis that are joined into one.
        corner: Row and column of the turned scan at which the cut begins.
    """

    image: Array
    body: Mask
    canal: Floats | None
    spacing: Triple
    steps: list[int]
    corner: tuple[int, int]

    def voxels(self, volume: Volume, parts: tuple[slice, ...]) -> NDArray[np.int16]:
        """HU of a volume on the scan's grid that make up a part of the image."""
        offsets = (0, *self.corner)
        native = tuple(
            slice(offset + part.start * step, offset + part.stop * step)
            for offset, part, step in zip(offsets, parts, self.steps, strict=True)
        )
        return _turned(volume)[native]


def find_spine(volume: Volume) -> Spine:
    """The body and the spinal canal of a scan: what ``blood_pool`` and ``lit_before_spine`` need.

    Whoever asks for both finds it once.
    """
    targets = (SLICE_MM, PLANE_MM, PLANE_MM)
    steps = [
        min(max(1, int(mm / step + 0.3)), n)
        for mm, step, n in zip(targets, volume.spacing, volume.hu.shape, strict=True)
    ]
    z, y, x = (step * mm for step, mm in zip(steps, volume.spacing, strict=True))
    image = _averaged(_turned(volume), steps)
    dense = image > BODY_HU
    body = largest(square(square(dense, False, TABLE), True, TABLE))
    cut = around(body, RIM)
    image, body = np.ascontiguousarray(image[cut]), np.ascontiguousarray(body[cut])
    top, left = ((part.start or 0) * step for part, step in zip(cut[1:], steps[1:], strict=True))
    return Spine(image, body, _canal(image, body, (z, y, x)), (z, y, x), steps, (top, left))


def blood_pool(volume: Volume, spine: Spine | None = None) -> BloodPool:
    """The brightest large even tissue before the spine.

    Works on a copy of about 2 x 2 x 3 mm. Even: within 4.5 mm the smoothed image varies little,
    and the sd of the voxels themselves is that of soft tissue, which tells blood from marrow.
    Pieces at least as bright as a level, outside vertebrae, count together; the highest level at
    which they accompany most of the spinal canal, or make a heart between lungs, is the pool's.

    Args:
        spine: Of this scan, where it was found already.
    """
    spine = spine or find_spine(volume)
    if spine.canal is None:
        return BloodPool()
    spacing = spine.spacing
    z, y, x = spacing
    lungs, organ = _trunk(spine)
    first, last = int(spine.canal[0, 0]), int(spine.canal[-1, 0]) + 1
    trunk_mm = float(np.count_nonzero((lungs | organ)[first:last]) * z)
    spine_mm = float((last - first) * z)
    zone = _zone(volume, spine, spine.canal)
    if zone is None:
        return BloodPool(trunk_mm=trunk_mm, spine_mm=spine_mm)
    doubtful = _pieces(zone, STRAY_HU, spacing, strict=False)
    stray = np.nan if doubtful is None else float(zone.smooth[doubtful].max())
    near = zone.around(zone.near)
    for level in LEVELS:
        pieces = _pieces(near, level, spacing)
        if pieces is None:
            continue
        slices = pieces.any(axis=(1, 2))
        length = float(np.count_nonzero(slices) * z)
        found = slices.mean() >= POOL_SHARE and length >= LEAST_MM
        if found or _is_heart(pieces & lungs[first:last, None, None], spacing):
            ml = float(np.count_nonzero(pieces) * z * y * x / 1000)
            # A short bright piece among long dark ones must not set the level: slices count alike.
            here = [np.median(s[p]) for s, p in zip(near.smooth, pieces, strict=True) if p.any()]
            return BloodPool(float(np.median(here)), ml, length, stray, trunk_mm, spine_mm)
    return BloodPool(stray_hu=stray, trunk_mm=trunk_mm, spine_mm=spine_mm)


def lit_before_spine(spine: Spine, virtual: Volume) -> tuple[float, float]:
    """What a virtual scan lights up where aorta, arch and heart are.

    In each slice of the spinal canal's course, the largest connected piece before the spine that
    rose by more than ``ROSE_HU``, of at least ``AORTA_MM2``.

    Args:
        spine: Of the plain scan.
        virtual: On the voxels of the plain scan.

    Returns:
        Median over slices of the median HU of what rose most in the piece, NaN without any; and
        the share of slices that have one.
    """
    canal, (_, y, x) = spine.canal, spine.spacing
    if canal is None:
        return np.nan, 0.0
    parts = _around(spine, canal, (FAR_MM, 0.0), (ASIDE_MM, ASIDE_MM))
    after = _averaged(spine.voxels(virtual, parts), spine.steps)
    rose = after - spine.image[parts]
    ahead, left = _places(canal, parts, spine.spacing)
    near = (ahead > 0) & (ahead <= FAR_MM) & (np.abs(left) <= ASIDE_MM)
    levels = []
    for hu, change, here in zip(after, rose, near, strict=True):
        pieces, count = ndimage.label((change > ROSE_HU) & here)
        sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
        if count and sizes.max() * y * x >= AORTA_MM2:
            piece = pieces == 1 + int(sizes.argmax())
            core = piece & (change > np.percentile(change[piece], 95) / 2)  # without blurred rims
            levels.append(float(np.median(hu[core])))
    return (float(np.median(levels)) if levels else np.nan), len(levels) / len(canal)


class _Zone(NamedTuple):
    """The surroundings of the spine, [Z, h, w], slices of the canal alone."""

    smooth: Array  # HU
    lowest: Array  # HU, of ``smooth`` within the ball
    even: Mask
    near: Mask  # where blood is looked for
    ahead: Mask  # before vertebrae
    vertebra: Mask

    def around(self, wanted: Mask) -> _Zone:
        """The same around what is wanted, and nothing even beside that."""
        cut = around(wanted, 0)
        parts: list[Any] = list(self._replace(even=self.even & wanted))
        return _Zone(*(np.ascontiguousarray(part[cut]) for part in parts))


def _turned(volume: Volume) -> NDArray[np.int16]:
    """HU with x rising to the patient's left and y to the back."""
    return volume.hu[:, :: _sense(volume, 1), :: _sense(volume, 0)]


def _sense(volume: Volume, axis: int) -> int:
    """-1 where an axis runs to the patient's right (0) or front (1), and must be turned."""
    return -1 if volume.direction[axis, axis] < 0 else 1


def _averaged(hu: NDArray[Any], steps: list[int], square: bool = False) -> Array:
    """Means of blocks of ``steps`` voxels, or of the squares; the last part of a block is left."""
    shape = [n // step for n, step in zip(hu.shape, steps, strict=True)]
    hu = hu[tuple(slice(n * step) for n, step in zip(shape, steps, strict=True))]
    total = np.zeros(shape, np.float32)
    for first in np.ndindex(*steps):
        part = hu[tuple(slice(at, None, step) for at, step in zip(first, steps, strict=True))]
        total += part.astype(np.float32) ** 2 if square else part
    return total / np.float32(np.prod(steps))


def _canal(image: Array, body: Mask, spacing: Triple) -> Floats | None:
    """The middle of the spinal canal, (z, y, x) in voxels, a row for each slice of its course.

    Holes in bone are looked for slice by slice; the longest chain of holes that moves no faster
    than a spine bends is the canal.
    """
    ring = max(1, round(RING_MM / spacing[0])) | 1
    bone = window(image > BONE_HU, True, ring, axis=0) & square(body, True, 3)
    holes, count = ndimage.label(~bone, IN_PLANE)
    area = np.bincount(holes.ravel(), minlength=count + 1) * spacing[1] * spacing[2]
    area[0] = 0.0
    places = ndimage.find_objects(holes)
    found = []
    for number in np.flatnonzero((area > CANAL_MM2[0]) & (area < CANAL_MM2[1])):
        place = places[number - 1]
        z, hole = place[0].start, holes[place][0] == number
        rows, columns = np.nonzero(hole)
        y, x = rows.mean() + place[1].start, columns.mean() + place[2].start
        skin = np.flatnonzero(body[z, :, round(x)])
        if not len(skin):
            continue
        depth = (skin[-1] - y) * spacing[1]
        level = np.median(image[place][0][hole])
        if CANAL_HU[0] < level < CANAL_HU[1] and CANAL_DEPTH_MM[0] < depth < CANAL_DEPTH_MM[1]:
            found.append((float(z), y, x))
    if not found:
        return None
    middles = np.array(found)  # sorted by slice, as labels are
    mm = middles * spacing
    length, before = np.ones(len(mm)), np.full(len(mm), -1)
    for here in range(1, len(mm)):
        up, back, aside = np.abs(mm[here] - mm[:here]).T
        near = (up > 0) & (up < 60) & (back < 4 + 0.8 * up) & (aside < 4 + 0.4 * up)
        score = np.where(near, length[:here] - 0.02 * (back + aside), 0.0)
        if near.any():
            before[here] = int(score.argmax())
            length[here] += score.max()
    chain = [int(length.argmax())]
    while before[chain[-1]] >= 0:
        chain.append(int(before[chain[-1]]))
    known = middles[chain[::-1]]
    z = np.arange(known[0, 0], known[-1, 0] + 1)
    if len(z) * spacing[0] < LEAST_MM or len(known) < CANAL_SHARE * len(z):
        return None
    return np.stack([z, *(np.interp(z, known[:, 0], known[:, i]) for i in (1, 2))], axis=1)


def _trunk(spine: Spine) -> tuple[Mask, Mask]:
    """Slices with lungs, and those of a trunk with an organ as large as a liver, [Z] each."""
    steps = [1, *(min(2, n) for n in spine.image.shape[1:])]
    coarse = _averaged(spine.image, steps)
    body = spine.body[:, :: steps[1], :: steps[2]][:, : coarse.shape[1], : coarse.shape[2]]
    _, *step = (n * mm for n, mm in zip(steps, spine.spacing, strict=True))
    pixel = step[0] * step[1]
    coarse = ndimage.gaussian_filter(coarse, (0, 3 / step[0], 3 / step[1]))
    aerated = enclosed(body) & (coarse > LUNG_HU[0]) & (coarse < LUNG_HU[1])
    lungs = np.count_nonzero(aerated, axis=(1, 2)) * pixel > LUNG_MM2
    soft = (coarse > ORGAN_HU[0]) & (coarse < ORGAN_HU[1]) & body
    room = np.array([ndimage.distance_transform_edt(plane, step).max() for plane in soft])
    area = np.count_nonzero(body, axis=(1, 2)) * pixel
    return lungs, (room > ORGAN_MM) & (area > TRUNK_MM2)


def _around(
    spine: Spine, canal: Floats, deep_mm: tuple[float, float], wide_mm: tuple[float, float]
) -> tuple[slice, slice, slice]:
    """The part of the image so far before and behind the canal, to its right and to its left."""
    parts = []
    for axis, (below, above) in enumerate(((0.0, 0.0), deep_mm, wide_mm)):
        low = int(canal[:, axis].min() - below / spine.spacing[axis])
        high = int(canal[:, axis].max() + above / spine.spacing[axis]) + 1
        parts.append(slice(max(low, 0), min(high, spine.image.shape[axis])))
    return parts[0], parts[1], parts[2]


def _places(
    canal: Floats, parts: tuple[slice, slice, slice], spacing: Triple
) -> tuple[Floats, Floats]:
    """How far pixels lie before the canal, [Z, h, 1], and to its left, [Z, 1, w], mm."""
    rows, columns = (np.arange(part.start, part.stop) for part in parts[1:])
    ahead = (canal[:, 1, None] - rows)[:, :, None] * spacing[1]
    left = (columns - canal[:, 2, None])[:, None, :] * spacing[2]
    return ahead, left


def _zone(volume: Volume, spine: Spine, canal: Floats) -> _Zone | None:
    """What is even before the spine; None where there is too little soft tissue to compare with."""
    spacing = spine.spacing
    parts = _around(spine, canal, (DOUBT_MM + 10, 40.0), (80.0, 80.0))
    image, body = spine.image[parts], spine.body[parts]
    sigma = (min(2.0, 0.6 * spacing[0]), 2.0, 2.0)  # mm
    smooth = ndimage.gaussian_filter(image, [s / mm for s, mm in zip(sigma, spacing, strict=True)])
    near_by = ball(BALL_MM, spacing)
    count = np.float32(np.count_nonzero(near_by))

    def spread(values: Array, squares: Array) -> Array:
        """Variance within the ball."""
        inside = over_ball(values, near_by, np.add) / count
        return np.maximum(over_ball(squares, near_by, np.add) / count - inside * inside, 0)

    # Noise and texture of the voxels themselves, without the slope at an edge.
    sharp = np.clip(spine.voxels(volume, parts), -300, 2000)
    fine = spread(_averaged(sharp, spine.steps), _averaged(sharp, spine.steps, square=True))
    sd = np.sqrt(np.maximum(fine - spread(smooth, smooth * smooth), 0))
    lowest = over_ball(smooth, near_by, np.minimum)
    highest = over_ball(smooth, near_by, np.maximum)
    soft = (lowest > -10) & (highest < 120) & body
    if np.count_nonzero(soft) < 50:
        return None
    noise = float(np.median(sd[soft]))
    even = highest - lowest < 0.35 * np.maximum(smooth, 100) + noise
    even &= (highest < 900) & (sd < TEXTURE * noise) & body

    ahead, left = _places(canal, parts, spacing)
    near = (ahead > 0) & (ahead <= FAR_MM) & (np.abs(left) <= ASIDE_MM)
    far = (ahead > 0) & (ahead <= DOUBT_MM) & (np.abs(left) <= DOUBT_ASIDE_MM)
    vertebra = (ahead < VERTEBRA_MM) & (np.abs(left) < VERTEBRA_MM / 2)
    before = np.broadcast_to(ahead >= VERTEBRA_MM, near.shape)
    return _Zone(smooth, lowest, even & far, near, before, vertebra)


def _is_heart(pieces: Mask, spacing: Triple) -> bool:
    """Whether one piece between the lungs is as large as blood in a heart or an arch."""
    numbered, _ = ndimage.label(pieces)
    for number, place in enumerate(ndimage.find_objects(numbered), start=1):
        ml = np.count_nonzero(numbered[place] == number) * np.prod(spacing) / 1000
        if (place[0].stop - place[0].start) * spacing[0] >= HEART_MM and ml >= HEART_ML:
            return True
    return False


def _pieces(zone: _Zone, level: float, spacing: Triple, strict: bool = True) -> Mask | None:
    """The even pieces brighter than a level that are no vertebra, [Z, h, w]; None: there are none.

    Args:
        strict: Only pieces of some length, before the spine and not beside it.
    """
    bright = zone.even & (zone.lowest > level)
    if not bright.any():
        return None
    pieces, count = ndimage.label(bright, np.ones((3, 3, 3)))
    size = np.bincount(pieces.ravel(), minlength=count + 1)
    bony = np.bincount(pieces[zone.vertebra], minlength=count + 1)
    keep = size * np.prod(spacing) >= PIECE_ML * 1000
    keep[0] = False
    if strict:
        ahead = np.bincount(pieces[zone.ahead], minlength=count + 1)
        places = ndimage.find_objects(pieces)
        length = np.array([0, *((one[0].stop - one[0].start) * spacing[0] for one in places)])
        keep &= (length >= PIECE_MM) & (bony < 0.1 * size) & (ahead >= 0.5 * size)
    else:
        keep &= bony < 0.5 * size
    return keep[pieces] if keep.any() else None
