"""Between full size, where slices live, and half size, where the cascade works (D7, G5)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


def to_half(values: Tensor) -> Tensor:
    """Area average of 2x2 pixels: [B, C, H, W] to [B, C, H/2, W/2]."""
    return F.avg_pool2d(values, 2)


def to_full(predicted: Tensor, plain: Tensor, upsample: Literal["image", "enhancement"]) -> Tensor:
    """A prediction at half size to full size, bilinear.

    ``image`` is the paper's up-sampling layer: what comes out is as sharp as half size allows.
    ``enhancement`` up-samples only what the contrast agent adds and lays it over the plain slice,
    whose own detail stays.

    Args:
        predicted: [B, C, H/2, W/2].
        plain: The plain slices at full size, [B, C, H, W].
    """
    if upsample == "image":
        return F.interpolate(predicted, scale_factor=2, mode="bilinear", align_corners=False)
    enhancement = predicted - to_half(plain)
    return plain + F.interpolate(enhancement, scale_factor=2, mode="bilinear", align_corners=False)


def as_seen(network: nn.Module, values: Tensor) -> Tensor:
    """Full-size slices as a network takes them: at half size, unless it packs pixels by itself."""
    return values if network.packed else to_half(values)


def as_full(
    network: nn.Module,
    predicted: Tensor,
    plain: Tensor,
    upsample: Literal["image", "enhancement"],
) -> Tensor:
    """What a network made of ``as_seen`` at full size; the rest as for ``to_full``."""
    return predicted if network.packed else to_full(predicted, plain, upsample)
