"""A real S3 server on this machine (SeaweedFS), for those who test against one."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import IO


def server_ports() -> dict[str, int]:
    return dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))


def serve(
    weed: str, folder: Path, config: Path, ports: dict[str, int], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start it with a bucket ``scans``; it answers within seconds, and keeps all in ``folder``."""
    return subprocess.Popen(
        [
            *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *("-bucket=scans", f"-s3.config={config}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-admin.ui=false", "-webdav=false", "-master.telemetry=false"),
            "-volume.preStopSeconds=0",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )


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
