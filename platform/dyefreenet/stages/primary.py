"""Primary stage: plain triplet at half size to the first virtual contrast triplet (section 2.2)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from dyefreenet.config import CascadeStageConfig, GridConfig, Recipe
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.models.scale import as_full, as_seen, to_half
from dyefreenet.stages.adversarial import (
    Load,
    add_judges,
    score_predictions,
    take_weights,
    update_both,
)
from dyefreenet.train.state import TrainState, adam

SCORE = "psnr"  # of validation, by which epochs are compared


def build(config: CascadeStageConfig, recipe: Recipe, load: Load) -> TrainState:
    """G from the SSL weights (or random, the ablation), a new D, and the frozen feature network."""
    generator = HighResolutionGenerator(recipe.generator)
    if config.init == "previous":
        take_weights(generator, load("ssl"), "ssl")
    state = TrainState({"generator": generator}, {"generator": adam(generator, config)})
    add_judges(state, config, recipe, load)
    return state


def step(
    state: TrainState, batch: dict[str, Tensor], config: CascadeStageConfig, grid: GridConfig
) -> dict[str, Tensor]:
    """One update of each network; all at half size, unless it is judged at full size."""
    if config.judged_at == "full":
        plain, real = batch["plain"], batch["contrast"]
        fake = virtual(state, batch, config, grid)
        eye = state.frozen.get("features")
        seen = None if eye is None else (as_seen(eye, fake), as_seen(eye, real))
    else:
        plain, real = to_half(batch["plain"]), to_half(batch["contrast"])  # [B, 3, H/2, W/2]
        fake = state.networks["generator"](plain, batch.get("phase"))
        seen = (fake, real) if "features" in state.frozen else None
    return update_both(state, plain, fake, real, config, seen)


def predict(
    networks: dict[str, nn.Module], plain: Tensor, grid: GridConfig, phase: Tensor | None = None
) -> Tensor:
    """Full-size triplets in, full-size virtual triplets out, [B, 3, H, W] in [-1, 1].

    Args:
        phase: That is wanted, by its place in ``PHASES``, [B].
    """
    network = networks["generator"]
    return as_full(network, network(as_seen(network, plain), phase), plain, grid.upsample)


def virtual(
    state: TrainState, batch: dict[str, Tensor], config: CascadeStageConfig, grid: GridConfig
) -> Tensor:
    """What the stage makes of a batch at this point of its training; see ``predict``."""
    networks = state.networks
    return predict(networks, batch["plain"], grid, batch.get("phase"))


def validate(
    state: TrainState,
    batches: Iterator[dict[str, Tensor]],
    config: CascadeStageConfig,
    grid: GridConfig,
) -> dict[str, float]:
    """Windowed PSNR and error of enhanced pixels, at full size."""
    return score_predictions(batches, lambda batch: virtual(state, batch, config, grid), grid)
