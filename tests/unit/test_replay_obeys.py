"""What a door obeys while it decides and records: revocations, pause, policies, and a board that is stale or another."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.doors.obeyed import Obeyed
from enforcers.doors.replay import WAITS_FRESH, WAITS_POLICIES, ReplayDoor
from ext.board import BoardWriter
from schemas.bundle import Bundle
from schemas.errors import SpoolFull
from schemas.records import Kind, Outcome, Standing, Verdict
from tests.support.doorsite import FRESH_NS, Site, between, never, read, said


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.spooler.abandon()
    made.board.close()


def full() -> None:
    raise SpoolFull("no room")


def decided(site: Site) -> list[tuple[int, ...]]:
    return [(r["kind"], r["verdict"], r["outcome"], r["epoch"]) for r in read(site.spooler)]


REVOKED_AGENT = (int(Kind.DECISION), int(Verdict.DENY), int(Outcome.REFUSED))


@pytest.mark.parametrize(
    "text",
    [
        "agent:a", "agent*:a", "agent*:p", 'principal:User::"u"', 'principal*:Agent::"a"', "session:s-1", f"token:{'f' * 64}",
        "key:thumb", "grant:g-1", "issuer:https://idp", "destination:s/t", "destination:s",
    ],
)  # fmt: skip
def test_what_a_line_names_can_be_revoked(site: Site, text: str) -> None:
    line = said(1, chain=('User::"u"', 'Agent::"p"', 'Agent::"a"'), session="s-1", token="f" * 64, key="thumb", grant="g-1",
                issuer="https://idp")  # fmt: skip
    assert site.door.call(line).verdict is Verdict.ALLOW
    site.change(text)
    refused = site.door.call(line)
    assert (refused.verdict, refused.reason, refused.because) == (Verdict.DENY, "revoked", ())
    site.change(lift=[text])
    assert site.door.call(line).verdict is Verdict.ALLOW
    assert decided(site)[1] == (*REVOKED_AGENT, 2)


def test_a_revocation_before_the_record_is_obeyed_by_it(site: Site) -> None:
    """It comes while the call waits for room: what was decided before the wait is decided anew."""

    def host(why: str, may_stop: bool) -> None:
        site.change("agent:a")
        site.rest = never
        door._spooler = site.spooler

    site.rest = host
    door = between(site, Kind.DECISION, full, before=True)
    assert door.call(said(1)).reason == "revoked"
    assert decided(site) == [(*REVOKED_AGENT, 2)]


def test_a_revocation_just_behind_the_decision_is_in_the_record_and_nothing_has_to_be_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = site.obeyed.follow

    def followed(*, wait: bool = False) -> bool:
        new = follow(wait=wait)
        if site.epoch == 1:
            site.change("agent:a")
        return new

    monkeypatch.setattr(site.obeyed, "follow", followed)
    assert site.door.call(said(1)).reason == "revoked"
    assert decided(site) == [(*REVOKED_AGENT, 2)]


def test_a_revocation_between_record_and_act_takes_the_verdict_back(site: Site) -> None:
    door = between(site, Kind.DECISION, lambda: site.change("agent:a"))
    decision = door.call(said(1))
    assert (decision.verdict, decision.reason) == (Verdict.DENY, "revoked")
    assert not door.open
    assert decided(site) == [
        (Kind.DECISION, Verdict.ALLOW, Outcome.OPEN, 1), (Kind.EFFECT, Verdict.DENY, Outcome.REFUSED, 2),
    ]  # fmt: skip


def test_a_call_that_was_decided_when_the_board_grew_stale_waits_with_its_act_for_the_next_word(site: Site) -> None:
    def host(why: str, may_stop: bool) -> None:
        assert (why, may_stop) == (WAITS_FRESH, False)
        site.change("agent:a")
        site.fresh()

    site.rest = host
    door = between(site, Kind.DECISION, lambda: site.fresh(0))
    assert door.call(said(1)).reason == "revoked"
    assert decided(site)[1] == (Kind.EFFECT, Verdict.DENY, Outcome.REFUSED, 2)


def test_nothing_is_recorded_while_the_board_is_stale(site: Site) -> None:
    rests: list[str] = []

    def host(why: str, may_stop: bool) -> None:
        assert site.spooler.last_seq == 0
        rests.append(why)
        if len(rests) == 3:
            site.fresh()

    site.rest = host
    site.fresh(0)
    assert site.door.call(said(1)).verdict is Verdict.ALLOW
    assert rests == [WAITS_FRESH] * 3


def test_a_door_without_policies_waits_for_its_first(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.obeyed = Obeyed(tmp_path / "board", tmp_path / "bundle", site.spooler.folder)
    rests: list[str] = []

    def host(why: str, may_stop: bool) -> None:
        rests.append(why)
        site.obeyed.look(wait=True)

    site.rest = host
    door = ReplayDoor(site.spooler, site.obeyed, lambda why, *, may_stop: site.rest(why, may_stop))
    assert door.call(said(1)).verdict is Verdict.ALLOW
    assert rests == [WAITS_POLICIES]
    site.spooler.abandon()


def wait_for_policies(site: Site, policy: bytes) -> None:
    deadline = time.monotonic() + 10
    while site.obeyed.matchers.policy != policy:
        assert time.monotonic() < deadline
        site.obeyed.look()


def test_other_policies_hold_from_the_word_on_that_names_them(site: Site) -> None:
    site.door.call(said(1))
    assert site.seen.read()[:2] == (1, site.policy)  # type: ignore[index]
    matchers, ready = site.obeyed.matchers, threading.Event()
    build = matchers._build
    matchers._build = lambda wanted: build(wanted) if ready.wait(10) else build(b"")  # type: ignore[method-assign]
    before, site.policy = site.policy, site.put(Bundle())
    site.change()
    assert site.door.call(said(2)).policy_digest == before.hex()
    assert site.seen.read()[:2] == (2, before)  # type: ignore[index]
    ready.set()
    wait_for_policies(site, site.policy)
    assert site.seen.read()[:2] == (2, site.policy)  # type: ignore[index]
    assert site.door.call(said(3)).policy_digest == Bundle().digest


def test_a_door_has_said_an_epoch_before_it_records_by_it_and_not_before_it_has_looked(site: Site) -> None:
    site.door.call(said(1))
    site.change("agent:b")
    assert site.seen.read()[0] == 1  # type: ignore[index]
    words: list[int] = []
    between(site, Kind.DECISION, lambda: words.append(site.seen.read()[0]), before=True).call(said(2))  # type: ignore[index]
    assert words == [2]
    assert [r["epoch"] for r in read(site.spooler) if r["kind"] == Kind.DECISION] == [1, 2]


def test_a_stale_board_is_not_followed(site: Site, tmp_path: Path) -> None:
    """The next host's board is empty until that host knows what to write."""
    site.door.call(said(1))
    word = site.seen.read()
    following = BoardWriter(str(tmp_path / "board"), 2)
    for _ in range(3):
        assert site.obeyed.look() is Standing.STALE
        time.sleep(0.06)
    assert site.seen.read() == word
    following.replace([("agent:a", 0)], epoch=7, paused=False, policy=site.policy)
    following.fresh(time.monotonic_ns() + FRESH_NS)
    assert site.door.call(said(2)).reason == "revoked"
    assert site.seen.read()[:2] == (7, site.policy)  # type: ignore[index]
    following.close()
