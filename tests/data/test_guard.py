"""Work in a process of its own: it answers as if called here, and its end is an error by name."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from dyefreenet.data.guard import Failed, Guard
from dyefreenet.errors import InputError, SeriesError

MODULE = os.path.dirname(__file__)


# The guard finds these by the name of their module, so they live in one that its process imports.
def twice(values):
    return {"sum": int(values.sum())}, [values.tobytes(), b""]


def refuse():
    raise SeriesError("gap", "one slice of 5")


def misplace():
    raise InputError("nowhere: expected a folder")


def stumble(secret):
    raise ValueError(secret)


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep():
    time.sleep(60)


def take(gib):
    return {"bytes": len(bytes(int(gib * (1 << 30))))}, []


def who():
    return {"process": os.getpid()}, []


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", MODULE, prepend=os.pathsep)
    guard = Guard(memory_gib=0.5, seconds=20)
    yield lambda work, *arguments: guard.run(named(work), *arguments)
    guard.stop()


def named(work):
    work.__module__ = "test_guard"
    return work


def test_what_it_answers_comes_back_and_the_process_stays(guard):
    told, (content, empty) = guard(twice, np.arange(5))
    assert (told, empty) == ({"sum": 10}, b"") and len(content) == 40
    began = time.monotonic()
    guard(twice, np.arange(5))
    assert time.monotonic() - began < 0.5  # starting one takes longer


def test_our_errors_come_back_as_they_are_and_others_without_their_text(guard):
    with pytest.raises(SeriesError, match="gap: one slice of 5"):
        guard(refuse)
    with pytest.raises(InputError, match="nowhere: expected a folder"):
        guard(misplace)
    with pytest.raises(Failed, match=r"ValueError at test_guard.py:\d+") as caught:
        guard(stumble, "CANARY")
    assert "CANARY" not in str(caught.value)


def test_a_crash_costs_one_call(guard):
    with pytest.raises(Failed, match="ended with -11"):
        guard(die)
    assert guard(twice, np.arange(3))[0] == {"sum": 3}


def test_memory_is_bounded(guard):
    assert guard(take, 0.25)[0]["bytes"] == 1 << 28
    with pytest.raises(Failed, match="memory"):
        guard(take, 2)


def test_time_is_bounded(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", MODULE, prepend=os.pathsep)
    guard = Guard(memory_gib=0.5, seconds=3)
    with pytest.raises(Failed, match="more than 3 s"):
        guard.run(named(sleep))
    assert guard.run(named(twice), np.arange(3))[0] == {"sum": 3}
    guard.stop()


@pytest.mark.parametrize(("idle_s", "stays"), [(0.3, False), (60, True)])
def test_it_leaves_when_it_is_idle_for_so_long(monkeypatch, idle_s, stays):
    monkeypatch.setenv("PYTHONPATH", MODULE, prepend=os.pathsep)
    guard = Guard(memory_gib=0.5, seconds=20, idle_s=idle_s)
    first, _ = guard.run(named(who))
    time.sleep(1.5)
    second, _ = guard.run(named(who))
    guard.stop()
    assert (first == second) is stays
