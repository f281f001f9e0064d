"""One made-up patient: draw, paint, scan. Anatomy is drawn apart from how it is scanned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dyefreenet.config import PhantomConfig, Phase
from dyefreenet.data.phantom import scanner
from dyefreenet.data.phantom.canvas import Array, Canvas, draw_warp
from dyefreenet.data.phantom.labelmaps import choose_label_map, paint_label_map
from dyefreenet.data.phantom.organs import paint_organs
from dyefreenet.data.phantom.tissue import LABELS, Palette
from dyefreenet.data.phantom.trunk import paint_trunk
from dyefreenet.data.phantom.vessels import paint_vessels
from dyefreenet.data.volume import Volume


@dataclass(frozen=True)
class Patient:
    """A made-up patient, in every phase, with the truth.

    Attributes:
        patient_id: Such as PHANTOM-0001.
        phases: What the scanner stored, all on one grid.
        labels: Structure of every voxel of the plain phase, numbers as in ``LABELS``, [Z, H, W].
        motions_mm: For every contrast phase, how far each anatomical point moved since the plain
            scan: mm (z, y, x), float32 [Z, h, w, 3] at every ``MOTION_STEP``-th pixel. A point at p
            in the plain phase is at p + motion(p) in the contrast phase.
        protocol: How it was scanned.
        kind: "patient", or "chest" for the low-dose series without a partner.
    """

    patient_id: str
    phases: dict[Phase, Volume]
    labels: NDArray[np.uint8]
    motions_mm: dict[Phase, Array]
    protocol: scanner.Protocol
    kind: str = "patient"

    @property
    def motion_mm(self) -> Array:
        """Motion of the first contrast phase; zeros for a patient who has none."""
        if self.motions_mm:
            return next(iter(self.motions_mm.values()))
        z, y, x = (
            -(-n // step) + (step > 1) for n, step in zip(self.labels.shape, (1, 8, 8), strict=True)
        )
        return np.zeros((z, y, x, 3), np.float32)


def generator(seed: int, kind: str, index: int, topic: str) -> Generator:
    """A generator for one topic of one patient: no draw of one topic shifts another's."""
    key = hashlib.sha256(f"{seed}/{kind}/{index}/{topic}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:16], "big"))


def make_patient(config: PhantomConfig, index: int) -> Patient:
    """A paired patient. The same seed and index give the same bytes, whatever else is asked for."""
    protocol = scanner.draw_protocol(
        generator(config.seed, "patient", index, "protocol"), config.noise_hu, config.slice_mm
    )
    return _make(config, index, "patient", protocol, config.phases)


def make_chest(config: PhantomConfig, index: int) -> Patient:
    """A low-dose chest series as in a lung screening trial: noisy, thin, plain, alone."""
    protocol = scanner.draw_protocol(
        generator(config.seed, "chest", index, "protocol"),
        config.chest_noise_hu,
        (2.0, 2.5),
        (0.3, 0.8),
    )
    return _make(config, index, "chest", protocol, ("plain",))


def _make(
    config: PhantomConfig,
    index: int,
    kind: str,
    protocol: scanner.Protocol,
    phases: tuple[Phase, ...],
) -> Patient:
    def rng(topic: str) -> Generator:
        return generator(config.seed, kind, index, topic)

    draw = rng("body")
    matrix = int(rng("matrix").choice(config.matrix))
    pixel = round(protocol.fov_mm / matrix, 6)
    spacing = (protocol.slice_mm, pixel, pixel)
    scan = (config.slices, matrix, matrix)
    # Motion brings in what lies beyond the first and last slice.
    extra = int(np.ceil(config.motion_mm[1] / protocol.slice_mm)) + 1

    height = float(draw.choice([draw.uniform(0, 540), draw.uniform(-70, 610)], p=[0.8, 0.2]))
    if config.middle_mm is not None:
        height = float(rng("middle").uniform(*config.middle_mm))
    if kind == "chest":
        height = draw.uniform(380, 540)
    size = draw.uniform([0.84, 0.84, 0.88], [1.16, 1.18, 1.1])
    size *= draw.uniform(0.93, 1.07)
    fat_mm = float(np.exp(draw.uniform(np.log(4), np.log(48))))
    # The patient fits the field of view, more or less.
    room = protocol.fov_mm / (2 * (150 * size[0] + fat_mm))
    if room < 0.92:
        size[:2] *= max(room / 0.92, 0.75)
    grid = (scan[0] + 2 * extra, *scan[1:])
    palette = Palette(rng("palette"))
    anatomy = rng("anatomy")
    aside = draw.normal([0, 5], [10, 8])
    source = rng("source")
    if config.label_maps and source.uniform() < config.label_map_share:
        label_map = choose_label_map(config.label_maps, source)
        height = source.uniform(-0.4, 0.4) * label_map.height_mm
        warp = draw_warp(draw, np.clip(size, 0.85, 1.2), np.array([*aside, height]))
        canvas = Canvas(grid, spacing, warp)
        texture = paint_label_map(canvas, palette, anatomy, label_map, fat_mm)
    else:
        canvas = Canvas(grid, spacing, draw_warp(draw, size, np.array([*aside, height])))
        trunk = paint_trunk(canvas, palette, anatomy, fat_mm)
        paint_organs(canvas, palette, trunk, anatomy)
        paint_vessels(canvas, palette, trunk, anatomy)
        texture = 0.7 * trunk.fine + 0.5 * trunk.grain

    labels = palette.labels[canvas.tissue][extra : extra + scan[0]]
    furniture = scanner.draw_furniture(rng("table"), np.any(labels > 0, axis=0), spacing)
    volumes: dict[Phase, Volume] = {}
    motions: dict[Phase, Array] = {}
    origin = (-pixel * (matrix - 1) / 2, -pixel * (matrix - 1) / 2, round(height - 1000, 2))
    for phase in phases:
        hu = scanner.anatomy_hu(canvas, palette, phase, texture)
        if phase == "plain":
            hu = hu[extra : extra + scan[0]]
        else:
            draw = rng(f"motion/{phase}")
            peak = draw.uniform(*config.motion_mm)
            motions[phase] = scanner.draw_motion(draw, scan, spacing, peak)
            hu = scanner.moved(hu, motions[phase], spacing, extra)
        stored, padding = scanner.acquire(hu, furniture, protocol, spacing, rng(f"scan/{phase}"))
        volumes[phase] = Volume(stored, spacing, origin, np.eye(3), padding)
    number = index + 1
    name = f"PHANTOM-{number:04d}" if kind == "patient" else f"PHANTOM-C{number:04d}"
    return Patient(name, volumes, labels, motions, protocol, kind)


__all__ = ["LABELS", "Patient", "make_chest", "make_patient"]
