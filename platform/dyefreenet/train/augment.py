"""Random changes of training samples on the device, as ``data/slices.py`` has drawn them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, C channels, H W pixels; slices in [-1, 1].


def augmented(batch: dict[str, Tensor], window_hu: float) -> dict[str, Tensor]:
    """The samples changed as their ``augment`` says, plain and contrast by the same figures.

    Intensity changes within the window, as a scanner's other voltage would change it; what lies
    outside it is clipped in any case. Noise comes upon the plain slices alone: what is to be
    predicted stays as it was measured. It is drawn from the figures themselves, so that any number
    of workers sees the same.

    Args:
        batch: ``plain`` and perhaps ``contrast``, [B, C, H, W], and ``augment``, [B, 8].
        window_hu: Width of the window that [-1, 1] stands for, HU.
    """
    figures = batch["augment"].to(torch.float32)
    flip, angle, scale, x, y, gain, offset, noise = figures.unbind(1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack([flip * cos, -sin, x]), torch.stack([flip * sin, cos, y])
    moves = torch.stack(rows).permute(2, 0, 1)  # [B, 2, 3]: from a place in the result to one in it
    still = torch.eye(2, 3, device=moves.device)
    changed = dict(batch)
    del changed["augment"]
    for name in ("plain", "contrast"):
        if name not in batch:
            continue
        slices = batch[name]
        if not torch.equal(moves, still.expand_as(moves)):
            grid = F.affine_grid(moves, list(slices.shape), align_corners=False).to(slices.dtype)
            # Beyond the edge lies air: -1 after the shift by one, which zero padding gives.
            slices = F.grid_sample(slices + 1, grid, align_corners=False) - 1
        factor, addend = gain.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1)
        slices = (slices + 1).mul(factor).sub(1).add(addend)
        if name == "plain" and bool(noise.any()):
            slices = slices + torch.stack(
                [
                    _noise(one, figure, 2 * hu / window_hu)
                    for one, figure, hu in zip(slices, figures, noise, strict=True)
                ]
            )
        changed[name] = slices.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    return changed


def _noise(slices: Tensor, figures: Tensor, deviation: Tensor) -> Tensor:
    seed = int(figures.view(torch.int32).to(torch.int64).sum()) & 0x7FFF_FFFF
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(slices.shape, generator=draw).to(slices) * deviation
