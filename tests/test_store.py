"""Run folders: whole files or none, and a manifest that says when a step is done."""

import os

import pytest

from dyefreenet.errors import InputError, StoreError
from dyefreenet.store import Folder, fingerprint


def test_a_file_is_there_whole_and_nothing_else(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a/b.bin", b"x" * 1000)
    assert folder.read("a/b.bin") == b"x" * 1000
    assert folder.names() == ["a/b.bin"]  # no partial file is left
    assert (folder / "a").exists("b.bin") and not folder.exists("b.bin")


def test_clear_removes_what_was_broken_off_and_nothing_beside(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("phantom/a/b.bin", b"x")
    folder.write("phantom2/c.bin", b"y")
    (folder / "phantom").clear()
    (folder / "never").clear()
    assert folder.names() == ["phantom2/c.bin"]


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.bin: expected a file, found none"):
        Folder(str(tmp_path)).read("none.bin")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="expected a place that can be read and written"):
        Folder(str(tmp_path)).write("a", b"")


def test_a_step_without_manifest_is_not_done(tmp_path):
    folder = Folder(str(tmp_path))
    assert folder.manifest() is None
    folder.publish("f00", {"lr": 1}, seconds=3)
    manifest = folder.manifest()
    assert (manifest["fingerprint"], manifest["config"], manifest["seconds"]) == (
        "f00",
        {"lr": 1},
        3,
    )
    assert {"code", "finished"} <= set(manifest)
    folder.write("manifest.json", b"{")
    with pytest.raises(StoreError, match="expected JSON"):
        folder.manifest()


def test_fingerprint_follows_config_and_needs_and_not_their_order():
    one = fingerprint({"a": 1, "b": 2}, {"x": "1"})
    assert one == fingerprint({"b": 2, "a": 1}, {"x": "1"})
    assert one != fingerprint({"a": 1, "b": 3}, {"x": "1"})
    assert one != fingerprint({"a": 1, "b": 2}, {"x": "2"})


def test_an_unknown_kind_of_storage_is_one_line():
    with pytest.raises(InputError, match="no storage of this kind is installed"):
        Folder("nosuch://bucket").read("a")
