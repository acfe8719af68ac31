"""The relay: `python -m pipeline.cli.contain.relay CHANNEL`, outside of the namespaces, the only way out of them.

It listens on a socket of the new network and joins each connection with one to a door's unix socket. It reads one thing, the
first head of a connection: any `Proxy-Authorization` of the program's goes, the agent's comes, and the connection is to end
behind its answer. All that follows is passed on unread, so that there are no two opinions about where a message ends: a second
request on the same connection would carry no credential, and the door refuses it. A head that it cannot read goes on as it is,
with no credential, for the door to refuse.

The orders come as one datagram, then `net` with the listening socket; when the channel ends, so does the relay.
"""

import array
import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.cli.contain import kernel
from pipeline.cli.doors import ready_doors
from schemas.home import Home

HEAD_BYTES_MAX: Final = 1 << 20
"""What a door may be configured to read; it has a limit of its own, and says so."""

HEAD_S: Final = 30.0
REST_S: Final = 0.1
PART_BYTES: Final = 1 << 18
CONNECTIONS_MAX: Final = 1024
"""At a time; more wait to be accepted."""

ORDERS_BYTES_MAX: Final = 1 << 17
_DROPPED: Final = (b"proxy-authorization", b"proxy-connection", b"keep-alive")


def rewrite(head: bytes, authorization: bytes) -> bytes:
    """The head of a request with the agent's credential in it and no other, its connection to end behind the answer.

    `head` ends with the empty line. What is odd in it stays odd: a door is strict, and judges it.
    """
    start, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept, tokens, folded = [], [], False
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            if not folded:  # else it goes on from a line that is gone
                kept.append(line)
            continue
        name = line.partition(b":")[0].strip().lower()
        folded = name in _DROPPED or name == b"connection"
        if name == b"connection":
            tokens += [token.strip() for token in line.partition(b":")[2].split(b",")]
        elif not folded:
            kept.append(line)
    stays = [token for token in tokens if token and token.lower() not in (b"keep-alive", b"close", b"proxy-connection")]
    kept.append(b"Proxy-Authorization: " + authorization)
    if b"upgrade" not in [token.lower() for token in stays]:  # one that is upgraded has no second request
        stays.append(b"close")
    kept.append(b"Connection: " + b", ".join(stays))
    return b"\r\n".join([start, *kept, b"", b""])


class Relay:
    """One run's relay."""

    def __init__(self, orders: Mapping[str, Any]) -> None:
        self._home = Home(Path(orders["home"]))
        self._door = str(orders["door"])
        self._authorization = b"Basic " + base64.b64encode(f"{orders['user']}:{orders['secret']}".encode())
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)
        self._busy: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            await self._room.acquire()
            connection, _ = await loop.sock_accept(listener)
            task = loop.create_task(self._join(connection))
            self._busy.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._busy.discard(task)
        self._room.release()

    async def _join(self, connection: socket.socket) -> None:
        """One connection from its first byte to its last."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_BYTES_MAX)
            try:
                head = await _head(reader)
                if not head:
                    return
                found = await self._reach()
                if found is None:
                    await _say_away(writer)
                    return
                from_door, to_door = found
                try:
                    to_door.write(rewrite(head, self._authorization) if head.endswith(b"\r\n\r\n") else head)
                    await asyncio.gather(_pour(reader, to_door), _pour(from_door, writer))
                finally:
                    _drop(to_door)
            finally:
                _drop(writer)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the door that was asked for, or to the first that answers: one may just have been killed."""
        for door in list(ready_doors(self._home)):
            if self._door and door.name != self._door:
                continue
            folder = os.open(door.socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # the path may be longer than the 107 bytes that an address holds
                path = f"/proc/self/fd/{folder}/{door.socket.name}"
                return await asyncio.open_unix_connection(path, limit=PART_BYTES)
            except OSError:
                continue
            finally:
                os.close(folder)
        return None


async def _head(reader: asyncio.StreamReader) -> bytes:
    """The first head of a connection; what came, when it does not end in time, in size, or at all."""
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
    except (TimeoutError, asyncio.LimitOverrunError):
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(reader.read(HEAD_BYTES_MAX), REST_S)  # what is there already
        return b""
    except asyncio.IncompleteReadError as fault:
        return fault.partial


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, no faster than it is taken; its end is passed on while the other direction goes on."""
    try:
        while part := await reader.read(PART_BYTES):
            writer.write(part)
            await writer.drain()
        writer.write_eof()
    except OSError:
        _drop(writer)  # a reset: the other direction is of no use any more


async def _say_away(writer: asyncio.StreamWriter) -> None:
    """No door answers: 503, as a door itself would say it."""
    body = json.dumps({"reason": "away", "message": "no door of wardline answers: nothing goes out until one is back"}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    writer.write_eof()
    await writer.drain()


def _drop(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.close()


def main() -> int:
    """Take the orders and the socket, then serve until the channel ends."""
    kernel.die_with_parent(signal.SIGKILL)
    kernel.hide_memory()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        orders = channel.recv(ORDERS_BYTES_MAX)
        data, rights, _, _ = channel.recvmsg(16, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        handles = array.array("i")
        for _level, _kind, part in rights:
            handles.frombytes(part[: len(part) - len(part) % handles.itemsize])
        if not orders or data != b"net" or len(handles) != 1:
            return 0  # whoever started us has given up
        with socket.socket(fileno=handles[0]) as listener:
            asyncio.run(_until_gone(Relay(json.loads(orders)), listener, channel))
    return 0


async def _until_gone(relay: Relay, listener: socket.socket, channel: socket.socket) -> None:
    channel.setblocking(False)
    serving = asyncio.create_task(relay.serve(listener))
    gone = asyncio.create_task(asyncio.get_running_loop().sock_recv(channel, 1))
    await asyncio.wait((serving, gone), return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)  # what is joined ends with its processes


if __name__ == "__main__":
    sys.exit(main())
