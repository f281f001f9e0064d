#!/usr/bin/env python3
"""The training step of the paper's primary stage against the same step as it is usually written.

    python benchmarks/training.py [--size 512] [--rounds 5] [--threads 2]

In turns, on the same made-up slices:

- ours: bf16 convolutions, channels last, as ``fit`` runs it with ``precision: bf16``;
- fp32 NCHW: our step without either;
- naive: fp32 NCHW as tutorials have it: virtual slices made anew for the generator's turn, a
  discriminator that collects gradients then, features of the true slices with a graph, Adam as it
  comes.

The rate of convolutions is measured in the same process, between the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dyefreenet import recipes
from dyefreenet.models import losses
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.models.scale import to_half
from dyefreenet.stages import primary
from dyefreenet.stages.bench import convolution_rate


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step against the usual ones.")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plain = torch.rand(4, 3, options.size, options.size) * 2 - 1
    contrast = (plain + 0.1).clamp(-1, 1)
    steps = {
        "ours": ours(plain, contrast, "bf16"),
        "fp32 NCHW": ours(plain, contrast, "fp32"),
        "naive": naive(plain, contrast),
    }
    with FlopCounterMode(display=False) as counter:
        steps["ours"]()
    gflop = counter.get_total_flops() / 1e9
    cpu = torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    shares = []
    for _ in range(options.rounds + 1):
        rate = convolution_rate(cpu, "bf16")
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
        shares.append(gflop / seconds["ours"][-1] / rate)
    print(
        f"primary of the paper, 4 slices of {options.size} x {options.size}, {options.threads} "
        f"threads, {options.rounds} rounds, {gflop:.0f} GFLOP a step"
    )
    for name, taken in seconds.items():
        ratio = statistics.median(
            b / a for a, b in zip(seconds["ours"][1:], taken[1:], strict=True)
        )
        print(f"{name:10} {statistics.median(taken[1:]):7.2f} s   {ratio:5.2f} x ours")
    print(f"ours: {statistics.median(shares[1:]):.0%} of the rate of bf16 convolutions alone")


def ours(plain: Tensor, contrast: Tensor, precision: str) -> Callable[[], object]:
    recipe = recipes.load("paper", [f"primary.precision={precision}"])
    weights = HighResolutionGenerator(recipe.generator).state_dict()
    state = primary.build(recipe.primary, recipe, lambda _: weights)
    if precision == "bf16":
        state.to(torch.device("cpu"))
        plain, contrast = (
            values.contiguous(memory_format=torch.channels_last) for values in (plain, contrast)
        )
    batch = {"plain": plain, "contrast": contrast}

    def step() -> object:
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        ):
            return primary.step(state, batch, recipe.primary, recipe.grid)

    return step


def naive(plain: Tensor, contrast: Tensor) -> Callable[[], object]:
    recipe = recipes.load("paper")
    config = recipe.primary
    generator, eye = (HighResolutionGenerator(recipe.generator) for _ in range(2))
    critic = PatchDiscriminator(6, config.discriminator_base, config.discriminator_norm)
    eye.eval()
    settings = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    of_critic = torch.optim.Adam(critic.parameters(), **settings)
    of_generator = torch.optim.Adam(generator.parameters(), **settings)

    def step() -> None:
        half, real = to_half(plain), to_half(contrast)
        of_critic.zero_grad()
        fake = generator(half).detach()
        losses.discriminator_loss(critic(half, real), critic(half, fake), 1.0).backward()
        of_critic.step()
        of_generator.zero_grad()
        fake = generator(half)
        loss = losses.adversarial_loss(critic(half, fake), 1.0, False)
        loss = loss + config.mse_weight * losses.pixel_mse(fake, real)
        loss = loss + losses.perceptual_loss(eye.features(fake), eye.features(real))
        loss.backward()
        of_generator.step()

    return step


if __name__ == "__main__":
    main()
