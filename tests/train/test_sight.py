"""What is shown while a stage trains: strips, TensorBoard's files, and MLflow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from torch import nn

from dyefreenet.config import GridConfig
from dyefreenet.data.shards import Slab
from dyefreenet.store import Folder
from dyefreenet.train.sight import Sight, lacks_mlflow, shown_slices, strip_of
from dyefreenet.train.state import TrainState

NUMBERS = {"step": 40.0, "epoch": 2.0, "loss/l1": 0.25}


def slab(patient, level=0):
    plain = np.full((6, 32, 32), level, np.int16)
    return Slab("p", patient, "arterial", 0, (1, 1, 1), plain, plain + 100, None)


def test_the_strip_shows_each_patient_once_and_the_difference_in_grey():
    shown = shown_slices([slab("a"), slab("a", 50), slab("b", 200)])
    assert shown["plain"].shape == (2, 3, 32, 32) and shown["plain"][1, 1, 0, 0] == 200
    state = TrainState({"g": nn.Identity()}, {})
    grid = GridConfig(size=32)
    strip = strip_of(lambda batch: batch["plain"], state, shown, grid, torch.device("cpu"))
    pixels = np.asarray(Image.open(io.BytesIO(strip)))
    assert pixels.shape == (64, 128)
    # 0 HU, 100 HU, 0 HU in a window of -200 to 600; -100 HU of difference from -200 to 200.
    assert pixels[16, 16::32].tolist() == [64, 96, 64, 64]
    assert state.networks["g"].training


def test_an_archive_without_partners_shows_nothing():
    plain = np.zeros((3, 8, 8), np.int16)
    assert shown_slices([Slab("p", "a", "", 0, (1, 1, 1), plain, None, None)]) is None


def events(content):
    found = []
    while content:
        size = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_tensorboard_has_one_file_an_epoch_with_figures_and_picture(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    target = Folder(str(tmp_path))
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(picture, "png")
    sight = Sight(target, "primary", "mark", {})
    for _ in range(2):  # an epoch that is told again replaces its file
        sight.tell(NUMBERS, picture.getvalue())
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name == "events.out.tfevents.0000000040"
    values = [value for event in events(file.read_bytes()) for value in event.summary.value]
    assert {value.tag: value.simple_value for value in values}["loss/l1"] == 0.25
    assert any(value.HasField("image") for value in values)
    assert (tmp_path / "strips" / "0000000040.png").read_bytes() == picture.getvalue()


def test_mlflow_gets_one_run_for_a_training_and_its_resume(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server or database in earnest
    for _ in range(2):
        Sight(Folder(str(tmp_path)), "primary", "mark-1", {"lr": 1e-5}).tell(NUMBERS, None)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("dyefreenet")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["loss.l1"] == 0.25 and run.data.params == {"lr": "1e-05"}


def test_mlflow_that_is_asked_for_and_not_installed_is_found(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not lacks_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert lacks_mlflow()
