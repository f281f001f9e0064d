"""From tissue to CT: geometry, motion, table, blur, noise, bias, padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft, ndimage

from dyefreenet.data.phantom.canvas import Array, Canvas, spread
from dyefreenet.data.phantom.tissue import Palette

#: The motion is stored for every n-th pixel of a slice; between them it is linear.
MOTION_STEP = 8


@dataclass(frozen=True)
class Protocol:
    """How a patient is scanned; what is drawn per series comes from the phase's own generator."""

    fov_mm: float
    slice_mm: float
    noise_hu: float
    blur_mm: float  # sd of the point spread in the slice
    overlap: float  # share of a neighbour in a slice
    grain_per_mm: float  # where the noise spectrum falls off
    circle: bool  # nothing is measured outside the circular field of view
    stored_padding: int  # what stands there, before rescale


def draw_protocol(
    rng: Generator,
    noise_hu: tuple[float, float],
    slice_mm: tuple[float, float],
    grain_per_mm: tuple[float, float] = (0.16, 0.5),
) -> Protocol:
    """A scanner and its settings, each drawn from its span."""
    return Protocol(
        fov_mm=rng.uniform(290, 500),
        slice_mm=round(rng.uniform(*slice_mm), 2),
        noise_hu=rng.uniform(*noise_hu),
        blur_mm=rng.uniform(0.4, 1.15),
        overlap=rng.uniform(0.0, 0.22),
        grain_per_mm=rng.uniform(*grain_per_mm),
        circle=bool(rng.uniform() < 0.5),
        stored_padding=int(rng.choice([-2000, -2048, -1500])),
    )


def draw_motion(
    rng: Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], peak_mm: float
) -> Array:
    """Displacement of every anatomical point from the plain to a contrast scan, mm (z, y, x).

    A breath is deeper or shallower: mostly along z, more in front, smooth over centimetres.

    Returns:
        float32 [Z, h, w, 3] at every ``MOTION_STEP``-th pixel; the largest length is ``peak_mm``.
    """
    coarse = tuple(-(-n // MOTION_STEP) + 1 for n in shape[1:])
    grid = (shape[0], coarse[0], coarse[1])
    counts = [4 + int(n * step / 90) for n, step in zip(shape, spacing, strict=True)]
    parts = [weight * spread(rng.standard_normal(counts, np.float32), grid)
             for weight in (1.0, 0.6, 0.45)]  # fmt: skip
    motion = np.stack(parts, -1)
    motion[..., 0] += rng.normal(0, 1.0)
    return motion * np.float32(peak_mm / max(float(np.linalg.norm(motion, axis=-1).max()), 1e-6))


def full_motion(motion: Array, shape: tuple[int, ...]) -> Array:
    """A stored motion at every voxel, [Z, H, W, 3]."""
    ways = []
    for coarse, fine in zip(motion.shape[1:3], shape[1:], strict=True):
        at = np.arange(fine)[:, None] / MOTION_STEP
        ways.append(np.clip(1 - np.abs(at - np.arange(coarse)), 0, None).astype(np.float32))
    rows = np.einsum("zhwc,xw->zhxc", motion, ways[1], optimize=True)
    return np.einsum("zhxc,yh->zyxc", rows, ways[0], optimize=True)


def moved(hu: Array, motion: Array, spacing: tuple[float, float, float], extra: int) -> Array:
    """The anatomy after its motion.

    Args:
        hu: Anatomy with ``extra`` slices beyond the scan at either end, [Z + 2 extra, H, W].
        motion: From ``draw_motion`` for the Z slices of the scan.

    Returns:
        What the contrast scan sees, [Z, H, W]: its value at p + motion(p) is that of hu at p.
    """
    # The scan asks where a place came from: invert the motion by fixed point, on its own grid.
    steps = np.array([spacing[0], spacing[1] * MOTION_STEP, spacing[2] * MOTION_STEP], np.float32)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in motion.shape[:3]), indexing="ij"))
    source = np.zeros_like(motion)
    for _ in range(4):
        at = grid + np.moveaxis(source / steps, -1, 0)
        source = -np.stack(
            [ndimage.map_coordinates(part, at, order=1, mode="nearest")
             for part in np.moveaxis(motion, -1, 0)],
            -1,
        )  # fmt: skip
    shape = (motion.shape[0], *hu.shape[1:])
    field = full_motion(source, shape) / np.array(spacing, np.float32)
    at = np.moveaxis(field, -1, 0)
    at = np.ascontiguousarray(at)
    at[0] += (np.arange(shape[0], dtype=np.float32) + extra)[:, None, None]
    at[1] += np.arange(shape[1], dtype=np.float32)[:, None]
    at[2] += np.arange(shape[2], dtype=np.float32)
    return ndimage.map_coordinates(hu, at, np.float32, order=1, mode="nearest")


def anatomy_hu(canvas: Canvas, palette: Palette, phase: str, texture: Array) -> Array:
    """HU before any scanner: mean of the tissue and its slow texture, [Z, H, W]."""
    tissue = canvas.tissue
    return palette.hu(phase)[tissue] + palette.texture[tissue] * texture


def draw_furniture(
    rng: Generator, body: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> Array:
    """Table, cushion and lines: HU where there is something in the air, else -1000, [H, W].

    Args:
        body: Where the patient is in any slice, [H, W].
    """
    height, width = body.shape
    y = (np.arange(height, dtype=np.float32) * spacing[1])[:, None]
    x = ((np.arange(width, dtype=np.float32) - width / 2) * spacing[2])[None, :]
    x = x + np.float32(rng.normal(0, 12))
    out = np.full(body.shape, -1000, np.float32)
    middle = np.flatnonzero(body[:, width // 3 : -width // 3].any(axis=1))
    low = (middle[-1] if len(middle) else height * 0.75) * spacing[1] + rng.uniform(0, 6)
    sheet, foam = rng.uniform(-350, 180), rng.uniform(-985, -880)
    thick = rng.uniform(1.2, 3.5)
    if rng.uniform() < 0.5:
        half, bow = rng.uniform(190, 240), rng.uniform(0, 40)
        top = low - bow * (x / 200) ** 2
        bottom = low + rng.uniform(25, 70) * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
        on = np.abs(x) < half
        out = np.where(on & (y > top) & (y < bottom), foam, out)
        out = np.where(on & (np.abs(y - top) < thick / 2), sheet, out)
        out = np.where(on & (np.abs(y - bottom) < thick), sheet, out)
    else:  # straight lines, as a keel
        flat, deep = rng.uniform(60, 120), rng.uniform(20, 45)
        line = low + deep - np.clip(np.abs(x) - flat, 0, None) * rng.uniform(0.3, 0.8)
        out = np.where((np.abs(y - line) < thick * 0.7) & (np.abs(x) < flat + 110), sheet, out)
        edge = (np.abs(np.abs(x) - flat - 108) < 5) & (np.abs(y - line) < 7)
        out = np.where(edge, rng.uniform(-200, 700), out)
        if rng.uniform() < 0.5:
            out = np.where((y > low) & (y < line - 2) & (np.abs(x) < flat), foam, out)
    for _ in range(rng.integers(0, 4)):  # lines, leads, a button
        at_x, at_y = rng.uniform(-180, 180), low - rng.uniform(20, 260)
        away = np.sqrt((x - at_x) ** 2 + (y - at_y) ** 2)
        out = np.where(away < rng.uniform(1, 4), rng.uniform(-100, 1500), out)
    return out.astype(np.float32)


def acquire(
    hu: Array,
    furniture: Array,
    protocol: Protocol,
    spacing: tuple[float, float, float],
    rng: Generator,
) -> tuple[NDArray[np.int16], NDArray[np.bool_] | None]:
    """Scan it: blur, noise of this series' own, bias, field of view.

    Returns:
        int16 HU [Z, H, W] in -1024..3071, and the padding mask (None: everything is measured).
    """
    shape = hu.shape
    air = hu < -995
    hu = np.where(air, np.maximum(hu, furniture), hu)
    sigma = [protocol.blur_mm * rng.uniform(0.92, 1.08) / step for step in spacing[1:]]
    hu = ndimage.gaussian_filter1d(hu, sigma[0], axis=1, truncate=3.0)
    hu = ndimage.gaussian_filter1d(hu, sigma[1], axis=2, truncate=3.0)
    if protocol.overlap > 0.05 and shape[0] > 2:
        side = protocol.overlap
        mixed = (1 - 2 * side) * hu
        mixed[1:] += side * hu[:-1]
        mixed[:-1] += side * hu[1:]
        mixed[0] += side * hu[0]
        mixed[-1] += side * hu[-1]
        hu = mixed

    density = np.clip((hu + 1000) / 1000, 0, 2)
    # Long ways through the body starve the detector: more noise, and streaks along the rows.
    ways = density.sum(axis=2) * spacing[2]  # [Z, H], mm of water
    load = np.clip(ways / 330, 0.3, 1.6) ** 2
    strength = protocol.noise_hu * rng.uniform(0.85, 1.15)
    noise = _noise(rng, shape, spacing, protocol.grain_per_mm)
    noise *= (strength * (0.45 + 0.55 * np.minimum(load, 1.4)))[..., None]
    starved = np.clip(load - 1.0, 0, 1.5) * rng.uniform(0.0, 1.3) * strength
    if starved.max() > 0.05 * strength:
        streak = rng.standard_normal((shape[0], shape[1], shape[2] // 16 + 2), np.float32)
        at = np.arange(shape[2])[:, None] / 16
        way = np.clip(1 - np.abs(at - np.arange(streak.shape[2])), 0, None).astype(np.float32)
        noise += np.matmul(streak, way.T) * starved[..., None]
    bias = spread(rng.standard_normal((4, 5, 5), np.float32), shape) * rng.uniform(0, 5)
    hu = hu + noise * (0.35 + 0.65 * np.minimum(density, 1)) + bias * np.minimum(density, 1)

    out = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    if not protocol.circle:
        return out, None
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape[1:])
    outside = (y[:, None] ** 2 + x**2) > (max(shape[1:]) / 2) ** 2
    padding = np.broadcast_to(outside, shape).copy()
    out[padding] = -1024
    return out, padding


def _noise(
    rng: Generator, shape: tuple[int, ...], spacing: tuple[float, float, float], fall: float
) -> Array:
    """Noise of unit sd with the spectrum of filtered back-projection: a ramp that falls off."""
    white = fft.rfft2(rng.standard_normal(shape, np.float32), axes=(1, 2))
    fy = np.fft.fftfreq(shape[1], spacing[1])[:, None]
    fx = np.fft.rfftfreq(shape[2], spacing[2])
    per_mm = np.sqrt(fy**2 + fx**2)
    gain = ((per_mm + 0.012) ** 0.5 * np.exp(-((per_mm / fall) ** 2))).astype(np.float32)
    noise = fft.irfft2(white * gain, s=shape[1:], axes=(1, 2))
    return noise / noise.std()
