"""The limits of an egress door: each is reached, and says so with a status and a figure."""

import hashlib
import socket
import threading
import time
from pathlib import Path

import pytest

from schemas.limits import MIB
from tests.support.egress import DoorProcess, EgressSite
from tests.support.rawhttp import OK, RawOrigin, Reader, answer_ok, breaks_off, post, read_answer, requests


def test_the_limits_of_time_answer_with_the_right_status(site: EgressSite) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            if b"/silent" in request:
                time.sleep(3)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            time.sleep(3)

    door = site.start()
    with RawOrigin(handle) as origin:
        with door.connect() as client:  # a head that does not end
            client.sendall(b"GET http://x/ HTTP/1.1\r\n")
            got = read_answer(client)
            assert (got.status, got.header("connection")) == (408, "close")
        with door.connect() as client:  # a body that stands still
            client.sendall(post(origin.authority, b"xx")[:-1])
            assert read_answer(client).status == 408
        with door.connect() as client:  # an origin that does not answer
            client.sendall(site.get(origin.authority, "/silent"))
            assert read_answer(client).status == 504
        with door.connect() as client:  # an answer that stands still
            client.sendall(site.get(origin.authority))
            assert breaks_off(client)
        with door.connect() as client:  # nothing at all
            assert Reader(client).rest() == b""
    figures = door.figures()
    for limit, times in {"header_ms": 1, "body_ms": 2, "answer_ms": 1, "idle_ms": 1}.items():
        assert figures[f'wardline_door_limits_total{{limit="{limit}"}}'] == times


def test_a_head_above_its_limit_is_431_and_nothing_of_it_is_kept(shared: EgressSite, door: DoorProcess) -> None:
    with door.connect() as client:
        client.sendall(b"GET http://x/ HTTP/1.1\r\nX: " + b"x" * 70_000)
        got = read_answer(client)
        assert (got.status, got.header("connection")) == (431, "close")


def test_connections_beyond_their_number_are_closed_and_an_agents_get_503(tmp_path: Path) -> None:
    limits = {"connections": 3, "connections_per_agent": 2}
    with EgressSite(tmp_path / "home", agents=("reader", "writer"), egress=limits) as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        with door.connect() as one, door.connect() as two, door.connect() as three:
            for client in (one, two):
                client.sendall(site.get(origin.authority))
                assert read_answer(client).status == 200
            three.sendall(site.get(origin.authority))
            got = read_answer(three)
            assert (got.status, got.json()["reason"], got.header("retry-after")) == (503, "overloaded", "1")
            three.sendall(site.get(origin.authority, user="writer"))
            assert read_answer(three).status == 200
            with door.connect() as four:
                four.sendall(site.get(origin.authority))
                assert breaks_off(four)
        time.sleep(0.1)
        with door.connect() as five:
            five.sendall(site.get(origin.authority))
            assert read_answer(five).status == 200
        counted = [said for said in site.until_records(9) if said["kind"] == "count"]
        assert [(said["reason"], said["error"], said["agent"], said["count"]) for said in counted] == [
            ("overloaded", "connections", "reader", 1)
        ]  # fmt: skip


def test_calls_beyond_an_agents_connections_to_one_origin_wait_their_turn(tmp_path: Path) -> None:
    gate = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            gate.wait(10)
            sock.sendall(OK)

    with EgressSite(tmp_path / "home", egress={"upstreams_per_agent_host": 2}) as site, RawOrigin(handle) as origin:
        door = site.start()
        clients = [door.connect() for _ in range(6)]
        for client in clients:
            client.sendall(site.get(origin.authority))
        time.sleep(0.3)
        assert (len(origin.seen), origin.connections) == (2, 2)
        gate.set()
        assert [read_answer(client).status for client in clients] == [200] * 6
        assert origin.connections == 2
        for client in clients:
            client.close()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_long_body_takes_bounded_memory_and_arrives_as_it_was(
    shared: EgressSite, door: DoorProcess, direction: str
) -> None:
    """The slow side holds the fast one: nothing is collected on the way."""
    size, piece = 96 * MIB, bytes(range(256)) * 4096
    wanted = hashlib.sha256(piece * (size // len(piece))).hexdigest()
    found: list[str] = []

    def digest(reader: Reader, count: int) -> str:
        made, left = hashlib.sha256(reader.data), count - len(reader.data)
        while left:
            data = reader.sock.recv(min(left, 1 << 18))
            assert data
            made.update(data)
            left -= len(data)
            if left % 7 == 0:
                time.sleep(0.002)
        return made.hexdigest()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        reader = Reader(sock)
        reader.until(b"\r\n\r\n")
        if direction == "up":
            found.append(digest(reader, size))
            sock.sendall(OK)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(piece)):
                sock.sendall(piece)

    most: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.01):
            most.append(door.memory_bytes())

    before = door.memory_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with RawOrigin(handle) as origin, door.connect() as client:
        client.settimeout(60)
        if direction == "up":
            client.sendall(post(origin.authority, b"").replace(b"Content-Length: 0", b"Content-Length: %d" % size))
            for _ in range(size // len(piece)):
                client.sendall(piece)
            assert read_answer(client).status == 200
        else:
            client.sendall(shared.get(origin.authority))
            reader = Reader(client)
            reader.until(b"\r\n\r\n")
            found.append(digest(reader, size))
    end.set()
    watcher.join()
    assert found == [wanted]
    assert max(most) - before < 12 * MIB


def test_upgrades_beyond_an_agents_tunnels_get_503_and_others_are_served(tmp_path: Path) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            if b"Upgrade" not in request:
                sock.sendall(OK)
                continue
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            while sock.recv(100):
                pass
            return

    with EgressSite(tmp_path / "home", egress={"tunnels_per_agent": 1}) as site, RawOrigin(handle) as origin:
        door = site.start()
        ask = site.get(origin.authority, "/ws", "Connection: Upgrade", "Upgrade: websocket")
        with door.connect() as first, door.connect() as second:
            first.sendall(ask)
            assert Reader(first).answer().status == 101
            reader = Reader(second)
            second.sendall(ask)
            got = reader.answer()
            assert (got.status, got.json()["reason"]) == (503, "overloaded")
            second.sendall(site.get(origin.authority))
            assert reader.answer().status == 200
        site.until_records(5)  # the tunnel has ended, and its place is free
        with door.connect() as third:
            third.sendall(ask)
            assert Reader(third).answer().status == 101
    assert len(origin.seen) == 3


@pytest.mark.parametrize("limit", [{"upstream_idle_ms": 200}, {"upstreams": 1}], ids=["too long", "too many"])
def test_connections_that_are_idle_too_long_or_too_many_are_closed_and_the_door_goes_on(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    with EgressSite(tmp_path / "home", egress=limit) as site, RawOrigin(answer_ok) as one, RawOrigin(answer_ok) as other:
        door = site.start()
        with door.connect() as client:
            client.settimeout(5)
            reader = Reader(client)
            for turn in range(3):
                for origin in (one, other):
                    client.sendall(site.get(origin.authority))
                    assert reader.answer().status == 200
                time.sleep(0.6)
                idle = door.figures()["wardline_door_upstreams_idle"]
                assert idle == limit.get("upstreams", 0), turn
        assert (one.connections, other.connections) == (3, 3)


def test_a_client_that_does_not_read_does_not_make_the_door_collect_answers(tmp_path: Path) -> None:
    """One request after another whose answers are never taken: the next one waits, instead of the answers."""
    size = 4 * MIB
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            sock.sendall(answer)

    with EgressSite(tmp_path / "home") as site, RawOrigin(handle) as origin:
        door = site.start()
        before = door.memory_bytes()
        with door.connect() as client:
            for _ in range(20):
                client.sendall(site.get(origin.authority))
                time.sleep(0.05)
            assert door.memory_bytes() - before < 12 * MIB
        assert len(origin.seen) <= 4  # as many as the kernels of both sides hold
