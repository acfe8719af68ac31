"""Clients and origins of few words, over plain sockets: what is sent is exactly what the test writes."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tests.support.egress import credential


@dataclass
class AnswerSeen:
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    trailers: bytes = b""

    def json(self) -> dict[str, Any]:
        """Of a refusal."""
        return dict(json.loads(self.body))

    def header(self, name: str) -> str | None:
        """The first of that name."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class Reader:
    """Reads what a socket gives, exactly as far as it is asked."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""

    def until(self, mark: bytes) -> bytes:
        """Up to and with `mark`. Raises EOFError."""
        while mark not in self.data:
            self._more()
        found, _, self.data = self.data.partition(mark)
        return found + mark

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises EOFError."""
        while len(self.data) < count:
            self._more()
        found, self.data = self.data[:count], self.data[count:]
        return found

    def rest(self) -> bytes:
        """Up to the end of the connection."""
        with contextlib.suppress(EOFError):
            while True:
                self._more()
        return self.data

    def _more(self) -> None:
        piece = self.sock.recv(1 << 16)
        if not piece:
            raise EOFError(f"the connection ended behind {self.data[:200]!r}")
        self.data += piece

    def head(self) -> tuple[str, list[tuple[str, str]]]:
        """The first line, and the fields as they are written."""
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        return lines[0], [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)]

    def answer(self, method: str = "GET") -> AnswerSeen:
        """One answer, its body as its framing says."""
        first, headers = self.head()
        fields = {name.lower(): value for name, value in headers}
        status, body, trailers = int(first.split()[1]), b"", b""
        if method == "HEAD" or status in (204, 304) or status < 200:
            pass
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while (line := self.until(b"\r\n")) != b"\r\n":
                trailers += line
        elif "content-length" in fields:
            body = self.exactly(int(fields["content-length"]))
        else:
            body, self.data = self.rest(), b""
        return AnswerSeen(status, headers, body, trailers)


def read_answer(sock: socket.socket, method: str = "GET") -> AnswerSeen:
    """One answer from a connection that carries no other behind it."""
    return Reader(sock).answer(method)


Handler = Callable[["RawOrigin", socket.socket], None]


class RawOrigin:
    """An origin whose every connection is handled by a function, in a thread of its own; `seen` is all that came in."""

    def __init__(self, handler: Handler, address: str = "127.0.0.1") -> None:
        self._handler = handler
        self._listener = socket.create_server((address, 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self.authority = f"{address}:{self.port}"
        self.connections = 0
        self.seen: list[bytes] = []
        self.faults: list[BaseException] = []
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._socks.append(made)
            threading.Thread(target=self._handle, args=(made,), daemon=True).start()

    def _handle(self, made: socket.socket) -> None:
        try:
            with made:
                self._handler(self, made)
        except (OSError, EOFError):
            return
        except BaseException as fault:
            self.faults.append(fault)
            raise

    def close(self) -> None:
        """Nobody may connect any more, and whoever is connected is left."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for made in self._socks:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        assert not self.faults


def answer_with(response: bytes) -> Handler:
    """An origin that reads requests with bodies by length or in chunks, and gives each the same answer."""

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            sock.sendall(response)

    return handle


def requests(sock: socket.socket) -> Iterator[bytes]:
    """One whole request after another, as they are written."""
    reader = Reader(sock)
    while True:
        head = reader.until(b"\r\n\r\n")
        fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:] if line}
        body = b""
        if fields.get(b"transfer-encoding") == b"chunked":
            while True:
                line = reader.until(b"\r\n")
                body += line
                size = int(line, 16)
                if not size:
                    while (trailer := reader.until(b"\r\n")) != b"\r\n":
                        body += trailer
                    body += b"\r\n"
                    break
                body += reader.exactly(size + 2)
        elif b"content-length" in fields:
            body = reader.exactly(int(fields[b"content-length"]))
        yield head + body


OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
answer_ok: Final = answer_with(OK)


def post(authority: str, body: bytes, *lines: str, path: str = "/up", user: str = "reader") -> bytes:
    """A request with a body by length."""
    extra = "".join(f"{line}\r\n" for line in lines)
    return (
        f"POST http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {credential(user).decode()}\r\n"
        f"{extra}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def fields(request: bytes) -> dict[bytes, bytes]:
    """Of a head, by name in lower case."""
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


def breaks_off(sock: socket.socket) -> bool:
    """Whether the connection ends, or is reset, before an answer is whole."""
    try:
        read_answer(sock)
    except (EOFError, ConnectionResetError):
        return True
    return False
