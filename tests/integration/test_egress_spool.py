"""A door whose spool is full, or that is killed: nothing goes out without a record, and service comes back by itself."""

import socket
import threading
import time
from pathlib import Path

from schemas.config import Enforcer
from tests.support.egress import EgressSite
from tests.support.rawhttp import OK, RawOrigin, Reader, answer_ok, breaks_off, read_answer, requests

SMALL = Enforcer(segment_bytes=1 << 16, spool_bytes=1 << 18, spool_reserved_bytes=1 << 16)


def fill(site: EgressSite, authority: str) -> tuple[int, bool]:
    """Call until the door refuses for want of room; returns how many calls it let out, and whether the refusal is recorded: not
    where the end of a call waits for room just then."""
    with site.doors[0].connect() as client:
        reader = Reader(client)
        for calls in range(100_000):
            client.sendall(site.get(authority))
            got = reader.answer()
            if got.status != 200:
                assert (got.status, got.json()["reason"], got.header("retry-after")) == (503, "overloaded", "1")
                return calls, bool(got.json()["call_id"])
    raise AssertionError("the spool is never full")


def test_without_room_nothing_goes_out_and_with_room_it_serves_again(tmp_path: Path) -> None:
    with EgressSite(tmp_path / "home", enforcer=SMALL) as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        served, first = fill(site, origin.authority)
        assert served > 50
        with door.connect() as client:
            reader, statuses = Reader(client), [(503, first)]
            for _ in range(600):  # more than the reserve has room for
                client.sendall(site.get(origin.authority))
                got = reader.answer()
                statuses.append((got.status, bool(got.json()["call_id"])))
            assert {status for status, _ in statuses} == {503}
            assert {recorded for _, recorded in statuses} == {True, False}  # the last ones are in no record of their own
        assert len(origin.seen) == served
        records = site.records()
        assert sum(said["verdict"] == 1 for said in records if said["kind"] == "decision") == served
        unrecorded = sum(not recorded for _, recorded in statuses)
        refused = sum(said["reason"] == "overloaded" for said in records if said["kind"] == "decision")
        assert refused == len(statuses) - unrecorded
        assert site.sweep()
        with door.connect() as client:
            client.sendall(site.get(origin.authority))
            assert read_answer(client).status == 200
        deadline = time.monotonic() + 5
        while not (counts := [said for said in site.records()[-20:] if said["kind"] == "count"]):
            assert time.monotonic() < deadline, "refusals without a record are never counted"
            time.sleep(0.05)
        assert sum(said["count"] for said in counts) == unrecorded
        assert {(said["reason"], said["error"], said["agent"]) for said in counts} == {("overloaded", "spool", "reader")}
        assert len(origin.seen) == served + 1


def test_the_ends_of_calls_that_are_out_wait_for_room_and_nothing_begins_before_they_are_written(tmp_path: Path) -> None:
    gate = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            if b"/held" in request:
                origin.seen.append(request)
                assert gate.wait(20)
            sock.sendall(OK)

    with EgressSite(tmp_path / "home", enforcer=SMALL) as site, RawOrigin(handle) as origin:
        door = site.start()
        held = [door.connect() for _ in range(20)]
        for client in held:
            client.sendall(site.get(origin.authority, "/held"))
        while len(origin.seen) < 20:
            time.sleep(0.01)
        fill(site, origin.authority)
        with door.connect() as client:
            reader = Reader(client)
            while True:  # use the reserve up
                client.sendall(site.get(origin.authority))
                if not reader.answer().json()["call_id"]:
                    break
        gate.set()
        assert [read_answer(client).status for client in held] == [200] * 20
        deadline = time.monotonic() + 5
        while not door.figures()["wardline_door_effects_waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with door.connect() as client:
            client.sendall(site.get(origin.authority))
            assert read_answer(client).status == 503
        before = len(site.records())
        assert site.sweep()
        deadline = time.monotonic() + 5
        while door.figures()["wardline_door_effects_waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert before
        with door.connect() as client:
            client.sendall(site.get(origin.authority))
            assert read_answer(client).status == 200
        for client in held:
            client.close()
        assert door.stop() == 0


def test_a_door_that_is_killed_leaves_every_call_that_its_origin_saw_in_its_spool(tmp_path: Path) -> None:
    gate = threading.Event()

    def handle(origin: RawOrigin, sock: socket.socket) -> None:
        for request in requests(sock):
            origin.seen.append(request)
            assert gate.wait(20)

    with EgressSite(tmp_path / "home", egress={"upstreams_per_agent_host": 100}) as site, RawOrigin(handle) as origin:
        door = site.start()
        clients = [door.connect() for _ in range(80)]
        for number, client in enumerate(clients):
            client.sendall(site.get(origin.authority, f"/{number}"))
        deadline = time.monotonic() + 10
        while len(origin.seen) < 60:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        door.process.kill()
        assert all(breaks_off(client) for client in clients)
        door.process.wait()
        for client in clients:
            client.close()
        seen = sorted(request.split()[1].decode() for request in origin.seen)
        recorded = sorted(said["path"] for said in site.records() if said["kind"] == "decision")
        assert set(seen) <= set(recorded)
        assert len(seen) == len(set(seen))
        gate.set()
        again = site.start(port=door.port)
        with RawOrigin(answer_ok) as other, again.connect() as client:
            client.sendall(site.get(other.authority))
            assert read_answer(client).status == 200
