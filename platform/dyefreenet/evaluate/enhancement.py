"""What a method adds to the plain scan, beside what the contrast agent added."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dyefreenet.evaluate.regions import sum_of_nine

LIT_HU = 100  # change of a 3x3 mean from which a voxel has lit up
NOTHING_HU = 30  # change of a 3x3 mean below which nothing has happened


class Enhancement(NamedTuple):
    """Figures of one patient; None where there is nothing to measure.

    Attributes:
        invented: Share of the body's voxels that lit up where the contrast agent did nothing.
        missed: Share of the body's voxels that the contrast agent lit up and the method did not.
        outside: Mean |predicted - plain| outside of the body, HU.
        flicker: Mean |step of the change| between neighbouring slices in the body, by true.
    """

    invented: float | None
    missed: float | None
    outside: float | None
    flicker: float | None


def measure(
    true: NDArray[np.int16],
    predicted: NDArray[np.int16],
    plain: NDArray[np.int16],
    body: NDArray[np.bool_],
) -> Enhancement:
    """Compare the changes predicted - plain and true - plain, slice by slice.

    Args:
        true: Measured contrast CT, HU, [Z, H, W].
        predicted: Virtual CT on the same grid.
        plain: The plain scan that it was made from.
        body: True inside the patient.
    """
    invented = missed = outside = 0
    steps = np.zeros(2, np.int64)  # of the method, of the contrast agent
    below: list[NDArray[np.int32]] = []
    for z, inside in enumerate(body):
        changes = [np.subtract(scan[z], plain[z], dtype=np.int32) for scan in (predicted, true)]
        made, real = (sum_of_nine(change)[inside] for change in changes)
        invented += int(((made > 9 * LIT_HU) & (real < 9 * NOTHING_HU)).sum())
        missed += int(((real > 9 * LIT_HU) & (made < 9 * NOTHING_HU)).sum())
        outside += int(np.abs(changes[0][~inside]).sum(dtype=np.int64))
        if below:
            both = inside & body[z - 1]
            steps += [
                np.abs(here[both] - there[both]).sum(dtype=np.int64)
                for here, there in zip(changes, below, strict=True)
            ]
        below = changes
    voxels = int(body.sum())
    return Enhancement(
        invented / voxels if voxels else None,
        missed / voxels if voxels else None,
        outside / (body.size - voxels) if voxels < body.size else None,
        float(steps[0] / steps[1]) if steps[1] else None,
    )
