#!/usr/bin/env python3
"""Parameters and FLOP of each network as the recipe has it: the table of docs/method.md.

python benchmarks/networks.py [--recipe paper]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyefreenet import recipes
from dyefreenet.models.classifier import IntensityHead
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator, UNet


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters and FLOP of each network.")
    parser.add_argument("--recipe", default="paper")
    recipe = recipes.load(parser.parse_args().recipe)
    full, half = recipe.grid.size, recipe.grid.size // 2
    generator, unet, primary = recipe.generator, recipe.unet, recipe.primary
    critic = PatchDiscriminator(6, primary.discriminator_base, primary.discriminator_norm)
    head = IntensityHead(recipe.ssl.head, half, len(recipe.ssl.coefficients))
    rows: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
        (f"generator, {half}", HighResolutionGenerator(generator), (slices(half),)),
        (f"generator, {full}", HighResolutionGenerator(generator), (slices(full),)),
        (
            f"U-Net, {full}",
            UNet(unet.generator, unet.slices),
            (slices(full)[:, : unet.slices],),
        ),
        (f"discriminator, {full}", critic, (slices(full), slices(full))),
        (f"SSL head, {half}", head, (slices(half),)),
    ]
    for name, network, inputs in rows:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(*inputs)
        parameters = sum(weight.numel() for weight in network.parameters()) / 1e6
        print(f"{name:20} {parameters:8.2f} M {counter.get_total_flops() / 1e9:8.1f} GFLOP")


def slices(side: int) -> Tensor:
    return torch.zeros(1, 3, side, side)


if __name__ == "__main__":
    main()
