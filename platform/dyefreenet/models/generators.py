"""The high-resolution generator of DyeFreeNet and the U-Net that it is measured against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyefreenet.config import GeneratorConfig
from dyefreenet.models.blocks import DoubleConv, PhaseShift

# B batch, C channels, H W pixels, L levels. A triplet is the slice below, the slice, the one above.


class HighResolutionGenerator(nn.Module):
    """U-Net-like, each encoder block fed by *all* earlier blocks (section 2.2; paper.md G1-G4, G6).

    With ``dense`` off a block is fed by the one before it alone, as in a U-Net. Level l works at
    1/2^l of the input's size, so H and W must be multiples of 2^(L-1). A ``packed`` network takes
    2x2 pixels as channels and gives them back: it costs what it would at half size, and sees all.
    """

    def __init__(self, config: GeneratorConfig, channels: int = 3) -> None:
        super().__init__()
        self.residual, self.packed = config.residual, config.packed
        channels *= 4 if config.packed else 1
        widths = [config.base * 2**level for level in range(config.levels)]
        self.multiple = 2 ** (config.levels - 1)  # of which H and W must be
        self.reach = config.levels if config.dense else 1  # earlier blocks that feed a block
        self.encoder = nn.ModuleList(
            DoubleConv(
                sum(widths[max(level - self.reach, 0) : level]) or channels, width, config.norm
            )
            for level, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            DoubleConv(widths[level] + widths[level + 1], widths[level], config.norm)
            for level in reversed(range(config.levels - 1))
        )
        self.phase = PhaseShift(widths) if config.target_phase else None
        between = 10 if not config.packed else 40
        self.texture = nn.Conv2d(config.base + channels, between, 1)  # G3: last map and input
        self.leave = nn.Conv2d(between, channels, 1)
        if self.residual:  # starts as the identity: what is not learnt yet is not enhanced
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def features(self, triplet: Tensor, phase: Tensor | None = None) -> list[Tensor]:
        """What every convolutional block yields, encoder first (the maps of Eq. 5's third term).

        Args:
            triplet: [B, C, H, W] in [-1, 1].
            phase: That is wanted, by its place in ``PHASES``, [B]; None: nothing is told.
        """
        return self._features(_entering(triplet, self.encoder, self.packed), phase)

    def _features(self, seen: Tensor, phase: Tensor | None) -> list[Tensor]:
        encoded: list[Tensor] = []
        pooled: list[Tensor] = []  # earlier features at the size of the level
        for level, block in enumerate(self.encoder):
            incoming = seen
            if level:
                # Halved once more each level: the maximum of maxima, without reading all anew.
                earlier = [*pooled, encoded[-1]][-self.reach :]
                pooled = [F.max_pool2d(feature, 2) for feature in earlier]
                incoming = torch.cat(pooled, dim=1)
            encoded.append(_told(self.phase, level, block(incoming), phase))
        rising, decoded = encoded[-1], []
        for block, skip in zip(self.decoder, reversed(encoded[:-1]), strict=True):
            upsampled = _doubled(rising)
            rising = block(torch.cat([upsampled, skip], dim=1))
            decoded.append(rising)
        return encoded + decoded

    def forward(self, triplet: Tensor, phase: Tensor | None = None) -> Tensor:
        """[B, C, H, W] in [-1, 1] to the same shape; it may overshoot: ``hu`` clips."""
        seen = _entering(triplet, self.encoder, self.packed)
        last = self._features(seen, phase)[-1]
        texture = self.texture(torch.cat([last, seen.to(last.dtype)], dim=1))
        predicted = _exact(self.leave, F.relu(texture, inplace=True))
        if self.packed:
            predicted = F.pixel_shuffle(predicted, 2)
        return triplet + predicted if self.residual else predicted


class UNet(nn.Module):
    """U-Net of Ronneberger et al. 2015 with bilinear up-sampling: the baseline (E2)."""

    def __init__(self, config: GeneratorConfig, channels: int) -> None:
        super().__init__()
        self.residual, self.packed = config.residual, config.packed
        channels *= 4 if config.packed else 1
        widths = [config.base * 2**level for level in range(config.levels)]
        self.multiple = 2 ** (config.levels - 1)
        self.encoder = nn.ModuleList(
            DoubleConv(widths[level - 1] if level else channels, width, config.norm)
            for level, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            DoubleConv(widths[level] + widths[level + 1], widths[level], config.norm)
            for level in reversed(range(config.levels - 1))
        )
        self.phase = PhaseShift(widths) if config.target_phase else None
        self.leave = nn.Conv2d(config.base, channels, 1)
        if self.residual:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, slices: Tensor, phase: Tensor | None = None) -> Tensor:
        """[B, C, H, W] in [-1, 1] to the same shape; ``phase`` by its place in ``PHASES``, [B]."""
        skips: list[Tensor] = []
        rising = _entering(slices, self.encoder, self.packed)
        for level, block in enumerate(self.encoder):
            rising = block(F.max_pool2d(rising, 2) if level else rising)
            rising = _told(self.phase, level, rising, phase)
            skips.append(rising)
        for block, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            upsampled = _doubled(rising)
            rising = block(torch.cat([upsampled, skip], dim=1))
        predicted = _exact(self.leave, rising)
        if self.packed:
            predicted = F.pixel_shuffle(predicted, 2)
        return slices + predicted if self.residual else predicted


def _told(shift: PhaseShift | None, level: int, features: Tensor, phase: Tensor | None) -> Tensor:
    return features if shift is None else shift(level, features, phase)


def _entering(slices: Tensor, encoder: nn.ModuleList, packed: bool) -> Tensor:
    """Slices as the first block takes them, [B, C, H, W], in the precision of its weights.

    Packed they are [B, 4C, H/2, W/2]: nothing is lost, and ``pixel_shuffle`` undoes it.
    """
    slices = slices.to(next(encoder.parameters()).dtype)
    return F.pixel_unshuffle(slices, 2) if packed else slices


def _doubled(features: Tensor) -> Tensor:
    """Bilinear to twice the size, in the precision of the features: autocast would make it fp32,
    which the next convolution takes back."""
    if features.dtype == torch.float32:
        return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.autocast(features.device.type, enabled=False):
        return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def _exact(last: nn.Conv2d, features: Tensor) -> Tensor:
    """The last convolution in the precision of its weights: bf16 has steps of 3 HU near 1."""
    if features.dtype == last.weight.dtype:
        return last(features)  # type: ignore[no-any-return]
    with torch.autocast(features.device.type, enabled=False):
        return last(features.to(last.weight.dtype))  # type: ignore[no-any-return]
