"""The PatchGAN that judges pairs of plain and contrast CT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyefreenet.models.blocks import Norm, make_norm


class PatchDiscriminator(nn.Module):
    """4x4 convolutions of stride 2, base-2base-4base features, then a map of logits (A1, A2)."""

    def __init__(self, channels: int, base: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        incoming = channels
        for depth, outgoing in enumerate((base, 2 * base, 4 * base)):
            layers.append(nn.Conv2d(incoming, outgoing, 4, stride=2, padding=1))
            if depth:  # no norm on the first layer, as in Isola et al. 2017
                layers.append(make_norm(norm, outgoing))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            incoming = outgoing
        layers.append(nn.Conv2d(incoming, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, plain: Tensor, contrast: Tensor) -> Tensor:
        """Plain and (real or virtual) contrast, [B, C, H, W] each, to logits [B, 1, h, w]."""
        return self.layers(torch.cat([plain, contrast], dim=1))  # type: ignore[no-any-return]
