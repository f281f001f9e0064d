#!/usr/bin/env python3
"""A stage on Ray Train, fed by Ray Data, against a bare loop on batches that lie in memory.

    python benchmarks/through_ray.py --run RUN [--rounds 3] [--stage primary_scratch]

RUN is a run folder whose ingest is done, and the stages that this one needs. Both train the same
steps from the same weights with as many threads, in turn; their losses must be the same, to the
last bit. The rate is that of the epochs without saving, validation and start: in both, the first
epoch is left out, in which Ray starts its readers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dyefreenet import recipes, runtime
from dyefreenet.config import Recipe
from dyefreenet.data.shards import read_slab
from dyefreenet.data.slices import batches, schedule
from dyefreenet.stages import STAGES
from dyefreenet.store import Folder
from dyefreenet.train.loop import Numbers, fit
from dyefreenet.train.state import load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--stage", default="primary_scratch", choices=STAGES)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    run = Folder(options.run)
    recipe = recipes.validate(run.read_json("recipe.json"))
    field = STAGES[options.stage].field
    recipe = recipes.change(recipe, {f"{field}.epochs": options.epochs})
    runtime.connect()
    share = runtime.share_of(runtime.Resources(parallel=1))
    rates: dict[str, list[list[float]]] = {"bare loop": [], "through Ray": []}
    waited: list[float] = []
    for number in range(options.rounds):
        bare = in_memory(recipe, options.stage, run, share.threads)
        with tempfile.TemporaryDirectory() as scratch:
            ray = through_ray(recipe, options.stage, run, Folder(scratch), f"round-{number}", share)
        for one, other in zip(bare, ray, strict=True):
            terms = {key for key in one if key.startswith("loss/")}
            assert all(one[key] == other[key] for key in terms), (one, other)
        for name, epochs in (("bare loop", bare), ("through Ray", ray)):
            rates[name].append([epoch["slices_per_second"] for epoch in epochs])
        waited += [epoch["waiting_share"] for epoch in ray[1:]]
    print(f"{options.stage} of {recipe.name}, {share.threads} threads, losses the same to the bit")
    for name, found in rates.items():
        later = statistics.median(rate for epochs in found for rate in epochs[1:])
        first = statistics.median(epochs[0] for epochs in found)
        print(f"{name:12} {later:6.1f} slices/s; first epoch {first:.1f}")
    pairs = zip(*rates.values(), strict=True)
    ratios = [statistics.mean(ray[1:]) / statistics.mean(bare[1:]) for bare, ray in pairs]
    print(f"through Ray / bare loop: {statistics.median(ratios):.3f}, rounds {ratios}")
    print(f"waiting for data: {statistics.median(waited):.3f} of the time")


def in_memory(recipe: Recipe, stage: str, run: Folder, threads: int) -> list[Numbers]:
    """Epochs of a loop without Ray, whose batches were made before."""
    from dyefreenet.stages.launch import records_of

    torch.set_num_threads(threads)
    spec, ingest = STAGES[stage], run / "ingest"
    config = spec.config(recipe)
    records = records_of(ingest, stage, "train", recipe.phases(stage))
    slabs = {one.path: read_slab(ingest.read(one.path, one.sha256)) for one in records}
    plan = schedule(records, config.batch, config.epochs, recipe.seed)
    lanes = range(config.batch)
    ready = list(batches(plan, (slabs[path] for path in plan.paths(lanes)), lanes, config.crop))
    torch.manual_seed(recipe.seed)
    state = spec.code.build(config, recipe, lambda step: load_weights(run / step))
    if config.ema:
        state.start_averages()
    device = torch.device("cpu")
    told: list[Numbers] = []
    fit(
        spec.code,  # type: ignore[arg-type]  # a module with the functions of the protocol
        state.to(device),
        iter(ready),
        config,
        recipe.grid,
        steps=plan.steps,
        epoch_steps=plan.steps // config.epochs,
        device=device,
        validation=lambda: iter(()),
        report=told.append,
    )
    return told


def through_ray(
    recipe: Recipe, stage: str, run: Folder, target: Folder, name: str, share: runtime.Share
) -> list[Numbers]:
    """Epochs of the same training as a user's run has it."""
    from dyefreenet.stages.launch import make_trainer

    make_trainer(recipe, stage, run, target, name, 1, share).fit()
    lines = Path(target.uri, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s in all")
