"""HU to the range of the networks and back; the only file that knows the window (paper.md D6).

Written for numpy arrays and torch tensors alike: only arithmetic and ``clip``.
"""

from __future__ import annotations

from typing import TypeVar

Array = TypeVar("Array")  # numpy array or torch tensor, float
Window = tuple[float, float]  # HU at -1 and at +1


def to_network(hu: Array, window: Window) -> Array:
    """HU to [-1, 1]; values outside the window are clipped."""
    low, high = window
    return (hu.clip(low, high) - low) * (2.0 / (high - low)) - 1.0  # type: ignore[attr-defined]


def from_network(values: Array, window: Window) -> Array:
    """[-1, 1] to HU; values that overshoot are clipped to the window."""
    low, high = window
    return (values.clip(-1.0, 1.0) + 1.0) * ((high - low) / 2.0) + low  # type: ignore[attr-defined]


def apply_prediction(source_hu: Array, predicted: Array, window: Window) -> Array:
    """HU of the virtual scan: HU_in + denorm(G) - clip(HU_in).

    Inside the window this is the prediction; what lies outside the window (air, dense bone, metal)
    keeps its own HU and moves by the predicted change alone.
    """
    low, high = window
    return source_hu + from_network(predicted, window) - source_hu.clip(low, high)  # type: ignore[attr-defined, operator, no-any-return]
