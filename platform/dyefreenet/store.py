"""Run folders, on local disk or object storage.

A step of a run is a folder ``{store}/{run}/{step}``, readable by name. Its ``manifest.json`` is
written last and is the only sign that the step is done: whatever lies in a folder without one is
half-written and will be made again. The fingerprint is a hash of the step's config and of the
fingerprints of the steps it needs; workers, GPUs and paths are no part of it.

A file is there whole or not at all, and what is read is what was written: by the digest that the
manifest has of a file, and in object storage by one that lies with every object that we write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.core import url_to_fs

from dyefreenet import __version__
from dyefreenet.errors import InputError, StorageError, StoreError

if TYPE_CHECKING:
    from dyefreenet.bucket import Bucket

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # what the driver of a run says of itself while it goes on
SALT = "salt.txt"

_HINTS = {
    errno.ENOSPC: "free space there, or name another place",
    errno.EDQUOT: "free space there, or name another place",
    errno.EROFS: "name a place that you may write",
    errno.EACCES: "name a place that you may read and write",
    errno.EPERM: "name a place that you may read and write",
}


@dataclass(frozen=True)
class Folder:
    """A folder by its address: a path or an ``s3://`` URI. Names below it use ``/``.

    Every method raises StorageError, in one line, where storage refuses or gives no answer in time.
    """

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:  # workers change their directory, so no path stays relative
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def parent(self) -> Folder:
        return Folder(self.uri.rstrip("/").rpartition("/")[0])

    def _place(self) -> _Disk | _Other | Bucket:
        if "://" not in self.uri:
            return _Disk(Path(self.uri))
        if not self.uri.startswith("s3://"):
            return _Other(self.uri.rstrip("/"))
        from dyefreenet.bucket import Bucket  # here, so that a local run starts without botocore

        name, _, prefix = self.uri.removeprefix("s3://").rstrip("/").partition("/")
        return Bucket(name, prefix)

    def read(
        self, name: str, sha256: str = "", *, first: int | None = None, label: str = ""
    ) -> bytes:
        """Bytes of a file, checked against its digest; one that differs is read once more.

        Args:
            sha256: What the file must have, in hex; "": not known.
            first: Bytes wanted from the beginning, of which no digest can tell; None: all.
            label: What errors call the file, where its name may name a patient: "file 3 of 9".

        Raises:
            InputError: It is not there, or the storage refuses.
            StoreError: It is not what was written.
        """
        where = f"{self.uri}: {label}" if label else f"{self.uri}/{name}"
        for _ in range(2):
            try:
                with _in_one_line(where, FileNotFoundError):
                    content, found, kept = self._place().get(name, first)
            except FileNotFoundError:
                raise InputError(f"{where}: expected a file, found none") from None
            expected = {sha256, kept} - {""}
            is_part = first is not None and len(content) >= first
            if is_part or not expected:
                return content
            found = found or hashlib.sha256(content).hexdigest()
            if expected == {found}:
                return content
        raise StoreError(
            f"{where}: expected SHA-256 {' and '.join(sorted(expected))}, found {found}, twice: "
            "the file was changed or damaged; make it again"
        )

    def read_checked(self, name: str) -> bytes:
        """A step's file, checked against the digest that its manifest has, if it has one.

        Raises:
            InputError: It is not there.
            StoreError: It is not what was written.
        """
        return self.read(name, ((self.manifest() or {}).get("files") or {}).get(name, ""))

    def write(self, name: str, content: bytes) -> str:
        """Put a file in place whole or not at all; its SHA-256, for those who read it."""
        with _in_one_line(f"{self.uri}/{name}"):
            return self._place().put(name, content)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        with _in_one_line(self.uri):
            return self._place().exists(name)

    def names(self) -> list[str]:
        """Names of all files below, sorted, relative to the folder."""
        return sorted(name for name, _ in self.entries())

    def entries(self) -> Iterator[tuple[str, str]]:
        """Names of all files below as the storage lists them, and for each its stamp.

        A stamp changes with the content: it is made of size and time, or of the store's own tag.
        """
        with _in_one_line(self.uri):
            yield from self._place().entries()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _in_one_line(self.uri):
            self._place().remove(name)

    def clear(self) -> None:
        """Remove all that lies below: what a step left that was broken off."""
        with _in_one_line(self.uri):
            self._place().clear()

    def require_writable(self) -> None:
        """Write, read and remove a small file: a full disk is told before the work, not after."""
        name, content = f".writable-{uuid.uuid4().hex}", os.urandom(64 * 1024)
        with _in_one_line(self.uri):
            digest = self._place().put(name, content)
        self.read(name, digest, label="a file that was just written")
        self.remove(name)

    def free_bytes(self) -> int | None:
        """Room that is left; None where storage does not tell, as buckets do not."""
        place = self._place()
        if not isinstance(place, _Disk):
            return None
        with _in_one_line(self.uri):
            there = next(one for one in (place.root, *place.root.parents) if one.exists())
            return shutil.disk_usage(there).free

    def read_json(self, name: str) -> Any:
        return _parsed(f"{self.uri}/{name}", self.read(name))

    def write_json(self, name: str, value: Any) -> str:
        return self.write(name, _json(value))

    def manifest(self) -> dict[str, Any] | None:
        """What the finished step says of itself; None: the step is not done."""
        if not self.exists(MANIFEST):
            return None
        manifest = _parsed(f"{self.uri}/{MANIFEST}", self.read(MANIFEST))
        if not isinstance(manifest, dict) or "fingerprint" not in manifest:
            raise StoreError(f"{self.uri}/{MANIFEST}: expected a step's manifest, found other JSON")
        return manifest

    def publish(self, fingerprint: str, config: dict[str, Any], **facts: Any) -> None:
        """Declare the step done: its manifest, last of all files.

        Of two runs that made one step at a time, the first publishes; the second goes on if it made
        the same.

        Args:
            facts: ``files`` among them, SHA-256 by name, is what ``read_checked`` goes by.

        Raises:
            StoreError: Another run has published other things here.
        """
        mine = {
            "fingerprint": fingerprint,
            "config": config,
            "code": code_version(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        } | facts
        content = _json(mine)
        try:
            with _in_one_line(f"{self.uri}/{MANIFEST}", FileExistsError):
                digest = self._place().put(MANIFEST, content, new=True)
        except FileExistsError:
            self._require_same(json.loads(content))
        else:
            self.read(MANIFEST, digest)

    def _require_same(self, mine: dict[str, Any]) -> None:
        theirs = self.manifest() or {}
        differs = [k for k in ("fingerprint", "config", "files") if mine.get(k) != theirs.get(k)]
        if differs:
            raise StoreError(
                f"{self.uri}: another run published this step first, and differs in "
                f"{', '.join(differs)}; delete that folder and run one of the two again"
            )


@dataclass(frozen=True)
class _Disk:
    """Files below a path, with the methods of ``Bucket``."""

    root: Path

    def get(self, name: str, first: int | None = None) -> tuple[bytes, str, str]:
        with open(self.root / name, "rb") as stream:
            return stream.read(-1 if first is None else first), "", ""

    def put(self, name: str, content: bytes, new: bool = False) -> str:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(content)
            if new:
                _link(partial, target)
            else:
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return hashlib.sha256(content).hexdigest()

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def entries(self) -> Iterator[tuple[str, str]]:
        def refuse(error: OSError) -> None:
            if error.filename != str(self.root):  # of an archive, a folder left out in silence
                raise OSError(error.errno, f"{error.strerror}, of a folder below")
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        for folder, below, files in os.walk(self.root, onerror=refuse):
            links = [name for name in below if os.path.islink(os.path.join(folder, name))]
            place = Path(folder).relative_to(self.root)
            for name in (*files, *links):
                about = os.lstat(os.path.join(folder, name))
                yield (place / name).as_posix(), f"{about.st_size}-{about.st_mtime}"

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def clear(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)


@dataclass(frozen=True)
class _Other:
    """Files in any other storage that fsspec knows, with the methods of ``Bucket``."""

    uri: str

    def _fs(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            fs, root = url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{self.uri}: no storage of this kind is installed ({error})"
            ) from error
        fs.invalidate_cache()
        return fs, root

    def get(self, name: str, first: int | None = None) -> tuple[bytes, str, str]:
        fs, root = self._fs()
        return bytes(fs.cat_file(f"{root}/{name}", start=0, end=first)), "", ""

    def put(self, name: str, content: bytes, new: bool = False) -> str:
        fs, root = self._fs()
        path = f"{root}/{name}"
        if new and fs.exists(path):  # no condition that all storages know: the best that is left
            raise FileExistsError(name)
        fs.pipe_file(path, content)
        return hashlib.sha256(content).hexdigest()

    def exists(self, name: str) -> bool:
        fs, root = self._fs()
        return bool(fs.exists(f"{root}/{name}" if name else root))

    def entries(self) -> Iterator[tuple[str, str]]:
        fs, root = self._fs()
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return
        words = ("size", "ETag", "etag", "mtime", "LastModified", "created")
        for path, info in found.items():
            stamp = "-".join(str(info.get(word, "")) for word in words)
            yield path.removeprefix(f"{root}/"), stamp

    def remove(self, name: str) -> None:
        fs, root = self._fs()
        if fs.exists(f"{root}/{name}"):
            fs.rm_file(f"{root}/{name}")

    def clear(self) -> None:
        fs, root = self._fs()
        if fs.exists(root):
            fs.rm(root, recursive=True)


def _link(partial: Path, target: Path) -> None:
    """Give a whole file its name, unless the name is taken."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this disk: the best that is left
        if target.exists():
            raise FileExistsError(str(target)) from None
        os.replace(partial, target)


@contextmanager
def _in_one_line(where: str, *passed: type[OSError]) -> Iterator[None]:
    """What storage answers as our own error, but for what the caller handles.

    The cause is dropped: it holds paths and keys, and those of an archive may name a patient.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, passed):
            raise
        hint = _HINTS.get(error.errno or 0, "")
        raise StorageError(
            f"{where}: expected a place that can be read and written, found: "
            f"{error.strerror or error}{hint and f'; {hint}'}"
        ) from None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise StoreError(f"{where}: expected JSON, found {error}") from error


def salt_of(store: Folder) -> str:
    """What goes into every hash of a patient or series, so that nobody can try out names.

    It is ``$DYEFREENET_SALT``, or a random one that is kept beside the runs of a store. Who has it
    can test a guess: hand on runs, and not this file.
    """
    if "DYEFREENET_SALT" in os.environ:
        return os.environ["DYEFREENET_SALT"]
    if not store.exists(SALT):
        store.write(SALT, secrets.token_hex(32).encode())
    return store.read(SALT).decode()


def fingerprint(config: dict[str, Any], needs: dict[str, str]) -> str:
    """Identity of a step: hash of its config and of the fingerprints of what it needs."""
    text = json.dumps([config, needs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_version() -> str:
    """Package version, and the commit where this is a checkout."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}"
