"""Join or start a Ray cluster, and what it can give. Nothing about CT."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dyefreenet.errors import ResourceError

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
_QUIET = {
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


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
        ResourceError: There is no cluster at the address.
    """
    for name, value in (_SETTINGS if verbose else _SETTINGS | _QUIET).items():
        os.environ.setdefault(name, value)
    remote = "RAY_ADDRESS" in os.environ
    if not remote and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # A cluster of our own, closed to others.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "ERROR",
    }
    try:
        with _silence(verbose):
            if remote:
                ray.init(runtime_env=_for_remote(), **quiet)
            else:
                _start(quiet)
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(
            f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', 'local')}: expected a Ray cluster, "
            f"found: {error}"
        ) from error
    hush(verbose)


def _start(quiet: dict[str, Any]) -> None:
    """A cluster of our own on this machine, beside any other; tried twice, for Ray gives itself
    seconds to start that a busy machine does not have.

    Its address is chosen beforehand and told to every worker. Without it, Ray Train's clean-up
    looks for "the" cluster of the machine, dies where there are two, and a trial that was stopped
    early keeps its CPUs: the sweep waits for ever.

    Raises:
        ResourceError: It does not start.
    """
    import ray

    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    for last in (False, True):
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
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
            return
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if last:
                raise ResourceError(
                    "expected Ray to start on this machine, found that it did not, twice "
                    f"({str(error).splitlines()[0][:120]}); is it short of memory, or very busy?"
                ) from error
        finally:
            del os.environ["RAY_GCS_SERVER_PORT"]


def _for_remote() -> dict[str, object]:
    """Workers of a cluster may lack the package; the driver has it, so it is sent along."""
    return {"env_vars": _SETTINGS, "py_modules": [str(Path(__file__).resolve().parent)]}


def hush(verbose: bool) -> None:
    """Ray's own talk off, unless asked for."""
    if verbose:
        return
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def _silence(verbose: bool) -> Iterator[None]:
    """Nothing on standard error, of Ray's C++ neither."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


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
