"""The other side of each sink: a Splunk HTTP Event Collector and a syslog receiver over TLS, in threads of the test.

Both keep what they were sent, as events, and do what a test tells them: answer errors, be slow, be away.
"""

import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "0aa1f5d6-6a1b-4c36-9a3e-5a1b2c3d4e5f"  # of this collector and no other
OK = (200, {"text": "Success", "code": 0})

Answer = tuple[int, dict[str, Any]]


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The objects of a request to a collector: one after the other, no array."""
    text, found, at = gzip.decompress(body).decode(), [], 0
    decoder = json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


class Collector:
    """A collector on a free port (`port`), or again on one that it had. `answer(events)` says what comes back."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str], int]] = []
        self.answer: Callable[[list[dict[str, Any]]], Answer] = lambda events: OK
        self.acked: set[int] | None = None
        """The acknowledgements that are there; None: those of this collector are off."""
        self._acks = 0
        self._open: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, value = outer.handle(self.path, dict(self.headers), body)
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, client_address: Any) -> None:
                outer._open.append(request)
                super().process_request(request, client_address)

            def handle_error(self, *_: object) -> None:
                """A client that was killed in the middle of a request is what these tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def handle(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request."""
        self.requests.append((path, headers, len(body)))
        if headers.get("Authorization") != f"Splunk {TOKEN}":
            return 403, {"text": "Invalid token", "code": 4}
        if path.startswith("/services/collector/ack"):
            if self.acked is None:
                return 400, {"text": "ACK is disabled", "code": 14}
            asked = json.loads(body)["acks"]
            return 200, {"acks": {str(one): one in self.acked for one in asked}}
        if self.acked is not None and "X-Splunk-Request-Channel" not in headers:
            return 400, {"text": "Data channel is missing", "code": 10}
        events = events_of(body)
        status, value = self.answer(events)
        if status == 200:
            self.events += events
            if self.acked is not None:
                self._acks += 1
                value = value | {"ackId": self._acks}
        return status, value

    def close(self) -> None:
        """Be away."""
        self._server.shutdown()
        self._server.server_close()
        for one in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        self._thread.join(10)


class Receiver:
    """A syslog receiver over TLS: takes frames by their octet counts, and keeps their messages."""

    def __init__(self, certificate: Path, key: Path, port: int = 0) -> None:
        self.messages: list[str] = []
        self.problems: list[str] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listen = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listen.getsockname()[1])
        self._open: list[socket.socket] = []
        self._readers: list[threading.Thread] = []
        self.reads = threading.Event()
        """Cleared: what arrives stays in the kernel."""
        self.reads.set()
        self.dying = False
        """What arrives is read and lost, as by one that dies before it has done anything with it."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listen.accept()
            except OSError:
                return
            reader = threading.Thread(target=self._read, args=(plain,), daemon=True)
            self._readers.append(reader)
            reader.start()

    def _read(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError, ValueError), self._context.wrap_socket(plain, server_side=True) as connected:
            self._open.append(connected)
            data = b""
            while True:
                self.reads.wait()
                more = connected.recv(65536)
                if not more:
                    break
                data = b"" if self.dying else self._frames(data + more)

    def _frames(self, data: bytes) -> bytes:
        while b" " in data[:8]:
            text, _, rest = data.partition(b" ")
            if not text.isdigit():
                self.problems.append(f"no octet count: {data[:40]!r}")
                return b""
            size = int(text)
            if len(rest) < size:
                break
            if size + len(text) + 1 > 8192:
                self.problems.append(f"a frame of {size} bytes")
            self.messages.append(rest[:size].decode())
            data = rest[size:]
        return data

    def events(self) -> list[dict[str, Any]]:
        """The events in the messages."""
        return [json.loads(message.split(" ", 7)[7]) for message in list(self.messages)]

    def cut(self) -> None:
        """Break every connection, without a word."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # its thread closes it
        self._open.clear()

    def close(self) -> None:
        """Be away."""
        self.reads.set()
        with contextlib.suppress(OSError):
            self._listen.shutdown(socket.SHUT_RDWR)
        self._listen.close()
        self.cut()
        for thread in (self._thread, *self._readers):
            thread.join(10)


@contextlib.contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    """A collector for a while."""
    made = Collector(port)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def receiver(certificate: Path, key: Path, port: int = 0) -> Iterator[Receiver]:
    """A receiver for a while."""
    made = Receiver(certificate, key, port)
    try:
        yield made
    finally:
        made.close()


def within(seconds: float, what: Callable[[], Any]) -> Any:
    """What `what` says once it says something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found
