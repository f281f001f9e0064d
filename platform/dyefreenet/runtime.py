"""Join or start a Ray cluster, and what it can give. Nothing about CT."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from dyefreenet.errors import DyeFreeNetError, ResourceError

# Read by Ray when it is imported, here and in every worker, so they are set before.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # V2 costs seconds per epoch on small data (measured)
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",  # starved of CPUs: an error, not a hang
    "RAY_num_workers_soft_limit": "8",  # idle workers stay: starting one costs seconds of a core
    "RAY_worker_niceness": "0",  # else any other program goes first, and a demo takes twice as long
    "RAY_worker_maximum_startup_concurrency": "16",  # else it complains of Train's many actors
}
_QUIET = {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_AIR_NEW_OUTPUT": "0"}
STARVED = (  # as Ray says it where a machine has too much to do
    "timed out during startup",
    "contains the error message from the dashboard",
)
ANSWERS = 5.0  # seconds in which a cluster's port must

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """How a run uses the machine or cluster; no part of any result's identity."""

    workers: int = 1  # per training stage
    gpu: Literal["auto", "yes", "no"] = "auto"
    parallel: int | None = None  # steps at a time; None: as many as the resources carry
    at_least: int | None = None  # workers with which a stage goes on; None: all of them


@dataclass(frozen=True)
class Share:
    """What one training worker gets."""

    gpu: bool
    cpus: float  # that Ray books
    threads: int  # of torch


def connect(verbose: bool = False) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (or of the job that runs us), or start one here.

    Raises:
        ResourceError: There is no cluster at the address, it has another token or version, or this
            machine has too much to do to start one.
    """
    for name, value in (_SETTINGS if verbose else _SETTINGS | _QUIET).items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address is None and not verbose:  # of a cluster that refuses us, C++ alone says why
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # A cluster of our own, closed to others.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        return
    if address is not None:
        _require_answer(address)
    start_or_say_why(lambda: _join_or_start(address, verbose), address, verbose)
    hush(verbose)


def start_or_say_why(start: Callable[[], None], address: str | None, verbose: bool) -> None:
    """Call what joins or starts a cluster; once more, if this machine may have been too busy.

    Raises:
        ResourceError: It failed; one line says why.
    """
    for again in (True, False):
        with _silence(verbose) as said:
            try:
                start()
                return
            except Exception as error:  # Ray raises many kinds, bare ones among them
                text = f"{_chain(error)}\n{said()}"
                if not (again and (address is None or _is_starved(text))):
                    raise ResourceError(why_not(address, text)) from error


def _join_or_start(address: str | None, verbose: bool) -> None:
    import ray

    quiet: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "ERROR",
    }
    try:
        if address is not None:
            ray.init(runtime_env=_for_remote(), **quiet)
        else:
            _start(quiet)
    except Exception:
        ray.shutdown()  # of what is half there
        raise


def _start(quiet: dict[str, Any]) -> None:
    """A cluster of our own on this machine, beside any other.

    Its address is chosen beforehand and told to every worker. Without it, Ray Train's clean-up
    looks for "the" cluster of the machine, dies where there are two, and a trial that was stopped
    early keeps its CPUs: the sweep waits for ever.
    """
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}",
    }
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    try:
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            runtime_env={"env_vars": _SETTINGS | told},
            **quiet,
        )
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]


def _require_answer(address: str) -> None:
    """See that somebody listens there: Ray itself tries for a minute and more."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)(?:/.*)?", address)
    if place is None:  # "auto", or what Ray explains itself
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=ANSWERS).close()
    except OSError as error:
        raise ResourceError(
            f"RAY_ADDRESS={address}: expected a Ray cluster, found nobody who answers "
            f"({error.strerror or error}); start the cluster, mend the address (HEAD:6379), or "
            "unset RAY_ADDRESS to work on this machine alone"
        ) from None


def why_not(address: str | None, text: str) -> str:
    """One line for what Ray says at length when a cluster is not joined or started.

    Args:
        address: RAY_ADDRESS; None: it was to start here.
        text: What was raised, with its causes, and what stood on stderr.
    """
    if _is_starved(text):
        return (
            "Ray: expected its processes to start within half a minute, found that they did not, "
            "twice: this machine has too much to do; wait for its other programs, or end them (-v "
            "shows more)"
        )
    where = f"RAY_ADDRESS={address}" if address else "Ray"
    if "Version mismatch" in text:
        both = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
        (ray, python), *mine = both or [("?", "?")]
        found = f", found Ray {mine[0][0]} and Python {mine[0][1]} here" if mine else ""
        return (
            f"{where}: expected the cluster's Ray {ray} and Python {python}{found}; "
            f"use the image of the cluster, or pip install ray=={ray} under that Python"
        )
    if re.search(r"(?i)auth(entication)? ?token|unauthenticated", text):
        return (
            f"{where}: expected the cluster's token, found another one or none; set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the token of its head"
        )
    if address and address.startswith("http"):
        return (
            f"{where}: expected the address of a cluster (HEAD:6379), found that of a dashboard; "
            "that one goes into RAY_API_SERVER_ADDRESS, for `ray job submit`"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[0] if lines else "no reason"
    return f"{where}: expected a Ray cluster, found: {told} (-v shows more)"


def lacking_on_a_node(error: BaseException) -> str | None:
    """One line for work that could not begin on a node of the cluster; None: something else."""
    if not type(error).__module__.startswith("ray.exceptions"):
        return None
    text = _chain(error)
    if type(error).__name__ == "RuntimeEnvSetupError":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return (
            "Ray: expected the job's runtime environment to be set up on every node, found: "
            f"{lines[-1]}; nodes must reach all that the file of --runtime-env names"
        )
    if missing := re.findall(r"No module named '([\w.]+)'", text):
        return (
            f"Ray: expected the package {missing[-1]} on every node, found a node without it; use "
            "the image of cluster/Dockerfile, or name it under pip in cluster/runtime_env.yaml; "
            "dyefreenet doctor says which node lacks what"
        )
    return None


def _is_starved(text: str) -> bool:
    return any(words in text for words in STARVED)


def _chain(error: BaseException | None) -> str:
    """What an error and all that caused it say."""
    told = []
    while error is not None:
        told.append(str(error).strip() or type(error).__name__)
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def on_every_node(call: Callable[[], T], seconds: float = 60.0) -> dict[str, T | Exception]:
    """What a function gives on each node of the cluster that is joined, or why it gave nothing.

    Args:
        call: Sent to the nodes; it books no CPU, so that it runs beside whatever runs there.
        seconds: In which all of them must have ended.

    Returns:
        By the node's address and the start of its id.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def there() -> T:
        return call()

    waiting = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        bound = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = there.options(scheduling_strategy=bound).remote()
        waiting[task] = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
    ended, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=seconds)
    found: dict[str, T | Exception] = {}
    for task in ended:
        try:
            found[waiting[task]] = ray.get(task)
        except Exception as error:
            found[waiting[task]] = error
    for task in late:
        ray.cancel(task)
        found[waiting[task]] = TimeoutError(f"no answer in {seconds:g} s")
    return found


def _for_remote() -> dict[str, object]:
    """Workers of a cluster may lack the package; the driver has it, so it is sent along."""
    return {"env_vars": _SETTINGS, "py_modules": [str(Path(__file__).resolve().parent)]}


def hush(verbose: bool) -> None:
    """Ray's own talk off, unless asked for."""
    if verbose:
        return
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet_data()


def quiet_data() -> None:
    """No bars and no plans from the Ray Data of this process, which may be a worker's."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def over_cluster(work: Any, items: Iterable[Any], wave: int, **options: Any) -> Iterator[Any]:
    """Answers to items, in any order, as Ray Data maps them.

    Args:
        work: A function that gives ``answer_of`` a row, or a class of such objects, made once in
            each actor.
        wave: Items handed over at once, so that memory does not grow with their number. Each is a
            block of its own, or memory would hold more of them than the cluster has CPUs.
        options: Of ``Dataset.map``: CPUs, GPUs, actors.

    Raises:
        DyeFreeNetError: The first that work on an item raised; others may be done by then.
    """
    import ray.data

    quiet_data()
    waiting = iter(items)
    while some := list(islice(waiting, wave)):
        rows = [{"item": pickle.dumps(item)} for item in some]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work, **options)
        for row in dataset.iter_rows():
            answer = pickle.loads(row["answer"])  # of our own, from a few lines below
            if isinstance(answer, DyeFreeNetError):
                raise answer
            yield answer


def answer_of(work: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, bytes]:
    """What work on a row of ``over_cluster`` gives; an error of ours travels as its answer."""
    try:
        return {"answer": pickle.dumps(work(pickle.loads(row["item"])))}
    except DyeFreeNetError as error:  # a full disk, no credentials: no fault of the item
        return {"answer": pickle.dumps(error)}


@contextlib.contextmanager
def _silence(verbose: bool) -> Iterator[Callable[[], str]]:
    """Ray's warnings kept off the terminal, those of its C++ too; yields what tells them."""
    if verbose:
        yield lambda: ""
        return
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        said = stack.enter_context(tempfile.TemporaryFile())
        terminal = os.dup(2)
        stack.callback(os.close, terminal)
        stack.callback(os.dup2, terminal, 2)
        os.dup2(said.fileno(), 2)
        stack.enter_context(contextlib.redirect_stderr(null))

        def told() -> str:
            said.seek(0)
            return said.read().decode(errors="replace")

        yield told


def share_of(resources: Resources) -> Share:
    """What each training worker gets of what the cluster has.

    Raises:
        ResourceError: A GPU was asked for and there are too few, or too few CPUs.
    """
    import ray

    found = ray.cluster_resources()
    cpus, gpus = found.get("CPU", 0.0), found.get("GPU", 0.0)
    use_gpu = resources.gpu == "yes" or (resources.gpu == "auto" and gpus >= resources.workers)
    if use_gpu and gpus < resources.workers:
        raise ResourceError(
            f"--gpu: expected {resources.workers} GPUs for {resources.workers} workers, found "
            f"{gpus:g} in the cluster; leave --gpu out to train on CPU"
        )
    at_once = parallel_steps(resources) * resources.workers
    largest = max(
        (node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=cpus
    )
    own = min(cpus / at_once, largest)  # a worker lives on one node
    share = own * 0.75  # the rest feeds: without it Ray Data waits for ever
    if share < 0.1:
        raise ResourceError(
            f"--workers: expected at most {int(cpus * 7)} workers on {cpus:g} CPUs, "
            f"found {resources.workers}"
        )
    booked = min(share, 4.0) if use_gpu else share
    return Share(use_gpu, round(booked, 2), max(1, int(own)))


def actors(
    gpu: Literal["auto", "yes", "no"], cpus: int | None, most: int | None
) -> tuple[bool, float, int]:
    """Whether actors that hold a model get a GPU, how many CPUs each, and how many fit at most.

    A cluster that can grow has room for more than now: the number is no promise.

    Args:
        cpus: Of each; None: a GPU's share of its node's, two where there is none.
        most: Of actors; None: no limit but the cluster's.

    Raises:
        ResourceError: A GPU was asked for and there is none, or no node has so many CPUs.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if gpu == "yes" and gpus < 1:
        raise ResourceError("--gpu: expected a GPU in the cluster, found none; leave it out")
    use_gpu = gpu != "no" and gpus >= 1
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if cpus is None:
        shares = [n.get("CPU", 0.0) // n["GPU"] for n in nodes if n.get("GPU", 0.0) >= 1]
        booked = max(1.0, min(shares)) if use_gpu else min(2.0, largest)
    else:
        booked = float(cpus)
    if not 0 < booked <= largest:
        raise ResourceError(
            f"--cpus: expected at most the {largest:g} CPUs of the largest node, found {booked:g}"
        )
    return use_gpu, booked, most or 10_000


def parallel_steps(resources: Resources) -> int:
    """How many training steps go at once: by GPUs, or by pairs of cores on CPU."""
    import ray

    if resources.parallel:
        return resources.parallel
    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0))
    if gpus and resources.gpu != "no":
        return max(gpus // resources.workers, 1)
    return 2 if found.get("CPU", 1) >= 2 * resources.workers else 1
