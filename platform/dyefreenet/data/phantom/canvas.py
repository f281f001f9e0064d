"""The grid that a patient is painted on, and the brushes: blobs and tubes.

Two frames. *Patient* mm is where voxels are. *Canonical* mm is one standing adult that every
patient is a warped copy of: x to the patient's left, y to the back, z to the head, z = 0 at the hip
joints. Anatomy is written down once, in canonical mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]


def upsampling(coarse: int, fine: int) -> Array:
    """Cubic B-spline weights from ``coarse`` control points to ``fine`` samples, [fine, coarse]."""
    at = np.linspace(1.0, coarse - 2.0, fine)[:, None]
    distance = np.abs(at - np.arange(coarse))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def spread(coarse: Array, shape: tuple[int, int, int]) -> Array:
    """A coarse field smoothly on the full grid: three small matrix products, [Z, H, W]."""
    z, y, x = (upsampling(n, m) for n, m in zip(coarse.shape, shape, strict=True))
    field = np.tensordot(coarse, x, (2, 1))  # [z, y, W]
    field = np.matmul(y, field)  # [z, H, W]
    return np.tensordot(z, field, (1, 0)).astype(np.float32)


@dataclass(frozen=True)
class Warp:
    """Patient mm -> canonical mm: an affine map and a few slow sine waves.

    Written as a formula, so that it holds outside the grid too, where vessels come from.
    """

    linear: NDArray[np.float64]  # [3, 3], rows and columns x, y, z
    centre: NDArray[np.float64]  # canonical point at patient (0, 0, 0)
    wave: NDArray[np.float64]  # [K, 3], radians per mm
    start: NDArray[np.float64]  # [K], radians
    height: NDArray[np.float64]  # [K, 3], mm

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Canonical positions of patient positions, both [..., 3] in mm."""
        points = np.asarray(points, np.float64)
        return points @ self.linear.T + self.centre + self._waves(points)

    def locate(self, points: ArrayLike) -> NDArray[np.float64]:
        """Patient positions of canonical positions, both [..., 3] in mm, by fixed point."""
        wanted = np.asarray(points, np.float64) - self.centre
        back = np.linalg.inv(self.linear).T
        found = wanted @ back
        for _ in range(6):
            found = (wanted - self._waves(found)) @ back
        return found

    def _waves(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sin(points @ self.wave.T + self.start) @ self.height


def draw_warp(rng: Generator, size: NDArray[np.float64], centre: NDArray[np.float64]) -> Warp:
    """A body of another size and posture: ``size`` is patient over canonical, (x, y, z)."""
    roll = np.deg2rad(rng.normal(0, 3))
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    shear = np.eye(3)
    shear[0, 2], shear[1, 2] = rng.normal(0, 0.03, 2)  # lies askew on the table
    waves = 7
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = rng.uniform(110, 420, waves)  # mm
    # A short wave is kept low, or the body would fold over itself.
    height = rng.normal(0, 0.014, (waves, 3)) * length[:, None]
    return Warp(
        linear=np.diag(1 / size) @ turn @ shear,
        centre=centre,
        wave=direction * (2 * np.pi / length)[:, None],
        start=rng.uniform(0, 2 * np.pi, waves),
        height=height,
    )


class Canvas:
    """Tissue indices on a grid, with brushes that work inside bounding boxes."""

    def __init__(
        self, shape: tuple[int, int, int], spacing: tuple[float, float, float], warp: Warp
    ) -> None:
        self.shape, self.spacing, self.warp = shape, spacing, warp
        #: patient mm of voxel centres along z, y, x; (0, 0, 0) is the middle of the grid
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(shape, spacing, strict=True)
        ]
        self.tissue = np.zeros(shape, np.uint16)
        coarse = [np.linspace(axis[0], axis[-1], max(2, 2 + int(np.ptp(axis) / 14)))
                  for axis in self.axes]  # fmt: skip
        z, y, x = np.meshgrid(*coarse, indexing="ij")
        canonical = warp(np.stack([x, y, z], -1)).astype(np.float32)
        ways = [_linear(len(c), n) for c, n in zip(coarse, shape, strict=True)]
        #: canonical mm of every voxel, [Z, H, W] each
        self.x, self.y, self.z = (_apply(canonical[..., i], ways) for i in range(3))

    def field(self, rng: Generator, length_mm: float) -> Array:
        """Smooth noise of about unit sd with this grain, [Z, H, W]."""
        counts = [
            4 + int(n * step / length_mm) for n, step in zip(self.shape, self.spacing, strict=True)
        ]
        return 1.7 * spread(rng.standard_normal(counts, np.float32), self.shape)

    def box(
        self, centre_mm: Sequence[float] | NDArray[Any], reach_mm: float | NDArray[Any]
    ) -> tuple[slice, ...] | None:
        """Voxels within ``reach`` of a patient position (x, y, z); None where off the grid."""
        box = []
        reach = np.broadcast_to(reach_mm, 3).tolist()
        for i, axis in zip((2, 1, 0), self.axes, strict=True):
            step, first = self.spacing[2 - i], float(axis[0])
            low = max(0, math.ceil((centre_mm[i] - reach[i] - first) / step))
            high = min(len(axis), math.floor((centre_mm[i] + reach[i] - first) / step) + 1)
            if low >= high:
                return None
            box.append(slice(low, high))
        return tuple(box)

    def blob(
        self,
        centre: Sequence[float] | NDArray[Any],
        radii: ArrayLike,
        turn: float = 0.0,
        tilt: float = 0.0,
        rough: Array | None = None,
        power: float = 2.0,
    ) -> tuple[tuple[slice, ...], Array] | None:
        """Normalised radius about a superellipsoid: below 1 inside.

        Args:
            centre: Canonical mm, (x, y, z).
            radii: Canonical mm along its own axes.
            turn: Degrees about z.
            tilt: Degrees about y, after the turn.
            rough: Noise to add to the radius, [Z, H, W].
            power: 2 for an ellipsoid, more for a box.

        Returns:
            The bounding box and the radius in it; None where it misses the grid.
        """
        radii = np.asarray(radii, np.float64)
        reach = 1.35 * radii.max() / np.diag(self.warp.linear)
        box = self.box(self.warp.locate(centre), reach)
        if box is None:
            return None
        x, y, z = self.x[box] - centre[0], self.y[box] - centre[1], self.z[box] - centre[2]
        if turn:
            c, s = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
            x, y = c * x + s * y, c * y - s * x
        if tilt:
            c, s = np.float32(np.cos(np.deg2rad(tilt))), np.float32(np.sin(np.deg2rad(tilt)))
            x, z = c * x + s * z, c * z - s * x
        x, y, z = x / np.float32(radii[0]), y / np.float32(radii[1]), z / np.float32(radii[2])
        if power == 2.0:
            radius = np.sqrt(x * x + y * y + z * z)
        else:
            radius = (np.abs(x) ** power + np.abs(y) ** power + np.abs(z) ** power) ** (1 / power)
        if rough is not None:
            radius = radius + rough[box]
        return box, radius

    def fill(
        self,
        shape: tuple[tuple[slice, ...], Array] | None,
        tissue: int,
        room: NDArray[np.bool_] | None = None,
        below: float = 1.0,
    ) -> None:
        """Paint where a blob's radius is below a level, and ``room`` (if given) is free."""
        if shape is None:
            return
        box, radius = shape
        inside = radius < below
        if room is not None:
            inside &= room[box]
        self.tissue[box][inside] = tissue

    def tube(
        self,
        points: ArrayLike,
        radius: ArrayLike,
        tissue: int,
        room: NDArray[np.bool_] | None = None,
        squeeze: float = 1.0,
    ) -> None:
        """Paint a round tube along a smooth line.

        Args:
            points: Canonical mm, [N, 3].
            radius: Patient mm at each point, or one for all.
            tissue: Index to paint.
            room: Paint only here, [Z, H, W].
            squeeze: Depth over width of the section; veins are flat.
        """
        points = self.warp.locate(points)
        z_axis, y_axis, x_axis = self.axes
        # Most tubes of a body miss a short scan: see so before the line is drawn out.
        slack = float(np.max(radius)) + 0.2 * float(np.ptp(points[:, 2]))
        if points[:, 2].max() + slack < z_axis[0] or points[:, 2].min() - slack > z_axis[-1]:
            return
        line, radii = smooth_line(points, radius)
        reach = radii[:, None] * (1.0, squeeze, 1.0)
        first = np.array([x_axis[0], y_axis[0], z_axis[0]])
        step = np.array(self.spacing[::-1])
        size = np.array(self.shape[::-1])
        low = np.maximum(np.ceil((line - reach - first) / step), 0).astype(int)
        high = np.minimum(np.floor((line + reach - first) / step).astype(int) + 1, size)
        there = (low < high).all(axis=1)
        balls = zip(line[there].tolist(), radii[there].tolist(), low[there].tolist(),
                    high[there].tolist(), strict=True)  # fmt: skip
        flat = np.float32(1 / squeeze**2)
        for (x, y, z), r, (x0, y0, z0), (x1, y1, z1) in balls:
            inside = (
                ((z_axis[z0:z1] - z) ** 2)[:, None, None]
                + (flat * (y_axis[y0:y1] - y) ** 2)[:, None]
                + (x_axis[x0:x1] - x) ** 2
            ) < r * r
            if room is not None:
                inside &= room[z0:z1, y0:y1, x0:x1]
            self.tissue[z0:z1, y0:y1, x0:x1][inside] = tissue


def smooth_line(
    points: NDArray[np.float64], radius: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Catmull-Rom line through the points, sampled finer than its radius, with the radii."""
    radii = np.broadcast_to(np.asarray(radius, np.float64), len(points))
    ends = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    line, along = [], []
    for i in range(len(points) - 1):
        before, start, stop, after = ends[i : i + 4]
        step = max(0.8, 0.45 * min(radii[i], radii[i + 1]))
        t = np.arange(0, 1, step / max(step, float(np.linalg.norm(stop - start))))[:, None]
        line.append(
            start
            + 0.5 * t * (stop - before)
            + t**2 * (before - 2.5 * start + 2 * stop - 0.5 * after)
            + t**3 * (1.5 * (start - stop) + 0.5 * (after - before))
        )
        along.append((1 - t[:, 0]) * radii[i] + t[:, 0] * radii[i + 1])
    line.append(points[-1:])
    along.append(radii[-1:])
    return np.concatenate(line), np.concatenate(along)


def _linear(coarse: int, fine: int) -> Array:
    """Linear interpolation weights, [fine, coarse]."""
    at = np.linspace(0, coarse - 1, fine)[:, None]
    return np.clip(1 - np.abs(at - np.arange(coarse)), 0, None).astype(np.float32)


def _apply(field: Array, ways: list[Array]) -> Array:
    z, y, x = ways
    out = np.matmul(y, np.tensordot(field, x, (2, 1)))
    return np.ascontiguousarray(np.tensordot(z, out, (1, 0)), np.float32)
