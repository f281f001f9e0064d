"""Random changes of training samples on the device, as ``data/slices.py`` has drawn them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, C channels, H W pixels; slices in [-1, 1].


def augmented(batch: dict[str, Tensor], figures: Tensor, window_hu: float) -> dict[str, Tensor]:
    """The samples changed as their figures say, plain and contrast by the same.

    Intensity changes within the window, as a scanner's other voltage would change it; what lies
    outside it is clipped in any case. Noise comes upon the plain slices alone: what is to be
    predicted stays as it was measured. It is drawn from the figures themselves, so that any number
    of workers sees the same.

    Args:
        batch: ``plain`` and perhaps ``contrast``, [B, C, H, W], on any device.
        figures: As ``drawn``, [B, 8], in host memory: a GPU need not be asked what they are.
        window_hu: Width of the window that [-1, 1] stands for, HU.
    """
    device = batch["plain"].device
    figures = figures.to(torch.float32)
    flip, angle, scale, x, y, gain, offset, noise = figures.unbind(1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack([flip * cos, -sin, x]), torch.stack([flip * sin, cos, y])
    moves = torch.stack(rows).permute(2, 0, 1)  # [B, 2, 3]: from a place in the result to one in it
    moved = not torch.equal(moves, torch.eye(2, 3).expand_as(moves))
    moves, factor, addend = (
        values.contiguous().to(device)
        for values in (moves, gain.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1))
    )
    changed = dict(batch)
    for name in ("plain", "contrast"):
        if name not in batch:
            continue
        slices = batch[name]
        if moved:
            grid = F.affine_grid(moves, list(slices.shape), align_corners=False).to(slices.dtype)
            # Beyond the edge lies air: -1 after the shift by one, which zero padding gives.
            slices = F.grid_sample(slices + 1, grid, align_corners=False) - 1
        slices = (slices + 1).mul(factor).sub(1).add(addend)
        if name == "plain" and noise.any():
            slices = slices + torch.stack(
                [
                    _noise(one, figure, 2 * float(hu) / window_hu)
                    for one, figure, hu in zip(slices, figures, noise, strict=True)
                ]
            )
        changed[name] = slices.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    return changed


def _noise(slices: Tensor, figures: Tensor, deviation: float) -> Tensor:
    seed = int(figures.view(torch.int32).to(torch.int64).sum()) & 0x7FFF_FFFF
    draw = torch.Generator(slices.device).manual_seed(seed)
    noise = torch.randn(slices.shape, generator=draw, device=slices.device)
    return noise.to(slices) * deviation
