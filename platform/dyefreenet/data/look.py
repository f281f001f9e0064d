"""What people look at of a pair or a plain series: one small picture, and a histogram of HU.

A picture has no text in it. It is cut around the body and seen as radiologists do: the patient's
right on the left, in coronal views the head up.

    a pair                         a plain series
    plain    contrast   axial      axial  coronal
    plain    contrast   coronal
    before   after      axial
    before   after      coronal

"before" and "after" lay the contrast scan over the plain one as the headers say and as registration
found. Where both look alike the overlay is grey; where the plain one is brighter it is orange,
where the contrast one is, blue. So an organ that took up contrast agent is blue all over, and an
edge that lies wrong has an orange rim or a blue one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dyefreenet.data.align import resample_like
from dyefreenet.data.morphology import BODY_HU, largest
from dyefreenet.data.volume import Volume

Window = tuple[float, float]  # HU shown black, HU shown white

BIN_HU, BINS = 41, 64
EDGES = [-1024 + BIN_HU * number for number in range(BINS + 1)]  # HU; the last is 1600
SOFT: Window = (-160.0, 240.0)  # of plain CT and of overlays
VESSEL: Window = (-160.0, 440.0)  # of contrast CT
PAIR_BYTES, PLAIN_BYTES = 60_000, 12_000  # that a picture may have

_WIDTH = 208  # pixels across a view
_TALLEST = 1.3  # height of a view over its width; a whole body is drawn smaller
_GAP = 4  # pixels between views
_BODY_MM = 3.0  # between the points where a body is looked for: thrice that is less than a wall
_MARGIN_MM = 10.0  # around the body
_QUALITIES = (85, 75, 65, 50, 35, 20)  # of JPEG, until a picture is small enough


def look(
    plain: Volume, before: Volume | None = None, aligned: Volume | None = None
) -> tuple[bytes, dict[str, list[int] | None]]:
    """The picture, a JPEG, and the histograms by name: ``plain``, ``contrast``.

    The axial view is in the middle of the slices that both scans hold, the coronal one in the
    middle of the body.

    Args:
        before: Contrast CT as it was read, on its own grid; None, as ``aligned``: there is none.
        aligned: The same on the grid of ``plain``.
    """
    if before is None or aligned is None:
        views = [plane.view(plane.cut(plain), SOFT) for plane in _planes(plain, plain)]
        return _jpeg([views], PLAIN_BYTES), {"plain": histogram(plain), "contrast": None}
    scans, overlays = [], []
    for plane in _planes(plain, aligned):
        unmoved = resample_like(before, plane.thin(plain))
        soft = plane.view(plane.cut(plain), SOFT)
        scans.append([soft, plane.view(plane.cut(aligned), VESSEL)])
        cuts = np.take(unmoved.hu, 0, plane.axis), plane.cut(aligned)
        overlays.append([_overlay(soft, plane.view(cut, SOFT)) for cut in cuts])
    picture = _jpeg([*scans, *overlays], PAIR_BYTES)
    return picture, {"plain": histogram(plain), "contrast": histogram(aligned)}


def strip(plain: Volume, virtual: Volume, warning: str, form: str = "jpeg") -> bytes:
    """Plain CT above, virtual contrast below, at four heights and in the coronal plane.

    Both rows have one window, and the warning stands beneath them.

    Args:
        form: Of the picture: jpeg, or png.
    """
    axial, coronal = _planes(plain, plain)
    count = len(plain.hu)
    planes = [replace(axial, index=count * (2 * n + 1) // 8) for n in reversed(range(4))]
    planes.append(coronal)
    scans = [[plane.view(plane.cut(scan), VESSEL) for plane in planes] for scan in (plain, virtual)]
    views = _mosaic(scans)
    picture = Image.new("L", (views.width, views.height + 18))
    picture.paste(views)
    ImageDraw.Draw(picture).text((4, views.height + 1), warning, 255, ImageFont.load_default(14))
    sink = io.BytesIO()
    picture.save(sink, form, **({"quality": 85} if form == "jpeg" else {}))
    return sink.getvalue()


def histogram(volume: Volume) -> list[int]:
    """Measured voxels in each bin of ``EDGES``, [64]; HU beyond them are in the outer bins."""
    counts = np.zeros(BINS, np.int64)
    for z, hu in enumerate(volume.hu):  # slice by slice: a bin's number takes more room than HU
        measured = hu if volume.padding is None else hu[~volume.padding[z]]
        bins = (measured.astype(np.int32) - EDGES[0]) // BIN_HU
        counts += np.bincount(bins.clip(0, BINS - 1).ravel(), minlength=BINS)
    return counts.tolist()


def add(total: Sequence[int] | None, one: Sequence[int]) -> list[int]:
    """Histograms of many series as one; None begins."""
    return [a + b for a, b in zip(total or [0] * BINS, one, strict=True)]


# ---- views ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plane:
    """An axial or coronal plane of the plain CT's grid, and what is shown of it."""

    axis: int  # of [Z, H, W] that it is cut across: 0 axial, 1 coronal
    index: int
    down: NDArray[np.intp]  # of the cut's rows, those that are shown, in order
    across: NDArray[np.intp]  # of its columns
    pixel: tuple[float, float]  # mm, (down, across)

    def cut(self, volume: Volume) -> NDArray[np.int16]:
        """HU of a volume on the plain CT's grid, [rows, columns]."""
        return np.take(volume.hu, self.index, self.axis)

    def thin(self, plain: Volume) -> Volume:
        """The plane's voxels alone, in their place."""
        step = self.index * plain.spacing[self.axis] * plain.direction[2 - self.axis]
        x, y, z = np.asarray(plain.origin) + step
        hu = np.take(plain.hu, [self.index], self.axis)
        return Volume(hu, plain.spacing, (float(x), float(y), float(z)), plain.direction)

    def view(self, cut: NDArray[np.int16], window: Window) -> Image.Image:
        """A cut as a grey picture in true proportions; black beside what is narrower."""
        low, high = window
        hu = cut[np.ix_(self.down, self.across)].astype(np.float32)
        grey = Image.fromarray(np.rint(((hu - low) / (high - low)).clip(0, 1) * 255).astype("u1"))
        height, width = (n * mm for n, mm in zip(hu.shape, self.pixel, strict=True))  # mm
        scale = min(_WIDTH / width, _TALLEST * _WIDTH / height)  # pixels a mm
        size = max(1, round(width * scale)), max(1, round(height * scale))
        view = Image.new("L", (_WIDTH, size[1]))
        view.paste(grey.resize(size, Image.Resampling.BILINEAR), ((_WIDTH - size[0]) // 2, 0))
        return view


def _planes(plain: Volume, aligned: Volume) -> list[_Plane]:
    """The axial and the coronal plane, turned upright."""
    slices = np.arange(len(plain.hu))
    reached = slices
    if aligned.padding is not None and not aligned.padding.all():
        reached = np.flatnonzero(~aligned.padding.all(axis=(1, 2)))
    rows, columns = _body(plain)
    left, back, head = np.diag(plain.direction) > 0  # whether x, y and z index rise to there
    columns = columns if left else columns[::-1]
    rows = rows if back else rows[::-1]
    slices = slices[::-1] if head else slices
    z, y, x = plain.spacing
    return [
        _Plane(0, int(reached[len(reached) // 2]), rows, columns, (y, x)),
        _Plane(1, int(rows[len(rows) // 2]), slices, columns, (z, x)),
    ]


def _body(volume: Volume) -> list[NDArray[np.intp]]:
    """Rows and columns of the body, with a margin; all of them where there is no body."""
    every = max(1, round(_BODY_MM / max(volume.spacing[1:])))  # pixels
    seen = body_from_above(volume.hu, every)
    parts = []
    for axis, count in enumerate(volume.hu.shape[1:]):
        first, last = 0, count - 1
        if seen is not None:
            inside = np.flatnonzero(seen.any(axis=1 - axis)) * every
            beyond = every - 1 + round(_MARGIN_MM / volume.spacing[1 + axis])
            first, last = max(first, int(inside[0]) - beyond), min(last, int(inside[-1]) + beyond)
        parts.append(np.arange(first, last + 1))
    return parts


def body_from_above(hu: NDArray[np.int16], every: int) -> NDArray[np.bool_] | None:
    """Where any slice shows the body, by every so many pixels, [h, w]; None without a body."""
    mask = hu[::2, ::every, ::every] > BODY_HU
    mask = ndimage.binary_opening(mask, np.ones((1, 3, 3), np.bool_))  # cuts the table's sheet off
    body = largest(mask)
    return np.asarray(body.any(axis=0)) if body.any() else None


def _overlay(plain: Image.Image, contrast: Image.Image) -> Image.Image:
    """Two grey views as one, in colours that are told apart with any colour vision."""
    return Image.merge("RGB", (plain, Image.blend(plain, contrast, 0.5), contrast))


def _jpeg(rows: Sequence[Sequence[Image.Image]], most: int) -> bytes:
    """Views as one picture of at most ``most`` bytes, unless the coarsest JPEG has more."""
    picture = _mosaic(rows)
    for quality in _QUALITIES:
        sink = io.BytesIO()
        picture.save(sink, "jpeg", quality=quality, subsampling=0)  # rims are a pixel or two wide
        if sink.tell() <= most:
            break
    return sink.getvalue()


def _mosaic(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    heights = [max(view.height for view in row) for row in rows]
    width, height = (_GAP * (n - 1) for n in (len(rows[0]), len(rows)))
    size = width + _WIDTH * len(rows[0]), height + sum(heights)
    picture = Image.new(rows[-1][-1].mode, size)  # in colour if the last view is
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for position, view in enumerate(row):
            picture.paste(view, (position * (_WIDTH + _GAP), top + (height - view.height) // 2))
        top += height + _GAP
    return picture
