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


def change(predicted: Array, plain: Array, window: Window) -> Array:
    """HU that the contrast agent would add: denorm(G(x)) - clip(HU_in), both from [-1, 1].

    Added to the source's own HU this is the paper's prediction inside the window, and nothing is
    lost of what the window does not show (paper.md D6).
    """
    return from_network(predicted, window) - from_network(plain, window)  # type: ignore[operator, no-any-return]
