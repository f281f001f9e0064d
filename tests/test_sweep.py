"""Sweeps on Ray: what they may read, what fails, what is killed, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_training_faults import workers

from dyefreenet import recipes
from dyefreenet.data.shards import read_records
from dyefreenet.space import AIMS
from dyefreenet.store import Folder

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def command(*words):
    return [sys.executable, "-m", "dyefreenet.cli", *words, "--recipe", TINY, "--cpu"]


def drive(environment, *words, code=0):
    done = subprocess.run(
        command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def ready(cluster, tmp_path_factory):
    """A run with shards, but of no test patient; and the environment of a driver."""
    import ray

    store = tmp_path_factory.mktemp("ready")
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {"RAY_ADDRESS": address, "DYEFREENET_STORE": str(store)}
    drive(environment, "ingest")
    ingest = Folder(str(store / "tiny" / "ingest"))
    test = [record for record in read_records(ingest) if record.split == "test"]
    assert test
    for record in test:
        ingest.remove(record.path)
    return store, environment


@pytest.fixture
def run(ready, tmp_path):
    """A copy of it, and the environment of a driver there."""
    shutil.copytree(ready[0], tmp_path / "store")
    return tmp_path / "store" / "tiny", ready[1] | {"DYEFREENET_STORE": str(tmp_path / "store")}


def space_file(folder, text):
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def test_a_sweep_reads_no_test_patient_outlives_a_bad_trial_and_leaves_a_recipe(run, tmp_path):
    place, environment = run
    space = space_file(tmp_path, "unet.lr: {choice: [0.002, 1.0e+30]}\n")
    words = ["sweep", "--method", "unet", "--space", space, "--trials", "3"]
    done = drive(environment, *words)
    out = done.stdout
    assert "best so far" in done.stderr
    found = json.loads((place / "sweep" / "unet" / "trials.json").read_text())
    rows = found["trials"]
    by_rate = {row["values"]["unet.lr"]: row for row in rows}
    assert len(rows) == 3 and set(by_rate) == {0.002, 1e30}, "the seed drew one rate alone"
    assert rows[0]["values"] == {"unet.lr": 0.002}  # the recipe as it is
    assert by_rate[1e30]["state"] == "failed"
    assert "expected finite losses and gradients" in by_rate[1e30]["error"]
    best = rows[found["best"]]
    assert best["state"] == "done" and best["values"] == {"unet.lr": 0.002}
    assert all(best[aim.figure] > 0 for aim in AIMS)
    assert "failed" in out and "best" in out
    tuned = recipes.load(str(place / "sweep" / "unet" / "best.yaml"))
    assert tuned.unet == recipes.load(TINY).unet and tuned.name == "tiny-tuned"

    (study,) = optuna.get_all_study_summaries(
        JournalStorage(JournalFileBackend(str(place / "sweep" / "unet" / "optuna.journal")))
    )
    assert study.n_trials == 3

    again = drive(environment, *words)
    told = [
        [line for line in text.splitlines() if line and "(raylet)" not in line]
        for text in (out, again.stdout)
    ]
    assert told[0] == told[1] and "already done" in again.stderr
    other = space_file(tmp_path, "unet.lr: {choice: [0.002, 0.003]}\n")
    line = drive(environment, *words[:3], "--space", other, "--trials", "3", code=1).stderr
    assert "this sweep was begun with space" in line and "Traceback" not in line


def test_a_killed_driver_and_a_killed_trial_cost_no_finished_trial(run, tmp_path):
    place, environment = run
    space = space_file(tmp_path, "primary.lr: {log: [1.0e-3, 4.0e-3]}\n")
    words = ["sweep", "--method", "primary_scratch", "--space", space, "--trials", "3"]
    driver = subprocess.Popen(
        command(*words),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def until(condition):
        waited = time.monotonic()
        while not condition():
            assert driver.poll() is None, driver.stderr.read()[-3000:]
            assert time.monotonic() - waited < 200
            time.sleep(0.05)

    until(workers)
    for process in workers():  # a trial's own workers: its trainer starts others
        os.kill(process, signal.SIGKILL)
    finished = "sweep/primary_scratch/trial-*/primary_scratch/manifest.json"
    until(lambda: list(place.glob(finished)))
    driver.kill()
    driver.wait(30)
    before = {path: path.read_bytes() for path in place.glob(finished)}
    drive(environment, *words)
    found = json.loads((place / "sweep" / "primary_scratch" / "trials.json").read_text())
    assert len(found["trials"]) == 3
    assert {row["state"] for row in found["trials"]} <= {"done", "stopped"}
    assert all(path.read_bytes() == content for path, content in before.items())
    tried = [row["values"] for row in found["trials"] if row["state"] == "done"]
    assert all(
        json.loads((path.parents[1] / "values.json").read_text()) in tried for path in before
    )
