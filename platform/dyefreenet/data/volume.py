"""A CT volume in HU with its place in the patient. No files are read or written here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dyefreenet.data.morphology import BODY_HU
from dyefreenet.errors import SeriesError

AIR_HU = -1024


@dataclass(frozen=True)
class Volume:
    """CT in HU with geometry, in the patient's LPS coordinates.

    Attributes:
        hu: int16, [Z, H, W], slices in the order of ``normal``; padding holds ``AIR_HU``.
        spacing: Distance between voxel centres in mm, (z, y, x).
        origin: Position of voxel [0, 0, 0] in mm, LPS (x, y, z).
        direction: Unit vectors in LPS, [3, 3]: rows are the way along columns (x index rising),
            along rows (y index rising), and from slice to slice (z index rising).
        padding: True where the scanner stored no measurement, [Z, H, W]; None where it stored all.
    """

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    padding: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16:
            raise ValueError(
                f"Volume.hu: expected int16 [Z, H, W], found {self.hu.dtype} {self.hu.shape}"
            )
        if self.padding is not None and self.padding.shape != self.hu.shape:
            raise ValueError(
                f"Volume.padding: expected shape {self.hu.shape}, found {self.padding.shape}"
            )
        if not all(np.isfinite(step) and step > 0 for step in self.spacing):
            raise ValueError(f"Volume.spacing: expected three lengths > 0 mm, found {self.spacing}")

    def with_hu(self, hu: NDArray[np.int16]) -> Volume:
        """The same place with other voxels."""
        return Volume(hu, self.spacing, self.origin, self.direction, self.padding)


def neighbours(z: int, total: int, breaks: Collection[int] = ()) -> list[int]:
    """The slices of a triplet: at an end, and beside a gap, the slice stands for its neighbour."""
    below = z if z == 0 or z - 1 in breaks else z - 1
    above = z if z == total - 1 or z in breaks else z + 1
    return [below, z, above]


def require_tissue(volume: Volume) -> None:
    """Refuse a scan of nothing.

    Raises:
        SeriesError: ``empty``.
    """
    low, high = int(volume.hu.min()), int(volume.hu.max())
    if high <= BODY_HU:
        raise SeriesError("empty", f"expected a body, found {low} to {high} HU")
