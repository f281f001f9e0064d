"""kill -9 at random moments, twenty times: nothing is lost, doubled or half. ``make soak``."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disturbed import PATIENTS, digests

from dyefreenet.store import Folder

KILLS = 20
INGEST = """
import json, sys
from dyefreenet.config import GridConfig, IngestConfig
from dyefreenet.data.ingest import ingest
from dyefreenet.store import Folder
facts = ingest(
    IngestConfig(validation=0.3, test=0.3, registration="off"),
    GridConfig(size=128),
    paired=[Folder(sys.argv[1])],
    target=Folder(sys.argv[2]),
    salt="soak",
    train=False,
)
print(json.dumps(facts))
"""

GENERATE = """
import json, sys
from dyefreenet import runtime
from dyefreenet.config import GenerateConfig, Selection
from dyefreenet.generation.batch import Workers, generate_archive
from dyefreenet.generation.series import model_of
from dyefreenet.store import Folder
runtime.connect()
def identity(device):
    class Identity:
        def predict(self, volume, breaks):
            return volume.hu
    return Identity()
config = GenerateConfig(any_phase=True)
account = generate_archive(
    sys.argv[1], Folder(sys.argv[2]), model_of(("shipped",), config), config, Selection(),
    workers=lambda series: Workers(False, 1.0, 2), loader=identity,
)
print(json.dumps(account))
"""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def start(archive: Path, target: str, program: str = INGEST) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(archive), target],
        env=os.environ | {"PYTHONPATH": "platform", "DYEFREENET_SALT": "soak"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def whole(archive: Path, target: str, program: str = INGEST) -> float:
    """One ingest or generation to its end, with every series in it; its seconds."""
    began = time.monotonic()
    process = start(archive, target, program)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    facts = json.loads(out)
    assert facts["used" if program is INGEST else "done"] == 2 * PATIENTS
    assert not facts["failed"] and not facts["refused"]
    return time.monotonic() - began


def runs_disturbed(
    archive: Path,
    target: str,
    seconds: float,
    kill: Callable[[subprocess.Popen[str]], None],
    program: str = INGEST,
) -> int:
    """Runs that are each disturbed at a random moment; how many were at work then."""
    draw = random.Random(0)
    hit = 0
    while hit < KILLS:
        process = start(archive, target, program)
        time.sleep(draw.uniform(0.1, 1.1) * seconds)
        if process.poll() is None:
            hit += 1
            kill(process)
            if hit % 5 == 0 and "://" not in target:  # what was done is done: begin anew at times
                shutil.rmtree(target, ignore_errors=True)
        process.communicate(timeout=300)
        if process.returncode == 0 and "://" not in target:
            shutil.rmtree(target, ignore_errors=True)
    return hit


def end_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def end_worker(process: subprocess.Popen[str]) -> None:
    """The process that reads and cuts, and not the one that asked it to."""
    subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=False)


@pytest.mark.parametrize("kill", [end_all, end_worker])
def test_a_killed_driver_or_worker(archive, tmp_path, kill):
    seconds = whole(archive, str(tmp_path / "calm"))
    assert runs_disturbed(archive, str(tmp_path / "out"), seconds, kill) == KILLS
    whole(archive, str(tmp_path / "out"))
    assert digests(Folder(str(tmp_path / "out"))) == digests(Folder(str(tmp_path / "calm")))


def end_actor(process: subprocess.Popen[str]) -> None:
    """Those that hold a model; Ray makes them again."""
    subprocess.run(["pkill", "-9", "-f", "^ray::.*Map"], check=False)


@pytest.mark.parametrize("kill", [end_all, end_actor])
def test_a_killed_driver_or_actor_of_generation(archive, tmp_path, kill):
    calm, out = tmp_path / "calm", tmp_path / "out"
    seconds = whole(archive, str(calm), GENERATE)

    hit, draw = 0, random.Random(1)
    while hit < KILLS:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        shutil.copy(calm / "job.json", out)  # its date
        for _ in range(5):
            process = start(archive, str(out), GENERATE)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            if process.poll() is None:
                hit += 1
                kill(process)
            process.communicate(timeout=300)
        whole(archive, str(out), GENERATE)
        assert digests(Folder(str(out))) == digests(Folder(str(calm)))


@pytest.mark.parametrize("program", [INGEST, GENERATE], ids=["ingest", "generation"])
def test_a_killed_s3_server(archive, own_store, program):
    calm = Folder("s3://scans/calm")
    seconds = whole(archive, calm.uri, program)
    draw = random.Random(2)
    for number in range(4):  # a new place each time, or there would be nothing left to do
        place = Folder(f"s3://scans/out{number}")
        if program is GENERATE:
            place.write("job.json", calm.read("job.json"))  # its date
        for _ in range(KILLS // 4):
            process = start(archive, place.uri, program)
            time.sleep(draw.uniform(0.1, 1.0) * seconds)
            own_store.stop(kill=True)
            own_store.start()
            process.communicate(timeout=300)
        whole(archive, place.uri, program)
        assert digests(place) == digests(calm)
