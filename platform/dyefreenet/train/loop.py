"""The only training loop. It knows no Ray: batches come in, reports go out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from dyefreenet import hu
from dyefreenet.config import GridConfig, OptimiserConfig, StageConfig
from dyefreenet.data.slices import Batch
from dyefreenet.train.augment import augmented
from dyefreenet.train.gpu import Replayed, ahead
from dyefreenet.train.state import TrainState, set_rate
from dyefreenet.workers import mean_over_workers, of_first_worker, world_size

Numbers = dict[str, float]


class Stage(Protocol):
    """What the loop asks of a stage; each file of ``stages/`` is one."""

    SCORE: str  # figure of ``validate`` by which one epoch is better than another; more is better

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
    identify: Callable[[int], str] = lambda step: "",
) -> None:
    """Train from ``state.step`` to ``steps``; validate and report at the end of every epoch.

    It ends before if ``config.patience`` epochs in a row were no better than one before them.

    Args:
        batches: This worker's part of each global batch, from ``state.step`` on.
        validation: Opens the validation batches anew; may yield nothing, as on all workers but one.
        report: Takes the epoch's figures and saves; called by every worker alike.
        tick: Told the step and the slices per second, for a progress line.
        identify: What the batch of a step was made of, for errors.

    Raises:
        FloatingPointError: A loss or gradient is not finite, on whichever worker; all workers raise
            it in the same step, and nothing is saved.
    """
    names: list[str] = []
    sums = torch.zeros(())
    step: Callable[..., dict[str, Tensor]] = stage.step
    ready: Iterator[Any] = batches
    if device.type == "cuda":
        ready = ahead(batches)
        if world_size() == 1:  # several talk to each other within a step
            step = Replayed(stage.step)
    began, waited, counted = time.monotonic(), 0.0, 0
    for network in state.networks.values():
        network.train()
    while state.step < steps and not _is_stale(state, config):
        asked = time.monotonic()
        batch = next(ready)
        waited += time.monotonic() - asked
        epoch = state.step / epoch_steps
        for optimiser in state.optimisers.values():
            for group in optimiser.param_groups:
                set_rate(group, learning_rate(config, epoch) * group["factor"])
        inputs = to_network(batch, grid, device)
        state.weight = len(batch["plain"]) * world_size() / config.batch
        # Weights change within a step, so no copy of them in bf16 may outlive its use.
        with torch.autocast(
            device.type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False
        ):
            terms = step(state, inputs, config, grid)
        names = list(terms)
        mine = torch.stack([term.detach().float() for term in terms.values()]) * state.weight
        values = mean_over_workers(mine)
        if not torch.isfinite(values).all():
            told = ", ".join(f"{k}={v:.4g}" for k, v in zip(names, values.tolist(), strict=True))
            raise FloatingPointError(
                f"step {state.step}: expected finite losses and gradients, found {told}; nothing "
                f"of this epoch was saved; the batch was {identify(state.step)}; look at it, or "
                "lower the learning rate"
            )
        sums = sums.to(device) + values
        state.step += 1
        if config.ema:
            state.update_averages(config.ema)
        counted += 1
        tick(state.step, counted * config.batch / max(time.monotonic() - began, 1e-9))
        if state.step % epoch_steps and state.step < steps:
            continue
        seconds = time.monotonic() - began
        means = dict(zip(names, (sums / counted).tolist(), strict=True))
        numbers = {name if "/" in name else f"loss/{name}": mean for name, mean in means.items()}
        numbers |= {
            "epoch": state.step / epoch_steps,
            "step": float(state.step),
            "lr": learning_rate(config, epoch),
            "slices_per_second": counted * config.batch / seconds,
            "waiting_share": waited / seconds,
        }
        numbers |= validate(stage, state.as_used(), validation(), config, grid, device)
        # Without validation, later is better.
        score = numbers.get(f"validation/{stage.SCORE}", float(state.step))
        numbers["score"] = score = of_first_worker(score, device)
        state.best, state.stale = (
            (score, 0) if score > state.best else (state.best, state.stale + 1)
        )
        report(numbers)
        sums, counted, began, waited = torch.zeros(()), 0, time.monotonic(), 0.0


def _is_stale(state: TrainState, config: StageConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def validate(
    stage: Stage,
    state: TrainState,
    batches: Iterator[Batch],
    config: StageConfig,
    grid: GridConfig,
    device: torch.device,
) -> Numbers:
    """The stage's validation figures, networks in eval mode meanwhile."""
    with evaluating(state):
        figures = stage.validate(
            state, (to_network(batch, grid, device) for batch in batches), config, grid
        )
    return {f"validation/{name}": value for name, value in figures.items()}


@contextmanager
def evaluating(state: TrainState) -> Iterator[None]:
    """Networks in eval mode and without gradients; then those that trained train again."""
    were_training = [network for network in state.networks.values() if network.training]
    for network in were_training:
        network.eval()
    with torch.inference_mode():
        yield
    for network in were_training:
        network.train()


def to_network(
    batch: Batch | dict[str, Tensor], grid: GridConfig, device: torch.device
) -> dict[str, Tensor]:
    """int16 HU [B, 3, H, W] to float [-1, 1] on the device, where the arithmetic is cheap.

    Channels lie last in memory: a tenth of a training step less on CPU (measured). What is no image
    goes to the device as it is.
    """
    tensors = {
        name: torch.as_tensor(values).to(device, non_blocking=True)
        for name, values in batch.items()
        if name != "augment"
    }
    for name, values in tensors.items():
        if values.dtype == torch.int16:
            wide = values.to(torch.float32, memory_format=torch.channels_last)
            tensors[name] = hu.to_network(wide, grid.window)
    if "augment" in batch:
        figures = torch.as_tensor(batch["augment"])
        tensors = augmented(tensors, figures, grid.window[1] - grid.window[0])
    return tensors


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
