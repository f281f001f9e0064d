#!/usr/bin/env python3
"""Predicting with the shipped cascade: as torch does it by itself, and as ``Cascade.load`` does.

    python benchmarks/inference.py [--rounds 10] [--threads 1] [--patients 8] [--recipe paper]
    python benchmarks/inference.py --device cuda --recipe paper

In turns, in CPU seconds (what a busy machine bends least), a slice through both networks:

- as usual: fp32 NCHW, eager, batch norm by itself;
- exact: fp32, channels last, batch norm folded;
- auto: bf16 too, where this CPU computes in it. Where it does not, auto is exact.

Once for the networks alone and once for all that ``Cascade.predict`` does to a slice of 512x512.
The same convolutions, each by itself on the very input it had, are timed in the same rounds: their
time over that of the networks is the share of the convolutions' rate that the networks reach.

Then what it costs: exact and bf16 against the true contrast scans of made-up patients whom the
networks have not seen. bf16 is measured on any CPU; where it is emulated that takes a while.

With ``--recipe`` the networks of a recipe, with random weights: their speed alone.

On a GPU, in seconds that pass: primary and refine with one triplet at a time and with as many as
``Cascade.predict`` takes, their share of the roofline of ``stages/bench.py``, and all of a slice.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import safetensors.torch
import torch
from quality import FURTHER, make_slab
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from dyefreenet import recipes
from dyefreenet.cascade import Cascade, Method, computes_bf16
from dyefreenet.config import Recipe
from dyefreenet.data.volume import Volume
from dyefreenet.evaluate.metrics import psnr
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.stages import refine
from dyefreenet.stages.bench import Counter, convolution_rate, roofline
from dyefreenet.store import Folder
from dyefreenet.train.state import load_weights

WINDOW = (-200, 400)  # HU in which PSNR is told
SIZE = 512  # pixels of a slice, over a field of 384 mm


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference on the CPU, and what bf16 loses.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--recipe", help="its networks, untrained, in place of the shipped ones")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(str(files("dyefreenet") / "weights"))
        if options.recipe:
            folder = untrained(recipes.load(options.recipe), Folder(place))
        if options.device == "cuda":
            speed_on_gpu(folder, options.rounds)
        else:
            speed(folder, options.rounds, options.threads)
        if not options.recipe:
            loss(folder, options.patients)


# ---- speed ---------------------------------------------------------------------------------------


def speed(folder: Folder, rounds: int, threads: int) -> None:
    auto = Cascade.load(folder)
    ways = {
        "as usual": as_usual(folder, auto.recipe),
        "exact": Cascade.load(folder, precision="exact"),
        "auto": auto,
    }
    hu = np.random.default_rng(0).integers(-200, 400, (3, SIZE, SIZE), np.int16)
    volume = Volume(hu, (3.0, 384 / SIZE, 384 / SIZE))
    side = round(384 / auto.recipe.grid.pixel_mm) if auto.recipe.grid.pixel_mm else SIZE
    triplet, phase = torch.rand(1, 3, side, side) * 2 - 1, torch.tensor([1])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        calls = convolutions(lambda: auto.method("refine").predict(triplet, phase))
    gflop = counter.get_total_flops() / 1e9
    seconds: dict[str, list[float]] = defaultdict(list)
    rates = []
    kind = "bf16" if computes_bf16("cpu") else "fp32"
    for _ in range(rounds + 1):  # the first warms up
        rates.append(convolution_rate(torch.device("cpu"), kind))
        with torch.inference_mode():
            for name, cascade in ways.items():
                networks = cascade.method("refine").predict
                seconds[name].append(cpu_seconds(lambda run=networks: run(triplet, phase)))
                whole = cpu_seconds(lambda run=cascade: run.predict(volume)) / len(hu)
                seconds[f"{name}, all"].append(whole)
            alone = cpu_seconds(lambda: [layer(given) for layer, given in calls])
            seconds["convolutions"].append(alone)

    def times(one: str, other: str) -> float:
        pairs = zip(seconds[one][1:], seconds[other][1:], strict=True)
        return statistics.median(a / b for a, b in pairs)

    print(
        f"{auto.recipe.name}: {side}x{side} on the training grid, {gflop:.1f} GFLOP a slice; "
        f"{threads} threads, {rounds} rounds; auto is {kind}"
    )
    print("                  networks           all of a slice")
    for name in ways:
        cells = (
            f"{statistics.median(seconds[key][1:]) * 1000:7.1f} ms {times(base, key):5.2f} x"
            for key, base in ((name, "as usual"), (f"{name}, all", "as usual, all"))
        )
        print(f"{name:12}" + "     ".join(cells))
    shares = [gflop / s / r for s, r in zip(seconds["auto"][1:], rates[1:], strict=True)]
    print(
        f"auto: {times('convolutions', 'auto'):.0%} of the {kind} rate of its own convolutions, "
        f"{statistics.median(shares):.0%} of the best of other shapes "
        f"({statistics.median(rates):.0f} GFLOP/s)"
    )


def speed_on_gpu(folder: Folder, rounds: int) -> None:
    device = torch.device("cuda")
    usual, exact = as_usual(folder, Cascade.load(folder).recipe, "cuda"), "exact"
    ways = {
        "as usual, 1": (usual, 1),
        "exact, 1": (Cascade.load(folder, "cuda", exact), 1),
        "bf16, 1": (auto := Cascade.load(folder, "cuda"), 1),
        "bf16, 4": (auto, 4),
        "bf16, 16": (auto, 16),
        "compiled, 16": (compiled := Cascade.load(folder, "cuda", compiled=True), 16),
    }
    side = round(384 / auto.recipe.grid.pixel_mm) if auto.recipe.grid.pixel_mm else SIZE
    triplets, phases = torch.rand(16, 3, side, side) * 2 - 1, torch.ones(16, dtype=torch.int64)
    triplets, phases = triplets.to(device), phases.to(device)
    matrix_rate, copy_rate = roofline(device, "bf16")
    best = convolution_rate(device, "bf16")
    print(
        f"{torch.cuda.get_device_name()}, {auto.recipe.name}: {side}x{side} on the training grid; "
        f"bf16: matrix product {matrix_rate / 1000:.0f} TFLOP/s, copy {copy_rate / 1000:.1f} TB/s, "
        f"best convolution {best / 1000:.0f} TFLOP/s"
    )
    for name in ("primary", "refine"):
        print(
            f"{name}           ms a slice       TFLOP/s   roofline: operators, convolutions alone"
        )
        for way, (cascade, count) in ways.items():
            if name not in cascade.methods:
                continue
            network, given = cascade.method(name).predict, (triplets[:count], phases[:count])
            # Without inference mode: there a convolution is one operator with what it consists of.
            with torch.no_grad(), Counter() as counter:
                auto.method(name).predict(*given)
            with torch.inference_mode():
                taken = [gpu_seconds(network, *given) for _ in range(rounds + 3)][3:]
            seconds = statistics.median(taken)
            least = [max(f / matrix_rate, b / copy_rate) / 1e9 for f, b in counter.calls]
            alone = [t for t, (f, _) in zip(least, counter.calls, strict=True) if f]
            flop = sum(f for f, _ in counter.calls)
            shares = f"{sum(least) / seconds:.0%}, {sum(alone) / seconds:.0%}"
            print(
                f"  {way:14} {seconds / count * 1000:8.3f} {flop / seconds / 1e12:12.1f}      "
                + (shares if way.startswith(("bf16", "compiled")) else "")
            )
    hu = np.random.default_rng(0).integers(-200, 400, (64, SIZE, SIZE), np.int16)
    volume = Volume(hu, (3.0, 384 / SIZE, 384 / SIZE))
    for name, way in itertools.product(("primary", "refine"), ("auto", "compiled")):
        cascade = compiled if way == "compiled" else auto
        taken = [gpu_seconds(cascade.predict, volume, name) for _ in range(rounds)][1:]
        told = statistics.median(taken) / len(hu) * 1000
        print(f"{name}, {way}, all of a slice: {told:.2f} ms")


def gpu_seconds(run: Callable[..., object], *given: object) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run(*given)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def as_usual(folder: Folder, recipe: Recipe, device: str = "cpu") -> Cascade:
    """The refining cascade as ``load_state_dict`` and ``eval`` leave it."""
    networks: dict[str, nn.Module] = {}
    for name, step in (("primary", "primary"), ("generator", "refine")):
        network = HighResolutionGenerator(recipe.generator)
        network.load_state_dict(load_weights(folder / step))
        networks[name] = network.to(device).eval().requires_grad_(False)

    def predict(plain: Tensor, phase: Tensor) -> Tensor:
        return refine.predict(networks, plain, recipe.grid, phase)

    return Cascade(recipe, {"refine": Method("refine", predict, network.multiple, "", device)})


def convolutions(run: Callable[[], object]) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution that runs, with the input that it is given."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        if isinstance(layer, nn.Conv2d):
            calls.append((layer, given[0]))

    hook = register_module_forward_hook(keep)
    run()
    hook.remove()
    return calls


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def untrained(recipe: Recipe, folder: Folder) -> Folder:
    """A run whose primary and refine have random weights."""
    folder.write_json("recipe.json", recipe.model_dump(mode="json"))
    name = "weights/generator.safetensors"
    for step in ("primary", "refine"):
        content = safetensors.torch.save(HighResolutionGenerator(recipe.generator).state_dict())
        files = {name: (folder / step).write(name, content)}
        (folder / step).publish("untrained", {}, files=files)
    return folder


# ---- loss ----------------------------------------------------------------------------------------


def loss(folder: Folder, patients: int) -> None:
    exact, fast = (Cascade.load(folder, precision=kind) for kind in ("exact", "bf16"))
    recipe = exact.recipe
    assert recipe.phantom is not None
    phantom = recipe.phantom.model_copy(update={"label_maps": ()})  # real anatomy: not at hand
    print(f"\nPSNR in {WINDOW[0]} to {WINDOW[1]} HU of the body, {patients} made-up patients")
    lost, apart = [], []
    for index in range(FURTHER["judge"], FURTHER["judge"] + patients):
        slab, body = make_slab(phantom, recipe, "patient", index)
        assert slab.contrast is not None
        plain, true = slab.plain[1:-1], slab.contrast[1:-1].clip(*WINDOW)
        made = [cascade.predict_grid(plain, "refine") for cascade in (exact, fast)]
        scores = [psnr(true, hu.clip(*WINDOW), WINDOW[1] - WINDOW[0], body) for hu in made]
        difference = np.abs(made[0].astype(np.int32) - made[1])[body]
        lost.append(scores[0] - scores[1])
        apart.append(difference.max())
        print(
            f"patient {index}: exact {scores[0]:.4f} dB, bf16 {scores[1]:.4f} dB, lost "
            f"{lost[-1]:+.4f}; apart by {difference.mean():.2f} HU in the mean, "
            f"{np.percentile(difference, 99.9):.0f} in 99.9 %, {difference.max()} at most"
        )
    print(
        f"bf16 loses {statistics.fmean(lost):+.4f} dB in the mean, {max(lost):+.4f} at worst; "
        f"no voxel is more than {max(apart)} HU apart"
    )


if __name__ == "__main__":
    main()
