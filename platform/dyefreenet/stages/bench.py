"""How fast a training step is, against what the convolutions of this machine can do.

The rate of the convolutions is measured in the same run, on shapes of the network, in the precision
and the layout of the step: a share of it is a figure that a busy machine does not bend. The
roofline (Williams et al. 2009) is stricter: an operator takes at least the time of its arithmetic
at the rate of a large matrix product, and of its tensors at the rate of a large copy. It is told
for all operators as they run one by one, and for the convolutions alone, as if all else were free.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dyefreenet.config import Recipe
from dyefreenet.data.slices import Batch
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.stages import STAGES
from dyefreenet.train.gpu import EAGER
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
        roofline_seconds: That all operators take at the least: arithmetic or memory, whichever is
            more.
        convolution_seconds: The same of the convolutions and matrix products alone.
        matrix_rate: GFLOP/s of a large matrix product.
        copy_rate: GB/s of a large copy, read and written.
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
    roofline_seconds: float
    convolution_seconds: float
    matrix_rate: float
    copy_rate: float
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
            f"  {self.roofline_seconds / self.seconds:.0%} of the roofline of its operators, "
            f"{self.convolution_seconds / self.seconds:.0%} of that of its convolutions alone "
            f"({self.matrix_rate:.0f} GFLOP/s, {self.copy_rate:.0f} GB/s)",
            f"  waiting for data in memory: {self.waiting_share:.1%}",
        ]
        lines += [f"  {share:6.1%} {part}" for part, share in self.parts.items()]
        return "\n".join(lines)


def bench_step(
    recipe: Recipe, stage: str, device: torch.device, steps: int = 5, batch: int | None = None
) -> StepFigures:
    """Time the step of a stage on made-up slices, with the loop that trains it.

    Args:
        steps: Timed; some more come before them.
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

    before = EAGER + 2 if device.type == "cuda" else 2
    times, waiting = take(before + steps)
    with Counter() as counter:
        take(1)
    matrix_rate, copy_rate = roofline(device, config.precision)
    least = [max(flop / matrix_rate, size / copy_rate) / 1e9 for flop, size in counter.calls]
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiled:
        take(1)
    return StepFigures(
        stage=stage,
        device=_name(device),
        precision=config.precision,
        batch=config.batch,
        size=size,
        seconds=statistics.median(times[before:]),
        gflop=sum(flop for flop, _ in counter.calls) / 1e9,
        convolution_rate=convolution_rate(device, config.precision),
        roofline_seconds=sum(least),
        convolution_seconds=sum(
            time for time, (flop, _) in zip(least, counter.calls, strict=True) if flop
        ),
        matrix_rate=matrix_rate,
        copy_rate=copy_rate,
        waiting_share=waiting,
        parts=_parts(profiled, device),
    )


class Counter(TorchDispatchMode):
    """Arithmetic and bytes of every operator that is more than a view.

    Attributes:
        calls: Floating-point operations as torch counts them, which are those of convolutions and
            matrix products; and bytes of all tensors that go in or come out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::detach")):
            count = flop_registry.get(func.overloadpacket)
            flop = count(*args, **(kwargs or {}), out_val=result) if count else 0
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.calls.append((flop, sum(x.numel() * x.element_size() for x in tensors)))
        return result


def roofline(device: torch.device, precision: str) -> tuple[float, float]:
    """GFLOP/s of a large matrix product, and GB/s of a large copy, read and written."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    memory = torch.empty(
        2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device
    )
    target = torch.empty_like(memory)
    matrix = 2 * side**3 / _best_seconds(lambda: left @ right, device)
    copy = 2 * memory.numel() / _best_seconds(lambda: target.copy_(memory), device)
    return matrix / 1e9, copy / 1e9


def _best_seconds(work: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    taken = []
    for _ in range(rounds + 3):
        _finish(device)
        began = time.perf_counter()
        work()
        _finish(device)
        taken.append(time.perf_counter() - began)
    return min(taken[3:])


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
        if event.device_type != DeviceType.CPU:  # kernels: their operators have their time too
            continue
        on_gpu = device.type == "cuda"
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
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
