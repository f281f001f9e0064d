"""How far a run is: folders whose state was made beforehand, and the driver's own words."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from dyefreenet import recipes
from dyefreenet.cli import main
from dyefreenet.errors import InputError
from dyefreenet.pipeline import Diary
from dyefreenet.progress import Progress
from dyefreenet.status import look
from dyefreenet.store import PROGRESS, Folder

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=timezone.utc)
EPOCHS = recipes.load("demo").primary.epochs


def ago(seconds):
    return (NOW - timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def run(tmp_path):
    """A run of ``demo``: three steps done, the primary in its second epoch, U-Net failed."""
    folder = Folder(str(tmp_path / "trial"))
    folder.write_json("recipe.json", recipes.load("demo").model_dump(mode="json"))
    for step, seconds in (("phantom", 12.5), ("ingest", 20.0), ("ssl", 90.0)):
        (folder / step).publish("mark", {}, seconds=seconds)
    lines = [
        {"epoch": e, "step": 9 * e, "loss/l1": 5.0 / e, "lr": 1e-3, "validation/psnr": 20.0 + e}
        for e in (1.0, 2.0)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "primary").write("metrics.jsonl", content.encode())
    return folder


def tell(folder, heard, ended=""):
    """What a driver that was heard of so many seconds ago has left."""
    steps = {
        "ssl": {"state": "done", "began": ago(500), "seconds": 90.0, "error": ""},
        "primary": {"state": "running", "began": ago(heard + 60), "count": "18/90 steps, 4.0/s"},
        "unet": {"state": "failed", "began": ago(400), "seconds": 7.0, "error": "no memory"},
    }
    folder.write_json(PROGRESS, {"updated": ago(heard), "ended": ended, "steps": steps})


def states(status):
    return {step.name: step.state for step in status.steps}


def test_a_run_that_goes_on(run):
    tell(run, heard=4)
    status = look(run, NOW)
    assert (status.state, status.silent) == ("running", 4.0)
    assert states(status) == {
        **{"phantom": "done", "ingest": "done", "ssl": "done", "primary": "running"},
        **{"pix2pix": "waiting", "primary_scratch": "waiting", "unet": "failed"},
        **{"refine": "waiting", "evaluate": "waiting"},
    }
    by_name = {step.name: step for step in status.steps}
    assert by_name["ssl"].seconds == 90.0
    primary = by_name["primary"]
    assert (primary.seconds, primary.epoch, primary.epochs) == (64.0, 2.0, EPOCHS)
    assert primary.figures == {"loss/l1": 2.5, "validation/psnr": 22.0}
    lines = status.text().splitlines()
    assert lines[0].endswith("trial: running, last heard of 4 s ago")
    assert (
        f"  primary          running   1 min 4 s     18/90 steps, 4.0/s; epoch 2 of {EPOCHS}: "
        "l1 2.5, PSNR 22.00 dB"
    ) in lines
    assert "  unet             failed    7 s           no memory" in lines
    assert "  refine           waiting" in lines


def test_a_driver_that_was_killed(run):
    tell(run, heard=720)
    status = look(run, NOW)
    assert status.state == "silent" and "no sign of life for 12 min 0 s" in status.text()
    assert states(status)["primary"] == "stopped" and states(status)["refine"] == "not begun"


def test_a_run_that_failed(run):
    tell(run, heard=5, ended="failed")
    status = look(run, NOW)
    assert status.state == "failed" and states(status)["unet"] == "failed"
    assert states(status)["primary"] == "stopped"


def test_a_run_of_a_version_that_told_nothing(run):
    status = look(run, NOW)
    assert (status.state, status.silent) == ("stopped", None)
    (run / "primary").write("given_up.txt", b"step 9: a loss that is no number")
    status = look(run, NOW)
    assert status.state == "failed"
    assert next(s for s in status.steps if s.name == "primary").error.startswith("step 9")


def test_a_run_that_is_done(run):
    for step in ("primary", "primary_scratch", "pix2pix", "unet", "refine", "evaluate"):
        (run / step).publish("mark", {}, seconds=1.0)
    tell(run, heard=9000, ended="done")
    assert look(run, NOW).state == "done"


def test_trials_of_sweeps(run):
    unet, primary = run / "sweep" / "unet", run / "sweep" / "primary"
    unet.write_json("sweep.json", {"trials": 12})
    unet.write_json(PROGRESS, {"done": 5, "failed": 1, "running": 2})
    primary.write_json("sweep.json", {"trials": 4})
    trials = [{"state": state} for state in ("done", "stopped", "failed", "done")]
    primary.write_json("trials.json", {"trials": trials})
    status = look(run, NOW)
    found = {one.method: (one.state, one.done, one.failed, one.running) for one in status.sweeps}
    assert found == {"unet": ("begun", 5, 1, 2), "primary": ("done", 3, 1, 0)}
    assert "sweep of unet: begun, 5 of 12 trials done, 2 running, 1 failed" in status.text()


def test_what_the_driver_tells_is_what_is_shown(run):
    progress = Progress(every=1e9)  # prints nothing
    diary = Diary(run, progress)
    diary.begin("primary")
    progress.tick("primary", 30, 90, "steps", "epoch 3 of 9")
    diary.write()
    first = run.read_json(PROGRESS)
    assert first["steps"]["primary"]["count"].startswith("30/90 steps")
    assert first["steps"]["primary"]["count"].endswith("epoch 3 of 9")
    status = look(run)
    assert status.state == "running" and status.silent < 60
    diary.begin("unet")
    diary.write()  # too soon
    assert run.read_json(PROGRESS) == first
    diary.end("primary", 61.23)
    diary.end("unet", 2.0, "no memory")
    diary.write("failed")
    steps = run.read_json(PROGRESS)["steps"]
    assert (steps["primary"]["state"], steps["primary"]["seconds"]) == ("done", 61.2)
    assert (steps["unet"]["state"], steps["unet"]["error"]) == ("failed", "no memory")
    assert look(run).state == "failed"


def test_a_store_that_is_away_fails_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    diary = Diary(Folder(str(tmp_path / "file")), Progress())
    diary.write()
    diary.write("done")


def test_a_target_of_generate(tmp_path):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Folder(str(tmp_path / "out"))
    target.write_json("job.json", {"model": "mine"})
    rows = [("a", "done", ""), ("b", "failed", "crash"), ("c", "done", "")]
    for key, status, code in rows:
        record = {"key": key, "status": status, "code": code}
        (target / "records").write_json(f"{key}.json", record)
    found = look(target)
    assert (found.ended, found.done, found.refused, found.failed) == (False, 2, {}, {"crash": 1})
    # The ledger of an earlier command: b has failed again since, d was refused by its headers.
    ledger = [("a", "done", ""), ("b", "done", ""), ("d", "refused", "short")]
    table = pa.Table.from_pylist(
        [dict(zip(("key", "status", "code"), row, strict=True)) for row in ledger]
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    target.write("ledger.parquet", sink.getvalue())
    found = look(target)
    assert (found.ended, found.done, found.refused) == (True, 2, {"short": 1})
    assert found.failed == {"crash": 1}
    assert "  1 refused: short" in found.text()


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(InputError, match=r"no recipe\.json or job\.json"):
        look(Folder(str(tmp_path)))


def test_the_command(run, capsys, tmp_path):
    tell(run, heard=4)
    assert main(["status", "--store", str(tmp_path), "--run", "trial"]) == 0
    assert "phantom          done      12 s" in capsys.readouterr().out
    assert main(["status", run.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == run.uri and told["steps"][0]["name"] == "phantom"
    assert main(["status", str(tmp_path / "none")]) == 1


def test_status_needs_neither_ray_nor_torch(run):
    import subprocess
    import sys

    code = (
        "import sys; from dyefreenet.cli import main; main(sys.argv[1:]);"
        "print(*sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "status", run.uri], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "", done.stderr
