#!/usr/bin/env python3
"""The platform's sweep without Ray: small trainings that share one GPU, or the cores.

    python benchmarks/search.py --out FOLDER [--trials 24] [--methods unet pix2pix cascade]

First trial (the recipe's own settings), aims and choice are the sweep's (``dyefreenet.space``), and
Optuna draws; the space is the sweep's and some fields more. Patients and trainings are those of
``quality.py``. Every method has as many trials and each is trained to its end; then the best and
the recipe's own are trained again with other seeds, and means count. The patients of ``choose``
choose. FOLDER/plan.yaml is ``plans/tuned.yaml`` with what was found in place of what was found
before, for ``quality.py`` to train with seeds that chose nothing and to judge by other patients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

import optuna
import quality
import safetensors.torch
import torch
import yaml

from dyefreenet import recipes
from dyefreenet.data.slices import in_order
from dyefreenet.space import (
    AIMS,
    METHODS,
    Range,
    Space,
    default_space,
    ranked,
    starting_point,
)
from dyefreenet.stages import STAGES
from dyefreenet.train.loop import validate

PLAN = Path(__file__).parent / "plans" / "tuned.yaml"
JUDGED = [100, 101, 102, 103, 104]  # seeds of what is judged; none of them chose


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A sweep without Ray.")
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=("cascade", "pix2pix", "unet")
    )
    parser.add_argument("--trials", type=int, default=24, help="of each method")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--finalists", type=int, default=5, help="settings that are trained again")
    parser.add_argument("--seeds", type=int, default=4, help="with which they are")
    parser.add_argument(
        "--further", type=int, default=48, help="patients to choose by, and to judge by"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="for trials, of all methods")
    parser.add_argument("--set", nargs="*", default=(), help="changes of the plan's recipe")
    options = parser.parse_args(words)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    plan = yaml.safe_load(PLAN.read_text())
    plan["trainings"] = [one for one in plan["trainings"] if not one["name"].endswith("tuned")]
    for one in plan["trainings"]:
        one["seeds"] = [*JUDGED]
    plan["compare"] = []
    options.recipe = name = plan["data"]["recipe"]
    data = recipes.load(name, [*plan["data"].get("set", ()), *options.set])
    began = time.time()
    quality.make_all(data, options.further, options.processes)
    print(f"patients made in {time.time() - began:.0f} s", flush=True)
    options.until = time.time() + 60 * options.minutes
    context = multiprocessing.get_context("fork")  # to share the patients
    with (
        ProcessPoolExecutor(options.processes, context, quality.one_thread) as pool,
        ThreadPoolExecutor(len(options.methods)) as methods,
    ):
        if "cascade" in options.methods:  # all trials share it, as a sweep's do
            pool.submit(train_ssl, name, options.set, options.out).result()
        calls = {
            method: methods.submit(choose, pool, method, options) for method in options.methods
        }
        for method, call in calls.items():
            plan["trainings"] += [found(method, name, call.result())]
            plan["compare"] += compared(method)
            (out / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False, width=140))


def found(method: str, recipe: str, values: dict[str, Any]) -> dict[str, Any]:
    """The row of a plan that trains a method with what was found, by seeds that chose nothing."""
    stages = list(METHODS[method])
    row = {"name": f"{method} tuned", "recipe": recipe, "stages": stages, "seeds": [*JUDGED]}
    if method == "cascade":
        row |= {"stages": ["ssl", *stages], "score": stages}
    return row | {"set": [f"{field}={_short(value)}" for field, value in values.items()]}


def compared(method: str) -> list[list[str]]:
    last = ": refine" if method == "cascade" else ""
    return [[f"{method} tuned{last}", f"{method} {other}{last}"] for other in ("demo", "paper")]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---- trials --------------------------------------------------------------------------------------


def choose(pool: ProcessPoolExecutor, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The settings that are best over several trainings; says how they and the recipe's own did."""
    rows, own = search(pool, method, options)
    if not rows:
        raise SystemExit(f"{method}: expected a trial trained to its end, found none")
    final = finalists(rows, options.finalists, own)
    again = {
        place: [
            pool.submit(
                trial, method, options.recipe, (*options.set, f"seed={seed}"), values, options.out
            )
            for seed in range(1, options.seeds + 1)
        ]
        for place in final
        for values in [rows[place]["values"]]
    }
    trainings = {place: [rows[place], *(one.result() for one in again[place])] for place in final}
    means = [mean_of(trainings[place]) for place in final]
    best = ranked(means, None if own is None else 0)[0]
    lines = [f"{method}: {len(rows)} trials, then {1 + options.seeds} trainings of {len(final)}"]
    for number, place in enumerate(final):
        told = []
        for aim in AIMS:
            figures = [float(one[aim.figure]) for one in trainings[place]]
            told.append(
                f"{aim.title} {means[number][aim.figure]:.4g} ± {statistics.stdev(figures):.2g}"
            )
        mark = "own " if place == own else "best" if number == best else "    "
        lines.append(f"  {mark} trial {place}: {', '.join(told)}; {rows[place]['values']}")
    print("\n".join(lines), flush=True)
    return dict(rows[final[best]]["values"])


def finalists(rows: Sequence[dict[str, Any]], count: int, own: int | None = None) -> list[int]:
    """Positions of the rows to train once more with other seeds: the best ``count``, and ``own``.

    One training a setting picks luck as much as settings.
    """
    best = [place for place in ranked(rows, own) if place != own][:count]
    return best if own is None else [own, *best]


def mean_of(trainings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Figures of a setting over its trainings."""
    return {
        aim.figure: statistics.fmean(float(one[aim.figure]) for one in trainings) for aim in AIMS
    }


def search(
    pool: ProcessPoolExecutor, method: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], int | None]:
    """Trials, each with what it tried and its figures; and which is the recipe's own settings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = wide_space(method)
    # Many run side by side: what still runs counts as bad, so that no two try the same.
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True)
    directions = ["minimize" if aim.mode == "min" else "maximize" for aim in AIMS]
    study = optuna.create_study(sampler=sampler, directions=directions)
    own = starting_point(space, recipes.load(options.recipe, options.set))
    if own:
        study.enqueue_trial(own)
    running: dict[Future[dict[str, float]], tuple[optuna.Trial, dict[str, Any]]] = {}
    rows: dict[int, dict[str, Any]] = {}
    asked, at_once = 0, max(1, options.processes // len(options.methods))
    while running or (asked < options.trials and time.time() < options.until):
        while asked < options.trials and len(running) < at_once and time.time() < options.until:
            drawn = study.ask()
            values = {name: suggested(drawn, name, one) for name, one in space.items()}
            call = pool.submit(trial, method, options.recipe, options.set, values, options.out)
            running[call] = (drawn, values)
            asked += 1
        for ended in wait(running, return_when=FIRST_COMPLETED).done:
            drawn, values = running.pop(ended)
            try:
                figures = ended.result()
            except FloatingPointError as error:  # it diverged
                print(f"  {method} trial {drawn.number}: {str(error)[:120]}", flush=True)
                study.tell(drawn, state=optuna.trial.TrialState.FAIL)
                continue
            study.tell(drawn, [figures[aim.figure] for aim in AIMS])
            rows[drawn.number] = {"values": values} | figures
            with open(Path(options.out) / "trials.jsonl", "a") as file:
                told = {"method": method, "trial": drawn.number} | rows[drawn.number]
                file.write(json.dumps(told) + "\n")
    numbers = sorted(rows)
    return [rows[number] for number in numbers], 0 if own and 0 in rows else None


def wide_space(method: str) -> Space:
    """The sweep's own space and, for every method alike, what else is a matter of degree."""
    space = default_space(method)
    for stage in METHODS[method]:
        space[f"{stage}.vessel_l1_weight"] = Range("uniform", (0.0, 12.0))
        space[f"{stage}.ema"] = Range("choice", (0.0, 0.95, 0.98, 0.99))
        space[f"{stage}.augment.rotate_degrees"] = Range("uniform", (0.0, 12.0))
        space[f"{stage}.augment.scale"] = Range("uniform", (0.0, 0.15))
        if stage != "unet":  # it has no discriminator
            space[f"{stage}.adversarial_weight"] = Range("log", (1e-3, 1.0))
        if method == "cascade":
            space[f"{stage}.perceptual_weight"] = Range("log", (5e-3, 1.0))
    return space


def suggested(drawn: optuna.Trial, name: str, one: Range) -> Any:
    if one.kind == "choice":
        return drawn.suggest_categorical(name, one.values)
    low, high = one.values
    if one.kind == "whole":
        return drawn.suggest_int(name, low, high)
    return drawn.suggest_float(name, low, high, log=one.kind == "log")


def trial(
    method: str, recipe: str, changes: Sequence[str], values: dict[str, Any], out: str
) -> dict[str, float]:
    """One training to its end, and its figures on the patients that choose."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tried = recipes.change(recipes.load(recipe, changes), values)
    weights = {}
    if method == "cascade":
        weights["ssl"] = safetensors.torch.load_file(Path(out) / "ssl.safetensors")
    for stage in METHODS[method]:
        state = quality.train(tried, stage, device, weights)
        weights[stage] = state.as_used().networks["generator"].state_dict()
    spec = STAGES[stage]
    config = spec.config(tried)
    held_out = (slab for record, slab in quality.SLABS.values() if record.split == "choose")
    batches = in_order(held_out, config.batch)
    return validate(spec.code, state.as_used(), batches, config, tried.grid, device)


def train_ssl(recipe: str, changes: Sequence[str], out: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = quality.train(recipes.load(recipe, changes), "ssl", device, {})
    weights = state.as_used().networks["generator"].state_dict()
    content = {name: value.cpu().contiguous() for name, value in weights.items()}
    safetensors.torch.save_file(content, Path(out) / "ssl.safetensors")


if __name__ == "__main__":
    main()
