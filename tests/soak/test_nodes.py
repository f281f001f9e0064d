"""Nodes that are lost while others go on, and nodes that come: ingest, generation and a sweep.

Several raylets on this machine, on clusters of their own; both nodes that carry the work are killed
in turn, and a new one comes for each. ``test_training.py`` does the same to a training.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbed import PATIENTS, begin, digests, end, several_nodes

from dyefreenet.space import AIMS
from dyefreenet.store import Folder

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.yaml")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture
def nodes() -> Iterator[tuple[Any, list[Any]]]:
    with several_nodes() as made:
        yield made


def lose_both_nodes_in_turn(
    nodes: tuple[Any, list[Any]], driver: subprocess.Popen[str], done: Callable[[], int], whole: int
) -> None:
    """Each after some of the work is done, and before all of it is; a new node comes after it."""
    cluster, pair = nodes
    for number, node in enumerate(pair, start=1):
        while done() < number * whole // 4:
            assert driver.poll() is None, driver.stderr and driver.stderr.read()[-3000:]
            time.sleep(0.02)
        assert done() < whole, "there was nothing left to disturb"
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2)
    end(driver)


def test_generation_ends_as_if_undisturbed(nodes, archive, tmp_path):
    calm, lost = Folder(str(tmp_path / "calm")), Folder(str(tmp_path / "lost"))
    words = ["--any-phase", "--cpus", "1"]
    end(begin(nodes[0].address, "generate", "-i", str(archive), "-o", calm.uri, *words))
    lost.write("job.json", calm.read("job.json"))  # its date
    driver = begin(nodes[0].address, "generate", "-i", str(archive), "-o", lost.uri, *words)
    done = (lost / "records").names
    lose_both_nodes_in_turn(nodes, driver, lambda: len(done()), 2 * PATIENTS)
    assert len(done()) == 2 * PATIENTS
    assert digests(lost) == digests(calm)


def test_ingest_ends_as_if_undisturbed(nodes, archive, tmp_path):
    words = ["ingest", "--recipe", TINY, "--run", "tiny"]
    words += ["--set", "phantom=null", "--set", f"ingest.paired=[{archive}]"]
    words += ["--set", "ingest.registration=rigid", "--set", "ingest.plain=[]"]
    calm, lost = str(tmp_path / "calm"), str(tmp_path / "lost")
    end(begin(nodes[0].address, *words, "--store", calm))
    driver = begin(nodes[0].address, *words, "--store", lost)
    jobs = Folder(lost) / "tiny" / "ingest" / "jobs"
    lose_both_nodes_in_turn(nodes, driver, lambda: len(jobs.names()), PATIENTS)

    def made(store: str) -> dict[str, str]:
        files = digests(Folder(store) / "tiny" / "ingest")
        return {name: told for name, told in files.items() if not name.startswith("manifest")}

    assert made(lost) == made(calm) and len(made(calm)) > 2 * PATIENTS


def test_a_sweep_ends_as_if_undisturbed(nodes, tmp_path):
    words = ["sweep", "--recipe", TINY, "--method", "primary_scratch", "--trials", "4", "--cpu"]
    words += ["--set", "primary.epochs=3"]
    calm, lost = str(tmp_path / "calm"), str(tmp_path / "lost")
    end(begin(nodes[0].address, *words, "--store", calm))
    driver = begin(nodes[0].address, *words, "--store", lost)

    def place(store: str) -> Path:
        return Path(store) / "tiny" / "sweep" / "primary_scratch"

    def epochs() -> int:
        files = place(lost).glob("trial-*/primary_scratch/metrics.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    lose_both_nodes_in_turn(nodes, driver, epochs, 10)

    def figures(store: str) -> dict[str, list[float]]:
        """Of trials that were trained to their end, by what they tried."""
        rows = json.loads((place(store) / "trials.json").read_text())["trials"]
        assert len(rows) == 4 and {row["state"] for row in rows} <= {"done", "stopped"}
        done = [row for row in rows if row["state"] == "done"]
        return {json.dumps(r["values"]): [r[aim.figure] for aim in AIMS] for r in done}

    expected, found = figures(calm), figures(lost)
    both = expected.keys() & found.keys()  # which are stopped hangs on who comes first
    assert both
    assert all(found[tried] == expected[tried] for tried in both)
