"""A proxy in front of an S3 server that breaks what passes through, as asked.

Headers go on unchanged, Host above all, so that signatures hold. Each connection carries one
request.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from types import TracebackType

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>asked for</Message></Error>"
ANSWERS = {  # fault: status, code
    "500": (500, "InternalError"),
    "501": (501, "NotImplemented"),
    "503": (503, "SlowDown"),
}


class FaultProxy:
    """Runs in a thread of its own for as long as the block lasts.

    Attributes:
        faults: What happens to the next requests, one each, before all is well again:
            500, 501, 503    that answer, and the server is not asked
            reset            connection broken off, and the server is not asked
            lost             the server is asked, and its answer is lost
            stall            no answer, and what the client sends is not even read
            half             an answer of full length ends after half its body
            hang             the same, and the connection stays open
            flip, flip-up    one bit of the answer's, or of the request's body; not of listings,
                             which have no digest in S3
            unsaid           the answer has no checksum
            ok               none
        always: The same for every request, once ``faults`` are used up.
        share: Of the requests that are answered 503, at random.
        latency: Seconds before every answer.
        asked: Number of requests so far.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.faults: deque[str] = deque()
        self.always, self.share, self.latency, self.asked = "ok", 0.0, 0.0, 0
        self._random = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _next(self) -> str:
        self.asked += 1
        if self.faults:
            return self.faults.popleft()
        return "503" if self._random.random() < self.share else self.always

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went first
        finally:
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fault = self._next()
        if fault == "stall":
            await asyncio.sleep(3600)
        if b"\r\nexpect: 100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            lines = head.split(b"\r\n")
            head = b"\r\n".join(x for x in lines if not x.lower().startswith(b"expect:"))
        request = bytearray(await reader.readexactly(_length(head)))
        await asyncio.sleep(self.latency)
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            body = b"" if head.startswith(b"HEAD") else ERROR.format(code=code).encode()
            size = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(f"HTTP/1.1 {status} {code}\r\n{size}".encode() + body)
            return await writer.drain()
        if fault == "reset":
            return writer.transport.abort()
        if fault == "flip-up" and request:
            request[len(request) // 2] ^= 1

        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        up_writer.write(head[:-2] + b"Connection: close\r\n\r\n" + request)
        answer = await up_reader.read()
        up_writer.close()
        if fault == "lost":
            return writer.transport.abort()
        answer_head, _, rest = answer.partition(b"\r\n\r\n")
        body = bytearray(rest)
        if fault == "flip" and body and not body.startswith(b"<?xml"):
            body[len(body) // 2] ^= 1
        if fault in ("half", "hang"):
            body = body[: len(body) // 2]
        if fault == "unsaid":
            lines = answer_head.split(b"\r\n")
            answer_head = b"\r\n".join(x for x in lines if b"checksum" not in x.lower())
        writer.write(answer_head + b"\r\n\r\n" + body)
        await writer.drain()
        if fault == "hang":
            await asyncio.sleep(3600)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
