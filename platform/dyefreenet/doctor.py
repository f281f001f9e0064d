"""What a machine, a store and a cluster lack, and what to do about it. No Ray.

Each check looks at one thing and gives findings; what it looks at is handed in where a test would
need another. No finding holds a secret: of tokens and keys it says that they are there.
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import os
import platform
import re
import shutil
import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dyefreenet.config import PATIENCE
from dyefreenet.errors import DyeFreeNetError, ResourceError
from dyefreenet.store import Folder

Level = Literal["ok", "warn", "FAIL"]
OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"

SHOWN = ("ray", "torch", "pydicom", "pyarrow", "optuna")  # of the packages; others count
SECONDS = "6"  # for which a store may fail here
OBJECT_STORE_SHARE = 0.3  # of a node's memory, which Ray's object store takes
TOO_SMALL = 128 * 2**20  # bytes of shared memory: what containers have unless told otherwise
RAY_FULL = 0.95  # of the disk below Ray's folder, from where on it refuses to write
LITTLE_ROOM = 5e9  # bytes at the store
BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of a CPU; the last is ARM's

Findings = list["Finding"]
Ask = Callable[[Callable[[], Findings]], Mapping[str, "Findings | Exception"]]


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it."""

    level: Level
    what: str
    found: str
    cure: str = ""

    def line(self) -> str:
        """For a terminal."""
        return f"{self.level:<5}{self.what:<15}{self.found}{self.cure and f'; {self.cure}'}"


def examine(store: Folder) -> Iterator[Finding]:
    """Everything that can be seen from here without a cluster."""
    yield from packages()
    yield gpu()
    yield cpu(Path("/proc/cpuinfo"))
    yield codecs()
    yield from storage(store)
    yield from room_at(store)
    yield from ray_room()
    yield from shared_memory()
    yield token(os.environ, Path.home())
    yield ports(Path("/proc"))


def cluster(
    store: Folder, address: str | None, join: Callable[[], None], ask: Ask
) -> Iterator[Finding]:
    """The cluster of ``RAY_ADDRESS``, and each of its nodes.

    Args:
        address: None: none was named.
        join: Joins it, or raises ResourceError.
        ask: Calls a function on every node; what each gave, by the node's name.
    """
    if address is None:
        yield Finding(OK, "cluster", "none named in RAY_ADDRESS: each command starts its own here")
        return
    try:
        join()
    except ResourceError as error:
        found, _, cure = str(error).partition("; ")
        yield Finding(FAIL, "cluster", found, cure)
        return
    versions = f"Ray {importlib.metadata.version('ray')}, Python {platform.python_version()}"
    yield Finding(OK, "cluster", f"joined {address}; the same versions there: {versions}")
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        with _short_patience():
            store.write(name, b"from the driver")
    except DyeFreeNetError:  # which `storage` has told
        name = ""
    try:
        yield from nodes(ask(partial(examine_node, store, name)))
    finally:
        if name:
            with _short_patience():
                store.remove(name)


def nodes(answers: Mapping[str, Findings | Exception]) -> Iterator[Finding]:
    """What is wrong at each node, then how many have nothing wrong."""
    sound = 0
    for node, answer in sorted(answers.items()):
        if isinstance(answer, Exception):
            lines = str(answer).strip().splitlines() or [type(answer).__name__]
            cure = "look whether its Python has what constraints.txt pins"
            yield Finding(FAIL, f"node {node}", f"no answer: {lines[-1]}", cure)
            continue
        bad = [one for one in answer if one.level != OK]
        for one in bad:
            yield Finding(one.level, f"node {node}", f"{one.what}: {one.found}", one.cure)
        sound += not bad
    level: Level = OK if sound == len(answers) else WARN
    yield Finding(
        level, "nodes", f"{sound} of {len(answers)} reach the store and have what they need"
    )


def examine_node(store: Folder, driver_wrote: str) -> Findings:
    """The same at a node of the cluster, as its workers see it.

    Args:
        driver_wrote: Name of a file that the driver has put into the store; "": it could not.
    """
    found = [*packages(), codecs(), *storage(store), *ray_room(), *shared_memory()]
    if driver_wrote and "://" not in store.uri and not store.exists(driver_wrote):
        cure = "name a folder that all nodes share, or s3://"
        found.append(Finding(FAIL, "store", f"{store}: what the driver wrote is not there", cure))
    return found


# ---- packages, devices, codecs -------------------------------------------------------------------


def packages() -> Findings:
    """The installed versions against what this distribution asks for."""
    try:
        metadata = importlib.metadata.metadata("dyefreenet")
        requires = importlib.metadata.requires("dyefreenet") or []
    except importlib.metadata.PackageNotFoundError:
        cure = "pip install -c constraints.txt . to have them compared"
        return [Finding(WARN, "packages", "dyefreenet runs from a checkout, uninstalled", cure)]
    asked = metadata["Requires-Python"] or ""
    return [python(asked, platform.python_version()), *compare(requires, _installed)]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python(asked: str, found: str) -> Finding:
    """The interpreter against the range of ``requires-python``."""
    if SpecifierSet(asked).contains(found, prereleases=True):
        return Finding(OK, "python", f"{found} ({asked})")
    return Finding(FAIL, "python", f"{found}, expected {asked}", "use another interpreter")


def compare(requires: Sequence[str], version_of: Callable[[str], str | None]) -> Findings:
    """A finding for each package that is missing or out of range, or one that all are there.

    Args:
        requires: As the metadata of a distribution has them; those of extras are passed over.
        version_of: Installed version; None: not installed.
    """
    wrong, shown, count = [], [], 0
    for one in map(Requirement, requires):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        count += 1
        version, cure = version_of(one.name), f"pip install '{one.name}{one.specifier}'"
        if version is None:
            wrong.append(Finding(FAIL, "packages", f"{one.name} is not installed", cure))
        elif not one.specifier.contains(version, prereleases=True):
            told = f"{one.name} {version}, expected {one.specifier}"
            wrong.append(Finding(FAIL, "packages", told, cure))
        elif one.name in SHOWN:
            shown.append(f"{one.name} {version}")
    if wrong:
        return wrong
    others = f" and {count - len(shown)} others" if count > len(shown) else ""
    return [Finding(OK, "packages", f"{', '.join(shown)}{others}")]


def gpu() -> Finding:
    """GPUs as torch sees them."""
    try:
        import torch
    except Exception as error:  # also a library of CUDA's that does not load
        return Finding(FAIL, "gpu", f"torch does not import: {_last_line(error)}", "install torch")
    try:
        if not torch.cuda.is_available():
            return no_gpu(torch.version.cuda, Path("/proc/driver/nvidia/version").exists())
        told = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            with torch.cuda.device(index):
                bf16 = "bf16" if torch.cuda.is_bf16_supported(False) else "no bf16"
            name = torch.cuda.get_device_name(index)
            told.append(f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {bf16}")
    except RuntimeError as error:
        return Finding(FAIL, "gpu", f"it does not work: {_last_line(error)}", "look at nvidia-smi")
    return Finding(OK, "gpu", " | ".join(told))


def no_gpu(built_for: str | None, driver: bool) -> Finding:
    """What it means that torch sees no GPU.

    Args:
        built_for: The CUDA version of torch; None: it is a build for CPUs.
        driver: Whether this machine has NVIDIA's.
    """
    if not driver:
        return Finding(OK, "gpu", "none here: training runs on the CPU")
    if built_for is None:
        cure = "install the build for CUDA, see pytorch.org"
        return Finding(WARN, "gpu", "there is one, and this torch is built for CPUs", cure)
    cure = "look at nvidia-smi, CUDA_VISIBLE_DEVICES and the container's --gpus"
    told = f"NVIDIA's driver is there, and torch for CUDA {built_for} finds no GPU"
    return Finding(WARN, "gpu", told, cure)


def cpu(cpuinfo: Path) -> Finding:
    """Cores, and whether they reckon in bf16."""
    cores = len(os.sched_getaffinity(0))
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    flags = set(re.sub(r"(?m)^.*?:", "", text).split())
    own = sorted(BF16_FLAGS & flags)
    if own:
        return Finding(OK, "cpu", f"{cores} cores, bf16 by {' and '.join(own)}")
    told = f"{cores} cores, none has bf16: keep precision=fp32 where it trains"
    return Finding(OK, "cpu", told)


def codecs() -> Finding:
    """Whether every compressed transfer syntax that is read here has its decoder."""
    try:
        import imagecodecs
    except Exception as error:
        return Finding(FAIL, "codecs", _last_line(error), "pip install imagecodecs")
    return decoders(lambda name: bool(getattr(getattr(imagecodecs, name, None), "available", 0)))


def decoders(has: Callable[[str], bool]) -> Finding:
    """The same, with what says whether imagecodecs has a codec."""
    from pydicom.uid import RLELossless

    from dyefreenet.data.codecs import HIGH_THROUGHPUT, JPEG, JPEG_2000, JPEG_LS, SYNTAXES

    needs = {
        "DICOMRLE": (RLELossless,),
        "JPEG8": JPEG,
        "JPEGLS": JPEG_LS,
        "JPEG2K": (*JPEG_2000, *HIGH_THROUGHPUT),
    }
    missing = [syntax.name for codec, own in needs.items() if not has(codec) for syntax in own]
    if missing:
        cure = "pip install --force-reinstall imagecodecs, whose wheels have them all"
        return Finding(FAIL, "codecs", f"no decoder for {', '.join(missing)}", cure)
    told = f"all {len(SYNTAXES)} compressed transfer syntaxes"
    if not has("HTJ2K"):
        cure = "Python 3.11 or later has a newer imagecodecs"
        return Finding(WARN, "codecs", f"{told}; HTJ2K by OpenJPEG, in twice the time", cure)
    return Finding(OK, "codecs", told)


# ---- store, disks, memory ------------------------------------------------------------------------


def storage(store: Folder) -> Findings:
    """Write, read back, list and delete a small object below the store."""
    began = time.monotonic()
    probe, content = store / f".doctor-{uuid.uuid4().hex}", os.urandom(1024)

    def delete() -> None:
        probe.remove("probe")
        probe.clear()

    steps: dict[str, Callable[[], object]] = {
        "written": lambda: probe.write("probe", content),
        "read": lambda: probe.read("probe"),
        "listed": probe.names,
        "deleted": delete,
    }
    done: list[str] = []
    is_new = "://" not in store.uri and not Path(store.uri).exists()
    with _short_patience():
        for step, call in steps.items():
            try:
                call()
            except DyeFreeNetError as error:
                return [_refused(store, step, done, error)]
            done.append(step)
    if is_new:
        with suppress(OSError):  # others may have put something there
            os.rmdir(store.uri)
    seconds = time.monotonic() - began
    return [Finding(OK, "store", f"{store}: written, read, listed, deleted in {seconds:.1f} s")]


def _refused(store: Folder, step: str, done: Sequence[str], error: DyeFreeNetError) -> Finding:
    """What a step of ``storage`` ran into; whether a store that cannot be written can be read."""
    reason, _, cure = str(error).rpartition("found: ")[2].partition("; ")
    told = f"{store}: cannot be {step}: {reason}"
    if done:
        told = f"{store}: {', '.join(done)}, but not {step}: {reason}"
        cure = cure or "these credentials need to read, write, list and delete below it"
    elif "://" in store.uri and "AccessDenied" in reason:
        try:
            store.exists()
            told = f"{store}: can be listed but not written ({reason})"
        except DyeFreeNetError:
            pass
    return Finding(FAIL, "store", told, cure)


@contextmanager
def _short_patience() -> Iterator[None]:
    """Nobody waits 40 s to hear that a store is away, unless the environment says so."""
    if PATIENCE in os.environ:
        yield
        return
    os.environ[PATIENCE] = SECONDS
    try:
        yield
    finally:
        del os.environ[PATIENCE]


def room_at(store: Folder) -> Findings:
    """Free disk at the store; nothing for a bucket, which does not tell."""
    try:
        free = store.free_bytes()
    except DyeFreeNetError:
        return []  # which `storage` has told
    if free is None:
        return []
    told = f"{free / 1e9:.0f} GB free at {store}"
    if free < LITTLE_ROOM:
        return [Finding(WARN, "disk", told, "free space there, or name another --store")]
    return [Finding(OK, "disk", told)]


def ray_room() -> Findings:
    """Free disk where Ray keeps its logs, and what does not fit into memory."""
    place = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    if not place.is_dir():
        return [Finding(FAIL, "ray's disk", f"{place} is no folder", "make it, or mend RAY_TMPDIR")]
    usage = shutil.disk_usage(place)
    return [ray_disk(str(place), usage.free, usage.total)]


def ray_disk(place: str, free: int, total: int) -> Finding:
    """The same, of figures in bytes."""
    told = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free at {place}"
    cure = "free space there, or set RAY_TMPDIR to another disk before Ray starts"
    if free < (1 - RAY_FULL) * total:
        return Finding(FAIL, "ray's disk", f"{told}: Ray writes no objects above 95 %", cure)
    if free < 1.5 * (1 - RAY_FULL) * total:
        return Finding(WARN, "ray's disk", f"{told}: Ray stops writing objects at 95 %", cure)
    return Finding(OK, "ray's disk", told)


def shared_memory() -> Findings:
    """Shared memory against what Ray's object store will take of it."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return []
    return [shared(shutil.disk_usage(place).total, memory())]


def shared(size: int, memory_bytes: int) -> Finding:
    """The same, of figures in bytes."""
    wanted = int(OBJECT_STORE_SHARE * memory_bytes)
    told = f"{_bytes(size)}, Ray's object store takes {_bytes(wanted)} (30 % of the memory)"
    if size >= wanted:
        return Finding(OK, "shared memory", told)
    cure = (
        "without it objects go through the disk: docker run --shm-size; on Kubernetes an emptyDir "
        "of medium Memory at /dev/shm, as in cluster/raycluster.yaml"
    )
    return Finding(FAIL if size < TOO_SMALL else WARN, "shared memory", told, cure)


def memory() -> int:
    """Bytes that this machine has, or that its container may take."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups 2 and 1
        limit = Path("/sys/fs/cgroup") / name
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            found = min(found, int(text))
    return found


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


# ---- Ray's token and ports -----------------------------------------------------------------------


def token(environ: Mapping[str, str], home: Path) -> Finding:
    """Whether Ray's token is on, and where it comes from. Says nothing of what it is."""
    mode, remote = environ.get("RAY_AUTH_MODE", ""), "RAY_ADDRESS" in environ
    cure = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    if mode == "":
        if not remote:
            return Finding(OK, "token", "each command makes one for the cluster that it starts")
        return Finding(WARN, "token", "RAY_ADDRESS is set and RAY_AUTH_MODE is not", cure)
    if mode.lower() != "token":
        told = f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports can run code here"
        return Finding(WARN, "token", told, cure)
    if environ.get("RAY_AUTH_TOKEN", "").strip():
        return Finding(OK, "token", "on, from RAY_AUTH_TOKEN")
    named = "RAY_AUTH_TOKEN_PATH" in environ
    file = Path(environ["RAY_AUTH_TOKEN_PATH"]) if named else home / ".ray" / "auth_token"
    shown = "RAY_AUTH_TOKEN_PATH" if named else "~/.ray/auth_token"
    try:
        empty, readable = not file.read_bytes().strip(), file.stat().st_mode & 0o077
    except OSError as error:
        if not named and not remote:
            return Finding(OK, "token", f"on; Ray will write one to {shown}")
        return Finding(FAIL, "token", f"on, but {shown}: {error.strerror}", cure)
    if empty:
        return Finding(FAIL, "token", f"on, but the file of {shown} is empty", cure)
    if readable:
        cure = "chmod 600 that file"
        return Finding(WARN, "token", f"on, but others may read the file of {shown}", cure)
    return Finding(OK, "token", f"on, from the file of {shown}")


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Port:
    """A port at which a process of ours listens where other machines may reach it."""

    process: str
    number: int
    token: bool | None  # whether its process was started with it; None: it does not tell


def ports(proc: Path) -> Finding:
    """What processes of Ray and of ours listen at, off loopback."""
    return open_ports(list(listening(proc)))


def open_ports(found: Sequence[Port]) -> Finding:
    """The same, of what was found."""
    if not found:
        return Finding(OK, "ports", "no process of ours listens off loopback")
    counts = Counter(one.process for one in found)
    names = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    told = f"off loopback listen {names}"
    if any(one.token is False for one in found):
        cure = "start Ray with RAY_AUTH_MODE=token: whoever reaches these ports can run code here"
        return Finding(WARN, "ports", f"{told}, without a token", cure)
    cure = "a token is no encryption: keep them within a network that is yours"
    return Finding(OK, "ports", told, cure)


def listening(proc: Path) -> Iterator[Port]:
    """Ports of processes of Ray and of this package, of this user, that are not on loopback."""
    numbers: dict[str, int] = {}  # by inode of the socket
    for table in ("net/tcp", "net/tcp6"):
        if (proc / table).exists():
            numbers |= off_loopback((proc / table).read_text())
    if not numbers:
        return
    for process in sorted(proc.glob("[0-9]*"), key=lambda one: int(one.name)):
        try:
            if process.stat().st_uid != os.getuid():
                continue
            words = (process / "cmdline").read_bytes().split(b"\0")
            name = name_of(words)
            if name is None:
                continue
            links = [os.readlink(one) for one in (process / "fd").iterdir()]
            environ = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is not ours
            continue
        # Ray's Python processes write their titles over their environment; its servers do not.
        has = b"RAY_AUTH_MODE=token" in environ if name in ("gcs_server", "raylet") else None
        for link in sorted(set(links)):
            if link.startswith("socket:[") and link[8:-1] in numbers:
                yield Port(name, numbers[link[8:-1]], has)


def name_of(words: Iterable[bytes]) -> str | None:
    """What to call a process of Ray's or ours, by its command line; None: it is neither."""
    first, *others = (word.decode(errors="replace") for word in words)
    name = Path(first.partition(" ")[0]).name
    if name in ("gcs_server", "raylet"):
        return name
    if first.startswith("ray::") or any("/ray/" in word for word in (first, *others)):
        return "ray's python"
    if any("dyefreenet" in word for word in (first, *others)):
        return "dyefreenet"
    return None


def off_loopback(table: str) -> dict[str, int]:
    """Ports that ``/proc/net/tcp`` or ``tcp6`` shows listening off loopback, by inode."""
    return {inode: port for place, port, inode in listeners(table) if not place.is_loopback}


def listeners(
    table: str,
) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, str]]:
    """Address, port and inode of each socket that listens; IPv4 within IPv6 as IPv4."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != "0A":  # of states, that of listening
            continue
        address, _, port = fields[1].partition(":")
        raw = bytes.fromhex(address)  # words of 4 bytes, in this machine's order
        packed = struct.pack(f">{len(raw) // 4}I", *struct.unpack(f"={len(raw) // 4}I", raw))
        place = ipaddress.ip_address(packed)
        yield getattr(place, "ipv4_mapped", None) or place, int(port, 16), fields[9]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
