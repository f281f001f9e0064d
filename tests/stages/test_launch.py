"""What puts a training on Ray again, without a cluster: failures as Ray hands them on."""

from __future__ import annotations

import pytest
import ray.exceptions
import ray.train
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from dyefreenet.errors import StorageError
from dyefreenet.stages import launch
from dyefreenet.store import Folder

STEP = Folder("s3://scans/run/primary_scratch")
PYARROW = "When getting information for key 'run/checkpoint': AWS Error NETWORK_CONNECTION"
OURS = "s3://scans/run: expected a place that can be read and written, found: no good answer"


def worker_failed(error):
    """What Ray's controller makes of an exception in the code of the second of two workers."""
    text = f"Traceback (most recent call last):\n{type(error).__name__}: {error}"
    second = WorkerStatus(running=False, error=UserExceptionWithTraceback(error, text))
    first = WorkerStatus(running=True)
    return WorkerGroupPollStatus({0: first, 1: second}).get_worker_group_error()


def data_task_failed(error):
    """What reading by Ray Data raises in a worker: Ray's own error, with ours in its text."""
    text = f"Traceback (most recent call last):\n{type(error).__name__}: {error}"
    cause = ray.exceptions.UserCodeException("UDF failed to process a data block.")
    return ray.exceptions.RayTaskError("read", text, cause, ip="127.0.0.1").as_instanceof_cause()


class Trainers:
    """Trainers that raise these errors, one each, and then one that trains to the end."""

    def __init__(self, *errors):
        self.errors, self.made = list(errors), 0

    def __call__(self):
        self.made += 1
        return self

    def fit(self):
        if self.errors:
            raise self.errors.pop(0)
        return "trained"


@pytest.fixture
def waits(monkeypatch):
    """Folders whose storage was waited for."""
    found = []
    monkeypatch.setattr(launch, "_wait_for", found.append)
    return found


@pytest.mark.parametrize(
    "error",
    [
        worker_failed(OSError(PYARROW)),
        worker_failed(StorageError(OURS)),
        worker_failed(data_task_failed(StorageError(OURS))),
        ray.train.ControllerError(OSError(PYARROW)),
        OSError(PYARROW),
        ray.exceptions.ActorDiedError(),
    ],
    ids=["Ray's access", "our access", "Ray Data's task", "controller", "driver", "lost node"],
)
def test_a_training_that_ended_for_want_of_storage_goes_on(error, waits):
    trainers = Trainers(error, error)
    assert launch._fit(trainers, STEP) == "trained"
    assert trainers.made == 3 and waits == [STEP, STEP]


@pytest.mark.parametrize("error", [ValueError("a bug"), data_task_failed(ValueError("a bug"))])
def test_a_bug_is_not_tried_again(error, waits):
    trainers = Trainers(worker_failed(error))
    with pytest.raises(ray.train.WorkerGroupError, match="a bug"):
        launch._fit(trainers, STEP)
    assert trainers.made == 1 and not waits


def test_a_disk_is_not_waited_for(waits):
    trainers = Trainers(worker_failed(OSError(PYARROW)))
    with pytest.raises(ray.train.WorkerGroupError):
        launch._fit(trainers, Folder("/runs/run/primary_scratch"))
    assert trainers.made == 1 and not waits


def test_a_store_that_goes_away_at_every_try_is_told(waits):
    trainers = Trainers(*[worker_failed(OSError(PYARROW))] * (launch.FITS + 1))
    with pytest.raises(ray.train.WorkerGroupError, match="OSError"):
        launch._fit(trainers, STEP)
    assert trainers.made == launch.FITS
