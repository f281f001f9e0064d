"""How fast a training step is, against what the convolutions of this machine can do.

The rate of the convolutions is measured in the same run, on shapes of the network, in the precision
and the layout of the step: a share of it is a figure that a busy machine does not bend.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dyefreenet.config import Recipe
from dyefreenet.data.slices import Batch
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.stages import STAGES
from dyefreenet.train.loop import fit

# Which part of a step an operator of torch belongs to, by what its name holds; the first that fits.
PARTS = {
    "convolution": ("conv", "mkldnn_reorder"),
    "norm": ("batch_norm", "group_norm"),
    "resampling": ("max_pool", "avg_pool", "upsample", "interpolate", "grid_sampler"),
    "optimiser": ("adam", "lerp", "norm"),  # norms of gradients, and of the perceptual term too
    "copies and casts": ("copy", "aten::cat", "catbackward", "clone", "contiguous", "aten::to"),
}
REST = "other arithmetic"


@dataclass(frozen=True)
class StepFigures:
    """Of one stage's training step, the whole global batch on one device.

    Attributes:
        seconds: Median of a step.
        gflop: Of all convolutions and matrix products, forward and backward.
        convolution_rate: GFLOP/s that convolutions alone reach here.
        waiting_share: Of the time, in ``fit`` on batches that lie in memory.
        parts: Share of the time by part of the step.
    """

    stage: str
    device: str
    precision: str
    batch: int
    size: int
    seconds: float
    gflop: float
    convolution_rate: float
    waiting_share: float
    parts: dict[str, float]

    @property
    def share(self) -> float:
        """Of the convolutions' rate."""
        return self.gflop / self.seconds / self.convolution_rate

    def __str__(self) -> str:
        lines = [
            f"{self.stage}, {self.batch} slices of {self.size} x {self.size}, {self.precision}, "
            f"{self.device}",
            f"  {1 / self.seconds:.3f} steps/s, {self.batch / self.seconds:.2f} slices/s, "
            f"{self.seconds * 1000:.0f} ms a step",
            f"  {self.gflop:.0f} GFLOP a step: {self.gflop / self.seconds:.0f} GFLOP/s, "
            f"{self.share:.0%} of what convolutions alone reach here ({self.convolution_rate:.0f})",
            f"  waiting for data in memory: {self.waiting_share:.1%}",
        ]
        lines += [f"  {share:6.1%} {part}" for part, share in self.parts.items()]
        return "\n".join(lines)


def bench_step(
    recipe: Recipe, stage: str, device: torch.device, steps: int = 5, batch: int | None = None
) -> StepFigures:
    """Time the step of a stage on made-up slices, with the loop that trains it.

    Args:
        steps: Timed; two more come before them.
        batch: In place of the recipe's, where a device has room for more.
    """
    spec = STAGES[stage]
    config = spec.config(recipe)
    config = config.model_copy(update={"batch": batch or config.batch})
    size = config.crop or recipe.grid.size
    state = spec.code.build(config, recipe, lambda _: _weights(recipe))
    if config.ema:
        state.start_averages()
    state.to(device)
    slices = _slices(config.batch, size)

    def take(count: int) -> tuple[list[float], float]:
        """Seconds of each step in ``fit``, and the share of them that went by waiting."""
        ends = [time.perf_counter()]
        told: list[dict[str, float]] = []

        def tick(step: int, rate: float) -> None:
            _finish(device)
            ends.append(time.perf_counter())

        state.step = 0
        fit(
            spec.code,  # type: ignore[arg-type]  # a module with the functions of the protocol
            state,
            repeat(slices),
            config,
            recipe.grid,
            steps=count,
            epoch_steps=count,
            device=device,
            validation=lambda: iter(()),
            report=told.append,
            tick=tick,
        )
        return np.diff(ends).tolist(), told[-1]["waiting_share"]

    times, waiting = take(steps + 2)
    with FlopCounterMode(display=False) as counter:
        take(1)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiled:
        take(1)
    return StepFigures(
        stage=stage,
        device=_name(device),
        precision=config.precision,
        batch=config.batch,
        size=size,
        seconds=statistics.median(times[2:]),
        gflop=counter.get_total_flops() / 1e9,
        convolution_rate=convolution_rate(device, config.precision),
        waiting_share=waiting,
        parts=_parts(profiled, device),
    )


def convolution_rate(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """GFLOP/s of 3x3 convolutions, forward, the best of the network's shapes."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for channels, side in ((32, 256), (64, 128), (128, 64), (256, 32), (512, 16)):
        values = torch.randn(4, channels, side, side, device=device, dtype=kind)
        layer = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=kind)
        values = values.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flop = 2.0 * 4 * channels * channels * 9 * side * side
        with torch.inference_mode():
            for _ in range(3):
                layer(values)
            _finish(device)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                layer(values)
                count += 1
                _finish(device)
            best = max(best, flop * count / (time.perf_counter() - began) / 1e9)
    return best


def _parts(profiled: profile, device: torch.device) -> dict[str, float]:
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        if device.type == "cuda":
            time_us = event.self_device_time_total
        else:
            time_us = event.self_cpu_time_total
        name = event.key.lower()
        fits = (part for part, words in PARTS.items() if any(word in name for word in words))
        part = next(fits, REST)
        spent[part] = spent.get(part, 0.0) + time_us
    total = sum(spent.values())
    return {part: us / total for part, us in sorted(spent.items(), key=lambda one: -one[1])}


def _slices(batch: int, size: int) -> Batch:
    draw = np.random.default_rng(0)
    plain = draw.integers(-200, 300, (batch, 3, size, size), np.int16)
    return {"plain": plain, "contrast": plain + np.int16(40), "phase": np.ones(batch, np.int64)}


def _weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return HighResolutionGenerator(recipe.generator).state_dict()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
