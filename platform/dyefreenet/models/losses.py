"""Eqs 1-5 of the paper as pure functions: tensors in, scalars out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def intensity_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Eq. 1: mean of -log p over the K intensity versions of each slice.

    Args:
        logits: [B * K, K].
        classes: Index of the coefficient that was applied, [B * K].
    """
    return F.cross_entropy(logits, classes)


def judge(logits: Tensor, label: float, mse_weight: float) -> Tensor:
    """BCE-with-logits and MSE of a map of logits against one label (the two terms of Eq. 4)."""
    target = torch.full_like(logits, label)
    loss = F.binary_cross_entropy_with_logits(logits, target)
    if mse_weight:
        loss = loss + mse_weight * F.mse_loss(logits, target)
    return loss


def discriminator_loss(real: Tensor, fake: Tensor, mse_weight: float) -> Tensor:
    """Eq. 4: half the sum over real maps as ones and virtual maps as zeros (paper.md A3)."""
    return 0.5 * (judge(real, 1.0, mse_weight) + judge(fake, 0.0, mse_weight))


def adversarial_loss(fake: Tensor, mse_weight: float, saturating: bool) -> Tensor:
    """The generator's part of Eq. 2.

    Saturating is Eq. 2 to the letter, log(1 - D); it has little gradient where D is sure. The other
    form asks D to call the virtual scan real (paper.md A4).
    """
    if saturating:
        return -F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    return 0.5 * judge(fake, 1.0, mse_weight)


def enhanced(plain: Tensor, contrast: Tensor) -> Tensor:
    """How far each pixel enhances in truth: 0 where it does not, 1 where it does much.

    The square of |contrast - plain|, which saturates at 0.25 in the units of the network (100 HU at
    the default window): noise counts little and every vessel much.
    """
    return ((contrast - plain).abs() / 0.25).clamp(max=1.0) ** 2


def pixel_mse(fake: Tensor, real: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Eq. 3."""
    return (weights * (fake - real) ** 2).mean()


def pixel_l1(fake: Tensor, real: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """L1 term of Pix2Pix (Isola et al. 2017, Eq. 3)."""
    return (weights * (fake - real).abs()).mean()


def perceptual_loss(
    fake: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Third term of Eq. 5: over blocks j, squared distance of features divided by C*H*W (L2).

    Args:
        weights: Of each block; None: all 1, as in the paper.

    Features in bf16 are summed in fp32 as they are: copies of all of them would take longer than
    the sums.
    """
    with torch.autocast(fake[0].device.type, enabled=False):
        terms = [
            weight * _mean_square(a - b)
            for weight, a, b in zip(weights or [1.0] * len(fake), fake, real, strict=True)
        ]
    return torch.stack(terms).sum()


def _mean_square(differences: Tensor) -> Tensor:
    wide = torch.float32 if differences.dtype == torch.bfloat16 else differences.dtype
    return torch.linalg.vector_norm(differences, dtype=wide).square() / differences.numel()
