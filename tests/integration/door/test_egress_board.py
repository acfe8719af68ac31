"""What an egress door does when its board changes, and how it ends."""

import json
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.support.egress import DoorProcess, EgressSite
from tests.support.rawhttp import OK, RawOrigin, Reader, answer_ok, breaks_off, read_answer, requests


def test_a_call_that_waits_when_its_agent_is_revoked_is_refused_and_never_sent(tmp_path: Path) -> None:
    gate = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            gate.wait(10)
            sock.sendall(OK)

    with EgressSite(tmp_path / "home", egress={"upstreams_per_agent_host": 1}) as site, RawOrigin(handle) as origin:
        door = site.start()
        with door.connect() as out, door.connect() as waiting:
            out.sendall(site.get(origin.authority, "/out", user="reader+one"))
            while not origin.seen:
                time.sleep(0.01)
            waiting.sendall(site.get(origin.authority, "/waits", user="reader+two"))
            site.until_records(2)
            began = time.monotonic()
            site.revoke("session:two")
            got = read_answer(waiting)
            assert time.monotonic() - began < 1
            assert (got.status, got.json()["reason"]) == (403, "revoked")
            gate.set()
            assert read_answer(out).status == 200
        effect = site.effect_of(got.json()["call_id"])
        assert (effect["verdict"], effect["reason"], effect["error"]) == (0, "revoked", "revoked while waiting")
    assert len(origin.seen) == 1


def test_a_stream_of_a_revoked_agent_is_cut_in_both_directions(site: EgressSite) -> None:
    ended = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        next(requests(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                sock.sendall(b"3\r\nabc\r\n")
                time.sleep(0.02)
        except OSError:
            ended.set()

    door = site.start()
    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(site.get(origin.authority))
        Reader(client).until(b"abc")
        site.revoke("agent:reader")
        assert breaks_off(client)
        assert ended.wait(5)
        effect = site.until_records(2)[1]
        assert (effect["reason"], effect["outcome"], effect["error"]) == ("revoked", "refused", "revoked while open")
        assert effect["bytes_in"] > 0
        with door.connect() as again:
            again.sendall(site.get(origin.authority))
            got = read_answer(again)
            assert (got.status, got.json()["reason"]) == (403, "revoked")
        site.lift("agent:reader")


def test_a_door_that_may_have_missed_a_revocation_refuses(site: EgressSite) -> None:
    door = site.start()
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        reader = Reader(client)
        client.sendall(site.get(origin.authority))
        assert reader.answer().status == 200
        site.stale()
        client.sendall(site.get(origin.authority))
        got = reader.answer()
        assert (got.status, got.json()["reason"], got.header("retry-after")) == (503, "stale", "1")
        assert site.records()[-1]["reason"] == "stale"
        site.stale(False)
        client.sendall(site.get(origin.authority))
        assert reader.answer().status == 200
        site.pause()
        client.sendall(site.get(origin.authority))
        assert reader.answer().json()["reason"] == "paused"
    assert len(origin.seen) == 2


def test_what_is_out_may_stay_for_a_while_when_the_board_is_stale(tmp_path: Path) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        next(requests(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            sock.sendall(b"1\r\na\r\n")
            time.sleep(0.02)

    with EgressSite(tmp_path / "home", egress={"stale_tunnel_ms": 1000}) as site, RawOrigin(handle) as origin:
        door = site.start()
        with door.connect() as client:
            client.sendall(site.get(origin.authority))
            Reader(client).until(b"a")
            began = time.monotonic()
            site.stale()
            assert breaks_off(client)
            assert 0.9 < time.monotonic() - began < 4
        effect = site.until_records(2)[1]
        assert (effect["reason"], effect["error"]) == ("stale", "stale while open")
        assert door.figures()['wardline_door_limits_total{limit="stale_tunnel_ms"}'] == 1


def test_a_long_stream_says_how_far_it_is_while_it_lasts(site: EgressSite) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        next(requests(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (12 << 20))
        for _ in range(12):
            sock.sendall(bytes(1 << 20))
            time.sleep(0.2)

    door = site.start()
    with RawOrigin(handle) as origin, door.connect() as client:
        client.sendall(site.get(origin.authority))
        assert read_answer(client).status == 200
        decision, *progress, effect = site.until_records(4)
    assert {said["kind"] for said in progress} == {"progress"}
    moved = [said["bytes_in"] for said in (*progress, effect)]
    assert moved == sorted(moved)
    assert moved[0] >= 1 << 20
    assert moved[-1] > 12 << 20
    assert {said["call"] for said in progress} == {decision["call"]}


def test_an_agent_that_control_forgets_is_unknown_at_once(site: EgressSite) -> None:
    door = site.start()
    with RawOrigin(answer_ok) as origin, door.connect() as client:
        reader = Reader(client)
        client.sendall(site.get(origin.authority))
        assert reader.answer().status == 200
        site.know("somebody")
        client.sendall(site.get(origin.authority))
        assert reader.answer().status == 407
    assert len(origin.seen) == 1


# -- its end ---------------------------------------------------------------------------------------------------------


def test_a_door_that_is_to_stop_waits_for_calls_that_are_out_and_closes_its_spool(site: EgressSite) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            time.sleep(0.5 if b"/slow" in request else 30)
            sock.sendall(OK)

    door = site.start()
    with RawOrigin(handle) as origin, door.connect() as slow, door.connect() as idle, door.connect() as hangs:
        slow.sendall(site.get(origin.authority, "/slow"))
        hangs.sendall(site.get(origin.authority, "/hangs"))
        site.until_records(2)
        door.process.terminate()
        assert Reader(idle).rest() == b""
        assert read_answer(slow).status == 200
        assert read_answer(hangs).status == 504  # answer_ms
        assert door.process.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            door.connect()
        said = json.loads((site.home.host("enforce-1") / "doors" / door.boot / "door.json").read_bytes())
        assert (said["closed"], said["last_seq"]) == (True, 4)
    assert not site.home.run_file("door-1").exists()
    assert not site.home.door_socket("door-1").exists()


def test_the_socket_beside_the_port_is_the_same_proxy_for_this_user_alone(shared: EgressSite, door: DoorProcess) -> None:
    path = shared.home.door_socket("door-1")
    assert path.stat().st_mode & 0o777 == 0o600
    before = len(shared.records())
    with RawOrigin(answer_ok) as origin, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(shared.get(origin.authority))
        assert read_answer(client).status == 200
        client.sendall(shared.connect(origin.authority))
        assert client.recv(64).startswith(b"HTTP/1.1 200 ")
    said = [one["address"] for one in shared.records()[before:] if one["kind"] == "decision"]
    assert said == ["unix", "unix"]  # where it came from; an end's address is the one that was dialled


def test_a_home_with_a_long_path_has_its_socket_too(tmp_path: Path) -> None:
    with EgressSite(tmp_path / ("long" * 30) / "home") as site:
        site.start()
        assert site.home.door_socket("door-1").is_socket()


def test_a_reset_of_the_client_is_no_ones_fault_but_its_own(shared: EgressSite, door: DoorProcess) -> None:
    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for _ in requests(sock):
            time.sleep(0.1)
            sock.sendall(OK)

    before = len(shared.records())
    with RawOrigin(handle) as origin:
        with door.connect() as client:
            client.sendall(shared.get(origin.authority))
            shared.until_records(before + 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        effect = shared.until_records(before + 2)[before + 1]
    assert (effect["outcome"], effect["error"]) == ("error", "the client left before its answer was whole")
    assert door.process.poll() is None
