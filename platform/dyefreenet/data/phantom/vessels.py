"""Arteries and veins as tubes that curve, branch and taper; calcium on their walls."""

# ruff: noqa: RUF005 - an array plus a tuple is the sum of two vectors here

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from dyefreenet.data.phantom.canvas import Canvas, smooth_line
from dyefreenet.data.phantom.tissue import Palette
from dyefreenet.data.phantom.trunk import Trunk, spine_y

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
Jitter = Callable[..., Points]  # positions, each moved a little


def paint_vessels(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator) -> None:
    """Veins first, then lung vessels, arteries over them, calcium last."""
    bony = [palette[n] for n in ("cortex", "marrow", "cartilage", "canal")]
    free = ~np.isin(canvas.tissue, bony)
    course = _course(rng)
    _veins(canvas, palette, trunk, rng, free, course)
    if canvas.z.max() > 330:
        _lung_vessels(canvas, palette, rng)
    _arteries(canvas, palette, trunk, rng, free, course)
    _scattered(canvas, palette, trunk, rng)


def _course(rng: Generator) -> dict[str, Points]:
    """Centre lines of the aorta: bifurcation to arch, arch, and ascending part."""
    wind = rng.normal(0, 1) * np.array([0, 1, -1, 0.6, 0, 0]) * rng.uniform(2, 10)
    shift = rng.normal(7, 5)  # left of the midline
    fork = 150 + rng.normal(0, 8)
    heights = np.array([fork, 185, 220, 255, 290, 325])
    gap = rng.uniform(32, 39)  # from the middle of the vertebra to the middle of the aorta
    abdominal = np.stack(
        [shift + wind, [spine_y(z) - gap for z in heights], heights], axis=1
    )  # fmt: skip
    side = rng.normal(0, 4)
    chest = np.array(
        [
            (12 + side * 0.5, spine_y(360) - 30, 360),
            (18 + side, spine_y(400) - 26, 400),
            (25 + side, spine_y(440) - 20, 440),
            (27 + side, spine_y(475) - 17, 475),
            (26 + side, spine_y(500) - 19, 502),
        ]
    )
    top = rng.normal(520, 8)
    arch = np.array(
        [
            (22 + side * 0.7, 20, top - 4),
            (12, 2, top),
            (0, -16, top - 4),
            (-12, -30, top - 22),
        ]
    )
    rise = np.array([(-17, -38, top - 48), (-14, -38, 452), (-3, -34, 432), (8, -30, 418)])
    line = np.concatenate([abdominal, chest, arch, rise])
    line[1:] += rng.normal(0, 1.2, line[1:].shape)
    return {"line": line, "fork": line[0], "top": line[11:15]}


def _arteries(
    canvas: Canvas,
    palette: Palette,
    trunk: Trunk,
    rng: Generator,
    free: Mask,
    course: dict[str, Points],
) -> None:
    line, fork = course["line"], course["fork"]
    radius = rng.uniform(7.0, 13.0)
    taper = np.interp(line[:, 2], [150, 300, 420, 520], [0.82, 1.0, 1.15, 1.25])
    taper[-7:] = rng.uniform(1.25, 1.6)  # the ascending part is the widest
    radii = radius * taper
    wide = rng.uniform() < 0.2
    if wide:  # an aneurysm
        middle = rng.integers(1, 10)
        bulge = rng.uniform(0.2, 0.9) * np.exp(-((np.arange(len(line)) - middle) ** 2) / 2.0)
        radii = radii * (1 + bulge)
        if rng.uniform() < 0.6:  # with thrombus along its wall
            canvas.tube(line, radii + 4 * bulge, palette["thrombus"], free)
            radii = radii * (1 - 0.5 * bulge / (1 + bulge))
    small = palette["small_artery"]

    def jittered(*points: ArrayLike, by: float = 3.0) -> Points:
        line = np.array(points, float)
        line[1:] += rng.normal(0, by, line[1:].shape)
        return line

    def on(z: float) -> Points:
        """Middle of the abdominal or descending aorta at a height."""
        part = line[:11]
        return np.array([np.interp(z, part[:, 2], part[:, i]) for i in range(2)] + [z])

    def beside(tissue: int, points: Points, radius: ArrayLike) -> None:
        """An artery in the abdomen: it runs in fat, beside organs and bowel."""
        canvas.tube(points, radius, tissue, free)

    # Pelvis.
    plaque_lines: list[tuple[Points, NDArray[np.float64]]] = []
    for s in (-1, 1):
        r = radius * rng.uniform(0.5, 0.7)
        common = jittered(fork, fork + (s * 12, 4, -16), (s * 36, 6, 116), (s * 46, 8, 98))
        outer = np.concatenate(
            [common[-1:],
             jittered((s * 58, -2, 74), (s * 70, -24, 44), (s * 78, -46, 16), (s * 84, -56, -10),
                      (s * 86, -56, -60), (s * 82, -48, -110), (s * 80, -40, -160))]
        )  # fmt: skip
        inner = np.concatenate(
            [common[-1:], jittered((s * 47, 26, 80), (s * 50, 36, 56), (s * 46, 34, 28))]
        )
        canvas.tube(common, np.linspace(r * 1.1, r, 4), palette["iliac"], free)
        canvas.tube(outer, np.linspace(r * 0.85, r * 0.55, len(outer)), palette["iliac"], free)
        canvas.tube(inner, np.linspace(r * 0.6, 1.8, 4), palette["iliac"], free)
        plaque_lines += [(common, np.full(4, r)), (outer, np.full(len(outer), 0.75 * r))]
        deep = jittered((s * 86, -50, -20), (s * 96, -30, -60), (s * 98, -16, -120))
        canvas.tube(deep, np.array([3.2, 2.5, 1.8]), palette["iliac"], free)
        for _ in range(4):  # gluteal and other twigs in muscle
            at = inner[-1] + rng.normal(0, 8, 3)
            twig = jittered(at, at + (s * 25, 20, -10), at + (s * 50, 26, -20), by=9)
            canvas.tube(twig, np.array([2.0, 1.5, 1.0]), small, free)
        rim = jittered((s * 84, -52, 5), (s * 74, -60, 60), (s * 64, -64, 120), by=2)
        canvas.tube(rim, 1.4, small, free)  # inferior epigastric

    # Abdomen.
    renal = rng.uniform(238, 258)
    for s in (-1, 1):
        start = on(renal + rng.normal(0, 5))
        y = spine_y(renal)
        hilum = np.array([s * 46, y - 10 + rng.normal(0, 4), renal - 8])
        line_ = np.array([start, start * 0.5 + hilum * 0.5 + (0, -3 * s, 0), hilum])
        beside(palette["renal_artery"], line_, np.array([3.6, 3.0, 2.6]) * rng.uniform(0.8, 1.25))
        for _ in range(3):
            tip = hilum + (s * rng.uniform(6, 14), rng.normal(0, 8), rng.normal(0, 18))
            canvas.tube([hilum, tip], np.array([2.0, 1.4]), palette["renal_artery"], free)
    root = on(rng.uniform(284, 298))
    knot = root + (rng.normal(2, 3), -22, rng.normal(2, 4))
    scale = rng.uniform(0.8, 1.3)
    beside(palette["coeliac"], np.array([root, root + (0, -12, 3), knot]), 3.6 * scale)
    hepatic = jittered(knot, knot + (-20, -4, 2), (-40, -16, 292), (-58, -14, 312), by=4)
    beside(palette["coeliac"], hepatic, np.array([3, 2.6, 2.2, 1.5]) * scale)
    splenic = jittered(knot, knot + (18, 12, 6), knot + (36, 14, -4), (62, 18, 304), (84, 26, 308),
                       by=6)  # fmt: skip
    beside(palette["coeliac"], splenic, np.array([3, 2.8, 2.6, 2.4, 2.0]) * scale)
    gastric = jittered(knot, knot + (12, -12, 18), knot + (26, -14, 40), by=5)
    beside(small, gastric, np.array([2.0, 1.6, 1.2]))
    root = on(rng.uniform(262, 276))
    sma = jittered(
        root, root + (0, -14, -4), root + (-1, -24, -24), root + (-4, -28, -60),
        root + (-12, -32, -95), root + (-28, -34, -120),
    )  # fmt: skip
    beside(palette["sma"], sma, np.array([4, 3.9, 3.7, 3.2, 2.5, 1.8]) * scale)
    for _ in range(rng.integers(5, 14)):  # jejunal, ileal, colic
        at = sma[rng.integers(2, len(sma))] + rng.normal(0, 2, 3)
        aim = rng.normal(0, 1, 3) * (34, 10, 20) + (0, -12, -8)
        twig = jittered(at, at + aim * 0.5, at + aim, by=4)
        beside(small, twig, np.array([2.2, 1.7, 1.1]))
    low = on(195)
    ima = jittered(low, low + (8, -10, -14), low + (24, -6, -40), low + (40, 0, -70))
    beside(small, ima, np.array([2.2, 2.0, 1.7, 1.2]))
    for z in range(150, 500, 30):  # lumbar and intercostal: small, along the spine
        start = on(z + rng.normal(0, 4))
        for s in (-1, 1):
            y = spine_y(z)
            twig = jittered(start, (s * 22, y - 12, z), (s * 30, y + 8, z), by=1.5)
            canvas.tube(twig, 1.1, small, free)

    # Aorta over its branches' roots, then the arch's branches.
    canvas.tube(line, radii, palette["aorta"], free)
    plaque_lines.append((line, radii))
    tops = course["top"]
    for start, s, first in ((tops[2], -1, 5.5), (tops[1], 0, 3.4), (tops[0], 1, 4.6)):
        r = first * rng.uniform(0.85, 1.3)
        y0 = spine_y(590) - 34
        if s == 0:  # left common carotid
            path = jittered(start, (10, -10, 552), (20, y0 + 2, 600), (26, spine_y(660) - 30, 680))
            canvas.tube(path, np.linspace(r, r * 0.85, 4), palette["arch_branch"], free)
            continue
        if s < 0:
            split = np.array([-18, -18, 565]) + rng.normal(0, 4, 3)
            canvas.tube(np.array([start, (start + split) / 2 + (-3, -2, 0), split]), r,
                        palette["arch_branch"], free)  # fmt: skip
            path = jittered(split, (-24, y0, 610), (-27, spine_y(660) - 30, 680))
            canvas.tube(path, r * 0.65, palette["arch_branch"], free)
            start = split
        path = jittered(
            start, (s * 24, start[1] - 4, 562), (s * 44, -2, 583), (s * 74, -10, 574),
            (s * 112, -6, 556), (s * 140, 2, 570), (s * 152, 0, 640),
        )  # fmt: skip
        canvas.tube(path, np.linspace(r * 0.9, 2.4, 7), palette["arch_branch"], free)
        neck = jittered((s * 36, 0, 583), (s * 22, spine_y(620) - 8, 615),
                        (s * 20, spine_y(680), 690), by=2)  # fmt: skip
        canvas.tube(neck, 1.8, small, free)
        breast = jittered((s * 32, -20, 575), (s * 20, -66, 530), (s * 18, -80, 440), by=1.5)
        canvas.tube(breast, 1.3, small, free)
    # Coronary arteries: in the heart's fat, thin.
    for way in ((40, -34, -12), (44, 6, 0), (-40, -20, -10)):
        at = line[-1] + (0, -6, 0)
        twig = np.array([at, at + np.array(way) * 0.6 + (0, -8, 8), at + way])
        canvas.tube(twig, 1.8, small, free)
        if rng.uniform() < 0.35:
            _calcium(canvas, palette, rng, twig, np.full(3, 0.5), int(rng.integers(1, 6)))

    if rng.uniform() < 0.6:
        amount = rng.uniform(0.2, 1.6)
        for path, wall in plaque_lines:
            length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
            _calcium(canvas, palette, rng, path, wall, int(rng.poisson(amount * length / 22)))


def _calcium(
    canvas: Canvas,
    palette: Palette,
    rng: Generator,
    points: ArrayLike,
    radii: ArrayLike,
    count: int,
) -> None:
    """Plaque on the wall, flat along it, each of its own density."""
    if not count:
        return
    line, r = smooth_line(canvas.warp.locate(points), radii)
    for at in rng.integers(0, len(line), count):
        angle = rng.uniform(0, 2 * np.pi)
        length = rng.uniform(1.0, 8.0)
        dense = palette.variant("plaque", rng.uniform(320, 1200))
        grain = rng.uniform(1.0, 2.4)
        for step in np.arange(0, length, 1.0):
            turn = angle + step / max(r[at], 3.0)
            centre = line[at] + r[at] * np.array([np.cos(turn), np.sin(turn), 0])
            box = canvas.box(centre, np.maximum(grain, np.array(canvas.spacing)[::-1] * 0.55))
            if box is None:
                continue
            z, y, x = (axis[part] for axis, part in zip(canvas.axes, box, strict=True))
            near = ((y - centre[1]) ** 2)[:, None] + ((x - centre[0]) ** 2) < max(
                grain, 0.6 * canvas.spacing[1]
            ) ** 2
            canvas.tissue[box][np.broadcast_to(near, (len(z), *near.shape))] = dense


def _veins(
    canvas: Canvas,
    palette: Palette,
    trunk: Trunk,
    rng: Generator,
    free: Mask,
    course: dict[str, Points],
) -> None:
    flat = rng.uniform(0.45, 1.05)
    size = rng.uniform(0.75, 1.2)

    def jittered(*points: ArrayLike, by: float = 3.0) -> Points:
        return np.array(points, float) + rng.normal(0, by, (len(points), 3))

    x0 = course["fork"][0] - 27
    fork = np.array([x0 + 4, spine_y(142) - 30, 142])
    lower = jittered(tuple(fork), (x0, spine_y(170) - 30, 175), (x0 - 1, spine_y(215) - 31, 215),
                     (x0 - 1, spine_y(250) - 33, 250), by=2)  # fmt: skip
    upper = np.concatenate([lower[-1:], jittered(
        (x0 - 5, -2, 285), (x0 - 11, -4, 320), (x0 - 12, -6, 350), (x0 - 12, -10, 385),
        by=2)])  # fmt: skip
    for s in (-1, 1):
        r = 6.5 * size
        path = jittered(tuple(fork), (s * 22, spine_y(120) - 28, 122), (s * 44, 14, 98),
                        (s * 60, 6, 70), (s * 70, -14, 42), (s * 74, -36, 14), (s * 72, -44, -12),
                        (s * 80, -42, -70), (s * 82, -36, -150), by=2.5)  # fmt: skip
        canvas.tube(path, r, palette["vein"], free, max(flat, 0.7))
        path = jittered((s * 44, 14, 98), (s * 52, 34, 72), (s * 54, 42, 46), (s * 46, 38, 20))
        canvas.tube(path, 4.0 * size, palette["vein"], free)
        for _ in range(3):
            at = rng.normal(0, 10, 3) + (s * 60, 20, 30)
            twig = jittered(
                tuple(at), tuple(at + (s * 28, 20, -12)), tuple(at + (s * 55, 24, -25)), by=8
            )
            canvas.tube(twig, 2.0, palette["vein"], free)
        path = jittered((s * 70, -50, -10), (s * 66, -58, -40), (s * 60, -62, -110))
        canvas.tube(path, 3.0 * size, palette["vein"], free)  # saphenous
        # Renal veins: the left passes before the aorta.
        left_y = course["line"][3][1] - 14
        renal = [(x0, spine_y(245) - 33, 246), (s * 44, spine_y(240) - 14, 240)]
        if s > 0:
            renal.insert(1, (course["line"][3][0], left_y, 250))
        canvas.tube(jittered(*renal, by=2), 4.5 * size, palette["renal_vein"], free)
        path = jittered((s * 34, 8, 240), (s * 40, 8, 190), (s * 46, -2, 130), by=2)
        canvas.tube(path, 1.8, palette["vein"], free)  # gonadal
    canvas.tube(lower, 10.5 * size, palette["ivc"], free, flat)
    canvas.tube(upper, 11 * size, palette["ivc_upper"], free, min(1.0, flat * 1.25))

    hub = np.array([x0 - 12, -6, 348])
    for aim in ((-62, 10, -12), (-38, -52, -6), (22, -48, -4), (-46, 28, -40)):
        tip = hub + np.array(aim) * rng.uniform(0.8, 1.2)
        path = np.array([hub, (hub + tip) / 2 + rng.normal(0, 5, 3), tip])
        canvas.tube(path, np.array([5, 4, 2.2]) * size, palette["hepatic"], free)
    smv = jittered((-22, -34, 175), (-14, -32, 215), (-10, -24, 250), (-14, -18, 272), by=2.5)
    canvas.tube(smv, np.array([4.5, 5, 5.5, 6.5]) * size, palette["portal"], free)
    trunk_line = np.concatenate([smv[-1:], jittered((-26, -16, 288), (-44, -16, 306), by=2)])
    canvas.tube(trunk_line, 6.5 * size, palette["portal"], free)
    spleen = np.concatenate([smv[-1:], jittered((20, -8, 282), (54, 8, 296), (84, 24, 308), by=4)])
    canvas.tube(spleen, np.array([5, 4.5, 4, 3.2]) * size, palette["portal"], free)
    for aim in ((-36, 4, 10), (-30, 26, -14), (-20, -30, 8), (40, -24, 22)):
        start = trunk_line[-1]
        tip = start + np.array(aim) * rng.uniform(0.8, 1.3)
        canvas.tube(np.array([start, (start + tip) / 2 + rng.normal(0, 3, 3), tip]),
                    np.array([5, 4, 2.2]) * size, palette["portal"], free)  # fmt: skip
        for _ in range(2):
            canvas.tube(np.array([tip, tip + rng.normal(0, 16, 3)]), 2.0, palette["portal"], free)
    for _ in range(rng.integers(4, 12)):  # veins of the mesentery beside their arteries
        at = smv[rng.integers(0, 3)]
        branch = rng.normal(0, 1, 3) * (34, 10, 20) + (0, -10, -8)
        canvas.tube(jittered(tuple(at), tuple(at + branch / 2), tuple(at + branch), by=3), 2.2,
                    palette["portal"], free)  # fmt: skip
    if canvas.z.max() > 380:
        _chest_veins(canvas, palette, rng, free, jittered, size)


def _chest_veins(
    canvas: Canvas, palette: Palette, rng: Generator, free: Mask, jittered: Jitter, size: float
) -> None:
    inflow = palette["arm_vein"]
    svc = jittered((-36, -18, 436), (-32, -22, 470), (-30, -24, 505), (-28, -28, 535), by=2)
    canvas.tube(svc, 8.5 * size, palette["right_blood"], free)
    arm = int(rng.choice([-1, 1]))  # the side of the injection
    for s in (-1, 1):
        tissue = inflow if s == arm else palette["vein"]
        path = jittered(tuple(svc[-1]), (s * 26 if s > 0 else -28, -40, 548), (s * 34, -36, 566),
                        (s * 62, -30, 568), (s * 104, -20, 556), (s * 136, -4, 566),
                        by=2)  # fmt: skip
        canvas.tube(path, np.array([7, 7, 6, 5, 4.5, 3.5]) * size, tissue, free, 0.8)
        path = jittered((s * 32, -34, 568), (s * 34, spine_y(620) - 32, 620),
                        (s * 34, spine_y(680) - 26, 690), by=2)  # fmt: skip
        canvas.tube(path, rng.uniform(3, 7.5), palette["vein"], free)
        path = jittered((s * 30, -66, 570), (s * 36, -66, 620), (s * 44, -50, 690), by=2)
        canvas.tube(path, rng.uniform(1.5, 3.5), palette["vein"], free)
    azygos = [(-4, spine_y(z) - 19, z) for z in (300, 360, 420, 480)] + [
        (-24, 0, 498),
        (-30, -20, 494),
    ]
    canvas.tube(jittered(*azygos, by=1.2), rng.uniform(2, 4.5), palette["vein"], free)  # azygos


def _lung_vessels(canvas: Canvas, palette: Palette, rng: Generator) -> None:
    """Pulmonary trunk, its arteries, veins to the left atrium, and trees in both lungs."""
    blood, left = palette["lung_blood"], palette["left_blood"]
    room = canvas.z > 330
    trunk = np.array([(8, -52, 428), (16, -48, 455), (22, -34, 476)]) + rng.normal(0, 2, (3, 3))
    canvas.tube(trunk, rng.uniform(10, 14.5), blood, room)
    roots = {}
    for s in (-1, 1):
        hilum = np.array([s * 46 + 4, 4, 470 - 6 * s]) + rng.normal(0, 4, 3)
        middle = np.array([-14, -14, 470]) if s < 0 else np.array([30, -14, 480])
        canvas.tube(np.array([trunk[-1], middle, hilum]), np.array([11, 9.5, 7.5]), blood, room)
        low = hilum + (s * 14, 18, -36)
        canvas.tube(
            np.array([hilum, hilum + (s * 8, 10, -16), low]), np.array([7, 6, 4.5]), blood, room
        )
        roots[s] = [hilum, low]
        for z in (438, 456):
            gate = np.array([s * 50, 10, z]) + rng.normal(0, 3, 3)
            atrium = np.array([12 + s * 18, 8, 440])
            canvas.tube(np.array([atrium, gate]), np.array([6, 5]), left, room)
            roots[s].append(gate)
    lung = np.isin(canvas.tissue, [palette["lung"]])
    if not lung.any():
        return
    branches = rng.integers(34, 60)
    for s in (-1, 1):
        for _ in range(branches):
            start = roots[s][rng.integers(0, 4)]
            goal = np.array([s * rng.uniform(35, 118), rng.uniform(-65, 80), rng.uniform(285, 575)])
            mid = start + (goal - start) * 0.5 + rng.normal(0, 10, 3)
            r = rng.uniform(1.6, 4.2)
            canvas.tube(np.array([start, mid, goal]), np.array([r, r * 0.6, 0.7]), blood, lung)
            for _ in range(4):
                at = start + (goal - start) * rng.uniform(0.3, 0.9)
                tip = at + rng.normal(0, 17, 3)
                canvas.tube(np.array([at, tip]), np.array([r * 0.5, 0.6]), blood, lung)


def _scattered(canvas: Canvas, palette: Palette, trunk: Trunk, rng: Generator) -> None:
    """Small veins under the skin and between muscles: present everywhere, never bright."""
    soft = np.isin(canvas.tissue, [palette[n] for n in ("fat", "strand", "muscle")])
    low, high = float(canvas.z.min()), float(canvas.z.max())
    for _ in range(rng.integers(6, 30)):
        at = np.array([rng.uniform(-150, 150), rng.uniform(-95, 90), rng.uniform(low, high)])
        path = at + np.cumsum(rng.normal(0, 1, (4, 3)) * (8, 8, 22), axis=0)
        canvas.tube(path, rng.uniform(1.0, 2.6), palette["vein"], soft)
