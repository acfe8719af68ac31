"""Clients that watch the door from their side: one kept connection that asks at a pace, one tunnel that waits to be cut."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Final

ANSWER_S: Final = 10.0
READ: Final = 65536


def request(host: str, path: str, auth: str) -> bytes:
    """An absolute-form GET."""
    return (f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: {auth}\r\n"
            "User-Agent: agent/1.0\r\n\r\n").encode()  # fmt: skip


@dataclass(slots=True)
class Seen:
    """What one connection has seen of one door, in nanoseconds since 1970."""

    allowed: int = 0
    refused: int = 0
    other: int = 0
    first_refused_ns: int = 0
    late: int = 0
    """Answers 200 to requests that were sent after a refusal."""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> tuple[int, bytes]:
    """Send one request and read its answer: status and body. Raises OSError, TimeoutError or EOFError."""
    writer.write(data)
    async with asyncio.timeout(ANSWER_S):
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        at = lower.find(b"content-length:")
        body = await reader.readexactly(int(lower[at + 15 : lower.index(b"\r\n", at)])) if at > 0 else b""
    return int(head[9:12]), body


async def connect(to: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`unix:PATH` or `HOST:PORT`."""
    if to.startswith("unix:"):
        return await asyncio.open_unix_connection(to[5:])
    host, _, port = to.rpartition(":")
    return await asyncio.open_connection(host, int(port))


class Watcher:
    """Asks again and again on one door as one agent, and tells when it is first refused."""

    def __init__(self, to: str, data: bytes, pace_s: float) -> None:
        self.seen = Seen()
        self._to = to
        self._data = data
        self._pace_s = pace_s
        self._stop = False

    async def run(self) -> None:
        """Until `stop`. A connection that the door closes behind a refusal is made again."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        streams = await connect(self._to)
        try:
            while not self._stop:
                was_refused = self.seen.first_refused_ns
                try:
                    status, _ = await ask(*streams, self._data)
                except (OSError, EOFError):
                    streams[1].close()
                    streams = await connect(self._to)
                    continue
                self._note(status, was_refused)
                due = max(due + self._pace_s, loop.time() - self._pace_s)
                await asyncio.sleep(max(0.0, due - loop.time()))
        finally:
            streams[1].close()

    def _note(self, status: int, was_refused: int) -> None:
        seen = self.seen
        if status == 200:
            seen.allowed += 1
            seen.late += bool(was_refused)
        elif status == 403:
            seen.refused += 1
            seen.first_refused_ns = seen.first_refused_ns or time.time_ns()
        else:
            seen.other += 1

    def stop(self) -> None:
        self._stop = True


@dataclass(slots=True)
class Tunnel:
    """One open tunnel; `cut_ns` is when its end was seen."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    cut_ns: int = 0
    watch: "asyncio.Task[None] | None" = field(default=None)

    @classmethod
    async def open(cls, to: str, host: str, auth: str) -> "Tunnel":
        """Open it and send one request through, so that it is one that is used. Raises AssertionError when it is refused."""
        reader, writer = await connect(to)
        writer.write(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: {auth}\r\n\r\n".encode())
        async with asyncio.timeout(ANSWER_S):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head[9:12] == b"200", head
        status, _ = await ask(reader, writer, f"GET /in/a/tunnel HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert status == 200, status
        made = cls(reader, writer)
        made.watch = asyncio.create_task(made._wait())
        return made

    async def _wait(self) -> None:
        with contextlib.suppress(OSError):
            while await self.reader.read(READ):
                pass
        self.cut_ns = time.time_ns()

    def close(self) -> None:
        """Ours is the end of it."""
        if self.watch is not None:
            self.watch.cancel()
        self.writer.close()
