"""Twenty random kills over training and generation: worker, node, driver, or the GCS of the head.

Every round has a cluster of its own. What the kill leaves goes on by itself, or the same command is
given once more; either way the outcome is that of a run which nothing disturbed, bit by bit.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from disturbed import begin, digests, end, several_nodes

from dyefreenet.store import Folder

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
STAGE = "primary_scratch"
KILLS = 20
EPOCHS = 8
VICTIMS = ("worker", "node", "driver", "gcs")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


class Work(NamedTuple):
    """A command, how far it is, and what it has made."""

    words: list[str]
    done: Callable[[], int]
    made: Callable[[], dict[str, str]]


def training(store: Path) -> Work:
    words = ["train", "--stage", STAGE, "--workers", "2", "--recipe", TINY, "--cpu"]
    words += ["--set", f"primary.epochs={EPOCHS}", "--set", "baselines=false"]
    step = Folder(str(store / "tiny" / STAGE))

    def epochs() -> int:
        return step.read("metrics.jsonl").count(b"\n") if step.exists("metrics.jsonl") else 0

    def weights() -> dict[str, str]:
        return digests(Folder(f"{step}/weights"))

    return Work([*words, "--store", str(store)], epochs, weights)


def generation(archive: Path, target: Path) -> Work:
    words = ["generate", "-i", str(archive), "-o", str(target), "--any-phase", "--cpus", "1"]
    folder = Folder(str(target))
    return Work(words, lambda: len((folder / "records").names()), lambda: digests(folder))


def kill(victim: str, cluster: Any, pair: list[Any], driver: subprocess.Popen[str]) -> None:
    if victim == "worker":
        found = subprocess.run(
            ["pgrep", "-f", "^ray::(RayTrainWorker|MapWorker|_RayTrainWorker)"],
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        assert found, "no worker was there to be killed"
        os.kill(int(random.choice(found)), signal.SIGKILL)
    elif victim == "node":
        cluster.remove_node(random.choice(pair), allow_graceful=False)
        cluster.add_node(num_cpus=2)
    elif victim == "driver":
        os.killpg(driver.pid, signal.SIGKILL)
    else:
        (gcs,) = cluster.head_node.all_processes["gcs_server"]
        gcs.process.kill()


def disturb(work: Work, victim: str, wait: float) -> str:
    """One run that loses something on its way, to its end; how it came there."""
    with several_nodes() as (cluster, pair):
        driver = begin(cluster.address, *work.words)
        while not work.done():
            assert driver.poll() is None, driver.stderr and driver.stderr.read()[-3000:]
            time.sleep(0.05)
        time.sleep(wait)
        if driver.poll() is not None:
            return "too late"
        kill(victim, cluster, pair, driver)
        if victim == "gcs":  # no cluster any more: whoever sees that ends the driver
            time.sleep(5)
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=900)
        if driver.returncode == 0:
            return "by itself"
        if victim != "gcs":
            end(begin(cluster.address, *work.words))
            return "by the same command"
    with several_nodes() as (cluster, _):
        end(begin(cluster.address, *work.words))
    return "by the same command"


def test_twenty_random_kills(archive, tmp_path):
    random.seed(int(os.environ.get("DYEFREENET_SEED", "0")))
    with several_nodes() as (cluster, _):
        ready = tmp_path / "ready"
        words = ["ingest", "--recipe", TINY, "--set", "baselines=false", "--store", str(ready)]
        end(begin(cluster.address, *words))
        shutil.copytree(ready, tmp_path / "calm")
        calm = {
            "training": training(tmp_path / "calm"),
            "generation": generation(archive, tmp_path / "virtual"),
        }
        for work in calm.values():
            end(begin(cluster.address, *work.words))
    expected = {name: work.made() for name, work in calm.items()}
    assert all(expected.values())

    outcomes, number = Counter[tuple[str, str, str]](), 0
    while outcomes.total() < KILLS:
        name, victim = random.choice(("training", "generation")), random.choice(VICTIMS)
        place, number = tmp_path / f"round{number}", number + 1
        if name == "training":
            shutil.copytree(ready, place)
            work = training(place)
        else:
            place.mkdir()
            shutil.copy(tmp_path / "virtual" / "job.json", place)  # its date
            work = generation(archive, place)
        outcome = disturb(work, victim, random.uniform(0.0, 3.0))
        assert work.made() == expected[name], (name, victim, outcome)
        shutil.rmtree(place)
        if outcome != "too late":
            outcomes[name, victim, outcome] += 1
            print(f"{outcomes.total()}: {name}, {victim}: the same, {outcome}", flush=True)
    for (name, victim, outcome), count in sorted(outcomes.items()):
        print(f"{name}, {victim} killed {count} times: the same, {outcome}")
