"""A node that is lost, and a store that is away for a minute, while two workers train.

Long, and on clusters of their own: ``make soak``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dyefreenet.store import Folder
from dyefreenet.train.state import load_weights

ROOT = Path(__file__).parents[2]
STAGE = "primary_scratch"  # needs no other stage
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture
def nodes():
    """A cluster of a head without work and of two nodes with two CPUs each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    pair = [made.add_node(num_cpus=2) for _ in range(2)]
    yield made, pair
    made.shutdown()


def epochs(store):
    lines = Folder(f"{store}/tiny/{STAGE}").read("metrics.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines]


def command(store, *words):
    changes = ["--set", "primary.epochs=8", "--set", "baselines=false", "--cpu"]
    return [
        *(sys.executable, "-m", "dyefreenet.cli", *words, "--store", store),
        *("--recipe", str(ROOT / "tests" / "tiny.yaml"), *changes),
    ]


def drive(address, store, *words):
    done = subprocess.run(
        command(store, *words),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def calm_and_new(address, calm, new):
    """Two stores with the same shards; in the first two workers have trained, undisturbed."""
    for store in (calm, new):
        drive(address, store, "ingest")
    drive(address, calm, "train", "--stage", STAGE, "--workers", "2")
    return calm, new


def begun(address, store, *words):
    """A driver that trains with two workers, after its second epoch."""
    driver = subprocess.Popen(
        command(store, "train", "--stage", STAGE, "--workers", "2", *words),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Folder(f"{store}/tiny/{STAGE}")
    while not metrics.exists("metrics.jsonl") or metrics.read("metrics.jsonl").count(b"\n") < 2:
        assert driver.poll() is None, driver.stderr.read()[-3000:]
        time.sleep(0.2)
    return driver


def end(driver):
    _, err = driver.communicate(timeout=900)
    assert driver.returncode == 0, err[-3000:]


def require_same(one, other):
    mine, theirs = (load_weights(Folder(f"{store}/tiny/{STAGE}")) for store in (one, other))
    assert all(torch.equal(theirs[key], value) for key, value in mine.items())


def test_a_lost_node_is_waited_for(nodes, tmp_path):
    cluster, pair = nodes
    calm, lost = calm_and_new(cluster.address, str(tmp_path / "calm"), str(tmp_path / "lost"))
    driver = begun(cluster.address, lost)
    cluster.remove_node(pair[0])
    time.sleep(10)
    cluster.add_node(num_cpus=2)
    end(driver)
    require_same(calm, lost)


def test_without_a_lost_node_training_goes_on_with_fewer_workers(nodes, tmp_path):
    cluster, pair = nodes
    calm, lost = calm_and_new(cluster.address, str(tmp_path / "calm"), str(tmp_path / "lost"))
    driver = begun(cluster.address, lost, "--min-workers", "1")
    cluster.remove_node(pair[0])
    end(driver)
    expected, found = epochs(calm), epochs(lost)
    assert [one["step"] for one in found] == [one["step"] for one in expected]
    # The same global batches, in other parts: sums in another order, which Adam amplifies.
    for one, other in zip(found, expected, strict=True):
        assert one["loss/l1"] == pytest.approx(other["loss/l1"], rel=0.02)


def test_a_store_that_is_away_for_a_minute_is_waited_for(own_store):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})  # knows the store
    try:
        calm, away = calm_and_new(cluster.address, "s3://scans/calm", "s3://scans/away")
        driver = begun(cluster.address, away)
        own_store.stop(kill=True)
        time.sleep(60)
        own_store.start()
        end(driver)
        require_same(calm, away)
    finally:
        cluster.shutdown()
