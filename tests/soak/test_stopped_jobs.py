"""``ray job stop``: what a stopped job leaves is whole or is not taken for done, and it goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disturbed import PATIENTS

from dyefreenet.generation.batch import read_ledger
from dyefreenet.generation.series import is_whole
from dyefreenet.store import Folder

ROOT = Path(__file__).parents[2]
RECIPE = ["--recipe", str(ROOT / "tests" / "tiny.yaml")]
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def ray_job(address: str, *words: str) -> str:
    done = subprocess.run(
        ["ray", "job", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_API_SERVER_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def stop_amid(address: str, words: list[str], begun: Callable[[], bool], name: str) -> None:
    """Submit a job, and stop it as soon as it has begun to leave something."""
    ray_job(address, "submit", "--no-wait", "--submission-id", name, "--", *words)
    waited = time.monotonic()
    while not begun():
        assert time.monotonic() - waited < 300, ray_job(address, "logs", name)
        time.sleep(0.1)
    ray_job(address, "stop", name)
    assert "was stopped" in ray_job(address, "status", name)


def manifests(run: Path) -> dict[Path, bytes]:
    """Of every finished step, each of whose files is what its manifest says."""
    found = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    for path in found:
        step = Folder(str(path.parent))
        told = step.manifest()
        assert told is not None
        for name, sha256 in (told.get("files") or {}).items():
            step.read(name, sha256)
    return found


@pytest.mark.parametrize(
    ("job", "words", "begun", "ends"),
    [
        ("ingest", [], "tiny/ingest/jobs/*", "tiny/ingest/manifest.json"),
        ("full_cascade", [], "tiny/primary*/metrics.jsonl", "tiny/evaluate/manifest.json"),
        (
            "sweep",
            ["--method", "unet", "--trials", "3"],
            "tiny/sweep/unet/trial-*/unet/metrics.jsonl",
            "tiny/sweep/unet/trials.json",
        ),
    ],
)
def test_a_stopped_job_goes_on(cluster, tmp_path, job, words, begun, ends):
    command = [f"jobs/{job}.py", *RECIPE, "--store", str(tmp_path), *words]
    stop_amid(cluster, command, lambda: any(tmp_path.glob(begun)), f"{job}-stopped")
    time.sleep(2)
    before = manifests(tmp_path)
    assert not (tmp_path / ends).exists()
    ray_job(cluster, "submit", "--", *command)
    assert (tmp_path / ends).exists()
    after = manifests(tmp_path)
    assert before.items() <= after.items()


def test_a_stopped_generation_goes_on(cluster, archive, tmp_path):
    target = Folder(str(tmp_path / "out"))
    command = ["jobs/generate.py", "-i", str(archive), "-o", target.uri, "--any-phase"]
    records = (target / "records").names
    stop_amid(cluster, command, lambda: len(records()) > 2, "generation-stopped")
    time.sleep(2)
    left = {name: (target / "records").read_json(name) for name in records()}
    assert len(left) < 2 * PATIENTS
    assert all(is_whole(target, record) for record in left.values())
    ray_job(cluster, "submit", "--", *command)
    rows = read_ledger(target)
    assert len(rows) == 2 * PATIENTS and {row["status"] for row in rows} == {"done"}
    assert all((target / "records").read_json(name) == record for name, record in left.items())
