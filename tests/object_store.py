"""A real S3 server on this machine (SeaweedFS), for those who test or measure against one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

WRITER, READER = "writer", "reader"  # access keys, with one secret
ACTIONS = {WRITER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}


class ObjectStore:
    """A server with a bucket ``scans`` that keeps all in ``folder``; it may be killed and started.

    Attributes:
        environment: Under which botocore, pyarrow and this project use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, secret = folder, secrets.token_hex(16)
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": secret}],
                "actions": actions,
            }
            for name, actions in ACTIONS.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self.ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": WRITER,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("weed") is not None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "weed.log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *("weed", "mini", f"-dir={self.folder}"),
                    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *(f"-{name}.port={port}" for name, port in self.ports.items()),
                    *("-bucket=scans", f"-s3.config={self.folder / 's3.json'}"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                    *("-admin.ui=false", "-webdav=false", "-master.telemetry=false"),
                    "-volume.preStopSeconds=0",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=WRITER,
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        for _ in range(60):
            try:
                client.head_bucket(Bucket="scans")
                return
            except (BotoCoreError, ClientError):
                if self._server.poll() is not None:
                    break
                time.sleep(0.5)
        raise RuntimeError(f"no bucket: {(self.folder / 'weed.log').read_text()[-2000:]}")

    def stop(self, kill: bool = False) -> None:
        """End it; ``kill``: as a power cut would."""
        if self._server is not None:
            self._server.kill() if kill else self._server.terminate()
            self._server.wait(30)
            self._server = None


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, nor the port 10,000 above, which the server takes for gRPC."""
    found: list[int] = []
    for port in range(20000 + os.getpid() % 2000, 30000):
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found
