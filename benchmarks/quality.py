#!/usr/bin/env python3
"""The methods against each other on a made-up archive of fixed seed, trained from several seeds.

    python benchmarks/quality.py --store FOLDER [--seeds 0 1 2] [--patients 48]

Every seed is a run of ``demo`` (all rows of its table) and one of ``best``, on the same shards. The
U-Net has twice the epochs of ``demo``, about what Pix2Pix costs. Seconds are told; two stages go
side by side where they can, so they are no measure to compare by: docs/results.md has CPU seconds.
A patient's figure is the mean over seeds, and intervals are of patients (95 %, bootstrap), so they
hold for this phantom and these trainings alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from dyefreenet.evaluate.statistics import differences, summarise
from dyefreenet.stages import STAGES
from dyefreenet.store import Folder

SHOWN = (
    ("psnr", "window600/1", "body"),
    ("ssim", "window600/1", "body"),
    ("mae", "roi/1", "vessel"),
    ("high_frequency", "texture/1", "image"),
    ("gradient_w1", "texture/1", "body"),
)
PAIRS = (
    ("refine", "unet"),
    ("refine", "pix2pix"),
    ("primary", "primary_scratch"),
    ("refine", "primary"),
    ("best", "unet"),
    ("best", "pix2pix"),
    ("best", "refine"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="The methods against each other, several seeds.")
    parser.add_argument("--store", required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patients", type=int, default=48)
    options = parser.parse_args()
    store = Path(options.store)
    data = ["--set", f"phantom.patients={options.patients}", "--set", "ingest.test=0.3"]
    run(store, "data", "demo", data, "ingest")
    rows = []
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in options.seeds:
        for recipe, own in (("demo", ["--set", "unet.epochs=8"]), ("best", [])):
            name = f"{recipe}-{seed}"
            for step in ("phantom", "ingest"):
                if not (store / name / step).exists():
                    shutil.copytree(store / "data" / step, store / name / step)
            run(store, name, recipe, [*data, *own, "--set", f"seed={seed}"], "run")
            for step in STAGES:
                manifest = (Folder(str(store)) / name / step).manifest()
                if manifest is not None:
                    seconds[f"{recipe}: {step}"].append(manifest["seconds"])
            found = pq.read_table(store / name / "evaluate" / "rows.parquet").to_pylist()
            for row in found:
                row["pair"] += f", seed {seed}"  # a patient's mean is over seeds
                if recipe == "demo":
                    rows.append(row)
                elif row["method"] == "refine":
                    rows.append(row | {"method": "best"})
    for name, found in seconds.items():
        print(f"{name:24} " + " ".join(f"{one:.0f}" for one in found) + " s")
    show(rows)


def run(store: Path, name: str, recipe: str, changes: list[str], command: str) -> None:
    words = [sys.executable, "-m", "dyefreenet.cli", command, "--recipe", recipe, *changes]
    subprocess.run([*words, "--store", str(store), "--run", name, "--cpu"], check=True)


def show(rows: list[dict[str, object]]) -> None:
    wanted = [row for row in rows if (row["metric"], row["protocol"], row["region"]) in SHOWN]
    print("| method | " + " | ".join(f"{m}, {p}, {r}" for m, p, r in SHOWN) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    table = summarise(wanted)
    cells = {
        (row["method"], row["metric"], row["protocol"], row["region"]): (
            f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        )
        for row in table
    }
    for method in dict.fromkeys(row["method"] for row in table):
        print(f"| {method} | " + " | ".join(cells[(method, *shown)] for shown in SHOWN) + " |")
    compared = differences(wanted, versus=tuple(dict.fromkeys(versus for _, versus in PAIRS)))
    for row in compared:
        if (row["method"], row["versus"]) in PAIRS:
            print(
                f"{row['method']} minus {row['versus']}: {row['metric']} {row['region']} "
                f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], {row['n']} patients, "
                f"p {row['p']:.3f}"
            )


if __name__ == "__main__":
    main()
