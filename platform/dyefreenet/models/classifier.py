"""The intensity classifier of self-supervised pretraining: three fully connected layers (S4)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class IntensityHead(nn.Module):
    """Logits of the K intensity classes from the generator's output; softmax is in the loss.

    ``paper`` flattens the whole map (50 million parameters at 256x256, and one size only);
    ``pooled`` first averages it to 8x8, so that any size goes in.
    """

    def __init__(self, kind: Literal["paper", "pooled"], size: int, classes: int) -> None:
        super().__init__()
        self.pooled_to = 8 if kind == "pooled" else None
        side = self.pooled_to or size
        self.layers = nn.Sequential(
            nn.Linear(3 * side * side, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, classes),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Generator output [B, 3, H, W] to logits [B, K]."""
        if self.pooled_to:
            maps = F.adaptive_avg_pool2d(maps, self.pooled_to)
        return self.layers(maps.flatten(1))  # type: ignore[no-any-return]
