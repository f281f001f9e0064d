"""Parts that the networks share: a norm that spans workers, and the double convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dyefreenet.config import PHASES
from dyefreenet.workers import world_size

Norm = Literal["batch", "group", "none"]

# B batch, C channels, H W pixels.


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics span all workers, on CPU as on GPU.

    torch's own SyncBatchNorm refuses the CPU. With one worker this is the usual batch norm, and N
    workers at the same global batch, in parts of any size, compute the same values, up to the order
    of sums.
    """

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        if not self.training or world_size() == 1:
            return super().forward(values)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        sums = wide.sum((0, 2, 3)), (wide * wide).sum((0, 2, 3))
        counts = torch.full_like(sums[0], values.numel() // values.shape[1])
        # Differentiable, as the statistics are.
        mean, square, counts = dist_nn.all_reduce(torch.stack([*sums, counts]))
        count = counts[0].detach()
        mean, square = mean / count, square / count
        variance = (square - mean * mean).clamp_min(0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(values.dtype)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The norm after a convolution (paper.md G7)."""
    if kind == "batch":
        return BatchNorm2d(channels)
    if kind == "group":
        groups = 8 if channels % 8 == 0 else 1
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


class PhaseShift(nn.Module):
    """Tells a network which phase to make: a learnt addend for each feature of each level.

    All are 0 at first, so a network that is told starts as one that is not.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        still = [torch.zeros(len(PHASES), width) for width in widths]
        self.levels = nn.ModuleList(nn.Embedding.from_pretrained(w, freeze=False) for w in still)

    def forward(self, level: int, features: Tensor, phase: Tensor | None) -> Tensor:
        """[B, C, H, W] to the same shape; ``phase`` by its place in ``PHASES``, [B]."""
        if phase is None:
            return features
        addend: Tensor = self.levels[level](phase)
        return features + addend[:, :, None, None].to(features.dtype)


class DoubleConv(nn.Sequential):
    """(3x3 convolution, norm, ReLU) twice: a *convolutional block* of the paper."""

    def __init__(self, incoming: int, outgoing: int, norm: Norm) -> None:
        bias = norm == "none"  # a norm has a shift of its own
        super().__init__(
            nn.Conv2d(incoming, outgoing, 3, padding=1, bias=bias),
            make_norm(norm, outgoing),
            nn.ReLU(inplace=True),
            nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=bias),
            make_norm(norm, outgoing),
            nn.ReLU(inplace=True),
        )

    def fold_batch_norm(self) -> None:
        """Make batch norm, one factor and one addend in eval mode, part of the convolutions."""
        for at, norm in enumerate(self):
            if isinstance(norm, nn.BatchNorm2d):
                convolution = self[at - 1]
                assert isinstance(convolution, nn.Conv2d)
                self[at - 1], self[at] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
