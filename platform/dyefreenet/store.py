"""Run folders, on local disk or object storage.

A step of a run is a folder ``{store}/{run}/{step}``, readable by name. Its ``manifest.json`` is
written last and is the only sign that the step is done: whatever lies in a folder without one is
half-written and will be made again. The fingerprint is a hash of the step's config and of the
fingerprints of the steps it needs; workers, GPUs and paths are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from dyefreenet import __version__
from dyefreenet.errors import InputError, StoreError

MANIFEST = "manifest.json"
SALT = "salt.txt"


@dataclass(frozen=True)
class Folder:
    """A folder by its address: a path or an ``s3://`` URI. Names below it use ``/``."""

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

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    def _fs(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            return url_to_fs(self.uri)  # type: ignore[no-any-return]
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{self.uri}: no storage of this kind is installed ({error})"
            ) from error

    def read(self, name: str) -> bytes:
        """Bytes of a file.

        Raises:
            InputError: It is not there, or the storage refuses.
        """
        fs, root = self._fs()
        try:
            return bytes(fs.cat_file(f"{root}/{name}"))
        except FileNotFoundError as error:
            raise InputError(f"{self.uri}/{name}: expected a file, found none") from error
        except Exception as error:
            raise _refused(self.uri, error) from error

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place whole or not at all."""
        fs, root = self._fs()
        path = f"{root}/{name}"
        try:
            if self.is_local:
                target = Path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
                try:
                    partial.write_bytes(content)
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
            else:
                fs.pipe_file(path, content)  # an object appears when its upload is complete
        except Exception as error:
            raise _refused(self.uri, error) from error

    def exists(self, name: str = "") -> bool:
        fs, root = self._fs()
        try:
            return bool(fs.exists(f"{root}/{name}" if name else root))
        except Exception as error:
            raise _refused(self.uri, error) from error

    def names(self) -> list[str]:
        """Names of all files below, sorted, relative to the folder."""
        fs, root = self._fs()
        try:
            fs.invalidate_cache()
            found = fs.find(root)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _refused(self.uri, error) from error
        prefix = root.rstrip("/") + "/"
        return sorted(path.removeprefix(prefix) for path in found)

    def stamps(self) -> dict[str, str]:
        """Names of all files below, and for each what changes with its content: size and time."""
        fs, root = self._fs()
        try:
            fs.invalidate_cache()
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise _refused(self.uri, error) from error
        prefix = root.rstrip("/") + "/"
        return {
            path.removeprefix(prefix): "-".join(
                str(info.get(word, "")) for word in ("size", "ETag", "mtime", "LastModified")
            )
            for path, info in sorted(found.items())
        }

    def remove(self, name: str) -> None:
        fs, root = self._fs()
        try:
            fs.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise _refused(self.uri, error) from error

    def clear(self) -> None:
        """Remove all that lies below: what a step left that was broken off."""
        fs, root = self._fs()
        try:
            if fs.exists(root):
                fs.rm(root, recursive=True)
        except Exception as error:
            raise _refused(self.uri, error) from error

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise StoreError(f"{self.uri}/{name}: expected JSON, found {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def manifest(self) -> dict[str, Any] | None:
        """What the finished step says of itself; None: the step is not done."""
        if not self.exists(MANIFEST):
            return None
        manifest = self.read_json(MANIFEST)
        if not isinstance(manifest, dict) or "fingerprint" not in manifest:
            raise StoreError(f"{self.uri}/{MANIFEST}: expected a step's manifest, found other JSON")
        return manifest

    def publish(self, fingerprint: str, config: dict[str, Any], **facts: Any) -> None:
        """Declare the step done: its manifest, last of all files."""
        self.write_json(
            MANIFEST,
            {
                "fingerprint": fingerprint,
                "config": config,
                "code": code_version(),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            | facts,
        )


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


def _refused(uri: str, error: Exception) -> Exception:
    """What storage answers as our own error; what is none of its answers stays as it is."""
    if not isinstance(error, (OSError, RuntimeError)) and not type(error).__module__.startswith(
        ("botocore", "aiobotocore")  # whose errors are no OSError, and are not worth an import
    ):
        return error
    hint = ""
    text = str(error) or type(error).__name__
    if uri.startswith("s3://"):
        hint = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL off AWS)"
    return InputError(f"{uri}: expected a place that can be read and written, found: {text}{hint}")


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
