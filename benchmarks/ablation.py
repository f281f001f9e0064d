#!/usr/bin/env python3
"""Many trainings of made-up patients beside each other on one machine, a GPU best; no Ray.

    python benchmarks/ablation.py benchmarks/plans/best.yaml --out FOLDER [--processes 12]

A plan lists trainings: a name, the recipe to start from, changes as ``--set`` takes them, stages in
order, seeds. Patients are those of ``quality.py``, by their split, and further ones to choose by
and to judge by: six are too few to choose by, and nine to judge by. Slices lie in memory; loop,
schedule, networks and losses are the platform's. FOLDER/rows.jsonl has every patient's figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from dyefreenet import hu, recipes
from dyefreenet.config import AugmentConfig, PhantomConfig, Recipe, SslConfig
from dyefreenet.data.archive import short_hash
from dyefreenet.data.cohort import split_of
from dyefreenet.data.phantom import ARTERIES, LABELS
from dyefreenet.data.phantom.patients import Patient, make_chest, make_patient
from dyefreenet.data.prepare import fit as fitted
from dyefreenet.data.prepare import in_plane, window_start
from dyefreenet.data.shards import Slab, SlabRecord
from dyefreenet.data.slices import batches, schedule, steps_per_epoch
from dyefreenet.data.volume import AIR_HU
from dyefreenet.evaluate.regions import body_mask
from dyefreenet.stages import STAGES
from dyefreenet.train.loop import fit
from dyefreenet.train.state import TrainState

FURTHER = {"choose": 1000, "judge": 2000}  # numbers from which further patients are counted
ARTERY = [LABELS[name] for name in ARTERIES]

SLABS: dict[str, tuple[SlabRecord, Slab]] = {}  # of all patients, by path; forked processes share
BODIES: dict[str, NDArray[np.bool_]] = {}  # of those that are scored


# ---- patients ------------------------------------------------------------------------------------


def make_slab(
    config: PhantomConfig, recipe: Recipe, kind: str, index: int
) -> tuple[Slab, NDArray[np.bool_]]:
    """A patient, or a chest without a partner, on the training grid, and the body in it."""
    made: Patient = (make_chest if kind == "chest" else make_patient)(config, index)
    plain = made.phases["plain"]
    contrast = made.phases.get(recipe.ingest.phase)
    absent = np.zeros(plain.hu.shape, np.bool_)
    for volume in (plain, contrast):
        if volume is not None and volume.padding is not None:
            absent |= volume.padding
    start: tuple[int, int] | None = None

    def on_grid(array: NDArray[Any], fill: int) -> NDArray[Any]:
        nonlocal start
        array = np.where(absent, array.dtype.type(fill), array)
        if recipe.grid.pixel_mm is not None:
            array = in_plane(array, plain.spacing[1:], recipe.grid.pixel_mm)
        if start is None:
            start = window_start(array, recipe.grid.size)
        return fitted(array, recipe.grid.size, start)

    def with_neighbours(volume: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([volume[:1], volume, volume[-1:]])

    low = on_grid(plain.hu, AIR_HU)
    slab = Slab(
        pair=short_hash(f"{kind} {index}"),
        patient=short_hash(made.patient_id),
        phase=recipe.ingest.phase if contrast is not None else "",
        first=0,
        spacing=(plain.spacing[0], recipe.grid.pixel_mm or 1.0, recipe.grid.pixel_mm or 1.0),
        plain=with_neighbours(low),
        contrast=None if contrast is None else with_neighbours(on_grid(contrast.hu, AIR_HU)),
        labels=on_grid(made.labels, 0),
    )
    return slab, body_mask(low)


def make_all(recipe: Recipe, further: int, processes: int) -> None:
    """Fill ``SLABS``: the recipe's own patients by their split, and further ones."""
    config = recipe.phantom
    assert config is not None
    asked = [("chest", index) for index in range(config.chests)]
    asked += [("patient", index) for index in range(config.patients)]
    asked += [("patient", first + i) for first in FURTHER.values() for i in range(further)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        made = list(pool.map(partial(make_slab, config, recipe), *zip(*asked, strict=True)))
    for (kind, index), (slab, body) in zip(asked, made, strict=True):
        split: str = split_of(slab.patient, recipe.ingest.validation, recipe.ingest.test)
        if kind == "chest":
            split = "ssl"
        for name, first in FURTHER.items():
            if first <= index:
                split = name
        path = f"{split}/{kind}-{index:04d}"
        phase = slab.phase or "plain"
        record = SlabRecord(path, split, phase, slab.pair, slab.patient, len(slab.plain) - 2)
        SLABS[path], BODIES[path] = (record, slab), body


# ---- one training --------------------------------------------------------------------------------


def train(
    recipe: Recipe, stage: str, device: torch.device, weights: dict[str, dict[str, Any]]
) -> TrainState:
    """A stage trained as a worker of the platform would, from slices in memory."""
    spec = STAGES[stage]
    config = spec.config(recipe)
    torch.manual_seed(recipe.seed)
    state: TrainState = spec.code.build(config, recipe, lambda step: weights[step])
    if config.ema:
        state.start_averages()
    state.to(device)
    split = "ssl" if stage == "ssl" else "train"
    records = [record for record, _ in SLABS.values() if record.split == split]
    plan = schedule(records, config.batch, config.epochs, recipe.seed)
    fit(
        spec.code,  # type: ignore[arg-type]  # a module with the functions of the protocol
        state,
        batches(
            plan,
            (SLABS[path][1] for path in plan.paths(range(config.batch))),
            range(config.batch),
            config.crop,
            partners=not isinstance(config, SslConfig),
            augment=None if config.augment == AugmentConfig() else config.augment,
        ),
        config,
        recipe.grid,
        steps=plan.steps,
        epoch_steps=steps_per_epoch(records, config.batch),
        device=device,
        validation=lambda: iter(()),
        report=lambda numbers: None,
    )
    return state


def predicted(
    state: TrainState, stage: str, recipe: Recipe, plain: NDArray[np.int16], device: torch.device
) -> NDArray[np.int16]:
    """Virtual contrast of slices on the training grid with a neighbour at either end, HU."""
    spec, grid = STAGES[stage], recipe.grid
    used = state.as_used()
    for network in used.networks.values():
        network.eval()
    made = []
    with torch.inference_mode():
        own = torch.from_numpy(plain.astype(np.float32)).to(device)
        for first in range(0, len(plain) - 2, 16):
            triplets = own[first : first + 18].unfold(0, 3, 1).permute(0, 3, 1, 2).contiguous()
            given = hu.to_network(triplets, grid.window)
            virtual = spec.code.virtual(used, {"plain": given}, spec.config(recipe), grid)
            if virtual.shape[1] == 1:
                given = given[:, 1:2]
            change = hu.change(virtual, given, grid.window)
            made.append(change)
    change = torch.cat(made)
    core = own[1:-1]
    if change.shape[1] == 3 and grid.average_overlap:
        total, votes = change[:, 1].clone(), torch.ones(len(change), 1, 1, device=device)
        total[1:] += change[:-1, 2]
        total[:-1] += change[1:, 0]
        votes[1:] += 1
        votes[:-1] += 1
        middle = total / votes
    else:
        middle = change[:, change.shape[1] // 2]
    low, high = grid.window
    middle = middle * ((core > low) & (core < high))
    return (core + middle).round().cpu().numpy().astype(np.int16)


def figures(slab: Slab, body: NDArray[np.bool_], made: NDArray[np.int16]) -> dict[str, float]:
    """PSNR of the body under window600/1, artery error and bias under roi/1."""
    assert slab.contrast is not None and slab.labels is not None
    true, artery = slab.contrast[1:-1], np.isin(slab.labels, ARTERY)
    error = np.clip(true, -200, 400).astype(np.float32) - np.clip(made, -200, 400)
    found = {"psnr": float(10 * np.log10(600**2 / np.square(error[body], dtype=np.float64).mean()))}
    if artery.any():
        wide = true[artery].astype(np.float64) - made[artery]
        found |= {"mae": float(np.abs(wide).mean()), "bias": float(-wide.mean())}
    return found


def run(job: dict[str, Any], out: str, device_name: str | None, until: float) -> str:
    """All stages of one training of the plan; its line of JSON."""
    if time.time() > until:
        return f"{job['name']}, seed {job['seed']}: no time left"
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    changes = [f"seed={job['seed']}", *job.get("set", ())]
    recipe = recipes.load(job["recipe"], changes)
    weights: dict[str, dict[str, Any]] = {}
    told = []
    for stage in job["stages"]:
        began = time.time()
        state = train(recipe, stage, device, weights)
        weights[stage] = {
            name: tensor.cpu()
            for name, tensor in state.as_used().networks["generator"].state_dict().items()
        }
        seconds = time.time() - began
        if stage not in job.get("score", job["stages"][-1:]):
            continue
        for split in job["splits"]:
            scored = {}
            for path, (record, slab) in SLABS.items():
                if record.split == split:
                    made = predicted(state, stage, recipe, slab.plain, device)
                    scored[path] = figures(slab, BODIES[path], made)
            row = {"name": job["name"], "stage": stage, "seed": job["seed"], "split": split}
            row |= {"seconds": round(seconds, 1), "patients": scored}
            with open(Path(out) / "rows.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            if split == job["splits"][0]:
                told.append(_line(row))
    return "\n".join(told)


def _line(row: dict[str, Any]) -> str:
    means = {
        name: statistics.fmean(one[name] for one in row["patients"].values() if name in one)
        for name in ("psnr", "mae", "bias")
    }
    return (
        f"{row['name']:<44} {row['stage']:<16} seed {row['seed']} {means['psnr']:6.3f} dB "
        f"{means['mae']:6.1f} HU, bias {means['bias']:+6.1f} ({row['seconds']:.0f} s)"
    )


# ---- all of them ---------------------------------------------------------------------------------


def show(rows: Iterator[dict[str, Any]], split: str) -> None:
    """Mean over patients and seeds, the spread of seeds beside."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["split"] == split:
            values = row["patients"].values()
            found[(row["name"], row["stage"])].append(
                (
                    statistics.fmean(one["psnr"] for one in values),
                    statistics.fmean(one["mae"] for one in values if "mae" in one),
                )
            )
    for (name, stage), means in sorted(
        found.items(), key=lambda one: -statistics.fmean(m[0] for m in one[1])
    ):
        psnr, mae = (statistics.fmean(column) for column in zip(*means, strict=True))
        spread = (
            ""
            if len(means) < 2
            else " ± {:.2f}, {:.1f}".format(
                *(statistics.stdev(column) for column in zip(*means, strict=True))
            )
        )
        print(f"{name:<44} {stage:<16} {psnr:6.2f} dB {mae:6.1f} HU  {len(means)} seeds{spread}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Many trainings beside each other.")
    parser.add_argument("plan", nargs="?", help="YAML")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--further", type=int, default=48, help="patients to choose by, and to judge by"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which none is begun")
    parser.add_argument("--show", choices=("test", "choose", "judge"), help="print, train nothing")
    options = parser.parse_args(words)
    until = time.time() + options.minutes * 60
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if not options.show:
        plan = yaml.safe_load(Path(options.plan).read_text())
        data = recipes.load(plan["data"]["recipe"], plan["data"].get("set", ()))
        began = time.time()
        make_all(data, options.further, options.processes)
        print(f"{len(SLABS)} patients and chests made in {time.time() - began:.0f} s", flush=True)
        splits = {"splits": plan.get("splits", ["choose"])}
        jobs = [
            splits | job | {"seed": seed}
            for job in plan["trainings"]
            for seed in job.get("seeds", [0])
        ]
        with ProcessPoolExecutor(
            options.processes, multiprocessing.get_context("fork"), max_tasks_per_child=None
        ) as pool:
            waiting = [pool.submit(run, job, str(out), options.device, until) for job in jobs]
            for one in waiting:
                try:
                    print(one.result(), flush=True)
                except Exception as error:  # the others go on
                    print(f"failed: {error!r}", flush=True)
    lines = (out / "rows.jsonl").read_text().splitlines()
    show(map(json.loads, lines), options.show or "choose")


if __name__ == "__main__":
    main()
