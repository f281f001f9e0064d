"""The only training loop. It knows no Ray: batches come in, reports go out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from dyefreenet import hu
from dyefreenet.config import GridConfig, OptimiserConfig, StageConfig
from dyefreenet.data.slices import Batch
from dyefreenet.train.state import TrainState, mean_over_workers

Numbers = dict[str, float]


class Stage(Protocol):
    """What the loop asks of a stage; each file of ``stages/`` is one."""

    def step(
        self, state: TrainState, batch: dict[str, Tensor], config: StageConfig, grid: GridConfig
    ) -> dict[str, Tensor]:
        """One update of every network; the terms of the loss by name."""

    def validate(
        self,
        state: TrainState,
        batches: Iterator[dict[str, Tensor]],
        config: StageConfig,
        grid: GridConfig,
    ) -> Numbers:
        """Figures on the validation split; changes no weight."""


def fit(
    stage: Stage,
    state: TrainState,
    batches: Iterator[Batch],
    config: StageConfig,
    grid: GridConfig,
    *,
    steps: int,
    epoch_steps: int,
    device: torch.device,
    validation: Callable[[], Iterator[Batch]],
    report: Callable[[Numbers], None],
    tick: Callable[[int, float], None] = lambda step, rate: None,
) -> None:
    """Train from ``state.step`` to ``steps``; validate and report at the end of every epoch.

    Args:
        batches: This worker's part of each global batch, from ``state.step`` on.
        validation: Opens the validation batches anew; may yield nothing.
        report: Takes the epoch's figures and saves; called by every worker alike.
        tick: Told the step and the slices per second, for a progress line.

    Raises:
        FloatingPointError: A loss is not finite; nothing is saved.
    """
    sums: dict[str, Tensor] = {}
    began, counted = time.monotonic(), 0
    for network in state.networks.values():
        network.train()
    for batch in batches:
        epoch = state.step / epoch_steps
        for optimiser in state.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, epoch) * group["factor"]
        for name, term in stage.step(state, to_network(batch, grid, device), config, grid).items():
            sums[name] = sums[name] + term.detach() if name in sums else term.detach().clone()
        state.step += 1
        counted += 1
        tick(state.step, counted * config.batch / max(time.monotonic() - began, 1e-9))
        if state.step % epoch_steps and state.step < steps:
            continue
        totals = mean_over_workers(torch.stack(list(sums.values()))) / counted
        numbers = {f"loss/{name}": float(total) for name, total in zip(sums, totals, strict=True)}
        if not all(map(math.isfinite, numbers.values())):
            raise FloatingPointError(
                f"step {state.step}: expected finite losses, found {numbers}; nothing was saved"
            )
        seconds = time.monotonic() - began
        numbers |= {
            "epoch": state.step / epoch_steps,
            "step": float(state.step),
            "lr": learning_rate(config, epoch),
            "slices_per_second": counted * config.batch / seconds,
        }
        numbers |= validate(stage, state, validation(), config, grid, device)
        report(numbers)
        sums, counted, began = {}, 0, time.monotonic()
        if state.step >= steps:
            return


def validate(
    stage: Stage,
    state: TrainState,
    batches: Iterator[Batch],
    config: StageConfig,
    grid: GridConfig,
    device: torch.device,
) -> Numbers:
    """The stage's validation figures, networks in eval mode meanwhile."""
    for network in state.networks.values():
        network.eval()
    with torch.inference_mode():
        figures = stage.validate(
            state, (to_network(batch, grid, device) for batch in batches), config, grid
        )
    for network in state.networks.values():
        network.train()
    return {f"validation/{name}": value for name, value in figures.items()}


def to_network(batch: Batch, grid: GridConfig, device: torch.device) -> dict[str, Tensor]:
    """int16 HU [B, 3, H, W] to float [-1, 1] on the device, where the arithmetic is cheap.

    Channels lie last in memory: a tenth of a training step less on CPU (measured).
    """
    return {
        name: hu.to_network(
            torch.from_numpy(values)
            .to(device)
            .to(torch.float32, memory_format=torch.channels_last),
            grid.window,
        )
        for name, values in batch.items()
    }


def learning_rate(config: OptimiserConfig, epoch: float) -> float:
    """Rate at an epoch, whole or between two (S5, T1, T2: a step after ``decay_epoch``)."""
    total = getattr(config, "epochs", math.inf)
    if config.decay == "step":
        return config.lr * (config.gamma if epoch >= config.decay_epoch else 1.0)
    if config.decay == "cosine":
        return config.lr * max(0.5 * (1.0 + math.cos(math.pi * epoch / total)), 0.01)
    if config.decay == "linear":
        return config.lr * max(1.0 - epoch / total, 0.01)
    return config.lr
