"""One plain series to virtual contrast: DICOM in, derived DICOM out; NIfTI in, NIfTI out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from dyefreenet import __version__
from dyefreenet.cascade import Cascade
from dyefreenet.data.archive import scan
from dyefreenet.data.dicom import fetch, nifti_axes, read_nifti_at, read_series, write_nifti
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError
from dyefreenet.generate.export import write_series
from dyefreenet.store import Folder

NIFTI = (".nii", ".nii.gz")


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
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
    """Virtual contrast of the one plain series that ``source`` holds.

    Args:
        source: Folder or file of DICOM, or a NIfTI file; local or ``s3://``.
        target: Folder for DICOM; for NIfTI a file that ends in .nii or .nii.gz.
        made_on: Date of the series; None: now.

    Raises:
        InputError: There is no series, or more than one.
        SeriesError: The series cannot be used.
    """
    now = made_on or datetime.now(timezone.utc)
    if source.lower().endswith(NIFTI):
        plain = read_nifti_at(source)
        virtual = cascade.predict(plain, method, tick)
        path = target if target.lower().endswith(NIFTI) else f"{target}/virtual_contrast.nii.gz"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Voxel [i, j, k] of the output is voxel [i, j, k] of the input, whichever way its axes run.
        axes = nifti_axes(source) if Path(source).is_file() else "LPS"
        write_nifti(virtual, path, axes)
        return Generated(plain, virtual, path, 1)
    rows = [row for row in scan(source) if row.modality == "CT" and not row.localizer]
    if len(rows) != 1:
        raise InputError(
            f"{source}: expected one CT series, found {len(rows)}; name the folder of one series"
        )
    series = read_series(fetch(rows[0].files))
    virtual = cascade.predict(series.volume, method, tick)
    if target.lower().endswith(NIFTI):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(virtual, target)
        return Generated(series.volume, virtual, target, 1)
    names = write_series(
        series,
        virtual.hu,
        Folder(target),
        model_id=f"DyeFreeNet {__version__} {cascade.recipe.name} {method}",
        weights_sha256=cascade.method(method).weights_sha256,
        phase=cascade.recipe.ingest.phase,
        made_on=now,
    )
    return Generated(series.volume, virtual, target, len(names))
