"""A sweep whose run lies in object storage, and whose driver is killed. ``make soak``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dyefreenet.store import Folder

ROOT = Path(__file__).parents[2]
COMMAND = [
    *(sys.executable, "-m", "dyefreenet.cli", "sweep", "--method", "unet", "--trials", "3"),
    *("--recipe", str(ROOT / "tests" / "tiny.yaml"), "--store", "s3://scans/runs", "--cpu"),
]
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def begin() -> subprocess.Popen[str]:
    """With a Ray of its own, so that nothing of it outlives the kill."""
    return subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(place: Folder) -> dict[str, bytes]:
    """Manifests of trials that were trained to their end."""
    names = [name for name in place.names() if name.endswith("/unet/manifest.json")]
    return {name: place.read(name) for name in names}


def test_a_killed_sweep_in_object_storage_goes_on(own_store):
    place = Folder("s3://scans/runs/tiny/sweep/unet")
    driver = begin()
    while not finished(place):
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    before = finished(place)
    assert not place.exists("trials.json")
    again = begin()
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, err[-3000:]
    rows = place.read_json("trials.json")["trials"]
    assert len(rows) == 3 and {row["state"] for row in rows} <= {"done", "stopped"}
    assert before.items() <= finished(place).items()
    assert "recipe of the best: s3://scans/runs/tiny/sweep/unet/best.yaml" in out
    assert b"base" in place.read("best.yaml") and place.exists("index.html")
