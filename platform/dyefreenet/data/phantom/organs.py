"""Organs of chest, abdomen, pelvis and neck base. Positions are canonical mm."""

# ruff: noqa: RUF005 - an array plus a tuple is the sum of two vectors here

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dyefreenet.data.phantom.canvas import Canvas
from dyefreenet.data.phantom.tissue import Palette
from dyefreenet.data.phantom.trunk import Trunk, spine_y

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
Jitter = Callable[..., Points]  # a position, moved a little


def paint_organs(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator) -> None:
    """All organs, the later over the earlier."""
    soft = [palette[name] for name in ("fat", "strand", "lung")]
    # Organs push each other aside, and stop at wall, spine and psoas.
    room = trunk.abdomen & np.isin(canvas.tissue, soft)
    size = float(rng.uniform(0.86, 1.18))

    def jitter(*centre: float, by: float = 6.0) -> NDArray[np.float64]:
        return np.asarray(centre) + rng.normal(0, by, 3)

    if canvas.z.min() < 330:
        _gut(canvas, palette, trunk, rng, room, jitter)
    if canvas.z.min() < 60:
        _pelvic(canvas, palette, trunk, rng, jitter)
    if canvas.z.min() < 410 and canvas.z.max() > 150:
        _upper(canvas, palette, trunk, rng, room, size, jitter)
    if canvas.z.max() > 350:
        _heart(canvas, palette, trunk, rng, size)
        _chest(canvas, palette, trunk, rng)
    _nodes(canvas, palette, trunk, rng)


def _upper(
    canvas: Canvas,
    palette: Palette,
    trunk: Trunk,
    rng: Generator,
    room: Mask,
    size: float,
    jitter: Jitter,
) -> None:
    """Liver, spleen, stomach, pancreas, kidneys, adrenals, crura, gallbladder."""
    rough = 0.06 * trunk.grain
    drop = rng.normal(0, 14)  # the whole upper abdomen hangs higher or lower

    _stomach(canvas, palette, trunk, rng, room, jitter(46, -34, 318 + drop, by=9))
    for part, radii in (
        ((-72, -8, 308), (78, 92, 88)),
        ((-8, -46, 330), (78, 42, 44)),
        ((-70, 20, 262), (58, 55, 62)),
    ):
        centre = jitter(*part) + (0, 0, drop)
        if part[0] == -8:  # the left lobe may reach far over, below the heart
            centre += rng.uniform((-10, -6, -6), (44, 10, 24))
        lobe = canvas.blob(centre, size * rng.uniform(0.88, 1.12, 3) * radii, rough=rough)
        canvas.fill(lobe, palette["liver"], room)
    if rng.uniform() < 0.85:
        bag = canvas.blob(jitter(-48, -46, 258 + drop), rng.uniform(9, 20, 3) + (4, 8, 10),
                          turn=30, rough=rough)  # fmt: skip
        canvas.fill(bag, palette["bowel_wall"], room)
        canvas.fill(bag, palette["bile"], room, below=0.88)
    for _ in range(rng.poisson(0.7)):  # cysts and metastases: round, and dark in every phase
        spot = palette.variant("lesion", rng.uniform(-5, 40))
        liver = canvas.tissue == palette["liver"]
        at = jitter(-70, -5, 310, by=35)
        canvas.fill(canvas.blob(at, np.full(3, rng.uniform(3, 18)), rough=rough), spot, liver)

    spleen = canvas.blob(
        jitter(94, 30, 306 + drop, by=8), size * rng.uniform(0.8, 1.4) * np.array([30, 48, 54]),
        turn=rng.uniform(10, 40), tilt=rng.uniform(-25, 15), rough=0.09 * trunk.grain,
    )  # fmt: skip
    canvas.fill(spleen, palette["spleen"], room)
    if spleen is not None and palette.bolus < 0.5:  # early: the spleen is striped
        stripe = palette.variant("spleen", palette.hu("plain")[palette["spleen"]])
        palette._hu[stripe][1] += rng.uniform(-45, 45)
        canvas.fill(
            spleen, stripe, room & (canvas.tissue == palette["spleen"]) & (trunk.fine > 0.4)
        )

    head = np.array([[-30, -2, 232], [-26, -8, 258], [0, -18, 270], [36, -8, 282], [80, 14, 300]])
    line = head + (0, 0, drop) + rng.normal(0, 4, head.shape)
    thick = rng.uniform(0.7, 1.2) * np.array([13, 13, 9, 10, 10])
    canvas.tube(line, thick, palette["pancreas"], room & (trunk.speck < 1.1), 1.1)
    # The duodenum's loop; its last part passes between the aorta and the SMA.
    loop = np.array(
        [
            (-20, -26, 280),
            (-44, -14, 262),
            (-46, 0, 225),
            (-20, -14, 214),
            (10, -25, 216),
            (38, -18, 230),
        ]
    )
    _bowel(canvas, palette, trunk, rng, loop + (0, 0, drop) + rng.normal(0, 4, loop.shape),
           rng.uniform(9, 14), room)  # fmt: skip

    for side in (-1, 1):
        if rng.uniform() < 0.04:
            continue  # a kidney removed
        _kidney(canvas, palette, trunk, rng, room, side, drop)
        gland = [(34, 22, 296), (40, 26, 312), (30, 20, 320)]
        points = [(side * a, b, c + drop) for a, b, c in gland]
        canvas.tube(points, rng.uniform(2, 4), palette["adrenal"], room, 2.2)
    # Crura: bands beside the aorta that never light up.
    for side, foot in ((-1, 200), (1, 225)):
        band = [(side * 14, spine_y(z) - 20, z) for z in (foot, 250)]
        band += [(side * 17, spine_y(z) - 22 - lift, z) for z, lift in ((285, 4), (325, 12))]
        canvas.tube(band, rng.uniform(4, 7.5), palette["muscle"], room, 1.8)


def _kidney(
    canvas: Canvas,
    palette: Palette,
    trunk: Trunk,
    rng: Generator,
    room: Mask,
    side: int,
    drop: float,
) -> None:
    centre = np.array([side * 64, 20, 238 + drop * 0.5 + 6 * side]) + rng.normal(0, 6, 3)
    radii = rng.uniform(0.82, 1.2) * np.array([29, 27, 56])
    shape = canvas.blob(
        centre, radii, turn=side * rng.uniform(15, 50), tilt=side * 10, rough=0.05 * trunk.grain
    )
    if shape is None:
        return
    box, radius = shape
    canvas.fill((box, radius - 0.08), palette["fat"], room & (canvas.tissue != palette["liver"]))
    canvas.fill(shape, palette["renal_cortex"], room)
    # Pyramids: medulla is cut by columns of cortex.
    columns = 0.66 + 0.12 * np.abs(trunk.fine[box]) - 0.22 * (trunk.fine[box] > 0.9)
    canvas.fill((box, radius - columns + 0.66), palette["medulla"], room, below=0.66)
    inward = (canvas.x[box] - centre[0]) * -side
    sinus = radius + 0.28 * np.clip(-inward / 12, -1.0, 1) + 0.1 * trunk.fine[box]
    canvas.fill((box, sinus), palette["fat"], room, below=rng.uniform(0.22, 0.45))
    pelvis = (box, sinus + 0.2 * np.abs(trunk.fine[box]))
    canvas.fill(pelvis, palette["urine"], room, below=rng.uniform(0.0, 0.3))
    if rng.uniform() < 0.25:  # a cyst
        at = centre + rng.normal(0, 1, 3) * radii * 0.7
        wall = palette.variant("urine", rng.uniform(-5, 20), "lesion")
        canvas.fill(canvas.blob(at, np.full(3, rng.uniform(4, 24))), wall, room)
    if rng.uniform() < 0.1:  # a stone, bright in both phases
        stone = palette.variant("plaque", rng.uniform(250, 1000), "lesion")
        canvas.fill(canvas.blob(centre, np.full(3, rng.uniform(2, 6))), stone)


def _stomach(
    canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator, room: Mask, centre: Points
) -> None:
    shape = canvas.blob(
        centre, rng.uniform(0.6, 1.15) * np.array([40, 48, 44]), turn=-35, tilt=20,
        rough=0.09 * trunk.grain,
    )  # fmt: skip
    # The fundus lies behind, under the left dome, between spleen and aorta.
    fundus = canvas.blob(
        centre + rng.normal((14, 36, 18), 8),
        rng.uniform(0.6, 1.15) * np.array([34, 36, 34]),
        rough=0.09 * trunk.grain,
    )
    antrum = canvas.blob(centre + (-38, -22, -38), rng.uniform(14, 26, 3) + (14, 0, 0),
                         rough=0.1 * trunk.grain)  # fmt: skip
    food = palette.variant("urine", rng.uniform(0, 60), "stomach", rng.uniform(1, 18))
    gas = palette.variant("gas", -985, "stomach")
    level = centre[1] + rng.uniform(-45, 40)
    for part in (fundus, shape, antrum):
        if part is None:
            continue
        box, radius = part
        canvas.fill(part, palette["stomach_wall"], room)
        lumen = 1 - rng.uniform(0.09, 0.2) + 0.05 * trunk.fine[box]
        inside = (radius < lumen) & room[box]
        canvas.tissue[box][inside] = food
        canvas.tissue[box][inside & (canvas.y[box] < level)] = gas


def _bowel(
    canvas: Canvas,
    palette: Palette,
    trunk: Trunk,
    rng: Generator,
    points: Points,
    radius: float,
    room: Mask,
    colon: bool = False,
) -> None:
    """A stretch of bowel: wall, and gas, fluid, stool, or nothing inside."""
    radii = radius * rng.uniform(0.75, 1.25, len(points))
    canvas.tube(points, radii, palette["bowel_wall"], room)
    kind = rng.choice(["gas", "fluid", "stool", "flat"],
                      p=[0.3, 0.1, 0.5, 0.1] if colon else [0.12, 0.38, 0.0, 0.5])  # fmt: skip
    if kind == "flat":
        return
    wall = rng.uniform(1.6, 3.5)
    if kind == "gas":
        inside = palette["gas"]
    else:
        high = 0.06 if colon else 0.12
        bright = rng.uniform(150, 400) if rng.uniform() < high else rng.uniform(5, 45)
        inside = palette.variant("urine", bright, "bowel", rng.uniform(1, 10))
    canvas.tube(points, np.maximum(radii - wall, 1.5), inside, room)
    if kind == "stool":
        holes = room & (trunk.speck + 0.5 * trunk.fine > rng.uniform(0.1, 1.1))
        canvas.tube(points, np.maximum(radii - wall - 1, 1.0),
                    palette.variant("gas", rng.uniform(-900, -250)), holes)  # fmt: skip


def _gut(
    canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator, room: Mask, jitter: Jitter
) -> None:
    """Small bowel as wandering loops, then the colon's frame around them."""
    for _ in range(rng.integers(12, 40)):
        start = rng.uniform((-80, -62, 40), (80, -8, 250))
        if rng.uniform() < 0.3:  # jejunum, up beside the left kidney
            start = rng.uniform((25, -45, 215), (95, 8, 310))
        steps = rng.normal(0, 1, (rng.integers(4, 9), 3)) * (24, 13, 12)
        points = start + np.cumsum(steps, axis=0)
        points[:, 0] = points[:, 0].clip(-95, 95)
        points[:, 1] = points[:, 1].clip(-68, 14)
        _bowel(canvas, palette, trunk, rng, points, rng.uniform(6.5, 14), room)
    frame = [
        [(-88, 6, 120), (-92, 10, 150), (-94, 12, 190), (-90, 8, 225), (-78, -20, 245)],
        [(-78, -20, 245), (-50, -56, 232), (-10, -66, 222), (35, -66, 232), (75, -40, 262)],
        [(75, -40, 262), (100, 4, 285), (103, 20, 250), (102, 18, 200), (98, 6, 150)],
        [(98, 6, 150), (84, -10, 118), (50, -22, 98), (22, -20, 92), (5, 12, 82), (0, 34, 60)],
    ]
    for stretch in frame:
        points = np.array(stretch, float) + rng.normal(0, 6, (len(stretch), 3))
        cut = rng.integers(1, len(points) - 1)
        radius = rng.uniform(10, 24)
        _bowel(canvas, palette, trunk, rng, points[: cut + 1], radius, room, colon=True)
        _bowel(canvas, palette, trunk, rng, points[cut:], radius, room, colon=True)


def _pelvic(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator, jitter: Jitter) -> None:
    """Bladder, uterus or prostate, rectum."""
    room = trunk.cavity & np.isin(
        canvas.tissue, [palette[n] for n in ("fat", "strand", "bowel_wall")]
    )
    room |= trunk.cavity & (canvas.z < 40) & (canvas.tissue == palette["muscle"])
    rough = 0.08 * trunk.grain
    full = rng.uniform(0.4, 1.2)
    bladder = canvas.blob(jitter(0, -24, 14), full * np.array([40, 30, 34]), rough=rough)
    canvas.fill(bladder, palette["uterus"], room)
    canvas.fill(bladder, palette["urine"], room, below=1 - rng.uniform(0.06, 0.15))
    organ = jitter(0, 8, 32) if rng.uniform() < 0.5 else jitter(0, -10, -18)
    canvas.fill(canvas.blob(organ, rng.uniform(16, 34, 3), rough=rough), palette["uterus"], room)
    points = np.array([(0, 36, 60), (3, 42, 30), (0, 44, 0), (0, 36, -35), (0, 42, -60)])
    _bowel(canvas, palette, trunk, rng, points + rng.normal(0, 3, points.shape),
           rng.uniform(11, 24), trunk.cavity, colon=True)  # fmt: skip


def _heart(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator, size: float) -> None:
    """Fat, muscle and four chambers; it rests on the diaphragm."""
    soft = [palette[n] for n in ("fat", "strand", "lung", "liver", "muscle")]
    room = trunk.cavity & np.isin(canvas.tissue, soft) & (canvas.z > 330)
    room &= (canvas.z > 385) | (canvas.tissue != palette["liver"])
    scale = size * rng.uniform(0.9, 1.15)
    base = np.array([24, -34, 412]) + rng.normal(0, 5, 3)
    turn, tilt = rng.uniform(25, 55), rng.uniform(-25, 5)
    rough = 0.05 * trunk.grain
    chambers = [
        # tissue, centre from the middle, radii
        ("fat", (0, 0, 0), (72, 56, 56)),
        ("myocardium", (14, -2, -10), (52, 44, 44)),
        ("right_blood", (-14, -22, -4), (32, 20, 36)),
        ("myocardium", (22, 2, -12), (42, 33, 40)),
        ("left_blood", (20, 2, -10), (30, 21, 29)),
        ("right_blood", (-48, 0, 4), (24, 28, 34)),
        ("left_blood", (-8, 34, 24), (36, 19, 24)),
    ]
    for name, offset, radii in chambers:
        centre = base + scale * np.array(offset) + rng.normal(0, 2.5, 3)
        wide = scale * rng.uniform(0.88, 1.12, 3) * np.array(radii)
        turned = turn if name in ("fat", "myocardium") or offset[0] > 0 else turn * 0.3
        shape = canvas.blob(centre, wide, turn=turned, tilt=tilt * 0.5, rough=rough)
        fatty = rng.uniform(0.85, 1.05) if name == "fat" else 1.0
        canvas.fill(shape, palette[name], room, below=fatty)


def _chest(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator) -> None:
    """Windpipe and bronchi, gullet, thyroid, and what lungs may have in them."""
    room = trunk.cavity | (canvas.z > 560)
    # The neck's own compartment: fat around gullet, windpipe and the great vessels.
    for side in (-1, 1):
        sheath = canvas.blob(
            (side * 20, spine_y(630) - 30, 640), (32, 26, 75), rough=0.1 * trunk.fine
        )
        canvas.fill(sheath, palette["fat"], canvas.tissue == palette["muscle"])
    windpipe = rng.uniform(6.5, 10.5)
    split = np.array([2, 12, 486]) + rng.normal(0, 3, 3)
    back = spine_y(560) - 32
    lines: list[tuple[Any, Any]] = [
        ([(0, spine_y(700) - 42, 700), (0, spine_y(620) - 34, 620), (1, back, 560), split],
         windpipe),
        ([split, split + (-24, 0, -14), split + (-48, 4, -26), split + (-66, 12, -48)],
         windpipe * np.array([0.8, 0.7, 0.5, 0.35])),
        ([split, split + (26, 2, -16), split + (50, 8, -26), split + (68, 18, -50)],
         windpipe * np.array([0.8, 0.65, 0.5, 0.35])),
    ]  # fmt: skip
    gullet = [(3, spine_y(z) - 24, z) for z in (700, 620, 560, 500, 440)]
    gullet += [(8, spine_y(400) - 30, 400), (14, spine_y(360) - 42, 362), (28, -8, 335)]
    wide = rng.uniform(4.5, 9.5)
    line = np.array(gullet) + rng.normal(0, 1.5, (len(gullet), 3))
    canvas.tube(line, wide, palette["oesophagus"], room, rng.uniform(0.6, 1.2))
    if rng.uniform() < 0.5:
        canvas.tube(line[: rng.integers(3, 8)], wide * 0.4, palette["air"], room)
    for way, radius in lines:
        canvas.tube(way, np.asarray(radius) + 1.8, palette["airwall"], room)
    for way, radius in lines:
        canvas.tube(way, radius, palette["air"])
    for side in (-1, 1):
        lobe = np.array([side * 19, spine_y(630) - 36, 628]) + rng.normal(0, 2, 3)
        canvas.fill(
            canvas.blob(lobe, rng.uniform(0.6, 1.4) * np.array([9, 12, 24])), palette["thyroid"]
        )
    lung = canvas.tissue == palette["lung"]
    if not lung.any():
        return
    if rng.uniform() < 0.3:  # fluid or collapsed lung at the back
        fluid = palette.variant("lesion", rng.uniform(0, 40))
        level = rng.uniform(45, 80)
        canvas.tissue[lung & (canvas.y > level) & (trunk.inner < rng.uniform(4, 25))] = fluid
    if rng.uniform() < 0.35:  # haze
        haze = palette.variant("lung", rng.uniform(-750, -300), "lung", 60)
        canvas.tissue[lung & (trunk.grain > rng.uniform(0.9, 2.0))] = haze
    for _ in range(rng.poisson(1.0)):
        spot = palette.variant("lesion", rng.uniform(-50, 60), "lesion")
        at = (
            rng.choice([-1, 1]) * rng.uniform(40, 110),
            rng.uniform(-60, 70),
            rng.uniform(300, 570),
        )
        canvas.fill(
            canvas.blob(at, np.full(3, rng.uniform(2, 16)), rough=0.12 * trunk.fine), spot, lung
        )


def _nodes(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator) -> None:
    """Round things of blood's density that stay dark: nodes beside vessels, and elsewhere."""
    fatty = np.isin(canvas.tissue, [palette["fat"], palette["strand"]])
    low, high = float(canvas.z.min()), float(canvas.z.max())
    for _ in range(rng.integers(6, 36)):
        z = rng.uniform(low, high)
        place = rng.uniform()
        if place < 0.5:  # along the great vessels and in the mesentery
            at = (rng.normal(0, 32), spine_y(z) - 28 + rng.normal(0, 20), z)
        elif place < 0.75:  # groin, armpit
            at = (rng.choice([-1, 1]) * rng.uniform(70, 125), rng.uniform(-60, 20), z)
        else:
            at = (rng.uniform(-110, 110), rng.uniform(-80, 70), z)
        tissue = palette.variant("node", rng.uniform(10, 60))
        radii = rng.uniform(2, 9) * rng.uniform(0.7, 1.4, 3)
        canvas.fill(canvas.blob(at, radii, rough=0.08 * trunk.fine), tissue, fatty)
