#!/usr/bin/env python3
"""Trainings by a plan, side by side, on made-up patients of fixed seed; no Ray; a GPU if there is.

    python benchmarks/quality.py benchmarks/plans/quality.yaml --out FOLDER [--processes 2]

A plan lists trainings: a name, the recipe to start from, changes as ``--set`` takes them, stages in
order, seeds. The patients are the recipe's 48, by their split, and as many further ones to choose
by and to judge by: six are too few to choose by, and nine to judge by. Slices lie in memory; loop,
schedule, networks, losses and metrics are the platform's.

FOLDER/rows.jsonl has every patient's figures. A patient's figure is the mean over seeds, and
intervals are of patients (95 %, bootstrap), so they hold for this phantom and these trainings
alone. ``plans/quality.yaml`` compares the methods; ``plans/best.yaml`` is how ``best`` was chosen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

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
from dyefreenet.evaluate.protocols import Case, score_volume
from dyefreenet.evaluate.regions import body_mask
from dyefreenet.evaluate.statistics import differences, summarise
from dyefreenet.stages import STAGES
from dyefreenet.train.loop import fit
from dyefreenet.train.state import TrainState

FURTHER = {"choose": 1000, "judge": 2000}  # numbers from which further patients are counted
SHOWN = (
    ("psnr", "window600/1", "body"),
    ("ssim", "window600/1", "body"),
    ("mae", "roi/1", "vessel"),
    ("bias", "roi/1", "vessel"),
    ("high_frequency", "texture/1", "image"),
    ("gradient_w1", "texture/1", "body"),
)

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
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, one_thread) as pool:
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


def one_thread() -> None:
    """For each of many processes, lest their threads stand in each other's way."""
    torch.set_num_threads(1)


# ---- one training --------------------------------------------------------------------------------


def train(
    recipe: Recipe, stage: str, device: torch.device, weights: dict[str, dict[str, Tensor]]
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


def run(job: dict[str, Any], out: str, device_name: str | None, until: float) -> str:
    """All stages of one training of the plan; appends its rows and says how it did."""
    if time.time() > until:
        return f"{job['name']}, seed {job['seed']}: no time left"
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = recipes.load(job["recipe"], [*job.get("set", ()), f"seed={job['seed']}"])
    weights: dict[str, dict[str, Tensor]] = {}
    told = []
    for stage in job["stages"]:
        began, cpu = time.time(), time.process_time()
        state = train(recipe, stage, device, weights)
        generator = state.as_used().networks["generator"]
        weights[stage] = {name: value.cpu() for name, value in generator.state_dict().items()}
        took = {"seconds": time.time() - began, "cpu_seconds": time.process_time() - cpu}
        told_of = {"training": job["name"], "seed": job["seed"], "stage": stage}
        _append(Path(out) / "trainings.jsonl", [told_of | took])
        if stage not in job.get("score", job["stages"][-1:]):
            continue
        name = job["name"] if "score" not in job else f"{job['name']}: {stage}"
        rows = score(state, stage, recipe, job, device)
        rows = [{"method": name, "seed": job["seed"]} | row for row in rows]
        _append(Path(out) / "rows.jsonl", rows)
        psnr, artery = (_mean(rows, *shown) for shown in SHOWN[:3:2])
        cost = f"{took['cpu_seconds']:.0f} CPU s"
        told.append(f"{name:<36} seed {job['seed']} {psnr:6.3f} dB {artery:6.1f} HU, {cost}")
    return "\n".join(told)


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def score(
    state: TrainState, stage: str, recipe: Recipe, job: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """Rows of every patient of the splits that are asked for; "seed" sets trainings apart."""
    structures = {"vessel": {LABELS[name] for name in ARTERIES}}
    rows = []
    for path, (record, slab) in SLABS.items():
        if record.split not in job["splits"]:
            continue
        assert slab.contrast is not None
        made = predicted(state, stage, recipe, slab.plain, device)
        case = Case(
            slab.contrast[1:-1], made, slab.plain[1:-1], BODIES[path], slab.spacing, slab.labels,
            structures,
        )  # fmt: skip
        one = {"patient": slab.patient, "pair": f"{path}, seed {job['seed']}"}
        rows += [one | row for row in score_volume(case, job["protocols"])]
    return rows


def _mean(rows: list[dict[str, Any]], metric: str, protocol: str, region: str) -> float:
    wanted = (metric, protocol, region)
    found = [r["value"] for r in rows if (r["metric"], r["protocol"], r["region"]) == wanted]
    return statistics.fmean(found)


# ---- all of them ---------------------------------------------------------------------------------


def run_all(
    pool: ProcessPoolExecutor, plan: dict[str, Any], out: Path, device: str | None, until: float
) -> None:
    common = {"splits": plan["splits"], "protocols": plan["protocols"]}
    jobs = [common | job | {"seed": seed} for job in plan["trainings"] for seed in job["seeds"]]
    for one in [pool.submit(run, job, str(out), device, until) for job in jobs]:
        print(one.result(), flush=True)


def show(rows: list[dict[str, Any]], compared: Sequence[Sequence[str]]) -> None:
    """Means over patients and seeds, the standard deviation of seeds, and the differences."""
    wanted = [row for row in rows if (row["metric"], row["protocol"], row["region"]) in SHOWN]
    table = summarise(wanted)
    cells = {(r["method"], r["metric"], r["protocol"], r["region"]): r for r in table}
    seeds: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in wanted:
        key = (row["method"], row["metric"], row["protocol"], row["region"])
        seeds[key][row["seed"]].append(row["value"])
    print("| method | " + " | ".join(", ".join(shown) for shown in SHOWN) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for method in dict.fromkeys(row["method"] for row in table):
        line = []
        for shown in SHOWN:
            cell = cells.get((method, *shown))
            of_seeds = [statistics.fmean(values) for values in seeds[(method, *shown)].values()]
            spread = f" ± {statistics.stdev(of_seeds):.3f}" if len(of_seeds) > 1 else ""
            line.append("" if cell is None else f"{cell['mean']:.3f}{spread}")
        print(f"| {method} | " + " | ".join(line) + " |")
    for row in differences(wanted, versus=tuple(dict.fromkeys(other for _, other in compared))):
        if [row["method"], row["versus"]] in [list(pair) for pair in compared]:
            print(
                f"{row['method']} minus {row['versus']}: {row['metric']} {row['region']} "
                f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], {row['n']} patients, "
                f"p {row['p']:.3g}"
            )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trainings by a plan, and how they compare.")
    parser.add_argument("plan", help="YAML file of trainings")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--further", type=int, default=48, help="patients to choose by, and to judge by"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which none is begun")
    parser.add_argument("--show", action="store_true", help="the table of FOLDER; trains nothing")
    options = parser.parse_args(words)
    until = time.time() + options.minutes * 60
    out = Path(options.out)
    plan = yaml.safe_load(Path(options.plan).read_text())
    if not options.show:
        out.mkdir(parents=True, exist_ok=True)
        data = recipes.load(plan["data"]["recipe"], plan["data"].get("set", ()))
        began = time.time()
        make_all(data, options.further, options.processes)
        print(f"{len(SLABS)} patients and chests made in {time.time() - began:.0f} s", flush=True)
        context = multiprocessing.get_context("fork")  # to share the patients
        with ProcessPoolExecutor(options.processes, context, one_thread) as pool:
            run_all(pool, plan, out, options.device, until)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    show(rows, plan.get("compare", ()))


if __name__ == "__main__":
    main()
