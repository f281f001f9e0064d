"""One pair to shards: read, align, bring onto the training grid, cut. Nothing is written here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dyefreenet.config import GridConfig, IngestConfig, Phase
from dyefreenet.data import masks
from dyefreenet.data.align import Truth, gate, landmarks, register
from dyefreenet.data.archive import SeriesRow, is_phantom
from dyefreenet.data.blood import phase_in_image
from dyefreenet.data.cohort import evidence, known_kernel
from dyefreenet.data.dicom import read_series
from dyefreenet.data.files import fetch
from dyefreenet.data.images import read_image_at, read_labels
from dyefreenet.data.look import body_from_above, look
from dyefreenet.data.noise import global_noise
from dyefreenet.data.shards import write_slabs
from dyefreenet.data.volume import AIR_HU, Volume, require_tissue
from dyefreenet.errors import SeriesError
from dyefreenet.store import Folder


@dataclass(frozen=True)
class Job:
    """One pair, or one plain series for SSL."""

    plain: SeriesRow
    contrast: SeriesRow | None
    phase: Phase
    split: str

    @property
    def name(self) -> str:
        """Of its books and shards; hashes and a phase, so never a patient."""
        return f"{self.plain.key}-{self.phase if self.contrast else 'plain'}"


@dataclass(frozen=True)
class Made:
    """The shards of a job, and its line in the books."""

    files: list[tuple[str, int, bytes]]  # name, core slices, content
    row: dict[str, Any]
    picture: bytes
    histograms: dict[str, list[int] | None]


# ---- one pair ------------------------------------------------------------------------------------


def make_shards(
    job: Job,
    config: IngestConfig,
    grid: GridConfig,
    truth: Folder | None = None,
    mask: str = "",
) -> Made:
    """Read a pair, lay the contrast onto the plain CT, and cut both into shards.

    Slices that the contrast scan does not reach are left out. Where one of the two measured
    nothing, outside a round field of view for instance, both become air: a network must not learn
    that contrast agent removes tissue.

    Args:
        truth: Label maps and motions of a phantom.
        mask: Name of the label map in ``config.masks``; "" where this pair has none.

    Raises:
        SeriesError: One of the two cannot be used, or they fit too poorly for the job's split.
    """
    plain = read_row(job.plain)
    contrast: Volume | None = None
    before: Volume | None = None
    qc: dict[str, Any] = {}
    if job.contrast is not None:
        before = read_row(job.contrast)
    if config.image_check:
        _require_phases(job, plain, before)
    labels = None
    if truth is not None and truth.exists(f"{job.plain.key}.nii.gz"):
        labels = _truth(truth, job.plain.key, plain)
    if labels is None and job.contrast is not None and config.masks is not None:
        labels = _masked(config, mask, plain)
    if before is not None:
        known = _known_motion(truth, job, plain, labels) if truth and labels is not None else None
        contrast, figures = register(before, plain, config.registration, known)
        use, why = gate(figures)
        if use != "train" and job.split == "train":
            raise SeriesError("registration", f"fits well enough to be scored, not learnt: {why}")
        qc = figures | {"gate": use}

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
        job.name,
        job.plain.key,
        job.plain.patient,
        (plain.spacing[0], *target_pixel),
        plain_slices,
        None if hu_contrast is None else on_grid(hu_contrast),
        None if labels is None else on_grid(labels),
        phase=job.phase,
        slab=config.slab,
    )
    return Made(files, _book(job, config, plain, len(hu), qc), *look(plain, before, contrast))


def prepared(
    job: Job, config: IngestConfig, grid: GridConfig, truth: Folder | None, mask: str
) -> tuple[dict[str, Any], list[bytes]]:
    """``make_shards`` in the form that comes back from another process."""
    made = make_shards(job, config, grid, truth, mask)
    files = [[name, slices] for name, slices, _ in made.files]
    told = {"row": made.row, "files": files, "look": made.histograms}
    return told, [made.picture, *(content for _, _, content in made.files)]


def seen_phase(row: SeriesRow) -> tuple[dict[str, str], list[bytes]]:
    """What the image of a series shows of its phase; as from another process."""
    phase, told_by = phase_in_image(read_row(row))
    return {"phase": "" if phase in (None, "contrast") else phase, "told_by": told_by}, []


def read_row(row: SeriesRow) -> Volume:
    """The volume of a series that a scan found.

    Raises:
        SeriesError: It cannot be read, or shows nothing.
    """
    image = row.is_image
    volume = read_image_at(row.files[0]) if image else read_series(fetch(row.files)).volume
    require_tissue(volume)
    return volume


def _require_phases(job: Job, plain: Volume, contrast: Volume | None) -> None:
    """Refuse images that show another phase than headers say; what phases.csv says stands."""
    if not job.plain.declared:
        seen, told_by = phase_in_image(plain)
        if seen not in (None, "plain"):
            raise SeriesError("has-contrast", f"expected a plain image, found {told_by}")
    if contrast is not None and job.contrast is not None and not job.contrast.declared:
        seen, told_by = phase_in_image(contrast)
        if seen not in (None, "contrast", job.phase):
            raise SeriesError("no-contrast", f"expected {job.phase} contrast, found {told_by}")


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
        return read_labels(local, plain).astype(np.uint8)


def _masked(config: IngestConfig, mask: str, plain: Volume) -> NDArray[np.uint8] | None:
    if config.masks == masks.TOTALSEGMENTATOR:
        return masks.numbered(masks.segmented(plain), config.structures)
    if not mask:
        return None
    assert config.masks is not None
    found = masks.read_mask(Folder(config.masks), mask, plain)
    return masks.numbered(found, config.structures)


def _known_motion(
    truth: Folder, job: Job, plain: Volume, labels: NDArray[np.uint8]
) -> Truth | None:
    """How a phantom moved before this phase, and the points to ask for it."""
    name = f"{job.plain.key}_{job.phase}_motion.nii.gz"
    if not truth.exists(name):
        return None
    said = truth.read_json("labels.json")
    structures = [said["labels"][structure] for structure in said["landmarks"]]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "motion.nii.gz"
        local.write_bytes(truth.read(name))
        return Truth(sitk.ReadImage(str(local)), landmarks(labels, plain, structures))


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
        "kernel": known_kernel(job.plain.kernel),
        "noise_hu": global_noise(plain.hu, plain.spacing[1:]),
        "source": "phantom" if is_phantom(job.plain.manufacturer) else "real",
    }
    if job.contrast is not None:
        row |= {
            "phase": job.phase,
            "contrast_key": job.contrast.key,
            "contrast_thickness": job.contrast.thickness,
            "contrast_kernel": known_kernel(job.contrast.kernel),
            "phase_told_by": evidence(job.contrast)[1],
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
    seen = body_from_above(hu, every)
    if seen is None:
        return None
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return (
        float(rows[0] + rows[-1] + 1) * every / 2,
        float(columns[0] + columns[-1] + 1) * every / 2,
    )
