"""The replay's door on a real spool: what it writes, what it does without room, and how it ends."""

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.doors.spooler import STALE_S, Spooler
from ext.spool import SpoolReader
from schemas.errors import AgentFault, SpoolFull
from schemas.process import Lock
from schemas.records import STRING_FIELDS, Kind, Outcome, Verdict
from tests.support.doorsite import BOOT, LIMITS, Site, between, read, records, said
from tests.support.oracles import parse_records


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.spooler.abandon()
    made.board.close()


@pytest.fixture
def spooler(site: Site) -> Spooler:
    return site.spooler


def test_a_call_is_one_record_and_its_end_another_where_that_says_why_or_comes_too_late(
    site: Site, spooler: Spooler
) -> None:
    door = site.door
    assert door.call(said(1)).verdict is Verdict.ALLOW
    assert door.call(said(2, 'Tool::"bank/pay"')).because == ("no-pay",)
    assert door.call(said(3, outcome=Outcome.ERROR, error="broken")).verdict is Verdict.ALLOW
    assert [{name: r[name] for name in r if name != "epoch"} for r in read(spooler)] == [
        {"seq": 1, "call": 1, "ref": 1, "kind": Kind.DECISION, "verdict": Verdict.ALLOW, "outcome": Outcome.OK},
        {"seq": 2, "call": 2, "ref": 2, "kind": Kind.DECISION, "verdict": Verdict.DENY, "outcome": Outcome.REFUSED},
        {"seq": 3, "call": 3, "ref": 3, "kind": Kind.DECISION, "verdict": Verdict.ALLOW, "outcome": Outcome.OPEN},
        {"seq": 4, "call": 3, "ref": 3, "kind": Kind.EFFECT, "verdict": 255, "outcome": Outcome.ERROR},
    ]
    assert between(site, Kind.DECISION, lambda: read(spooler)).call(said(4)).verdict is Verdict.ALLOW
    assert [(r["seq"], r["call"], r["kind"], r["outcome"]) for r in read(spooler)[4:]] == [
        (5, 5, Kind.DECISION, Outcome.OPEN), (6, 5, Kind.EFFECT, Outcome.OK),
    ]  # fmt: skip
    assert (spooler.last_seq, spooler.last_ref) == (6, 4)


def test_a_line_may_say_which_credential_was_shown_and_from_where(site: Site, spooler: Spooler) -> None:
    site.door.call(said(1, credential="ab" * 16, client="192.0.2.7"))
    reader = SpoolReader(str(spooler.folder), spooler.boot)
    ((_, decision),) = [one for run in reader.read(1 << 20, 1 << 30) for one in parse_records(bytes(run.view))]
    reader.close()
    texts = dict(zip(STRING_FIELDS, decision.texts, strict=True))
    assert (texts["credential"], texts["address"], texts["proof"]) == ("ab" * 16, "192.0.2.7", "")
    assert decision.end is not None
    assert decision.end.address == ""  # nothing was dialled


def test_a_full_spool_makes_the_call_wait_until_its_host_makes_room(site: Site, spooler: Spooler) -> None:
    """As a host does: what is read goes. Every call is there once, and nobody was refused for want of room."""
    reader = SpoolReader(str(spooler.folder), spooler.boot)
    seen: list[dict[str, int]] = []
    waits: list[bool] = []

    def host(why: str, may_stop: bool) -> None:
        waits.append(may_stop)
        assert "limit" in why or "room" in why
        while runs := reader.read(1 << 20, 1 << 30):
            seen.extend(records(runs))
        for file in spooler.folder.glob("*.seg"):
            if file.stem.isdigit() and int(file.stem) < reader.segment:
                file.unlink()

    site.rest = host
    for ref in range(1, 2001):
        assert site.door.call(said(ref, session="s" * 200, error="broken")).verdict is Verdict.ALLOW
    assert waits
    host_reads = reader.read(1 << 20, 1 << 30)
    while host_reads:
        seen.extend(records(host_reads))
        host_reads = reader.read(1 << 20, 1 << 30)
    assert [r["ref"] for r in seen if r["kind"] == Kind.DECISION] == list(range(1, 2001))
    assert [r["seq"] for r in seen] == list(range(1, 4001))
    assert not [r for r in seen if r["outcome"] == Outcome.REFUSED]


class Enough(Exception):
    pass


def fill(site: Site) -> int:
    """Call until a wait ends it; returns the ref of the call that waited."""
    for ref in range(1, 10_000):
        try:
            site.door.call(said(ref, session="s" * 200, error="broken"))
        except Enough:
            return ref
    raise AssertionError("the spool never fills")


def stop(why: str, may_stop: bool) -> None:
    assert may_stop
    raise Enough


def test_a_call_that_waits_for_its_decision_can_be_given_up_and_was_never_made(site: Site, spooler: Spooler) -> None:
    site.rest = stop
    ref = fill(site)
    assert not site.door.open
    assert spooler.last_ref == ref - 1


def test_the_reserve_ends_calls_when_decisions_have_no_room(site: Site, spooler: Spooler) -> None:
    """The decision that fills the plain part still gets its effect; a refusal finds room too."""
    site.rest = stop
    fill(site)
    refused = site.door.call(said(5000, 'Tool::"bank/pay"'))
    assert refused.verdict is Verdict.DENY
    got = read(spooler)
    assert [r["kind"] for r in got].count(Kind.EFFECT) == [r["verdict"] for r in got].count(Verdict.ALLOW)
    assert got[-1]["ref"] == 5000


def full() -> None:
    raise SpoolFull("no room")


def test_a_call_that_is_out_says_so_until_it_has_ended(site: Site, spooler: Spooler) -> None:
    """A first signal does not end that wait, a second does; then the door must not say that it is closed."""
    signals = [False, True]

    def heard(why: str, may_stop: bool) -> None:
        assert not may_stop
        if signals.pop(0):
            raise Enough

    site.rest = heard
    door = between(site, Kind.EFFECT, full, before=True)
    with pytest.raises(Enough):
        door.call(said(1, outcome=Outcome.ERROR, error="broken"))
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
    site = Site(tmp_path)
    spooler = site.spooler
    site.door.call(said(77))
    spooler.close()
    told = json.loads((spooler.folder / "door.json").read_bytes())
    assert told == {"boot": f"{BOOT:016x}", "last_seq": 1, "last_ref": 77, "closed": True}


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


def test_a_text_that_no_record_can_hold_is_the_callers_fault(site: Site) -> None:
    with pytest.raises(AgentFault):
        site.door.call(said(1, session="s" * 5000))
    assert site.spooler.last_seq == 0
