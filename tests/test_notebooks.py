"""The notebooks run from top to bottom on a made-up run: their cells, in order, as one program."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_run import made_up_run

from dyefreenet import cli

ROOT = Path(__file__).parent.parent
COUNT = "\nprint('drawn:', [len(plt.figure(n).axes) for n in plt.get_fignums()])\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("notebooks"))


def execute(name, folder, **environment):
    """What the code cells print; at the end, how many panels each figure has."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    settings = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "platform")} | environment
    result = subprocess.run(
        [sys.executable, "-c", code + COUNT],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_looks_at_the_run_that_is_there(run):
    printed = execute("quickstart", ROOT / "notebooks", DYEFREENET_RUN=str(run))
    assert printed.startswith(f"{run}\n")
    assert "DyeFreeNet (refine) 33.11*" in printed
    assert "refine     12 s, code" in printed  # 12.5 s in the manifest
    assert "drawn: [9]" in printed  # four pictures, their differences, and the scale


def test_quickstart_makes_a_run_where_there_is_none(run, tmp_path):
    """The job's place is taken by one that notes how it was called and leaves the made-up run."""
    for folder in ("notebooks", "jobs", "tests"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "tests" / "tiny.yaml", tmp_path / "tests")
    (tmp_path / "jobs" / "full_cascade.py").write_text(
        "import json, pathlib, shutil, sys\n"
        f"shutil.copytree({str(run)!r}, '../runs/tiny')\n"
        "pathlib.Path('../asked.json').write_text(json.dumps(sys.argv[1:]))\n"
    )
    printed = execute("quickstart", tmp_path / "notebooks", DYEFREENET_RUN="../runs/demo")
    assert printed.splitlines()[0].endswith("runs/tiny")
    assert "DyeFreeNet (refine) 33.11*" in printed
    asked = json.loads((tmp_path / "asked.json").read_text())
    options = cli._parser().parse_args(["run", *asked])
    assert (tmp_path / "notebooks" / options.recipe).exists()
    assert options.store == "../runs"


def test_results_compares_patients_and_protocols(run):
    printed = execute("results", ROOT / "notebooks", DYEFREENET_RUN=str(run))
    assert "DyeFreeNet (refine) 33.11*" in printed
    assert "better               PSNR +1.37 dB" in printed
    assert "DyeFreeNet (refine)    patient-0 124.3   patient-1 122.3   patient-2 120.3" in printed
    psnr, ranks = printed.split("method")[1:3]
    assert "29.11" in psnr and "31.22" in psnr  # U-Net, window600/1 and paper8/1
    (unet,) = (line.split() for line in ranks.splitlines() if line.startswith("unet"))
    assert unet == ["unet", "5", "5"]
    assert "drawn: [3, 1]" in printed


@pytest.mark.parametrize("name", ["quickstart", "results"])
def test_notebooks_keep_no_output(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
