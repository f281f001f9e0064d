"""U-Net, and U-Net as the generator of Pix2Pix: what DyeFreeNet is measured against (E2).

Both are this file: without adversarial weight there is no discriminator, and it is a plain U-Net.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from dyefreenet.config import BaselineConfig, GridConfig, Recipe
from dyefreenet.models.generators import UNet
from dyefreenet.models.scale import as_full, as_seen
from dyefreenet.stages.adversarial import (
    Load,
    add_discriminator,
    score_predictions,
    update_both,
)
from dyefreenet.train.state import TrainState, adam

SCORE = "psnr"  # of validation, by which epochs are compared


def build(config: BaselineConfig, recipe: Recipe, load: Load) -> TrainState:
    """A U-Net from random weights, and for Pix2Pix a discriminator."""
    generator = UNet(config.generator, config.slices)
    state = TrainState({"generator": generator}, {"generator": adam(generator, config)})
    if config.adversarial_weight:
        add_discriminator(state, 2 * config.slices, config)
    return state


def step(
    state: TrainState, batch: dict[str, Tensor], config: BaselineConfig, grid: GridConfig
) -> dict[str, Tensor]:
    """One update of each network at full size; ``half`` makes the U-Net itself work at half."""
    plain, real = (_slices(batch[name], config) for name in ("plain", "contrast"))
    fake = virtual(state, batch, config, grid)
    return update_both(state, plain, fake, real, config)


def predict(
    networks: dict[str, nn.Module],
    plain: Tensor,
    grid: GridConfig,
    config: BaselineConfig,
    phase: Tensor | None = None,
) -> Tensor:
    """Full-size triplets in, virtual slices out, [B, 1 or 3, H, W] in [-1, 1].

    Args:
        phase: That is wanted, by its place in ``PHASES``, [B].
    """
    slices, network = _slices(plain, config), networks["generator"]
    if config.half:
        return as_full(network, network(as_seen(network, slices), phase), slices, grid.upsample)
    return network(slices, phase)  # type: ignore[no-any-return]


def virtual(
    state: TrainState, batch: dict[str, Tensor], config: BaselineConfig, grid: GridConfig
) -> Tensor:
    """What the stage makes of a batch at this point of its training; see ``predict``."""
    return predict(state.networks, batch["plain"], grid, config, batch.get("phase"))


def validate(
    state: TrainState,
    batches: Iterator[dict[str, Tensor]],
    config: BaselineConfig,
    grid: GridConfig,
) -> dict[str, float]:
    """Windowed PSNR and error of enhanced pixels, at full size."""
    return score_predictions(batches, lambda batch: virtual(state, batch, config, grid), grid)


def _slices(triplet: Tensor, config: BaselineConfig) -> Tensor:
    return triplet if config.slices == 3 else triplet[:, 1:2]
