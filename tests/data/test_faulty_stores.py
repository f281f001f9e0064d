"""Ingest from a store to a store that fails in every way there is: all done, and no wrong byte.

These run before any test that starts Ray, whose workers would not know of the proxy.
"""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from fault_proxy import FaultProxy

from dyefreenet.cli import main
from dyefreenet.config import GridConfig, IngestConfig
from dyefreenet.data.ingest import ingest
from dyefreenet.errors import InputError
from dyefreenet.store import Folder

ARCHIVE = "s3://scans/faulty-archive"
FAULTS = ("503", "500", "reset", "lost", "half", "flip", "flip-up", "hang", "stall")


@pytest.fixture(scope="module")
def environment(s3):
    """The store in the environment; it may be silent for half a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (s3 | {"DYEFREENET_STORE_PATIENCE": "2"}).items():
            patch.setenv(name, value)
        yield patch


@pytest.fixture(scope="module")
def archive(environment, ct):
    """Two patients, written by another program: no digest of ours lies with their files."""
    import botocore.session

    client = botocore.session.Session().create_client("s3")
    draw = np.random.default_rng(0)
    for patient in range(2):
        for phase, words in enumerate(("NATIV", "ART")):
            files = ct(
                draw.integers(0, 80, (4, 48, 48)),
                SeriesInstanceUID=f"1.7.{patient}.{phase}",
                StudyInstanceUID=f"1.6.{patient}",
                PatientID=f"P{patient}",
                SeriesDescription=words,
            )
            for at, content in enumerate(files):
                key = f"{ARCHIVE.rpartition('/')[2]}/{patient}/{phase}-{at}"
                client.put_object(Bucket="scans", Key=key, Body=content)
    return Folder(ARCHIVE)


def run(archive: Folder, target: str) -> tuple[dict, dict[str, str]]:
    """The account, and the digests of all that was made."""
    folder = Folder(target)
    facts = ingest(
        IngestConfig(), GridConfig(size=48), paired=[archive], target=folder, salt="s", train=False
    )
    return facts, digests(folder)


def digests(folder: Folder) -> dict[str, str]:
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in folder.names()}


@pytest.fixture(scope="module")
def undisturbed(archive):
    return run(archive, "s3://scans/calm")


@pytest.fixture
def proxy(environment, s3, monkeypatch):
    with FaultProxy(int(s3["AWS_ENDPOINT_URL"].rpartition(":")[2])) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.mark.parametrize("fault", [*FAULTS, "latency", "share"])
def test_every_series_is_done_and_no_byte_differs(archive, undisturbed, proxy, fault):
    if fault == "latency":
        proxy.latency = 0.05
    elif fault == "share":
        proxy.share = 0.05
    else:
        proxy.faults.extend(["ok"] + ([fault] * 2 + ["ok"] * 8) * 100)  # twice in ten requests
    account = run(archive, f"s3://scans/after-{fault}")
    assert account == undisturbed and account[0]["used"] == 4
    assert proxy.asked > 60  # so that a dozen of them went wrong


def test_a_silent_store_is_an_error_in_time(archive, proxy):
    proxy.always = "stall"
    began = time.monotonic()
    with pytest.raises(InputError, match="no good answer"):
        run(archive, "s3://scans/never")
    assert time.monotonic() - began < 60


def test_a_target_that_cannot_be_written_is_told_before_the_work(
    archive, s3, environment, monkeypatch, capsys
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    assert main(["ingest", "-i", ARCHIVE, "-o", "s3://scans/closed"]) == 1
    told = capsys.readouterr().err
    assert "may not do this here" in told and "archive" not in told.replace("faulty-archive", "")
