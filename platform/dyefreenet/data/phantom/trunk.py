"""The carcass: outline, fat, muscle, bones, lungs, limbs. Positions are canonical mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from dyefreenet.data.phantom.canvas import Array, Canvas
from dyefreenet.data.phantom.tissue import Palette

Mask = NDArray[np.bool_]

# One adult, as columns by height: z, half width and half depth of the muscular body without its
# fat, then half width, half depth and middle (y) of the cavity, then y of the vertebral bodies.
_BODY = np.array(
    [
        # z     body        cavity          spine
        [-160, 20, 20, 1, 1, 0, 60],
        [-110, 70, 50, 1, 1, 0, 60],
        [-70, 140, 88, 20, 22, 10, 62],
        [-40, 162, 96, 38, 46, 5, 62],
        [0, 164, 98, 54, 62, 4, 62],
        [50, 156, 98, 64, 68, 4, 62],
        [100, 146, 90, 96, 66, -8, 44],
        [140, 138, 86, 116, 60, -14, 34],
        [200, 136, 87, 120, 58, -14, 31],
        [260, 140, 93, 124, 68, -10, 34],
        [320, 145, 101, 128, 82, -4, 42],
        [380, 149, 105, 132, 87, 0, 50],
        [460, 150, 105, 130, 84, 2, 58],
        [520, 142, 98, 112, 70, 6, 54],
        [560, 118, 86, 84, 52, 12, 46],
        [585, 92, 76, 46, 32, 14, 40],
        [605, 72, 68, 4, 4, 14, 32],
        [640, 62, 64, 1, 1, 14, 18],
        [720, 62, 66, 1, 1, 14, 14],
    ],
    np.float32,
)
_LOW, _HIGH = -160, 720


@dataclass
class Trunk:
    """What the organs are put into."""

    cavity: Mask  # room inside the body wall, [Z, H, W]
    abdomen: Mask  # the cavity below the diaphragm
    inner: Array  # mm inside the cavity's surface, negative outside
    grain: Array  # noise of 30 mm grain
    fine: Array  # noise of 9 mm grain
    speck: Array  # noise of 4 mm grain


def spine_y(z: float) -> float:
    """Middle of the vertebral body at a height, mm."""
    return float(np.interp(z, _BODY[:, 0], _BODY[:, 6]))


def _at(index: NDArray[np.int16], column: int, scale: float = 1.0) -> Array:
    """A column of the table for every voxel."""
    heights = np.arange(_LOW, _HIGH + 1)
    return (scale * np.interp(heights, _BODY[:, 0], _BODY[:, column])).astype(np.float32)[index]


def paint_trunk(canvas: Canvas, palette: Palette, rng: Generator, fat_mm: float) -> Trunk:
    """Everything but organs and vessels; returns the room that is left for those."""
    x, y, z, tissue = canvas.x, canvas.y, canvas.z, canvas.tissue
    grain, fine = canvas.field(rng, 30.0), canvas.field(rng, 9.0)
    speck = canvas.field(rng, 4.0)
    index = np.clip(z - _LOW, 0, _HIGH - _LOW).astype(np.int16)

    wide, deep = _at(index, 1), _at(index, 2)
    distance = np.sqrt(x * x + y * y)
    power = np.float32(rng.uniform(2.0, 2.8))
    rho = ((np.abs(x) / wide) ** power + (np.abs(y) / deep) ** power) ** (1 / power) + 1e-6
    # mm inside the muscular body
    depth: Array = (distance / rho - distance).astype(np.float32)
    del rho
    if z.min() < 20:
        depth = np.maximum(depth, _thighs(x, y, z))
    if z.max() > 480:
        depth = np.maximum(depth, _shoulders(canvas, rng))
    depth += np.float32(2) * grain
    fat = np.float32(fat_mm) * _fat_shape(x, y, distance, z, rng)
    if z.max() > 560:
        fat *= np.clip((660 - z) / 100, 0.35, 1)  # the neck is lean
    if rng.uniform() < 0.5:
        fat = np.maximum(fat, _breasts(canvas, rng, fat_mm))
    fat += 1.5 * grain
    body = depth > -np.maximum(fat, 1.0)
    tissue[body] = palette["fat"]
    tissue[body & (depth < 1.6 - np.maximum(fat, 1.0))] = palette["skin"]
    # Vessels and septa of the fat under the skin.
    tissue[body & (depth < -3) & (np.abs(fine + grain) < 0.03)] = palette["strand"]

    # Septa of fat split the muscle mass into bundles: the zero surfaces of slow noise.
    septa = rng.uniform(0.03, 0.1)
    bundle = np.abs(canvas.field(rng, rng.uniform(35, 60))) > septa
    bundle &= np.abs(canvas.field(rng, rng.uniform(22, 40))) > 0.6 * septa
    tissue[(depth > 0) & bundle] = palette["muscle"]
    if rng.uniform() < 0.5:  # fatty muscle of the old
        tissue[(depth > 0) & (speck > rng.uniform(1.6, 2.6))] = palette["strand"]

    width, thick = _at(index, 3, rng.uniform(0.84, 1.03)), _at(index, 4, rng.uniform(0.92, 1.04))
    middle = y - _at(index, 5)
    distance = np.sqrt(x * x + middle * middle)
    power = np.float32(rng.uniform(2.1, 2.7))
    rho = ((np.abs(x) / width) ** power + (np.abs(middle) / thick) ** power) ** (1 / power) + 1e-6
    inner = distance / rho - distance + 1.2 * grain
    del rho
    cavity = inner > 0
    tissue[cavity & (depth > 0)] = palette["fat"]
    _wall(canvas, palette, rng, inner, depth, grain)
    # Fat between organs: vessels and strands too small to be told apart.
    tissue[cavity & (np.abs(fine) < rng.uniform(0.01, 0.05))] = palette["strand"]

    dome = _diaphragm(x, y, grain, rng)
    lungs = cavity & (z > dome) & _beside_mediastinum(x, y, z, grain, rng)
    cavity &= depth > 2
    tissue[lungs] = palette["lung"]
    tissue[cavity & (z < dome) & (z > dome - 3.5) & (z > 240)] = palette["muscle"]

    _ribs(canvas, palette, rng, inner, speck)
    _spine(canvas, palette, rng, index, speck)
    _pelvis(canvas, palette, rng, speck, grain)
    _chest_bones(canvas, palette, rng, speck)
    _psoas(canvas, palette, rng, grain)
    _neck(canvas, palette, rng)
    return Trunk(cavity, cavity & (z < dome - 3.5), inner, grain, fine, speck)


def _fat_shape(x: Array, y: Array, distance: Array, z: Array, rng: Generator) -> Array:
    """Thickness of the fat under the skin about its mean: paunch, flanks, back, hips."""
    side, front = x / (distance + 1), -y / (distance + 1)
    low = np.clip((150 - z) / 150, 0, 1)
    return np.clip(
        1
        + rng.uniform(-0.3, 0.6) * front
        + rng.uniform(-0.4, 0.5) * side * side
        + rng.uniform(-0.2, 0.2) * side
        + rng.uniform(0, 0.5) * low * side * side,
        0.25,
        2.5,
    )


def _thighs(x: Array, y: Array, z: Array) -> Array:
    """mm inside one of the thighs."""
    radius = np.clip(84 + 0.1 * z, 60, 86)
    spread = 92 + 0.05 * z
    inside = radius - np.sqrt((np.abs(x) - spread) ** 2 + (y + 4) ** 2)
    return np.where(z < 20, inside - np.clip(z + 20, 0, None), -99).astype(np.float32)


def _shoulders(canvas: Canvas, rng: Generator) -> Array:
    """mm inside shoulders and arms: raised beside the head, or down beside the body."""
    x, y, z = np.abs(canvas.x), canvas.y, canvas.z
    inside = np.full(canvas.shape, -99, np.float32)
    up = rng.uniform() < 0.75
    drop = 0 if up else -15
    for cx, cy, cz, rx, ry, rz in (
        (105, 8, 560 + drop, 78, 62, 52),
        (135, -2, 585 + drop, 62, 52, 46),
        (115, 45, 520, 42, 40, 60),
    ):
        q = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        inside = np.maximum(inside, (1 - q) * ry)
    if up:
        lean = np.clip((z - 560) / 100, 0, 1.5)
        q = np.sqrt((x - 155 + 35 * lean) ** 2 + (y + 8 + 15 * lean) ** 2)
        inside = np.maximum(inside, np.where(z > 560, 42 - 6 * lean - q, -99))
    else:
        q = np.sqrt((x - 196) ** 2 + (y - 18) ** 2)
        inside = np.maximum(inside, np.where(z < 570, 36 - q, -99))
    return inside.astype(np.float32)


def _breasts(canvas: Canvas, rng: Generator, fat_mm: float) -> Array:
    """Fat on the front of the chest, mm."""
    x, z = np.abs(canvas.x), canvas.z
    height, size = rng.uniform(440, 480), rng.uniform(38, 60)
    q = ((x - 72) / size) ** 2 + ((z - height) / (size * 0.9)) ** 2
    return np.where(
        canvas.y < -10, (rng.uniform(15, 55) + fat_mm * 0.3) * np.clip(1 - q, 0, 1) ** 0.7, 0
    ).astype(np.float32)


def _wall(
    canvas: Canvas, palette: Palette, rng: Generator, inner: Array, depth: Array, grain: Array
) -> None:
    """The flanks: three sheets with fat between; in front the rectus in its sheath."""
    x, y, z, tissue = canvas.x, canvas.y, canvas.z, canvas.tissue
    waist = (z > 90) & (z < 300) & (depth > 0) & (inner < 0) & (y < 25)
    if not waist.any():
        return
    if rng.uniform() < 0.8:
        part = np.clip(-inner / np.maximum(depth - inner, 1), 0, 1) + 0.05 * grain
        gap = rng.uniform(0.02, 0.07)
        between = (np.abs(part - 0.3) < gap) | (np.abs(part - 0.65) < gap)
        tissue[waist & between & (np.abs(x) > 55)] = palette["fat"]
    front = waist & (y < -35)
    linea = rng.uniform(2, 14)
    tissue[front & ((np.abs(x) < linea) | (np.abs(np.abs(x) - rng.uniform(55, 75)) < 3))] = palette[
        "fat"
    ]
    thin = rng.uniform(7, 13)  # mm of rectus; the rest of the wall there is fat
    tissue[front & (inner < -thin)] = palette["fat"]


def _diaphragm(x: Array, y: Array, grain: Array, rng: Generator) -> Array:
    """Height of the dome over every column, mm: deep beside the wall, the right side higher."""
    top = rng.uniform(355, 400)
    side = np.where(x < 0, top, top - rng.uniform(3, 22)).astype(np.float32)
    # Steep towards the wall; between the domes a tendon, hardly lower: liver reaches across there.
    beside = (np.abs(x) - 66) / 70
    beside = np.where(beside < 0, np.float32(rng.uniform(0.2, 0.7)) * beside, beside)
    q = beside**2 + ((y + 14) / 82) ** 2
    return np.maximum(side - rng.uniform(48, 85) * q, 262) + 2 * grain


def _beside_mediastinum(x: Array, y: Array, z: Array, grain: Array, rng: Generator) -> Mask:
    """Where lung may be: thin in front, wide at the roots and before the spine."""
    front = np.interp(np.arange(-110, 111), [-100, -70, -45, -10, 25, 50, 95],
                      [10, 9, 22, 30, 26, 22, 14])  # fmt: skip
    half = front.astype(np.float32)[np.clip(y + 110, 0, 220).astype(np.int16)]
    half = half * np.float32(rng.uniform(0.75, 1.3)) + 2 * grain
    half = half * np.where(z > 540, 0.9, 1.0).astype(np.float32)
    return (np.abs(x - np.float32(rng.uniform(-2, 8))) > half) & (z > 255)


def _bone(
    canvas: Canvas, palette: Palette, inside: Array, box: tuple[slice, ...], thick: float,
    speck: Array,
) -> None:  # fmt: skip
    """Cortex of ``thick`` mm around marrow, where ``inside`` (mm) is positive."""
    part = canvas.tissue[box]
    hole = palette["marrow"]
    part[inside > 0] = palette["cortex"]
    part[inside > thick * (1 + 0.3 * speck[box])] = hole


def _ribs(canvas: Canvas, palette: Palette, rng: Generator, inner: Array, speck: Array) -> None:
    """Rings that fall towards the front; cartilage where they near the sternum."""
    if canvas.z.max() < 205 or canvas.z.min() > 600:
        return
    shell = (inner > -11) & (inner < 1) & (canvas.z > 190) & (canvas.z < 598)
    x, y, z, d = np.abs(canvas.x[shell]), canvas.y[shell], canvas.z[shell], inner[shell]
    angle = np.arctan2(x, y - 2)  # 0 at the back, pi in front
    fall = np.float32(rng.uniform(70, 105)) * (1 - np.cos(angle)) / 2
    apart = np.float32(rng.uniform(22.5, 27))
    height = z + fall  # of the rib's own vertebra
    phase = np.abs((height + rng.uniform(0, 25)) / apart % 1 - 0.5) * apart
    radial = np.abs(d + 5.5)
    inside = 1 - np.sqrt((phase / rng.uniform(5.5, 7.5)) ** 2 + (radial / 4.2) ** 2)
    ends = np.interp(height, [285, 300, 325, 345, 400, 600], [0.3, 0.9, 1.4, 2.0, 2.35, 2.5])
    rib = (inside > 0) & (height > 285) & (height < 592) & (angle < 3.05)
    tissue = canvas.tissue
    values = tissue[shell]
    bony = rib & (angle < ends)
    values[bony] = palette["cortex"]
    values[bony & (inside > 0.48 + 0.1 * speck[shell])] = palette["marrow"]
    gristle = rib & (angle >= ends) & (height > 340)
    values[gristle] = palette["cartilage"]
    if rng.uniform() < 0.4:
        values[gristle & (speck[shell] > 1.3)] = palette["cortex"]
    tissue[shell] = values


def _spine(
    canvas: Canvas, palette: Palette, rng: Generator, index: NDArray[np.int16], speck: Array
) -> None:
    """Bodies and discs in turn, canal, arch, processes; the sacrum below."""
    near = (np.abs(canvas.x) < 62) & (canvas.y > -25)
    if not near.any():
        return
    box = tuple(
        slice(int(np.flatnonzero(near.any(axis=others))[0]),
              int(np.flatnonzero(near.any(axis=others))[-1]) + 1)
        for others in ((1, 2), (0, 2), (0, 1))
    )  # fmt: skip
    x, z, index = canvas.x[box], canvas.z[box], index[box]
    y = canvas.y[box] - _at(index, 6)
    tissue, grit = canvas.tissue[box], 0.3 * speck[box]
    cortex, marrow = palette["cortex"], palette["marrow"]
    heights = np.arange(_LOW, _HIGH + 1)
    level = np.interp(heights, [-160, 300, 600, 720], [35, 33, 19, 16])
    count = (np.cumsum(1 / level) + rng.uniform()).astype(np.float32)[index]
    phase = count % 1
    widths = np.interp(heights, [0, 150, 300, 450, 600, 720], [24, 24, 21, 17, 13, 11])
    size = (widths * rng.uniform(0.92, 1.12)).astype(np.float32)[index]
    upright = z > 108

    back = np.abs(x)
    # Transverse processes and ribs' heads, arch, spinous process.
    bar = 5.5 - np.sqrt(
        (y - 24 - 0.12 * back) ** 2 + (40 * (np.abs(phase - 0.55) - 0.08).clip(0)) ** 2
    )
    bar = np.where((back > 8) & (back < 44) & upright, bar, -1)
    ring = 5 - np.abs(np.sqrt((x / 1.25) ** 2 + (y - size - 9) ** 2) - 14)
    ring = np.where((phase > 0.2) & (phase < 0.85) & upright, ring, -1)
    behind = (y > size + 14) & (y < size + rng.uniform(34, 44)) & upright
    spinous = np.where((phase > 0.25) & (phase < 0.9) & behind, 4.0 - back, -1)
    arch = np.maximum(np.maximum(bar, ring), spinous)
    tissue[arch > 0] = cortex
    tissue[arch > 2.2 + grit] = marrow
    canal = (np.sqrt((x / 1.25) ** 2 + (y - size - 8) ** 2) < 9.5) & (z > 70)
    tissue[canal] = palette["canal"]

    around = size * 1.22 - np.sqrt(x * x + (y * 1.22) ** 2) + 1.5 * np.cos(2 * np.pi * phase)
    body = (around > 0) & upright & (y < size * 0.78)
    disc = np.abs(phase - 0.0) < 0.09
    disc |= phase > 0.91
    plate = (phase < 0.14) | (phase > 0.86)
    tissue[body & disc] = palette["cartilage"]
    tissue[body & ~disc] = marrow
    tissue[body & ~disc & ((around < 1.6 + grit) | plate)] = cortex
    if rng.uniform() < 0.35:  # spurs of worn spines, bright beside the aorta
        spur = (around > -5) & (around < 1) & plate & upright & (grit > 0.1) & (y < 5)
        tissue[spur] = cortex

    # Sacrum: broad above, narrow and further back below.
    along = np.clip((115 - z) / 110, 0, 1)
    half = 58 - 46 * along
    bow = y + 8 - 30 * along + 0.004 * x * x + 22 * (along - 0.6) ** 2
    sacrum = np.minimum(half - back, 15 - 6 * along - np.abs(bow - 10))
    bony = (z < 116) & (z > 2)
    tissue[(sacrum > 0) & bony] = cortex
    tissue[(sacrum > 2 + grit) & bony] = marrow
    holes = ((back - 22) ** 2 + (bow - 8) ** 2 < 30) & (phase > 0.3) & (phase < 0.7) & bony
    tissue[holes & (sacrum > 0)] = palette["fat"]


def _capsule(
    canvas: Canvas, start: ArrayLike, stop: ArrayLike, radius: float, end: float | None = None
) -> tuple[tuple[slice, ...], Array] | None:
    """Bounding box and mm inside a capsule, both ends in canonical mm; None off the grid."""
    a, b = np.asarray(start, float), np.asarray(stop, float)
    end = radius if end is None else end
    reach = np.abs(a - b) / 2 + max(radius, end) * 1.3 + 25
    box = canvas.box(canvas.warp.locate((a + b) / 2), reach / np.diag(canvas.warp.linear))
    if box is None:
        return None
    x, y, z = canvas.x[box] - a[0], canvas.y[box] - a[1], canvas.z[box] - a[2]
    way = (b - a).astype(np.float32)
    t = np.clip((x * way[0] + y * way[1] + z * way[2]) / float(way @ way), 0, 1)
    gone = np.sqrt((x - t * way[0]) ** 2 + (y - t * way[1]) ** 2 + (z - t * way[2]) ** 2)
    return box, (radius + t * (end - radius) - gone).astype(np.float32)


def _pelvis(canvas: Canvas, palette: Palette, rng: Generator, speck: Array, grain: Array) -> None:
    """Iliac wings, acetabula, ischia, pubes, femora, and the muscles on either side."""
    if canvas.z.min() > 185:
        return
    z, y = canvas.z, canvas.y
    jitter = rng.normal(0, 2.5, 3)
    for side in (-1, 1):
        x = canvas.x * side
        # The wing in every slice: a line from the sacroiliac joint to the iliac spine.
        up = np.clip(z / 160, 0, 1.05)
        back_x, back_y = 88 - 40 * up, 26 + 34 * up + jitter[1]
        front_x, front_y = 98 + 32 * up, -30 - 22 * up * up + 45 * np.clip(up - 0.75, 0, 1) * 3
        dx, dy = front_x - back_x, front_y - back_y
        t = np.clip(((x - back_x) * dx + (y - back_y) * dy) / (dx * dx + dy * dy), 0, 1)
        bend = 7 * np.sin(np.pi * t)
        away = np.sqrt((x - back_x - t * dx) ** 2 + (y - back_y - t * dy + bend) ** 2)
        thick = 5.5 + 4 * (1 - up) + 4 * np.abs(t - 0.5)
        wing = thick - away + 0.8 * grain
        wing = np.where((z > 20) & (z < 150 - 25 * t), wing, -1)
        part = canvas.tissue
        part[wing > 0] = palette["cortex"]
        part[wing > 2.4 * (1 + 0.3 * speck)] = palette["marrow"]

        def place(
            start: ArrayLike, stop: ArrayLike, radius: float, end: float | None = None,
            thick: float = 2.5, mirror: NDArray[Any] = np.array([side, 1, 1]),  # noqa: B008
        ) -> None:  # fmt: skip
            capsule = _capsule(
                canvas, mirror * np.asarray(start), mirror * np.asarray(stop), radius, end
            )
            if capsule is not None:
                _bone(canvas, palette, capsule[1], capsule[0], thick, speck)

        cup = canvas.blob((86 * side, 0, 8), (33, 33, 33), rough=0.04 * grain)
        if cup is not None:
            _bone(canvas, palette, (1 - cup[1]) * 33, cup[0], 3.0, speck)
        place((78, 22, -15), (62, 38, -58), 14, 13)
        place((80, -22, 0), (12, -48, -32), 10, 9)
        place((14, -46, -34), (58, 24, -62), 8, 9)
        gap = canvas.blob((90 * side, -2, 0), (27, 27, 27))
        canvas.fill(gap, palette["cartilage"])
        place((90, -2, 0), (90, -2, 0.1), 24, thick=2.0)
        place((95, 0, -4), (142, 8, -28), 15, 19, thick=2.5)
        place((146, 8, -20), (136, 4, -170), 18, 14, thick=6.0)
    if rng.uniform() < 0.06:  # a hip of metal
        side = rng.choice([-1, 1])
        canvas.fill(canvas.blob((90 * side, -2, 0), (23, 23, 23)), palette.variant("cortex", 2900))


def _chest_bones(canvas: Canvas, palette: Palette, rng: Generator, speck: Array) -> None:
    """Sternum, collar bones, shoulder blades, upper arms."""
    if canvas.z.max() < 375:
        return

    def place(
        start: ArrayLike, stop: ArrayLike, radius: float, end: float | None = None,
        thick: float = 2.0,
    ) -> None:  # fmt: skip
        capsule = _capsule(canvas, start, stop, radius, end)
        if capsule is not None:
            _bone(canvas, palette, capsule[1], capsule[0], thick, speck)

    front = -87.0
    for z0, z1, half in ((395, 475, 14), (475, 525, 17), (522, 548, 26)):
        lean = np.interp([z0, z1], [395, 480, 548], [front - 2, front + 1, front + 26])
        plate = canvas.blob(
            (0, lean.mean(), (z0 + z1) / 2), (half, 6.5, (z1 - z0) / 2 + 4), power=3.5
        )
        if plate is not None:
            _bone(canvas, palette, (1 - plate[1]) * 6.5, plate[0], 1.6, speck)
    lift = rng.uniform(-12, 22)
    for side in (-1, 1):
        s = float(side)
        place((22 * s, -56, 553), (80 * s, -42, 572 + lift * 0.4), 8.5, 6)
        place((80 * s, -42, 572 + lift * 0.4), (132 * s, 12, 592 + lift), 6, 7)
        # Shoulder blade: a thin sheet on the back of the ribs.
        for z0, x0, x1 in ((478, 98, 112), (500, 84, 124), (522, 76, 132), (545, 74, 136)):
            place((x0 * s, 78 - (x0 - 70) * 0.2, z0), (x1 * s, 52, z0 + 4), 4.2, 6, 1.5)
        place((70 * s, 74, 556), (142 * s, 34, 580), 5, 8, 1.8)  # its spine
        place((130 * s, 22, 562), (134 * s, 14, 585), 12, 10, 1.8)  # socket
        place((154 * s, 0, 580 + lift), (155 * s, 0, 580.1 + lift), 23, thick=1.8)
        if canvas.x.max() > 170 or rng.uniform() < 0.5:
            place((158 * s, -4, 575 + lift), (150 * s, -12, 700), 14, 11, 4.0)


def _psoas(canvas: Canvas, palette: Palette, rng: Generator, grain: Array) -> None:
    """Psoas and iliopsoas, quadratus, piriformis, and the muscles between trunk and thigh."""
    if canvas.z.min() > 300:
        return
    size = rng.uniform(0.75, 1.3)
    muscle = palette["muscle"]
    marrow = np.array([palette["marrow"], palette["cortex"], palette["cartilage"]])
    free = ~np.isin(canvas.tissue, marrow)
    for side in (-1, 1):
        line = [(22, 34, 285), (33, 30, 240), (42, 26, 190), (48, 16, 145), (62, 0, 105),
                (78, -22, 60), (88, -34, 20), (98, -24, -30)]  # fmt: skip
        points = [(side * a, b, c) for a, b, c in line]
        canvas.tube(points, size * np.array([7, 12, 18, 20, 19, 18, 16, 14]), muscle, free)
        line = [(66, 44, 265), (72, 42, 210), (80, 42, 150)]
        points = [(side * a, b, c) for a, b, c in line]
        canvas.tube(points, size * np.array([8, 12, 13]), muscle, free, 0.7)
        line = [(20, 60, 70), (55, 55, 45), (110, 30, 25)]
        canvas.tube([(side * a, b, c) for a, b, c in line], 9 * size, muscle, free)
        # Round muscles in the fat of the groin, beside its vessels.
        for course, radius in (
            ([(122, -58, 135), (108, -70, 60), (96, -76, 0), (62, -70, -100)], 9),
            ([(100, -56, 45), (98, -64, 0), (98, -62, -120)], 14),
            ([(132, -40, 110), (140, -36, 40), (142, -24, -60)], 13),
            ([(52, -48, -5), (72, -42, -30), (96, -20, -70)], 11),
        ):
            thick = radius * rng.uniform(0.7, 1.25)
            round_line = np.array([(side * a, b, c) for a, b, c in course]) + rng.normal(0, 4, 3)
            canvas.tube(round_line, thick + rng.uniform(1.5, 5), palette["fat"], free)
            canvas.tube(round_line, thick, muscle, free, rng.uniform(0.6, 1.1))
        line = [(60, 10, 30), (58, 20, -5), (70, 30, -40)]
        canvas.tube([(side * a, b, c) for a, b, c in line], 9 * size, muscle, free, 1.4)


def _neck(canvas: Canvas, palette: Palette, rng: Generator) -> None:
    """Strap muscles in fat, beside the neck's vessels and as round as they are."""
    if canvas.z.max() < 545:
        return
    bony = [palette[name] for name in ("marrow", "cortex", "cartilage", "canal")]
    free = ~np.isin(canvas.tissue, bony)
    for side in (-1, 1):
        for line, radius in (
            ([(16, -58, 556), (34, -50, 610), (46, -26, 690)], 7),
            ([(44, -8, 588), (34, spine_y(620) - 6, 620), (28, spine_y(680), 690)], 8),
            ([(28, spine_y(600) - 12, 585), (18, spine_y(630) - 16, 630), (14, 0, 690)], 6),
            ([(70, -64, 560), (92, -48, 545), (112, -30, 530)], 9),
        ):
            thick = radius * rng.uniform(0.7, 1.3)
            points = np.array([(side * a, b, c) for a, b, c in line]) + rng.normal(0, 3, 3)
            canvas.tube(points, thick + rng.uniform(1, 4), palette["fat"], free)
            canvas.tube(points, thick, palette["muscle"], free, rng.uniform(0.6, 1.2))
