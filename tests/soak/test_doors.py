"""Every port and route that ``cluster/local.sh`` opens, without its token and with another one.

Thousands of calls: each method of each of Ray's gRPC services, and each of its HTTP routes, at
every port that listens while a job with two actors runs. Nothing may do what it is asked. What
answers all the same is named here: an empty page, signs of life, and figures for Prometheus.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dyefreenet.doctor import listeners

ROOT = Path(__file__).parents[2]
PORTS = {"RAY_PORT": "6390", "DASHBOARD_PORT": "8290"}
BESIDE = """
import ray, time
ray.init()
class Actor:
    def ready(self): pass
actors = [ray.remote(Actor).remote() for _ in range(2)]
ray.get([one.ready.remote() for one in actors])
print("both are there", flush=True)
time.sleep(600)
"""
WITHOUT_DATA = {"/", "/favicon.ico", "/api/authentication_mode"}  # the page asks for a token
ALIVE = {"/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"}
# Not among the services that Ray's Python knows of.
MORE = tuple(f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects"))
AGENT = ("get_or_create_runtime_env", "delete_runtime_env_if_possible", "get_runtime_envs_info")
WRONG = "Bearer " + "ab" * 32

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


class Door(NamedTuple):
    host: str
    port: int


def listening() -> set[Door]:
    """Every TCP port of this machine, where it can be reached from here."""
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return {
        Door("127.0.0.1" if place.is_unspecified else str(place), port)
        for table in tables
        for place, port, _ in listeners(table)
    }


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Door]]:
    """Ports that were opened for a cluster with a job at work."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    own |= PORTS | {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    before = listening()

    def script(word: str) -> str:
        done = subprocess.run(
            ["bash", "cluster/local.sh", word], cwd=ROOT, env=own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        told = dict(word.split("=", 1) for word in script("up").split()[1:])
        job = subprocess.Popen(
            ["ray", "job", "submit", "--", "python3", "-c", BESIDE],
            cwd=ROOT, env=own | told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert job.stdout is not None
        said = []
        for line in job.stdout:
            said.append(line)
            if line.startswith("both are there"):
                break
        else:
            raise AssertionError("".join(said[-20:]))
        time.sleep(2)
        yield sorted(listening() - before)
    finally:
        script("down")


def kinds(doors: list[Door]) -> dict[Door, str]:
    """Whether a port speaks HTTP or gRPC, by what it says to a line of HTTP."""
    found = {}
    for door in doors:
        with socket.create_connection(door, timeout=5) as wire:
            wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            try:
                found[door] = "http" if wire.recv(5) == b"HTTP/" else "grpc"
            except OSError:
                found[door] = "grpc"
    return found


def methods() -> list[str]:
    """Of every gRPC service of Ray, as ``/service/method``."""
    import ray.core.generated as generated

    found = list(MORE)
    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in described.services_by_name.values():
                found += [f"/{service.full_name}/{one.name}" for one in service.methods]
    return found


def routes() -> list[tuple[str, str]]:
    """Every verb and route of Ray's dashboard and agents, as their sources declare them."""
    import ray

    found = {("post", f"/{name}") for name in AGENT}
    for source in (Path(ray.__file__).parent / "dashboard").rglob("*.py"):
        declared = r'routes\.(get|post|put|delete|head|patch)\(\s*f?"([^"]+)"'
        found |= set(re.findall(declared, source.read_text()))
    return sorted(found)


def test_nothing_is_done_without_the_token(doors):
    import grpc
    import requests

    asked, answered, calls = kinds(doors), Counter[str](), 0
    assert {"http", "grpc"} == set(asked.values())
    for door, kind in asked.items():
        for token in (None, WRONG):
            if kind == "grpc":
                channel = grpc.insecure_channel(f"{door.host}:{door.port}")
                for method in methods():
                    with pytest.raises(grpc.RpcError) as refusal:
                        channel.unary_unary(method)(
                            b"", timeout=10, metadata=[("authorization", token)] if token else None
                        )
                    # A port refuses what it serves, and has never heard of the rest.
                    name = refusal.value.code().name
                    assert name in ("UNAUTHENTICATED", "UNIMPLEMENTED"), (door, method, name)
                    answered[name] += 1
                    calls += 1
                channel.close()
                continue
            headers = {"Authorization": token} if token else {}
            for verb, route in routes():
                place = f"http://{door.host}:{door.port}" + re.sub(r"\{[^}]*\}", "x", route)
                reply = requests.request(verb, place, headers=headers, timeout=10)
                answered[str(reply.status_code)] += 1
                calls += 1
                figures = reply.headers.get("Content-Type", "").startswith("text/plain; version=")
                if verb == "get" and (route in WITHOUT_DATA | ALIVE or figures):
                    assert len(reply.content) < 100 or figures or route not in ALIVE
                    continue
                only_figures = reply.status_code == 405 and verb != "get"
                refused = reply.status_code in (401, 403) or only_figures
                assert refused, (door, verb, route, reply.status_code, reply.text)
    print(f"{calls} calls at {len(doors)} ports: {dict(answered)}")
    assert calls >= 1000
    assert answered["UNAUTHENTICATED"] >= 100 and answered["401"] >= 50 and answered["403"] >= 50


def test_only_rays_own_ports_are_off_loopback(doors):
    """Its dashboard is not; nor is anything of ours, which opens none."""
    assert Door("127.0.0.1", int(PORTS["DASHBOARD_PORT"])) in doors
    assert sum(door.port == int(PORTS["DASHBOARD_PORT"]) for door in doors) == 1
