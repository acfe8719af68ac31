"""The replay's door on a real spool: what it writes, what it does without room, and how it ends."""

import errno
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.core.call import Record
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import STALE_S, Spooler
from ext.decide import Matcher
from ext.spool import Run, SpoolReader
from schemas.bundle import Bundle, Rule
from schemas.calls import RecordedCall
from schemas.config import Enforcer
from schemas.errors import AgentFault, SpoolFull
from schemas.layout import RECORD_HEADER_BYTES
from schemas.process import Lock
from schemas.records import Kind, Outcome, Verdict

BOOT = 0x65432100_00000007
LIMITS = Enforcer(segment_bytes=1 << 16, spool_bytes=1 << 18, spool_reserved_bytes=1 << 16)
RULES = (
    Rule(id="tools", forbid=False, action=("==", 'Action::"mcp:tools/call"')),
    Rule(id="no-pay", forbid=True, resource=("==", 'Tool::"bank/pay"')),
)
MATCHER = Matcher(Bundle(rules=RULES).encode())


def said(ref: int, resource: str = 'Tool::"s/t"', **fields: object) -> RecordedCall:
    least = {"time_ns": 10, "agent": "a", "chain": ('User::"u"', 'Agent::"a"'), "action": "mcp:tools/call"}
    return RecordedCall(**{**least, "trace_id": b"t" * 16, "ref": ref, "resource": resource, **fields})  # type: ignore[arg-type]


@pytest.fixture
def spooler(tmp_path: Path) -> Iterator[Spooler]:
    made = Spooler(tmp_path, BOOT, LIMITS)
    yield made
    made.abandon()


def never(may_stop: bool) -> None:
    raise AssertionError(f"waits, may_stop={may_stop}")


def records(runs: list[Run]) -> list[dict[str, int]]:
    """A few fields of each record, by the layout's own offsets."""
    found = []
    for run in runs:
        data, at = bytes(run.view), 0
        while at < len(data):
            size, _, seq, call_seq = struct.unpack_from("<IIQQ", data, at)
            (ref,) = struct.unpack_from("<Q", data, at + 72)
            kind, verdict, outcome, _ = struct.unpack_from("<BBBB", data, at + 104)
            assert size >= RECORD_HEADER_BYTES
            found.append({"seq": seq, "call": call_seq, "ref": ref, "kind": kind, "verdict": verdict, "outcome": outcome})
            at += size
    return found


def read(spooler: Spooler) -> list[dict[str, int]]:
    reader = SpoolReader(str(spooler.folder), spooler.boot)
    return records(reader.read(1 << 20, 1 << 30))


def test_an_allowed_call_is_two_records_and_a_refused_one_is_one(spooler: Spooler) -> None:
    door = ReplayDoor(spooler, MATCHER, never)
    assert door.call(said(1)).verdict is Verdict.ALLOW
    assert door.call(said(2, 'Tool::"bank/pay"')).because == ("no-pay",)
    assert door.call(said(3, outcome=Outcome.ERROR, error="broken")).verdict is Verdict.ALLOW
    assert read(spooler) == [
        {"seq": 1, "call": 1, "ref": 1, "kind": Kind.DECISION, "verdict": Verdict.ALLOW, "outcome": Outcome.OPEN},
        {"seq": 2, "call": 1, "ref": 1, "kind": Kind.EFFECT, "verdict": 255, "outcome": Outcome.OK},
        {"seq": 3, "call": 3, "ref": 2, "kind": Kind.DECISION, "verdict": Verdict.DENY, "outcome": Outcome.REFUSED},
        {"seq": 4, "call": 4, "ref": 3, "kind": Kind.DECISION, "verdict": Verdict.ALLOW, "outcome": Outcome.OPEN},
        {"seq": 5, "call": 4, "ref": 3, "kind": Kind.EFFECT, "verdict": 255, "outcome": Outcome.ERROR},
    ]
    assert (spooler.last_seq, spooler.last_ref) == (5, 3)


def test_other_policies_hold_from_the_next_call_on(spooler: Spooler) -> None:
    door = ReplayDoor(spooler, MATCHER, never)
    door.matcher = Matcher(Bundle().encode())
    assert door.call(said(1)).policy_digest == Bundle().digest


def test_a_full_spool_makes_the_call_wait_until_its_host_makes_room(spooler: Spooler) -> None:
    """As a host does: what is read goes. Every call is there once, and nobody was refused for want of room."""
    reader = SpoolReader(str(spooler.folder), spooler.boot)
    seen: list[dict[str, int]] = []
    waits: list[bool] = []

    def host(may_stop: bool) -> None:
        waits.append(may_stop)
        assert "limit" in door.full or "room" in door.full
        while runs := reader.read(1 << 20, 1 << 30):
            seen.extend(records(runs))
        for file in spooler.folder.glob("*.seg"):
            if int(file.stem) < reader.segment:
                file.unlink()

    door = ReplayDoor(spooler, MATCHER, host)
    for ref in range(1, 2001):
        assert door.call(said(ref, session="s" * 200)).verdict is Verdict.ALLOW
    assert waits
    assert door.full == ""
    host_reads = reader.read(1 << 20, 1 << 30)
    while host_reads:
        seen.extend(records(host_reads))
        host_reads = reader.read(1 << 20, 1 << 30)
    assert [r["ref"] for r in seen if r["kind"] == Kind.DECISION] == list(range(1, 2001))
    assert [r["seq"] for r in seen] == list(range(1, 4001))
    assert not [r for r in seen if r["outcome"] == Outcome.REFUSED]


class Enough(Exception):
    pass


def fill(door: ReplayDoor) -> int:
    """Call until a wait ends it; returns the ref of the call that waited."""
    for ref in range(1, 10_000):
        try:
            door.call(said(ref, session="s" * 200))
        except Enough:
            return ref
    raise AssertionError("the spool never fills")


def test_a_call_that_waits_for_its_decision_can_be_given_up_and_was_never_made(spooler: Spooler) -> None:
    def stop(may_stop: bool) -> None:
        assert may_stop
        raise Enough

    door = ReplayDoor(spooler, MATCHER, stop)
    ref = fill(door)
    assert not door.open
    assert spooler.last_ref == ref - 1


def test_the_reserve_ends_calls_when_decisions_have_no_room(spooler: Spooler) -> None:
    """The decision that fills the plain part still gets its effect; a refusal finds room too."""

    def stop(may_stop: bool) -> None:
        raise Enough

    door = ReplayDoor(spooler, MATCHER, stop)
    fill(door)
    refused = door.call(said(5000, 'Tool::"bank/pay"'))
    assert refused.verdict is Verdict.DENY
    got = read(spooler)
    assert [r["kind"] for r in got].count(Kind.EFFECT) == [r["verdict"] for r in got].count(Verdict.ALLOW)
    assert got[-1]["ref"] == 5000


class NoRoomForEnds:
    """A spool whose reserve is used up just when a call is out."""

    def __init__(self, spooler: Spooler) -> None:
        self._spooler = spooler

    def append(self, record: Record) -> int:
        if record[0] == Kind.EFFECT:
            raise SpoolFull("no room")
        return self._spooler.append(record)


def test_a_call_that_is_out_says_so_until_it_has_ended(spooler: Spooler) -> None:
    """A first signal does not end that wait, a second does; then the door must not say that it is closed."""
    signals = [False, True]

    def stop(may_stop: bool) -> None:
        assert not may_stop
        if signals.pop(0):
            raise Enough

    door = ReplayDoor(NoRoomForEnds(spooler), MATCHER, stop)  # type: ignore[arg-type]
    with pytest.raises(Enough):
        door.call(said(1))
    assert door.open
    assert [r["kind"] for r in read(spooler)] == [Kind.DECISION]


def test_a_living_door_holds_its_lock_and_has_only_its_last_name(tmp_path: Path) -> None:
    spooler = Spooler(tmp_path, BOOT, LIMITS)
    assert [f.name for f in (tmp_path / "doors").iterdir()] == [f"{BOOT:016x}"]
    assert not Lock(spooler.folder / "lock").take()
    spooler.close()
    lock = Lock(spooler.folder / "lock")
    assert lock.take()
    lock.release()


def test_a_door_that_ends_cleanly_says_how_far_it_got(tmp_path: Path) -> None:
    spooler = Spooler(tmp_path, BOOT, LIMITS)
    ReplayDoor(spooler, MATCHER, never).call(said(77))
    spooler.close()
    told = json.loads((spooler.folder / "door.json").read_bytes())
    assert told == {"boot": f"{BOOT:016x}", "last_seq": 2, "last_ref": 77, "closed": True}


def test_a_door_that_is_abandoned_says_nothing_and_lets_go(tmp_path: Path) -> None:
    spooler = Spooler(tmp_path, BOOT, LIMITS)
    spooler.abandon()
    assert not (spooler.folder / "door.json").exists()
    lock = Lock(spooler.folder / "lock")
    assert lock.take()
    lock.release()


def test_a_spool_without_room_for_a_first_segment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SpoolFull):
        Spooler(tmp_path, BOOT, LIMITS)
    assert list((tmp_path / "doors").iterdir()) == []
    monkeypatch.undo()
    Spooler(tmp_path, BOOT, LIMITS).close()


def test_what_a_crash_left_before_it_had_a_name_is_removed_unless_somebody_holds_it(tmp_path: Path) -> None:
    doors = tmp_path / "doors"
    for name in ("dead", "held", "young"):
        (doors / f".tmp-{name}").mkdir(parents=True)
    lock = Lock(doors / ".tmp-held" / "lock")
    assert lock.take()
    for name in ("dead", "held"):
        old = time.time() - 2 * STALE_S
        os.utime(doors / f".tmp-{name}", (old, old))
    Spooler(tmp_path, BOOT, LIMITS).close()
    assert sorted(f.name for f in doors.iterdir()) == [".tmp-held", ".tmp-young", f"{BOOT:016x}"]
    lock.release()


def test_a_text_that_no_record_can_hold_is_the_callers_fault(spooler: Spooler) -> None:
    with pytest.raises(AgentFault):
        ReplayDoor(spooler, MATCHER, never).call(said(1, session="s" * 5000))
    assert spooler.last_seq == 0
