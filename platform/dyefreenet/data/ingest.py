"""Archives to shards: scan, pair, split, align, bring onto the training grid. RAY.

``make_shards`` is all that happens to one pair and knows no Ray. ``ingest`` hands pairs out to the
cluster, where each task writes its own shards, and keeps the books:

    shards/*.parquet    slabs of slices (``shards.py``)
    slabs.json          one record a shard: what a training schedule needs
    pairs.parquet       one row a pair, with its split and the figures of its registration
    plain.parquet       one row a plain series without partner, for SSL
    excluded.parquet    one row a series that is not used, with reason and detail

Everything in them names series and patients by hash alone.
"""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.config import GridConfig, IngestConfig, Phase
from dyefreenet.data.align import BODY_HU, register
from dyefreenet.data.archive import SeriesRow, Survey, survey
from dyefreenet.data.cohort import Refused, evidence, pair, plain_only, split_of
from dyefreenet.data.dicom import read_series
from dyefreenet.data.files import fetch
from dyefreenet.data.images import read_image_at, read_labels
from dyefreenet.data.shards import SlabRecord, write_slabs
from dyefreenet.data.volume import AIR_HU, Volume
from dyefreenet.errors import DyeFreeNetError, InputError, SeriesError
from dyefreenet.store import Folder

SSL = "ssl"  # the split of plain series that have no contrast partner
PHANTOM_MAKER = "Phantom "  # how the phantom's Manufacturer (0008,0070) begins

_SERIES_FIELDS = [
    ("key", pa.string()),
    ("patient", pa.string()),
    ("slices", pa.int32()),
    ("spacing_z", pa.float64()),  # mm, of the plain series before it is brought onto the grid
    ("spacing_y", pa.float64()),
    ("spacing_x", pa.float64()),
    ("thickness", pa.float64()),  # mm
    ("kernel", pa.string()),
    ("source", pa.string()),  # "phantom" or "real"
]
PLAIN_SCHEMA = pa.schema(_SERIES_FIELDS)
PAIRS_SCHEMA = pa.schema(
    [
        *_SERIES_FIELDS,
        ("split", pa.string()),
        ("phase", pa.string()),
        ("contrast_key", pa.string()),
        ("contrast_thickness", pa.float64()),
        ("contrast_kernel", pa.string()),
        ("registration", pa.string()),
        ("body_dice", pa.float64()),
        ("bone_edge_mm", pa.float64()),
        ("mutual_information", pa.float64()),  # nats
        ("mutual_information_gain", pa.float64()),
        ("min_jacobian", pa.float64()),
        ("max_shift_mm", pa.float64()),
    ]
)
EXCLUDED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Job:
    """One pair, or one plain series for SSL."""

    plain: SeriesRow
    contrast: SeriesRow | None
    phase: Phase
    split: str


@dataclass(frozen=True)
class Made:
    """The shards of a job, and its line in the books."""

    files: list[tuple[str, int, bytes]]  # name, core slices, content
    row: dict[str, Any]


# ---- one pair ------------------------------------------------------------------------------------


def make_shards(
    job: Job, config: IngestConfig, grid: GridConfig, truth: Folder | None = None
) -> Made:
    """Read a pair, lay the contrast onto the plain CT, and cut both into shards.

    Slices that the contrast scan does not reach are left out. Where one of the two measured
    nothing, outside a round field of view for instance, both become air: a network must not learn
    that contrast agent removes tissue.

    Raises:
        SeriesError: One of the two cannot be used.
    """
    plain = read_row(job.plain)
    contrast: Volume | None = None
    qc: dict[str, float] = {}
    if job.contrast is not None:
        contrast, qc = register(read_row(job.contrast), plain, config.registration)
    labels = None
    if truth is not None and truth.exists(f"{job.plain.key}.nii.gz"):
        labels = _truth(truth, job.plain.key, plain)

    hu = plain.hu
    hu_contrast: NDArray[np.int16] | None = None
    if contrast is not None:
        reached = covered(contrast)
        absent = np.zeros(hu.shape, np.bool_)
        for volume in (plain, contrast):
            if volume.padding is not None:
                absent |= volume.padding
        hu = np.where(absent, np.int16(AIR_HU), hu)[reached]
        hu_contrast = np.where(absent, np.int16(AIR_HU), contrast.hu)[reached]
        labels = None if labels is None else np.where(absent, np.uint8(0), labels)[reached]

    pixel = plain.spacing[1:]
    start: tuple[int, int] | None = None

    def on_grid(array: NDArray[Any]) -> NDArray[Any]:
        nonlocal start
        if grid.pixel_mm is not None:
            array = in_plane(array, pixel, grid.pixel_mm)
        if start is None:  # the plain CT comes first and says where the body is
            start = window_start(array, grid.size)
        return fit(array, grid.size, start)

    plain_slices = on_grid(hu)
    target_pixel = pixel if grid.pixel_mm is None else (grid.pixel_mm, grid.pixel_mm)
    files = write_slabs(
        job.plain.key,
        job.plain.patient,
        (plain.spacing[0], *target_pixel),
        plain_slices,
        None if hu_contrast is None else on_grid(hu_contrast),
        None if labels is None else on_grid(labels),
        phase=job.phase,
        slab=config.slab,
    )
    return Made(files, _book(job, config, plain, len(hu), qc))


def read_row(row: SeriesRow) -> Volume:
    """The volume of a series that a scan found."""
    if row.is_image:
        return read_image_at(row.files[0])
    return read_series(fetch(row.files)).volume


def covered(volume: Volume) -> slice:
    """The slices that hold measurements.

    Raises:
        SeriesError: Fewer than a triplet needs.
    """
    if volume.padding is None:
        return slice(0, len(volume.hu))
    found = np.flatnonzero(~volume.padding.all(axis=(1, 2)))
    if len(found) < 3:
        raise SeriesError(
            "registration", f"plain and contrast share {len(found)} slices; a triplet needs 3"
        )
    return slice(int(found[0]), int(found[-1]) + 1)


def _truth(truth: Folder, key: str, plain: Volume) -> NDArray[np.uint8]:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "labels.nii.gz"
        local.write_bytes(truth.read(f"{key}.nii.gz"))
        return read_labels(local, plain)


def _book(
    job: Job, config: IngestConfig, plain: Volume, slices: int, qc: dict[str, float]
) -> dict[str, Any]:
    z, y, x = plain.spacing
    row: dict[str, Any] = {
        "key": job.plain.key,
        "patient": job.plain.patient,
        "slices": slices,
        "spacing_z": z,
        "spacing_y": y,
        "spacing_x": x,
        "thickness": job.plain.thickness,
        "kernel": job.plain.kernel,
        "source": "phantom" if job.plain.manufacturer.startswith(PHANTOM_MAKER) else "real",
    }
    if job.contrast is not None:
        row |= {
            "split": job.split,
            "phase": job.phase,
            "contrast_key": job.contrast.key,
            "contrast_thickness": job.contrast.thickness,
            "contrast_kernel": job.contrast.kernel,
            "registration": config.registration,
        } | qc
    return row


# ---- onto the training grid ----------------------------------------------------------------------


def in_plane(array: NDArray[Any], pixel: tuple[float, float], pixel_mm: float) -> NDArray[Any]:
    """[Z, H, W] with pixels of ``pixel_mm``; the centre of the image stays where it is.

    HU are averaged over the area of a larger pixel and interpolated linearly for a smaller one;
    labels (uint8) take the nearest.

    Args:
        array: HU (int16) or labels (uint8), [Z, H, W].
        pixel: mm, (y, x).
    """
    if array.dtype == np.uint8:
        rows, columns = (
            nearest(count, step, pixel_mm)
            for count, step in zip(array.shape[1:], pixel, strict=True)
        )
        return array[:, rows][:, :, columns]
    down, across = (
        weights(count, step, pixel_mm) for count, step in zip(array.shape[1:], pixel, strict=True)
    )
    out = np.empty((len(array), len(down), len(across)), np.int16)
    for z, image in enumerate(array):
        out[z] = np.rint(down @ image.astype(np.float32) @ across.T)
    return out


def weights(count: int, step: float, target: float) -> NDArray[np.float32]:
    """How much of each old pixel goes into each new one along an axis, [new, old]; rows sum to 1.

    Args:
        count: Old pixels.
        step: Their length in mm.
        target: Length of the new pixels in mm.
    """
    centres = _centres(count, step, target)  # mm
    if target > step:  # the share of the new pixel that each old one covers
        old = np.arange(count) * step
        left = np.maximum(centres[:, None] - target / 2, old)
        right = np.minimum(centres[:, None] + target / 2, old + step)
        shares = np.clip(right - left, 0, None)
    else:
        place = np.clip(centres / step - 0.5, 0, count - 1)
        shares = np.clip(1 - np.abs(place[:, None] - np.arange(count)), 0, None)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def nearest(count: int, step: float, target: float) -> NDArray[np.intp]:
    """The old pixel under the centre of each new one, [new]."""
    place = np.floor(_centres(count, step, target) / step).astype(np.intp)
    return place.clip(0, count - 1)


def _centres(count: int, step: float, target: float) -> NDArray[np.float64]:
    new = max(1, round(count * step / target))
    first = (count * step - new * target) / 2
    return np.asarray((np.arange(new) + 0.5) * target + first, np.float64)


def window_start(hu: NDArray[np.int16], size: int) -> tuple[int, int]:
    """Row and column where a square of ``size`` begins; negative: that much air is added before.

    A larger image is cut around the middle of the body but never beyond its own edge; a smaller one
    keeps all its pixels, with as much air on either side.
    """
    middle = body_middle(hu) if max(hu.shape[1:]) > size else None
    starts = []
    for axis, count in enumerate(hu.shape[1:]):
        if count <= size:
            starts.append(-((size - count) // 2))
        else:
            centre = count / 2 if middle is None else middle[axis]
            starts.append(int(np.clip(round(centre - size / 2), 0, count - size)))
    return starts[0], starts[1]


def fit(array: NDArray[Any], size: int, start: tuple[int, int]) -> NDArray[Any]:
    """[Z, H, W] to [Z, size, size] from ``window_start``; air, or label 0, where there is none."""
    fill = AIR_HU if array.dtype == np.int16 else 0
    out = np.full((len(array), size, size), fill, array.dtype)
    takes, puts = [slice(None)], [slice(None)]
    for first, count in zip(start, array.shape[1:], strict=True):
        begin, end = max(first, 0), min(first + size, count)
        takes.append(slice(begin, end))
        puts.append(slice(begin - first, end - first))
    out[tuple(puts)] = array[tuple(takes)]
    return out


def body_middle(hu: NDArray[np.int16]) -> tuple[float, float] | None:
    """Row and column in the middle of the box around the body; None where there is no body."""
    every = 4  # pixels: enough for the place of a body
    mask = hu[::2, ::every, ::every] > BODY_HU
    mask = ndimage.binary_opening(mask, np.ones((1, 3, 3), np.bool_))  # cuts the table's sheet off
    pieces, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    seen = (pieces == sizes.argmax()).any(axis=0)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return (
        float(rows[0] + rows[-1] + 1) * every / 2,
        float(columns[0] + columns[-1] + 1) * every / 2,
    )


# ---- all pairs -----------------------------------------------------------------------------------


def ingest(
    config: IngestConfig,
    grid: GridConfig,
    *,
    paired: Sequence[Folder],
    plain: Sequence[Folder] = (),
    target: Folder,
    truth: Folder | None = None,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fill ``target`` with the shards and books of the given archives.

    A second run over the same archives writes the same bytes. With Ray started, pairs are made on
    the cluster, one CPU each; without it, here one after the other.

    Args:
        paired: Archives with plain and contrast series. Their plain series without partner go to
            SSL too.
        plain: Archives of plain series alone: their owner says so, and headers that show contrast
            agent are refused.
        target: The ingest folder; the manifest is the caller's.
        truth: ``{key}.nii.gz`` label maps on the grid of plain series, of a phantom.
        report: Called with the number of pairs and series done, and of all.

    Returns:
        Counts for the manifest.

    Raises:
        InputError: No archive, no pairs, or a split without patients.
    """
    surveys = [survey(folder) for folder in paired]
    rows = _once(surveys)
    pairs, refused = pair(rows, config.phase)
    if not pairs:
        raise InputError(_no_pairs(paired, rows, refused, config.phase))
    splits = {one.patient: split_of(one.patient, config.validation, config.test) for one in pairs}
    _require_splits(config, splits)
    jobs = [Job(one.plain, one.contrast, one.phase, splits[one.patient]) for one in pairs]

    lone = [one.row for one in refused if one.reason == "no-partner"]
    lone = [row for row in lone if evidence(row)[0] == "plain"]
    more = [survey(folder) for folder in plain]
    extra, refused_plain = plain_only(_once(more))
    used = {job.plain.key for job in jobs} | {job.contrast.key for job in jobs if job.contrast}
    for row in {row.key: row for row in [*lone, *extra] if row.key not in used}.values():
        if splits.get(row.patient, "train") == "train":
            jobs.append(Job(row, None, config.phase, SSL))
        else:
            refused_plain.append(
                Refused(row, "held-out", f"its patient has a pair in {splits[row.patient]}")
            )
    kept = {job.plain.key for job in jobs}
    excluded = [
        _excluded(one.row, one.reason, one.detail)
        for one in [*refused, *refused_plain]
        if one.row.key not in kept and one.row.key not in used
    ]

    books: list[dict[str, Any]] = []
    slabs: list[dict[str, Any]] = []
    by_key = {job.plain.key: job for job in jobs}
    for done, outcome in enumerate(_outcomes(jobs, config, grid, target, truth), start=1):
        job = by_key[outcome["key"]]
        if "reason" in outcome:
            for row in filter(None, (job.plain, job.contrast)):
                excluded.append(_excluded(row, outcome["reason"], outcome["detail"]))
        else:
            books.append(outcome["row"])
            slabs += outcome["slabs"]
        if report is not None:
            report(done, len(jobs))

    books.sort(key=lambda row: row["key"])
    pair_rows = [row for row in books if "split" in row]
    remaining = {row["patient"]: row["split"] for row in pair_rows}
    if not pair_rows:
        raise InputError(_all_refused(excluded))
    _require_splits(config, remaining)
    excluded.sort(key=lambda row: (row["key"], row["reason"]))
    _write_table(target, "pairs.parquet", pair_rows, PAIRS_SCHEMA)
    plain_rows = [row for row in books if "split" not in row]
    _write_table(target, "plain.parquet", plain_rows, PLAIN_SCHEMA)
    _write_table(target, "excluded.parquet", excluded, EXCLUDED_SCHEMA)
    target.write_json("slabs.json", sorted(slabs, key=lambda slab: slab["path"]))
    slices: Counter[str] = Counter()
    for slab in slabs:
        slices[slab["split"]] += slab["slices"]
    return {
        "series": sum(len(one.rows) for one in [*surveys, *more]),
        "pairs": len(pair_rows),
        "patients": dict(sorted(Counter(remaining.values()).items())),
        "slices": dict(sorted(slices.items())),
        "ssl_series": len(plain_rows),
        "excluded": dict(sorted(Counter(row["reason"] for row in excluded).items())),
        "skipped_files": sum(len(one.skipped) for one in [*surveys, *more]),
    }


def make_and_write(
    job: Job, config: IngestConfig, grid: GridConfig, target: Folder, truth: Folder | None
) -> dict[str, Any]:
    """One job done: its shards lie in ``target``; what comes back are lines of the books.

    A refusal is a result like any other: key, reason, detail.
    """
    try:
        made = make_shards(job, config, grid, truth)
    except SeriesError as refusal:
        return {"key": job.plain.key, "reason": refusal.reason, "detail": refusal.detail}
    slabs = []
    for name, slices, content in made.files:
        target.write(f"shards/{name}", content)
        record = SlabRecord(f"shards/{name}", job.split, job.plain.key, job.plain.patient, slices)
        slabs.append(asdict(record))
    return {"key": job.plain.key, "row": made.row, "slabs": slabs}


def _outcomes(
    jobs: Sequence[Job],
    config: IngestConfig,
    grid: GridConfig,
    target: Folder,
    truth: Folder | None,
) -> Iterator[dict[str, Any]]:
    """The outcome of every job, as they come."""
    import ray  # here, so that a laptop reads an archive without it

    if not ray.is_initialized():
        for job in jobs:
            yield make_and_write(job, config, grid, target, truth)
        return

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def task(item: dict[str, Any]) -> dict[str, str]:
        job = pickle.loads(item["job"])  # our own bytes, from a few lines below
        try:
            return {"outcome": json.dumps(make_and_write(job, config, grid, target, truth))}
        except DyeFreeNetError as error:  # a full disk, no credentials: no fault of the series
            return {"outcome": json.dumps({"error": str(error)})}

    items = [{"job": pickle.dumps(job)} for job in jobs]
    # A block a job, so that a task is one series and memory holds no more series than CPUs.
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(task, num_cpus=1)
    for row in dataset.iter_rows():
        outcome = json.loads(row["outcome"])
        if "error" in outcome:
            raise InputError(outcome["error"])
        yield outcome


def _once(surveys: Sequence[Survey]) -> list[SeriesRow]:
    """Every series once, though two archives may hold it."""
    return list({row.key: row for one in reversed(surveys) for row in one.rows}.values())


def _require_splits(config: IngestConfig, splits: dict[str, Any]) -> None:
    counts = Counter(splits.values())
    shares = {
        "test": config.test,
        "validation": config.validation,
        "train": 1 - config.test - config.validation,
    }
    for split, share in shares.items():
        if not counts[split] and (share > 0 or split == "train"):
            field = "test and validation" if split == "train" else split
            change = "lower" if split == "train" else "raise"
            raise InputError(
                f"ingest: expected patients in every split, found none in {split}: "
                f"{len(splits)} paired patients in all, split by hash with a share of {share:.2f}; "
                f"add patients or {change} ingest.{field}"
            )


def _no_pairs(
    paired: Sequence[Folder], rows: list[SeriesRow], refused: list[Refused], phase: Phase
) -> str:
    phases = Counter(evidence(row)[0] or "of unknown phase" for row in rows)
    reasons = Counter(one.reason for one in refused)
    return (
        f"{', '.join(map(str, paired))}: expected a plain and one {phase} series of the same "
        f"patient and study, found {len(rows)} series ("
        + ", ".join(f"{count} {name}" for name, count in sorted(phases.items()))
        + "); none pairs: "
        + ", ".join(f"{count} {name}" for name, count in sorted(reasons.items()))
        + "; say in phases.csv what the headers do not"
    )


def _all_refused(excluded: list[dict[str, str]]) -> str:
    first = next((row for row in excluded if row["reason"] != "no-partner"), excluded[0])
    return (
        f"ingest: expected pairs that can be read, found none: {len(excluded)} series refused, for "
        f"instance {first['key']}, {first['reason']}: {first['detail']}"
    )


def _excluded(row: SeriesRow, reason: str, detail: str) -> dict[str, str]:
    return {"key": row.key, "patient": row.patient, "reason": reason, "detail": detail}


def _write_table(target: Folder, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    target.write(name, sink.getvalue())
