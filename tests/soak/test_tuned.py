"""Every method swept, trained anew by two seeds and compared, on Ray: `make soak`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dyefreenet import recipes

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_tuned_gives_every_method_the_same_effort_and_goes_on_where_it_was(cluster, tmp_path):
    import ray

    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "DYEFREENET_STORE": str(tmp_path),
    }

    def drive(*words):
        command = [sys.executable, "-m", "dyefreenet.cli", *words, "--recipe", TINY, "--cpu"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done

    words = ["run", "--tuned", "--trials", "2", "--seeds", "2", "--set", "ablation=false"]
    out = drive(*words).stdout
    run = tmp_path / "tiny"
    for method in ("unet", "pix2pix", "cascade"):
        found = json.loads((run / "sweep" / method / "trials.json").read_text())
        assert len(found["trials"]) == 2, method
    best = recipes.load(str(run / "tuned" / "best.yaml"))
    cascade = json.loads((run / "sweep" / "cascade" / "trials.json").read_text())
    values = cascade["trials"][cascade["best"]]["values"]
    assert best.refine.lr == values["refine.lr"] and best.primary.lr == values["primary.lr"]
    rows = json.loads((run / "tuned" / "summary.json").read_text())
    methods = {row["method"] for row in rows}
    kept = {"unet", "pix2pix", "primary", "refine"}
    assert methods == kept | {f"{name} tuned" for name in kept}
    means = {
        row["method"]: row["mean"]
        for row in rows
        if (row["protocol"], row["metric"], row["region"]) == ("window600/1", "psnr", "image")
    }
    one_by_one = []  # by another road: the seeds' own rows
    for seed in (0, 1):
        table = pq.read_table(run / "tuned" / f"best-{seed}" / "evaluate" / "rows.parquet")
        one_by_one += [
            row["value"]
            for row in table.to_pylist()
            if (row["method"], row["protocol"], row["metric"], row["region"])
            == ("refine", "window600/1", "psnr", "image")
        ]
    assert means["refine tuned"] == pytest.approx(sum(one_by_one) / len(one_by_one))
    weights = [
        (run / "tuned" / place / "refine" / "weights" / "generator.safetensors").read_bytes()
        for place in ("own-0", "own-1", "best-0", "best-1")
    ]
    assert len(set(weights)) >= 2 and weights[0] != weights[1], "seeds gave the same training"
    assert "MADE-UP PATIENTS" in out and "U-Net tuned" in out and "2 trainings" in out

    shutil.rmtree(run / "tuned" / "best-1" / "refine")
    again = drive(*words)
    trained = [line for line in again.stderr.splitlines() if "started" in line]
    assert trained == ["tuned            best-1, refine: started"], trained
    assert "U-Net tuned" in again.stdout
    assert (run / "tuned" / "best-1" / "refine" / "weights" / "generator.safetensors").exists()
