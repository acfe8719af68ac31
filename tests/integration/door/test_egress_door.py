"""A real door process between raw clients and raw origins: what goes through, and what is recorded of it."""

import json
import socket
import time
from typing import Any

import pytest

from tests.support.egress import DoorProcess, EgressSite
from tests.support.rawhttp import OK, RawOrigin, Reader, answer_ok, answer_with, fields, post, read_answer, requests


def test_a_call_is_recorded_before_it_goes_out_and_again_when_it_has_ended(shared: EgressSite, door: DoorProcess) -> None:
    recorded: list[dict[str, Any]] = []

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for _ in requests(sock):
            recorded.extend(shared.records()[before:])
            sock.sendall(OK)

    before = len(shared.records())
    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority, "/a/b?secret=1", user="reader+s-1"))
        answer = read_answer(client)
        assert (answer.status, answer.body) == (200, b"ok")
        decision, effect = shared.records()[before:]
    assert recorded == [decision]
    said = {name: decision[name] for name in ("kind", "agent", "session", "action", "resource", "scheme", "path", "proof",
                                              "reason", "policies", "address", "query_bytes")}  # fmt: skip
    assert said == {
        "kind": "decision", "agent": "reader", "session": "s-1", "action": "http:GET", "scheme": "http", "path": "/a/b",
        "resource": f'Host::"{origin.authority}"', "proof": "secret", "reason": "permit", "policies": "all",
        "address": "127.0.0.1", "query_bytes": 8,
    }  # fmt: skip
    assert "secret=1" not in json.dumps(decision, default=repr)
    assert (effect["kind"], effect["call"], effect["outcome"]) == ("effect", decision["call"], "ok")
    assert (effect["status"], effect["address"]) == (200, origin.authority)
    assert effect["bytes_in"] == len(OK)


def test_what_goes_up_is_written_anew_without_what_is_for_the_door(shared: EgressSite, door: DoorProcess) -> None:
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        client.sendall(shared.get(
            origin.authority, "/x", "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Connection: x",
            "TE: gzip", "Accept: */*", "X-Kept: yes",
        ))  # fmt: skip
        assert read_answer(client).status == 200
    (seen,) = origin.seen
    assert seen.startswith(b"GET /x HTTP/1.1\r\n")
    found = fields(seen)
    assert found.pop(b"traceparent")
    assert found == {b"host": origin.authority.encode(), b"accept": b"*/*", b"x-kept": b"yes"}


def test_a_trace_is_continued_with_the_calls_own_span(shared: EgressSite, door: DoorProcess) -> None:
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority, "/", f"traceparent: {parent}", "tracestate: a=1"))
        assert read_answer(client).status == 200
    found = fields(origin.seen[0])
    version, trace, span, flags = found[b"traceparent"].split(b"-")
    decision = next(said for said in shared.records() if said["resource"] == f'Host::"{origin.authority}"')
    assert (version, trace, flags) == (b"00", b"ab" * 16, b"01")
    assert span.decode() == door.boot[8:] + f"{decision['seq']:08x}"
    assert found[b"tracestate"] == b"a=1"
    assert (decision["trace_id"], decision["parent_span"]) == (b"\xab" * 16, b"\xcd" * 8)


def test_connections_are_kept_on_both_sides_and_never_shared_between_agents(shared: EgressSite, door: DoorProcess) -> None:
    with RawOrigin(answer_ok) as origin:
        with door.connect() as client:
            reader = Reader(client)
            for turn in range(5):
                client.sendall(post(origin.authority, b"x" * turn))
                assert reader.answer().body == b"ok"
            assert origin.connections == 1
            client.sendall(shared.get(origin.authority, user="writer"))
            assert reader.answer().status == 200
            assert origin.connections == 2
        with door.connect() as client:
            client.sendall(shared.get(origin.authority))
            assert read_answer(client).status == 200
        assert origin.connections == 2
    assert [request.rpartition(b"\r\n\r\n")[2] for request in origin.seen[:5]] == [b"", b"x", b"xx", b"xxx", b"xxxx"]


def test_an_answer_of_the_same_words_means_what_its_request_makes_of_it(shared: EgressSite, door: DoorProcess) -> None:
    def handle(_: RawOrigin, sock: socket.socket) -> None:
        for asked in requests(sock):
            sock.sendall(OK[: -len(b"ok")] if asked.startswith(b"HEAD") else OK)

    before = len(shared.records())
    with RawOrigin(handle) as origin, door.connect() as client:
        reader = Reader(client)
        for method in ("GET", "GET", "HEAD", "HEAD", "GET", "HEAD", "GET"):
            client.sendall(shared.get(origin.authority, method=method))
            answer = reader.answer(method)
            assert (answer.status, answer.body) == (200, b"" if method == "HEAD" else b"ok")
        assert origin.connections == 1
        client.sendall(shared.get(origin.authority).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (reader.answer().body, client.recv(1)) == (b"ok", b"")
    said = shared.records()[before:]
    assert [one["bytes_in"] for one in said if one["kind"] == "effect"] == [
        len(OK) - 2 * (one["action"] == "http:HEAD") for one in said if one["kind"] == "decision"
    ]
    assert len({one["trace_id"] for one in said if one["kind"] == "decision"}) == 8, "the same words, eight calls"


def test_chunks_and_trailers_go_through_in_both_directions(shared: EgressSite, door: DoorProcess) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    answer = head + b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n"
    with RawOrigin(answer_with(answer)) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority, "/", "Transfer-Encoding: chunked", "Trailer: X-Up", method="POST"))
        for piece in (b"3\r\nabc\r\n", b"1\r", b"\nd\r\n0\r\nX-Up: 4\r\n", b"\r\n"):
            time.sleep(0.02)
            client.sendall(piece)
        got = read_answer(client)
    assert (got.body, got.trailers) == (b"hello world", b"x-sum: 11\r\n")
    assert origin.seen[0].endswith(b"0\r\nx-up: 4\r\n\r\n")
    assert b"".join(origin.seen[0].partition(b"\r\n\r\n")[2].split(b"\r\n")[1:4:2]) == b"abcd"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"]
)
def test_answers_without_a_body_end_at_their_head(
    shared: EgressSite, door: DoorProcess, method: str, answer: bytes
) -> None:
    with RawOrigin(answer_with(answer)) as origin, door.connect() as client:
        reader = Reader(client)
        for _ in range(2):
            client.sendall(shared.get(origin.authority, method=method))
            assert reader.answer(method).status == int(answer.split()[1])
        assert origin.connections == 1


def test_the_length_of_what_head_did_not_send_goes_through(shared: EgressSite, door: DoorProcess) -> None:
    with RawOrigin(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority, method="HEAD"))
        assert read_answer(client, "HEAD").header("content-length") == "12345"


def test_an_http_1_0_client_gets_an_answer_that_ends_with_its_connection(shared: EgressSite, door: DoorProcess) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    with RawOrigin(answer_with(chunked)) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority).replace(b" HTTP/1.1", b" HTTP/1.0"))
        got = Reader(client).rest()
    head, _, body = got.partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"hi")
    assert b"chunked" not in head.lower()
    assert origin.seen[0].startswith(b"GET / HTTP/1.1\r\n")


def test_an_answer_that_ends_with_its_connection_goes_in_chunks(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        next(requests(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome")
        time.sleep(0.05)
        sock.sendall(b"thing")

    with RawOrigin(handle) as origin, door.connect() as client:
        reader = Reader(client)
        for _ in range(2):
            client.sendall(shared.get(origin.authority))
            assert reader.answer().body == b"something"
        assert origin.connections == 2


def test_one_hundred_continue_comes_from_the_origin(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        reader = Reader(sock)
        origin.seen.append(reader.until(b"\r\n\r\n"))
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        origin.seen.append(reader.exactly(5))
        sock.sendall(OK)

    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(post(origin.authority, b"", "Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 5"))
        reader = Reader(client)
        assert reader.answer().status == 100
        client.sendall(b"hello")
        assert reader.answer().body == b"ok"
    assert fields(origin.seen[0])[b"expect"] == b"100-continue"
    assert origin.seen[1] == b"hello"


def test_a_second_request_before_the_first_answer_is_never_executed(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            time.sleep(0.2)
            sock.sendall(OK)

    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority, "/first") + shared.get(origin.authority, "/second"))
        reader = Reader(client)
        got = reader.answer()
        assert (got.status, got.header("connection")) == (200, "close")
        assert reader.rest() == b""
    assert len(origin.seen) == 1


def test_a_client_that_has_ended_its_side_still_gets_its_answer(shared: EgressSite, door: DoorProcess) -> None:
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        client.sendall(shared.get(origin.authority))
        client.shutdown(socket.SHUT_WR)
        reader = Reader(client)
        assert reader.answer().body == b"ok"
        assert reader.rest() == b""


def echo_upgraded(origin: RawOrigin, sock: socket.socket) -> None:
    origin.seen.append(Reader(sock).until(b"\r\n\r\n"))
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
    while data := sock.recv(65536):
        sock.sendall(data.upper())


def test_an_upgraded_connection_is_a_tunnel(shared: EgressSite, door: DoorProcess) -> None:
    before = len(shared.records())
    with RawOrigin(echo_upgraded) as origin:
        with door.connect() as client:
            client.sendall(shared.get(origin.authority, "/ws", "Connection: Upgrade", "Upgrade: websocket", "X-Key: k"))
            reader = Reader(client)
            status, headers = reader.head()
            assert status.split()[1] == "101"
            assert ("upgrade", "websocket") in [(name.lower(), value) for name, value in headers]
            assert reader.exactly(5) == b"first"
            for word in (b"one", b"two" * 50_000):
                client.sendall(word)
                assert reader.exactly(len(word)) == word.upper()
            client.shutdown(socket.SHUT_WR)
            assert reader.rest() == b""
        found = fields(origin.seen[0])
        assert (found[b"upgrade"], found[b"connection"].lower()) == (b"websocket", b"upgrade")
        effect = shared.until_records(before + 2)[before + 1]
    assert (effect["kind"], effect["outcome"], effect["status"]) == ("effect", "ok", 101)
    assert effect["bytes_out"] > 150_000
