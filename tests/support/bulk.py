"""A site for bodies of a gibibyte: blocking sockets and C code alone, so that what is measured is the door and not the test.

    GET /bytes/N     N bytes, the same as `tests.support.origins` sends        PUT /sink    says how much came, and its SHA-256
"""

import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType

from tests.support.origins import BLOCK

PIECE = 1 << 18


class Bulk:
    """Listens at `address`, on a free port for each of HTTP and TLS."""

    def __init__(self, address: str, certificate: tuple[Path, Path]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._listeners = [socket.create_server((address, 0)) for _ in range(2)]
        self.http, self.https = (f"{address}:{one.getsockname()[1]}" for one in self._listeners)
        self._threads = [threading.Thread(target=self._accept, args=(n,), daemon=True) for n in range(2)]

    def __enter__(self) -> "Bulk":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        for one in self._listeners:
            one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self, secure: int) -> None:
        while True:
            try:
                connection, _ = self._listeners[secure].accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, bool(secure)), daemon=True).start()

    def _serve(self, connection: socket.socket, secure: bool) -> None:
        with contextlib.suppress(OSError), connection:
            if secure:
                with self._context.wrap_socket(connection, server_side=True) as wrapped:
                    self._answer(wrapped)
            else:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(PIECE)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            count = int(head.split()[1].rpartition(b"/")[2])
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % count)
            for _ in range(count // len(BLOCK)):
                connection.sendall(BLOCK)
            connection.sendall(BLOCK[: count % len(BLOCK)])
            return
        said = re.search(rb"(?i)\ncontent-length: (\d+)", head)
        assert said is not None, head
        if b"100-continue" in head.lower():
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left, found, buffer = int(said[1]), hashlib.sha256(body), bytearray(PIECE)
        left -= len(body)
        while left and (got := connection.recv_into(buffer, min(left, PIECE))):
            found.update(memoryview(buffer)[:got])
            left -= got
        text = json.dumps({"bytes": int(said[1]) - left, "sha256": found.hexdigest()}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text) + text)
