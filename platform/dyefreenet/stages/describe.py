"""Parameters, arithmetic and bytes of a recipe's networks, counted on the networks themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyefreenet.config import BaselineConfig, Recipe
from dyefreenet.models.classifier import IntensityHead
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator, UNet
from dyefreenet.stages import STAGES


@dataclass(frozen=True)
class NetworkSize:
    """One line of the table."""

    name: str
    size: int  # side of the slice that it sees, pixels
    parameters: int
    gflop: float  # of one slice forward, a multiplication and an addition counted as two


def describe(recipe: Recipe) -> list[NetworkSize]:
    """Every network of the recipe at its own size; on "meta" tensors, so nothing is allocated."""
    full = recipe.grid.size
    half = full // 2
    refine = recipe.refine
    rows = []
    with torch.device("meta"):
        generator = HighResolutionGenerator(recipe.generator)
        sizes = (full,) if generator.packed else (half, full)
        rows += [_row("high-resolution generator", generator, size, 3) for size in sizes]
        head = IntensityHead(recipe.ssl.head, sizes[0], len(recipe.ssl.coefficients))
        rows.append(_row(f"intensity head ({recipe.ssl.head})", head, sizes[0], 3))
        judge = PatchDiscriminator(6, refine.discriminator_base, refine.discriminator_norm)
        rows.append(_row("PatchGAN, primary", judge, half, 3, 3))
        rows.append(_row("PatchGAN, refine", judge, full, 3, 3))
        for name, config in (("U-Net", recipe.unet), ("U-Net of Pix2Pix", recipe.pix2pix)):
            assert isinstance(config, BaselineConfig)
            unet = UNet(config.generator, config.slices)
            halved = config.half and not unet.packed
            rows.append(_row(name, unet, half if halved else full, config.slices))
    return rows


def checkpoint_bytes(recipe: Recipe, stage: str) -> int:
    """Size of what a stage saves: networks, their averages, and the two moments of Adam."""
    config = STAGES[stage].config(recipe)
    with torch.device("meta"):
        before = HighResolutionGenerator(recipe.generator).state_dict()
        networks = STAGES[stage].code.build(config, recipe, lambda _: before).networks
    sizes = [
        tensor.numel() * tensor.element_size()
        for network in networks.values()
        for tensor in network.state_dict().values()
    ]
    return sum(sizes) * (4 if config.ema else 3)


def _row(name: str, network: nn.Module, size: int, *channels: int) -> NetworkSize:
    inputs = [torch.empty(1, count, size, size, device="meta") for count in channels]
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    parameters = sum(weight.numel() for weight in network.parameters())
    return NetworkSize(name, size, parameters, counter.get_total_flops() / 1e9)
