"""What an egress door refuses, what it answers then, and what becomes of a call that breaks on its way."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from schemas.bundle import Bundle, Rule
from schemas.limits import MIB
from tests.support.egress import SECRET, DoorProcess, EgressSite, credential
from tests.support.rawhttp import OK, RawOrigin, Reader, answer_ok, answer_with, breaks_off, post, read_answer, requests


def test_a_refused_call_gets_403_says_what_to_ask_for_and_keeps_its_connection(tmp_path: Path) -> None:
    rules = (
        Rule(id="reads", forbid=False, action=("in", 'Action::"http:read"')),
        Rule(id="no-bank", forbid=True, resource=("==", 'Host::"bank.example:80"')),
    )
    with EgressSite(tmp_path / "home", bundle=Bundle(rules=rules)) as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        with door.connect() as client:
            reader = Reader(client)
            client.sendall(post(origin.authority, b"x" * 1000))
            got = reader.answer()
            said = got.json()
            assert (got.status, said["reason"], said["policy"], said["agent"]) == (403, "no-permit", [], "reader")
            assert f'Action::"http:POST", resource == Host::"{origin.authority}"' in said["ask"]
            assert said["call_id"] == site.records()[0]["call"]
            client.sendall(site.get("bank.example"))
            got = reader.answer()
            assert (got.status, got.json()["reason"], got.json()["policy"]) == (403, "forbid", ["no-bank"])
            client.sendall(site.get(origin.authority))
            assert reader.answer().status == 200
        records = site.records()
        assert [(said["kind"], said["reason"]) for said in records[:3]] == [
            ("decision", "no-permit"), ("decision", "forbid"), ("decision", "permit")
        ]  # fmt: skip
        assert SECRET not in door.log() + json.dumps(records, default=repr)
    assert len(origin.seen) == 1


def test_nobody_known_gets_407_with_both_challenges_and_may_try_again(shared: EgressSite, door: DoorProcess) -> None:
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        reader = Reader(client)
        plain = shared.get(origin.authority)
        without = b"\r\n".join(line for line in plain.split(b"\r\n") if not line.startswith(b"Proxy-Auth"))
        wrong = plain.replace(credential(), credential("reader", "guess"))
        for request in (without, wrong):
            client.sendall(request)
            got = reader.answer()
            assert (got.status, got.json()["reason"], got.json()["call_id"]) == (407, "identity", "")
            challenges = [value.split()[0] for name, value in got.headers if name.lower() == "proxy-authenticate"]
            assert challenges == ["Basic", "Bearer"]
        client.sendall(plain)
        assert reader.answer().status == 200
    assert len(origin.seen) == 1


@pytest.mark.parametrize("size", [1000, 10 * MIB])
def test_a_refused_body_is_read_where_it_is_small_and_ends_the_connection_where_not(
    shared: EgressSite, door: DoorProcess, size: int
) -> None:
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        head = post(origin.authority, b"", user="nobody").replace(b"Content-Length: 0", b"Content-Length: %d" % size)
        client.sendall(head)
        reader = Reader(client)
        got = reader.answer()
        assert got.status == 407
        if size > MIB:
            assert got.header("connection") == "close"
            assert reader.rest() == b""
        else:
            client.sendall(b"x" * size + b"")
            time.sleep(0.05)
            client.sendall(shared.get(origin.authority))
            assert reader.answer().status == 200


# -- what breaks -----------------------------------------------------------------------------------------------------


def test_an_origin_that_is_not_there_is_502_and_its_effect_says_so(shared: EgressSite, door: DoorProcess) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        authority = f"127.0.0.1:{closed.getsockname()[1]}"
        with door.connect() as client:
            client.sendall(shared.get(authority))
            got = read_answer(client)
    assert (got.status, got.json()["reason"]) == (502, "unreachable")
    effect = shared.effect_of(got.json()["call_id"])
    assert (effect["outcome"], effect["status"]) == ("error", 502)
    assert effect["error"].startswith("connect: ")


def test_an_address_that_may_not_be_dialled_is_403_and_takes_the_verdict_back(tmp_path: Path) -> None:
    with EgressSite(tmp_path / "home", allow_addresses=()) as site, RawOrigin(answer_ok) as origin:
        with site.start().connect() as client:
            client.sendall(site.get(origin.authority))
            got = read_answer(client)
        assert (got.status, got.json()["reason"]) == (403, "address")
        decision, effect = site.records()
    assert (decision["verdict"], effect["verdict"], effect["reason"], effect["outcome"]) == (1, 0, "address", "refused")
    assert origin.connections == 0


def test_an_origin_gone_in_mid_answer_is_seen_by_the_client(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for _ in requests(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return

    before = len(shared.records())
    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority))
        assert breaks_off(client)
    effect = shared.until_records(before + 2)[before + 1]
    assert (effect["outcome"], effect["status"]) == ("error", 200)
    assert "in the middle of its answer" in effect["error"]


def test_an_http_1_0_client_sees_a_broken_answer_as_a_reset(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        next(requests(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")

    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority).replace(b" HTTP/1.1", b" HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            Reader(client).rest()


def test_a_client_gone_in_mid_body_closes_its_own_upstream_and_nobody_elses(shared: EgressSite, door: DoorProcess) -> None:
    ended = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        reader = Reader(sock)
        head = reader.until(b"\r\n\r\n")
        if b"/whole" in head:
            sock.sendall(OK)
            return
        try:
            reader.exactly(1000)
        except (EOFError, OSError):
            ended.set()

    before = len(shared.records())
    with RawOrigin(handle) as origin, door.connect() as other:
        with door.connect() as client:
            client.sendall(post(origin.authority, b"x" * 1000)[:-500])
            time.sleep(0.1)
        assert ended.wait(5)
        other.sendall(shared.get(origin.authority, "/whole"))
        assert read_answer(other).status == 200
    effects = [said for said in shared.until_records(before + 4)[before:] if said["kind"] == "effect"]
    assert [said["outcome"] for said in effects] == ["error", "ok"]
    assert "client" in effects[0]["error"]


def test_an_origin_that_answers_early_is_heard_and_its_body_is_not_sent_on(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        origin.seen.append(Reader(sock).until(b"\r\n\r\n"))
        sock.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        time.sleep(1)

    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(post(origin.authority, b"").replace(b"Content-Length: 0", b"Content-Length: 100000") + b"x" * 10)
        reader = Reader(client)
        got = reader.answer()
        assert (got.status, got.body, got.header("connection")) == (413, b"big", "close")
        assert reader.rest() == b""


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
def test_a_kept_connection_that_was_closed_is_tried_again_only_where_that_is_safe(
    shared: EgressSite, door: DoorProcess, method: str, status: int
) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        connection = origin.connections
        for number, request in enumerate(requests(sock)):
            if number and connection == 1:
                return  # it was kept, and is closed now that something comes
            origin.seen.append(request)
            sock.sendall(OK)

    with RawOrigin(handle) as origin, door.connect() as client:
        reader = Reader(client)
        client.sendall(shared.get(origin.authority))
        assert reader.answer().status == 200
        client.sendall(shared.get(origin.authority) if method == "GET" else post(origin.authority, b"pay"))
        assert reader.answer().status == status
        assert len(origin.seen) == (2 if method == "GET" else 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_has_no_one_meaning_is_502(shared: EgressSite, door: DoorProcess, answer: bytes) -> None:
    with RawOrigin(answer_with(answer)) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority))
        assert read_answer(client).status == 502


def test_what_an_origin_says_unasked_is_nobodys_answer(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for number, _ in enumerate(requests(sock)):
            sock.sendall(OK + (OK.replace(b"ok", b"no") if not number and origin.connections == 1 else b""))

    with RawOrigin(handle) as origin, door.connect() as client:
        reader = Reader(client)
        for _ in range(2):
            client.sendall(shared.get(origin.authority))
            assert reader.answer().body == b"ok"
            time.sleep(0.05)
        assert origin.connections == 2
