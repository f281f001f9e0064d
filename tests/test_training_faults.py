"""Real kills of a training on Ray: what was lost is trained again, and nothing else changes.

The weights must be those of the undisturbed run, bit by bit: the order of the data, every random
draw and both optimisers go on where the last epoch was saved.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dyefreenet import recipes
from dyefreenet.errors import ResourceError
from dyefreenet.progress import Progress
from dyefreenet.runtime import Resources
from dyefreenet.store import Folder
from dyefreenet.train.state import load_weights

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")
STAGE = "primary_scratch"  # needs no other stage
WORKER = b"RayTrainWorker"  # in the title of a training worker's process
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """A run with shards and the undisturbed stage; and the environment of a driver."""
    import ray

    store = tmp_path_factory.mktemp("calm")
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {"RAY_ADDRESS": address, "DYEFREENET_STORE": str(store)}
    drive(environment, "ingest")
    drive(environment, "train", "--stage", STAGE)
    return store, environment


def command(*words):
    return [sys.executable, "-m", "dyefreenet.cli", *words, "--recipe", TINY, *EPOCHS]


EPOCHS = ["--set", "primary.epochs=4", "--set", "primary.ema=0.9", "--cpu"]


def drive(environment, *words):
    done = subprocess.run(
        command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def begun(calm, tmp_path):
    """A copy of the run without the stage, and its driver, which has finished an epoch."""
    store, environment = calm
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns(STAGE))
    environment = environment | {"DYEFREENET_STORE": str(tmp_path / "store")}
    target = tmp_path / "store" / "tiny" / STAGE
    driver = subprocess.Popen(
        command("train", "--stage", STAGE),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    waited = time.monotonic()
    while not saved_epochs(target):
        assert driver.poll() is None, driver.stderr.read()[-3000:]
        assert time.monotonic() - waited < 120, "no epoch was saved"
        time.sleep(0.02)
    return environment, target, driver


def saved_epochs(target):
    """Checkpoints that Ray has written down: what only lies there would be trained again."""
    found = []
    for snapshot in target.glob("train-*/checkpoint_manager_snapshot.json"):
        said = snapshot.read_text()
        found += [one for one in snapshot.parent.glob("checkpoint_*") if one.name in said]
    return found


def workers():
    """Processes of training workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if WORKER in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            pass  # gone meanwhile
    return found


def require_same(one, other):
    mine, theirs = load_weights(Folder(str(one))), load_weights(Folder(str(other)))
    assert all(torch.equal(theirs[key], value) for key, value in mine.items())
    lines = [Folder(str(run)).read("metrics.jsonl").decode().splitlines() for run in (one, other)]
    assert len(lines[0]) == len(lines[1]) == 4  # every epoch is told once


def test_a_killed_worker_costs_an_epoch_at_most(calm, tmp_path):
    _, target, driver = begun(calm, tmp_path)
    killed = workers()
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err[-3000:]
    require_same(calm[0] / "tiny" / STAGE, target)


def test_a_killed_driver_goes_on_where_it_was(calm, tmp_path):
    environment, target, driver = begun(calm, tmp_path)
    driver.kill()
    driver.wait(30)
    assert not (target / "manifest.json").exists()
    drive(environment, "train", "--stage", STAGE)
    require_same(calm[0] / "tiny" / STAGE, target)
    assert "nothing to do" in drive(environment, "train", "--stage", STAGE)


def test_a_loss_that_is_no_number_names_its_samples_and_leaves_no_weights(calm, tmp_path):
    store, environment = calm
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns(STAGE))
    environment = environment | {"DYEFREENET_STORE": str(tmp_path / "store")}
    words = [*command("train", "--stage", STAGE), "--set", "primary.lr=1e30"]
    words += ["--set", "primary.weight_decay=1e30"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "expected finite losses and gradients" in done.stderr
    assert ".parquet slice" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store" / "tiny" / STAGE / "weights").exists()


def test_a_full_disk_is_told_before_anything_trains(cluster, tmp_path, monkeypatch):
    from dyefreenet import steps

    def prepare():
        run = Folder(str(tmp_path / "new" / "run"))
        return steps.prepare(recipes.load(TINY), run, Resources(), Progress(), ["ingest", STAGE])

    assert prepare().run.uri.endswith("run")
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ResourceError, match=f"checkpoints of {STAGE}, found 0 MB; free space"):
        prepare()
