"""A global HU remap, the cheapest rival: each plain HU becomes the mean contrast HU seen for it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = -1024, 3071  # HU; what lies outside keeps its value


def fit(pairs: Iterable[tuple[NDArray[np.int16], NDArray[np.int16]]]) -> NDArray[np.float64]:
    """Mean contrast HU for every plain HU from ``LOW`` to ``HIGH``, from training slices alone.

    Args:
        pairs: Plain and contrast HU of the same shape.

    Returns:
        One value per HU; a HU that never came up maps to itself.
    """
    sums = np.zeros(HIGH - LOW + 1)
    counts = np.zeros(HIGH - LOW + 1)
    for plain, contrast in pairs:
        place = np.clip(plain, LOW, HIGH).ravel().astype(np.int64) - LOW
        sums += np.bincount(place, contrast.ravel().astype(np.float64), len(sums))
        counts += np.bincount(place, minlength=len(counts))
    own = np.arange(LOW, HIGH + 1, dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), own)


def apply(plain: NDArray[np.int16], table: NDArray[np.float64]) -> NDArray[np.int16]:
    """The remapped scan, int16 HU of the same shape."""
    mapped = np.rint(table).astype(np.int16)[np.clip(plain, LOW, HIGH).astype(np.int64) - LOW]
    return np.where((plain < LOW) | (plain > HIGH), plain, mapped)
