"""Mutated requests at a real door: it lives, what no reader takes is never sent on, and what is sent on is sound for h11."""

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import h11
import pytest

from enforcers.core.http.head import BadRequest
from schemas.bundle import Bundle, Rule
from tests.support.dns import NameServer
from tests.support.egress import EgressSite, credential
from tests.support.httpfuzz import mutants, read_request
from tests.support.rawhttp import OK, RawOrigin

GROWTH_MAX = 24 << 20
RST = struct.pack("ii", 1, 0)


class Strict(RawOrigin):
    """Reads with h11 alone, and keeps what h11 refuses. `seen` has the mark of each request, which is a field of its own."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        super().__init__(self._serve)

    def _serve(self, _: RawOrigin, sock: socket.socket) -> None:
        while self._one(h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17), sock):
            pass

    def _one(self, reads: h11.Connection, sock: socket.socket) -> bool:
        """One request; whether there may be another: the door sends it only when this one is answered."""
        raw = b""
        while True:
            try:
                event = reads.next_event()
            except h11.RemoteProtocolError as fault:
                if raw and not raw.endswith(b"\0end"):
                    self.refused.append(f"{fault}: {raw[:400]!r}")
                return False
            if event is h11.NEED_DATA:
                if reads.they_are_waiting_for_100_continue:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    reads.send(h11.InformationalResponse(status_code=100, headers=[]))
                data = sock.recv(1 << 16)
                raw += data or b"\0end"  # a body that its client has not sent whole ends here, and h11 says so
                reads.receive_data(data)
            elif isinstance(event, h11.Request):
                self.seen.append(dict(event.headers).get(b"x-mark", b""))
            elif isinstance(event, h11.EndOfMessage):
                sock.sendall(OK)
                return True
            elif isinstance(event, h11.ConnectionClosed):
                return False


@pytest.fixture
def strict() -> Iterator[Strict]:
    with Strict() as made:
        yield made


@pytest.mark.parametrize("count", [1_500, pytest.param(40_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_a_door_sends_nothing_on_that_our_rules_or_h11_refuse(tmp_path: Path, strict: Strict, count: int) -> None:
    limits = {"header_ms": 300, "body_ms": 300, "answer_ms": 300, "dns_ms": 200, "dial_ms": 200}
    web = Bundle(rules=(Rule(id="web", forbid=False, action=("in", 'Action::"http"')),))  # what is in a tunnel is no request
    with NameServer() as names, EgressSite(
        tmp_path / "home", bundle=web, egress={**limits, "dns_servers": (names.address,)}
    ) as site:
        door = site.start()
        sent: dict[bytes, bytes] = {}
        memory = 0
        for number, mutant in enumerate(itertools.islice(mutants(count), count)):
            data = sent[b"%d" % number] = addressed(mutant, strict.authority.encode(), number)
            with door.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                with contextlib.suppress(OSError):
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(1 << 16):
                        pass
            if number == count // 2:
                memory = door.memory_bytes()
        sound = {mark for mark, data in sent.items() if is_sound(data)}
        assert set(strict.seen) <= sound, [sent.get(mark) for mark in set(strict.seen) - sound]
        assert len(set(strict.seen)) > count // 10, "few were near enough to a good one"
        assert len(sent) - len(sound) > count // 4
        assert strict.refused == []
        assert door.process.poll() is None
        assert door.log() == ""
        assert door.memory_bytes() - memory < GROWTH_MAX
        calls = [said for said in site.records() if said["kind"] == "decision" and said["verdict"] == 1]
        assert len(calls) >= len(set(strict.seen))


def addressed(mutant: bytes, authority: bytes, number: int) -> bytes:
    """The mutant, near to a request that this origin would get from an agent that the door knows."""
    login = b"Proxy-Authorization: " + credential() + b"\r\nX-Mark: %d\r\n" % number
    data = mutant.replace(b"Proxy-Authorization: Basic cmVzZWFyY2hlcjpzZWNyZXQ=\r\n", b"")
    for host in (b"api.example.com:8080", b"example.com:443", b"example.com"):
        data = data.replace(host, authority)
    first, end, rest = data.partition(b"\r\n")
    return first + end + login + rest if end else data


def is_sound(data: bytes) -> bool:
    """Whether its head is one that our rules take."""
    try:
        return read_request(data) is not None
    except BadRequest:
        return False
