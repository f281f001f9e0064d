"""The second source of anatomy: label maps of real CT, deformed and coloured anew."""

from __future__ import annotations

from numpy.random import Generator

from dyefreenet.data.phantom.canvas import Array, Canvas
from dyefreenet.data.phantom.tissue import Palette


def paint_label_map(canvas: Canvas, palette: Palette, rng: Generator, folder: str) -> Array:
    raise NotImplementedError
