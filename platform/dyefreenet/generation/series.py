"""One plain series to virtual contrast: DICOM in, derived DICOM out; NIfTI in, NIfTI out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from dyefreenet import __version__
from dyefreenet.cascade import Cascade
from dyefreenet.config import Phase
from dyefreenet.data.archive import SeriesRow, scan
from dyefreenet.data.cohort import plain_only
from dyefreenet.data.dicom import read_series
from dyefreenet.data.files import IMAGES, fetch
from dyefreenet.data.images import NIFTI, image_axes, local_image, read_image, write_nifti
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.generation.export import refuse_source_folder, write_series
from dyefreenet.store import Folder


@dataclass(frozen=True)
class Generated:
    """What was made, for the terminal."""

    plain: Volume
    virtual: Volume
    target: str
    files: int

    def __str__(self) -> str:
        change = self.virtual.hu.astype(np.int32) - self.plain.hu
        enhanced = int((change > 80).sum())
        millilitres = enhanced * float(np.prod(self.plain.spacing)) / 1000.0
        return (
            f"{len(self.virtual.hu)} slices in {self.files} files at {self.target}; "
            f"{millilitres:.0f} ml rose by more than 80 HU"
        )


def generate(
    source: str,
    target: str,
    cascade: Cascade,
    method: str = "refine",
    made_on: datetime | None = None,
    any_phase: bool = False,
    phase: Phase | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
    """Virtual contrast of the one plain series that ``source`` holds.

    Args:
        source: Folder of DICOM, or a NIfTI file; local or ``s3://``.
        target: Folder for DICOM; for NIfTI a file that ends in .nii or .nii.gz. Local or ``s3://``.
        made_on: Date of the series; None: now.
        any_phase: Take a series whose headers show contrast agent, or that a network made.
        phase: That is to be made; None: the one that the recipe names.

    Raises:
        InputError: There is no series, or more than one; or the target is where the source lies.
        SeriesError: The series cannot be used.
    """
    now = made_on or datetime.now(timezone.utc)
    if source.lower().endswith(IMAGES):
        path = target if target.lower().endswith(NIFTI) else f"{target}/virtual_contrast.nii.gz"
        if _address(path) == _address(source):
            raise InputError(
                f"{target}: expected another file than the source, which stays as it is"
            )
        with local_image(source) as local:
            plain, axes = read_image(local), image_axes(local)
        virtual = cascade.predict(plain, method, tick, phase)
        # Voxel [i, j, k] of the output is voxel [i, j, k] of the input, whichever way its axes run.
        _put_nifti(virtual, path, axes)
        return Generated(plain, virtual, path, 1)
    rows = [row for row in scan(source) if row.modality == "CT" and not row.localizer]
    if len(rows) != 1:
        raise InputError(
            f"{source}: expected one CT series, found {len(rows)}; name the folder of one series"
        )
    to_file = target.lower().endswith(NIFTI)
    place = _address(target).rpartition("/")[0] if to_file else target
    refuse_source_folder(rows[0].files, Folder(place))
    if not any_phase:
        _require_plain(rows[0])
    series = read_series(fetch(rows[0].files))
    virtual = cascade.predict(series.volume, method, tick, phase)
    if to_file:
        _put_nifti(virtual, target)
        return Generated(series.volume, virtual, target, 1)
    names = write_series(
        series,
        virtual.hu,
        Folder(target),
        model_id=f"DyeFreeNet {__version__} {cascade.recipe.name} {method}",
        weights_sha256=cascade.method(method).weights_sha256,
        phase=phase or cascade.recipe.ingest.phase,
        made_on=now,
    )
    return Generated(series.volume, virtual, target, len(names))


def _require_plain(row: SeriesRow) -> None:
    _, refused = plain_only([row])
    if refused:
        raise SeriesError(
            refused[0].reason, f"{refused[0].detail}; if it is plain CT all the same: --any-phase"
        )


def _put_nifti(volume: Volume, uri: str, axes: str = "LPS") -> None:
    """A NIfTI file at any address, whole or not at all."""
    folder, _, name = _address(uri).rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / ("volume.nii.gz" if name.lower().endswith(".gz") else "volume.nii")
        write_nifti(volume, local, axes)
        Folder(folder).write(name, local.read_bytes())


def _address(uri: str) -> str:
    """As ``Folder`` has it: a local path is made absolute."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())
