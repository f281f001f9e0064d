"""What happens to a series before and after the network: reading, checks, the files it becomes.

All of it runs in a process of its own (``data.guard``), for decoders read bytes from strangers.
That process keeps the series open from ``open_series`` to ``finish``, so that nothing is read twice
and headers stay where they were parsed; only voxels go to and fro, and what is made is written from
there. No torch, no Ray.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dyefreenet.config import GenerateConfig
from dyefreenet.data.archive import SeriesRow
from dyefreenet.data.blood import (
    ARTERIAL_HU,
    BloodPool,
    Spine,
    blood_pool,
    find_spine,
    phase_of_pool,
)
from dyefreenet.data.dicom import Series, read_series
from dyefreenet.data.files import fetch
from dyefreenet.data.guard import Failed
from dyefreenet.data.images import image_axes, local_image, read_image, write_nifti
from dyefreenet.data.look import strip
from dyefreenet.data.volume import Volume, require_tissue
from dyefreenet.errors import SeriesError
from dyefreenet.generation.export import BANNER, Making, derive, derived_uid
from dyefreenet.generation.quality import body_of, judge
from dyefreenet.store import Folder

Answer = tuple[dict[str, Any], list[bytes]]


@dataclass(frozen=True)
class _Open:
    """The series that is being worked on."""

    plain: Volume
    dicom: Series | None  # None: it came from an image file, whose axes are
    axes: str
    seen: tuple[Spine, BloodPool] | None  # None: it was not looked at


_open: _Open | None = None


def open_series(row: SeriesRow, config: GenerateConfig) -> Answer:
    """Read a series, and refuse what no network should see.

    Returns:
        ``shape``, ``spacing`` in mm, ``breaks``, ``notes`` and ``sha256`` of the voxels; and the
        voxels, HU in int16.

    Raises:
        SeriesError: It cannot be read, or its blood shows contrast agent.
    """
    global _open
    _open = None  # of an earlier one that broke off
    # NIfTI has one matrix for all slices; DICOM has a place for each.
    plain, series, axes = read_plain(row, slice_wise=config.output != "nifti")
    seen = None
    if config.check:
        spine = find_spine(plain)
        pool = blood_pool(plain, spine)
        seen = spine, pool
        phase, words = phase_of_pool(pool)
        lit = f"a {words}" if phase in ("arterial", "contrast") else ""
        if np.isnan(pool.level_hu) and pool.stray_hu >= ARTERIAL_HU:
            # A heart cut off, a stent. Wrong of 4 in 80 plain phantoms, so ingest has no such rule.
            lit = f"tissue of {pool.stray_hu:.0f} HU beside the spine"
        if lit and not config.any_phase:
            raise SeriesError(
                "has-contrast",
                f"the image shows {lit}, where blood without contrast agent has 30 to 60; "
                "if it is plain CT all the same: --any-phase",
            )
    _open = _Open(plain, series, axes, seen)
    voxels = plain.hu.tobytes()
    told = {
        "shape": plain.hu.shape,
        "spacing": plain.spacing,
        "breaks": series.breaks if series else (),
        "notes": series.notes if series else (),
        "sha256": hashlib.sha256(voxels).hexdigest(),
    }
    return told, [voxels]


def read_plain(row: SeriesRow, slice_wise: bool) -> tuple[Volume, Series | None, str]:
    """A series' volume, its headers if it is DICOM, and where the axes of its file point.

    Raises:
        SeriesError: It cannot be read, or shows nothing.
    """
    if row.is_image:
        with local_image(row.files[0]) as local:
            volume, series, axes = read_image(local), None, image_axes(local)
    else:
        series = read_series(fetch(row.files), slice_wise)
        volume, axes = series.volume, "LPS"
    require_tissue(volume)
    return volume, series, axes


def finish(
    key: str, predicted: bytes, apart: bytes, config: GenerateConfig, made: Making, target: Folder
) -> Answer:
    """Write the files that the open series becomes.

    What lies outside of the body, and padding, is the source's own again, whatever was predicted.

    Args:
        key: Of the series; names files that have no UID to be named by.
        predicted: HU on the voxels of the series, int16.
        apart: How far predictions lie apart, the same way; empty: not asked for.

    Returns:
        ``files``, SHA-256 by name below the target, their ``bytes`` together, and ``quality``.

    Raises:
        SeriesError: The source lacks an identifier that a derived image must name.
        StorageError: The target cannot be written.
        Failed: No series is open.
    """
    global _open
    if _open is None:
        raise Failed("the process that held its headers was ended while the network worked")
    opened, _open = _open, None
    plain = opened.plain
    body = body_of(plain)
    if plain.padding is not None:
        body &= ~plain.padding
    hu = np.frombuffer(predicted, np.int16).reshape(plain.hu.shape)
    virtual = plain.with_hu(np.where(body, hu, plain.hu))
    del hu, predicted
    told: dict[str, Any] = {"quality": None}
    if opened.seen is not None:
        spine, pool = opened.seen
        told["quality"] = asdict(judge(plain, virtual, body, made.phase, pool, spine))
    names, contents = _files(opened, key, virtual, made, config.output)
    if apart:
        own = np.frombuffer(apart, np.int16).reshape(plain.hu.shape)
        spread = plain.with_hu(np.where(body, own, np.int16(0)))
        output = "nifti" if config.output == "png" else config.output
        more = _files(opened, key, spread, replace(made, spread=True), output)
        names, contents = names + more[0], contents + more[1]
    names, contents = [*names, f"previews/{key}.jpg"], [*contents, strip(plain, virtual, BANNER)]
    with ThreadPoolExecutor(8) as hands:
        digests = list(hands.map(target.write, names, contents))
    told["files"] = dict(zip(names, digests, strict=True))
    return told | {"bytes": sum(map(len, contents))}, []


def _files(
    opened: _Open, key: str, volume: Volume, made: Making, output: str
) -> tuple[list[str], list[bytes]]:
    """Names below the target, and contents."""
    series = opened.dicom
    kind = "spread" if made.spread else "series"
    if series is None:
        name = f"{kind}/{key}"
    else:
        name = f"{kind}/{derived_uid(str(series.headers[0].SeriesInstanceUID), made.identity)}"
    if output == "png":
        return [f"{name}.png"], [strip(opened.plain, volume, BANNER, "png")]
    if output == "nifti" or series is None:
        return [f"{name}.nii.gz"], [_nifti(volume, opened.axes)]
    images = list(derive(series, volume.hu, made))
    if output == "dicom":
        return [f"{name}/{file}" for file, _ in images], [content for _, content in images]
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as package:
        for file, content in images:  # with a date of its own, so that a second run writes the same
            about = zipfile.ZipInfo(file, made.made_on.timetuple()[:6])
            package.writestr(about, content, zipfile.ZIP_DEFLATED, 1)
    return [f"{name}.zip"], [sink.getvalue()]


def _nifti(volume: Volume, axes: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_nifti(volume, path, axes)
        return path.read_bytes()
