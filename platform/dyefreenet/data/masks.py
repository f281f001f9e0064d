"""Label maps that belong to plain series: somebody's drawing, or TotalSegmentator's.

Labels of a shard are numbered as those of the phantom (``LABELS``), so what a file's numbers mean
is told once, here: by ``ingest.structures``, or as TotalSegmentator's "total" task has them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyefreenet.config import IngestConfig
from dyefreenet.data.archive import SeriesRow
from dyefreenet.data.files import IMAGES
from dyefreenet.data.images import read_labels, write_nifti
from dyefreenet.data.phantom import LABELS
from dyefreenet.data.phantom.labelmaps import STRUCTURES
from dyefreenet.data.volume import Volume
from dyefreenet.errors import ConfigError, InputError, SeriesError
from dyefreenet.store import Folder

TOTALSEGMENTATOR = "totalsegmentator"  # in place of a folder: segment every plain series
NOT_INSTALLED = (
    "ingest.masks: expected TotalSegmentator to be installed, found no such package; "
    "pip install TotalSegmentator, or name a folder of label maps that it made elsewhere"
)


def require(config: IngestConfig) -> None:
    """That what the config asks for is there and has a name.

    Raises:
        ConfigError: A structure that nobody knows, or TotalSegmentator, which is not installed.
    """
    for name in config.structures:
        if name not in LABELS:
            raise ConfigError(
                f"ingest.structures: expected names of {', '.join(LABELS)}, found {name!r}"
            )
    if config.masks == TOTALSEGMENTATOR and find_spec(TOTALSEGMENTATOR) is None:
        raise ConfigError(NOT_INSTALLED)


def of_series(folder: Folder) -> dict[str, tuple[str, str]]:
    """Name and stamp of every label map of a folder, by what it is named for.

    Raises:
        InputError: There is none.
    """
    found = {}
    for name, stamp in folder.entries():
        ending = next((one for one in IMAGES if name.lower().endswith(one)), None)
        if ending is not None:
            found[Path(name[: -len(ending)]).name] = (name, stamp)
    if not found:
        raise InputError(
            f"{folder}: expected label maps named by the key or the UID of their plain series, as "
            f"in KEY.nii.gz, found none that ends in {', '.join(IMAGES)}"
        )
    return found


def mask_of(row: SeriesRow, found: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Name and stamp of a plain series' label map, "" twice where it has none.

    It is named for the series' key, its Series Instance UID, or, beside an image file, that file.
    """
    names = [row.key, row.series_uid]
    if row.is_image:
        file = Path(row.files[0]).name
        names += [file[: -len(one)] for one in IMAGES if file.lower().endswith(one)]
    return next((found[name] for name in names if name in found), ("", ""))


def read_mask(folder: Folder, name: str, plain: Volume) -> NDArray[np.int32]:
    """The file's numbers on the grid of the plain series, [Z, H, W]."""
    ending = next(one for one in IMAGES if name.lower().endswith(one))
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / f"labels{ending}"
        local.write_bytes(folder.read(name))
        return _read(local, plain)


def segmented(plain: Volume) -> NDArray[np.int32]:
    """What TotalSegmentator's "total" task makes of the plain series, [Z, H, W]."""
    try:
        from totalsegmentator.python_api import totalsegmentator
    except ImportError as error:
        raise ConfigError(NOT_INSTALLED) from error
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "plain.nii.gz", Path(scratch) / "labels.nii.gz"
        write_nifti(plain, given)
        totalsegmentator(given, made, ml=True, quiet=True)
        return _read(made, plain)


def numbered(
    mask: NDArray[np.int32], structures: Mapping[str, tuple[int, ...]]
) -> NDArray[np.uint8]:
    """A file's numbers to those of ``LABELS``; what no structure names becomes 0.

    Args:
        structures: Numbers of the file by the name of a structure; empty: TotalSegmentator's.
    """
    labels = np.zeros(mask.shape, np.uint8)
    for name, numbers in (structures or STRUCTURES).items():
        labels[np.isin(mask, numbers)] = LABELS[name]
    return labels


def _read(path: Path, plain: Volume) -> NDArray[np.int32]:
    try:
        return read_labels(path, plain)
    except SeriesError as error:
        raise SeriesError("mask", f"its label map: {error.detail}") from error
    except InputError as error:
        told = str(error).removeprefix(f"{path}: ")
        raise SeriesError("mask", f"its label map: {told}") from error
