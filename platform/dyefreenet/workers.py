"""What training workers do together; alone, a process is a group of one. No Ray."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of a tensor over all workers, in place; the tensor itself where there is one."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def of_first_worker(value: float, device: torch.device) -> float:
    """What the first worker has, known to all."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared)
