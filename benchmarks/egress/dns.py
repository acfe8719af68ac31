"""A DNS server that knows every name: all of them lead to 127.0.0.1, and none leads anywhere in IPv6."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Final

A: Final = 1
TTL_S: Final = 300
QUERY_MAX: Final = 512


@contextlib.contextmanager
def names() -> Iterator[int]:
    """Answer until the block ends; gives the port, on 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        stop = threading.Event()
        thread = threading.Thread(target=_serve, args=(server, stop), daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            stop.set()
            thread.join()


def _serve(server: socket.socket, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            query, whom = server.recvfrom(QUERY_MAX)
        except TimeoutError:
            continue
        server.sendto(_answer(query), whom)


def _answer(query: bytes) -> bytes:
    at = 12
    while query[at]:
        at += 1 + query[at]
    question = query[12 : at + 5]
    wanted = struct.unpack_from("!H", query, at + 1)[0]
    found = struct.pack("!HHHIH4B", 0xC00C, A, 1, TTL_S, 4, 127, 0, 0, 1) if wanted == A else b""
    return query[:2] + struct.pack("!HHHHH", 0x8580, 1, bool(found), 0, 0) + question + found
