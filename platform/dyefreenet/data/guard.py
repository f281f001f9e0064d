"""One series' work in a process of its own, within memory and time: a crash costs that series.

Decoders are C code that reads bytes from strangers. What they do to their process, they do to this
one, which is ended and made again; the caller gets an error with a name.

The process gets its orders from us alone, as pickles; what it answers is JSON and bytes, for it may
have been taken over by then.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from dyefreenet import errors
from dyefreenet.errors import DyeFreeNetError, SeriesError

IDLE_S = 60  # then the process leaves; training needs its memory
Answer = tuple[dict[str, Any], Sequence[bytes]]  # what is told, and what goes with it


class Failed(DyeFreeNetError):
    """The work broke off: a crash, no memory, no time, a fault of ours. Another run may do it."""


class Guard:
    """A process that runs one function at a time, made when it is needed and again after a crash.

    Args:
        memory_gib: It may take this much beyond what it has at its start.
        seconds: One call may take this long.
        idle_s: It leaves after so long without a call, and with it what it holds.
    """

    def __init__(self, memory_gib: float, seconds: float, idle_s: float = IDLE_S) -> None:
        self.memory_gib, self.seconds, self.idle_s = memory_gib, seconds, idle_s
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._said: dict[str, str] = {}  # what the environment said of storage at its start

    def run(self, work: Callable[..., Answer], *arguments: Any, more_s: float = 0.0) -> Answer:
        """``work(*arguments)`` over there; ``work`` is a function of a module, found by its name.

        Args:
            more_s: Seconds that this call may take besides: for storage to be waited for.

        Raises:
            DyeFreeNetError: What ``work`` raised, if it is one of ours.
            Failed: It did not come to an end.
        """
        if self._process is not None and (
            self._process.poll() is not None  # it left when there was nothing to do
            or self._said != _said_of_storage()  # other credentials, another store
        ):
            self.stop()
        line = self._line or self._start()
        try:
            line.send_bytes(pickle.dumps((work.__module__, work.__qualname__, arguments)))
            if not line.poll(self.seconds + more_s):
                self.stop()
                raise Failed(f"took more than {self.seconds + more_s:g} s")
            told = json.loads(line.recv_bytes())
            blobs = [line.recv_bytes() for _ in range(told["blobs"])]
        except (EOFError, ConnectionError, ValueError) as error:
            code = self.stop()
            raise Failed(f"its process ended with {code}") from error
        if "raised" in told:
            raise _known(told)
        return told["answer"], blobs

    def stop(self) -> int | None:
        """End the process; its exit status, negative for a signal."""
        process, self._process = self._process, None
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if process is None:
            return None
        try:
            return process.wait(0.5)  # it may just have crashed, and its status tells how
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        self._said = _said_of_storage()
        parent = str(Path(__file__).resolve().parents[2])
        paths = [parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dyefreenet.data.guard", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # decoders print what they think of a file
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(paths),
                "DYEFREENET_GUARD": json.dumps(
                    [self.memory_gib, self.seconds, self.idle_s, os.getpid()]
                ),
            },
        )
        theirs.close()
        self._line = ours
        return ours


def _said_of_storage() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "DYEFREENET_"))}


def _known(told: dict[str, Any]) -> DyeFreeNetError:
    """An exception of ours from its name and its words; what is none of ours has failed."""
    words = [str(word) for word in told["words"]]
    if told["raised"] == "SeriesError" and words[0] in errors.REASONS:
        return SeriesError(words[0], words[1])  # type: ignore[arg-type]
    kind = getattr(errors, told["raised"], None)
    if isinstance(kind, type) and issubclass(kind, DyeFreeNetError) and len(words) == 1:
        return kind(words[0])
    return Failed(words[0])


# ---- over there ----------------------------------------------------------------------------------


def _serve(line: Connection) -> None:
    memory_gib, seconds, idle_s, parent = json.loads(os.environ["DYEFREENET_GUARD"])
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    for name in ("numpy", "SimpleITK", "scipy.ndimage", "pyarrow.parquet", "pydicom.pixels"):
        importlib.import_module(name)  # before the limit, which is for the work alone
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + int(memory_gib * (1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while line.poll(idle_s):
        try:
            module, name, arguments = pickle.loads(line.recv_bytes())  # from our own parent
        except EOFError:
            return
        # Should the parent die while a decoder hangs, the kernel ends this process.
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = int(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
        told, blobs = _answer(getattr(importlib.import_module(module), name), arguments)
        line.send_bytes(json.dumps(told | {"blobs": len(blobs)}).encode())
        for blob in blobs:
            line.send_bytes(blob)


def _answer(
    work: Callable[..., Answer], arguments: Sequence[Any]
) -> tuple[dict[str, Any], Sequence[bytes]]:
    try:
        answer, blobs = work(*arguments)
    except SeriesError as error:
        return {"raised": "SeriesError", "words": [error.reason, error.detail]}, []
    except DyeFreeNetError as error:
        return {"raised": type(error).__name__, "words": [str(error)]}, []
    except MemoryError:
        return {"raised": "Failed", "words": ["needs more memory than it may take"]}, []
    except Exception as error:  # its text may quote a header; where it arose does not
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"
        return {"raised": "Failed", "words": [where]}, []
    return {"answer": answer}, blobs


def _watch(parent: int) -> None:
    """Leave with the one who gave the orders."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
