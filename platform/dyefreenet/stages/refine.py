"""Refine stage: the primary's triplet to the final one, judged at full size (G5, T2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dyefreenet.config import CascadeStageConfig, GridConfig, Recipe
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.models.scale import as_full, as_seen
from dyefreenet.stages.adversarial import (
    Load,
    add_judges,
    freeze,
    score_predictions,
    take_weights,
    update_both,
)
from dyefreenet.train.state import TrainState, adam

SCORE = "psnr"  # of validation, by which epochs are compared


def build(config: CascadeStageConfig, recipe: Recipe, load: Load) -> TrainState:
    """G from the primary's weights, a new D; the primary itself is frozen and feeds G."""
    primary = HighResolutionGenerator(recipe.generator)
    take_weights(primary, load("primary"), "primary")
    generator = HighResolutionGenerator(recipe.generator)
    if config.init == "previous":
        take_weights(generator, load("primary"), "primary")
    state = TrainState({"generator": generator}, {"generator": adam(generator, config)})
    state.frozen["primary"] = freeze(primary)
    add_judges(state, config, recipe, load)
    return state


def step(
    state: TrainState, batch: dict[str, Tensor], config: CascadeStageConfig, grid: GridConfig
) -> dict[str, Tensor]:
    """One update of each network; D and the pixel term at full size, features at half.

    The feature network has learnt at half size, so that is where it looks.
    """
    plain, real = batch["plain"], batch["contrast"]
    fake = virtual(state, batch, config, grid)
    eye = state.frozen.get("features")
    seen = None if eye is None else (as_seen(eye, fake), as_seen(eye, real))
    return update_both(state, plain, fake, real, config, seen)


def predict(
    networks: dict[str, nn.Module], plain: Tensor, grid: GridConfig, phase: Tensor | None = None
) -> Tensor:
    """Full-size triplets in, full-size virtual triplets out, [B, 3, H, W] in [-1, 1].

    Args:
        phase: That is wanted, by its place in ``PHASES``, [B].
    """
    first, second = networks["primary"], networks["generator"]
    with torch.no_grad():
        initial = first(as_seen(first, plain), phase)
    return as_full(second, second(initial, phase), plain, grid.upsample)


def virtual(
    state: TrainState, batch: dict[str, Tensor], config: CascadeStageConfig, grid: GridConfig
) -> Tensor:
    """What the stage makes of a batch at this point of its training; see ``predict``."""
    networks = state.networks | {"primary": state.frozen["primary"]}
    return predict(networks, batch["plain"], grid, batch.get("phase"))


def validate(
    state: TrainState,
    batches: Iterator[dict[str, Tensor]],
    config: CascadeStageConfig,
    grid: GridConfig,
) -> dict[str, float]:
    """Windowed PSNR and error of enhanced pixels, at full size."""
    return score_predictions(batches, lambda batch: virtual(state, batch, config, grid), grid)
