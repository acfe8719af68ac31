"""Planted bugs: each breaks one shipped part in the way that its docstring says, while it is entered.

They stand for what somebody might write one day. A simulation that did not notice them would prove nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from enforcers.core.gate import Gate
from enforcers.core.obey import Floors, Obey
from enforcers.doors import obeyed
from enforcers.doors.replay import ReplayDoor
from enforcers.host import feed
from enforcers.host.feed import Feed
from pipeline.shells.control.heard import Heard
from schemas.ack import Ack
from schemas.follower import Beat, Follower
from schemas.records import Standing

Planted = Callable[[], Any]


@contextmanager
def fresh_from_when_it_is_read() -> Iterator[None]:
    """A heartbeat proves freshness from the moment at which it is read, however long it lay in a buffer."""
    with patch.object(Feed, "_written", lambda self, offset: feed.time.monotonic_ns()):
        yield


@contextmanager
def floors_forgotten() -> Iterator[None]:
    """A host begins anew at each start: it believes any state that control ever had."""
    with patch.object(feed, "parse_floors", lambda data, name: Floors()):
        yield


@contextmanager
def acknowledged_before_it_is_kept() -> Iterator[None]:
    """A host acknowledges what is on its board, whether or not it is on its disk."""
    ack = Obey.ack

    def wrong(self: Obey, **said: Any) -> Ack:
        kept, self._kept = self._kept, replace(self._kept, epoch=max(self._kept.epoch, self.epoch))
        try:
            return ack(self, **said)
        finally:
            self._kept = kept

    with patch.object(Obey, "ack", wrong):
        yield


@contextmanager
def digest_not_compared() -> Iterator[None]:
    """What was read is whole when a heartbeat says anything."""
    beat = Follower._beat

    def wrong(self: Follower, sealed: Any, at_end: bool) -> Beat | None:
        value = sealed.entry.value
        if value and isinstance(value.get("digest"), str) and (self.synced or at_end):
            mine = {**value, "digest": self.digest().hex(), "live": self.live}
            check, self._check = self._check, lambda _: None  # type: ignore[method-assign]
            check(sealed)
            try:
                return beat(self, replace(sealed, entry=replace(sealed.entry, value=mine)), at_end)
            finally:
                self._check = check  # type: ignore[method-assign]
        return beat(self, sealed, at_end)

    with patch.object(Follower, "_beat", wrong):
        yield


@contextmanager
def entries_not_verified() -> Iterator[None]:
    """A signature is looked at in heartbeats alone."""
    check = Follower._check

    def wrong(self: Follower, sealed: Any) -> None:
        if sealed.entry.key == "heartbeat":
            check(self, sealed)

    with patch.object(Follower, "_check", wrong):
        yield


@contextmanager
def epoch_of_a_forged_removal() -> Iterator[None]:
    """The highest epoch that was read is the one that was reached, whoever wrote it."""
    beat = Follower._beat

    def wrong(self: Follower, sealed: Any, at_end: bool) -> Beat | None:
        read, joined = self.epoch, not self.synced
        got = beat(self, sealed, at_end)
        if got is not None and got.whole and joined:
            self.epoch = max(self.epoch, read)
        return got

    with patch.object(Follower, "_beat", wrong):
        yield


@contextmanager
def pause_lost_in_a_join() -> Iterator[None]:
    """Who reads the log from its beginning does not look for `pause`."""
    join = Obey._join

    def wrong(self: Obey, wall_ns: int) -> None:
        note, self._note = self._note, lambda entry: None if entry.key == "pause" else Obey._note(self, entry)  # type: ignore
        try:
            join(self, wall_ns)
        finally:
            self._note = note  # type: ignore[method-assign]

    with patch.object(Obey, "_join", wrong):
        yield


@contextmanager
def lift_never_comes() -> Iterator[None]:
    """What was revoked once stays so until the log is read again."""
    change = Obey._change

    def wrong(self: Obey, revoke: Iterable[tuple[str, int]], lift: Iterable[str], wall_ns: int) -> None:
        change(self, revoke, (), wall_ns)

    with patch.object(Obey, "_change", wrong):
        yield


@contextmanager
def policies_named_before_they_are_here() -> Iterator[None]:
    """The board names policies when control does, and not when they are on the disk."""
    note = Obey._note

    def wrong(self: Obey, entry: Any) -> None:
        note(self, entry)
        self.policy = self.wanted_policy

    with patch.object(Obey, "_note", wrong):
        yield


@contextmanager
def right_not_asked() -> Iterator[None]:
    """A host that was removed goes on."""
    with patch.object(Obey, "_own_right", lambda self: True):
        yield


@contextmanager
def no_look_before_the_record() -> Iterator[None]:
    """Between decision and record nobody looks at the board."""

    def wrong(self: Gate) -> bool:
        self._board.unchanged()
        return True

    with patch.object(Gate, "unchanged", wrong):
        yield


@contextmanager
def no_look_before_the_act() -> Iterator[None]:
    """Between record and act nobody looks at the board."""
    unchanged = Gate.unchanged
    made = ReplayDoor.__init__

    def init(self: ReplayDoor, spooler: Any, obeys: Any, rest: Any) -> None:
        made(self, spooler, obeys, rest)
        obeys.gate.unchanged = lambda: unchanged(obeys.gate) or self.open

    with patch.object(ReplayDoor, "__init__", init):
        yield


@contextmanager
def policies_acknowledged_when_they_are_named() -> Iterator[None]:
    """A door says that it decides by the policies of its board while they are still being made ready."""
    follow = obeyed.Obeyed.follow

    def wrong(self: obeyed.Obeyed, *, wait: bool = False) -> bool:
        changed = follow(self, wait=wait)
        if changed:
            self._seen.write(self.board.epoch, self.board.policy, obeyed.time.time_ns())
        return changed

    with patch.object(obeyed.Obeyed, "follow", wrong):
        yield


@contextmanager
def old_policies_until_the_new_are_ready() -> Iterator[None]:
    """A door that stood still decides by the policies that it had, until the others are ready."""
    with patch.object(obeyed, "LATE_S", 1e9):
        yield


@contextmanager
def stale_is_go() -> Iterator[None]:
    """Where the board is stale, a door decides by what it has."""
    decide = Gate.decide

    def wrong(self: Gate, call: Any) -> Any:
        decision = decide(self, call)
        if decision.reason != "stale":
            return decision
        board = self._board
        self._board = _Never(board)
        try:
            return decide(self, call)
        finally:
            self._board = board

    with patch.object(Gate, "decide", wrong), patch.object(Gate, "unchanged", lambda self: True):
        yield


class _Never:
    def __init__(self, board: Any) -> None:
        self.epoch = board.epoch

    def check(self, *_: Any) -> int:
        return Standing.GO

    def unchanged(self) -> bool:
        return True


@contextmanager
def host_answers_for_its_doors() -> Iterator[None]:
    """Control reports what a host has applied, also where it has doors."""
    report = Heard.report

    def wrong(self: Heard, epoch: int = 0, policy: str = "") -> list[dict[str, Any]]:
        return [{**host, "applied": host.get("epoch", 0) >= epoch} for host in report(self, epoch, policy)]

    with patch.object(Heard, "report", wrong):
        yield


@contextmanager
def nobody_is_heard_who_joins() -> Iterator[None]:
    """Control sends all again for a host that is stale, not for one that cannot begin."""
    take = Heard.take

    def wrong(self: Heard, data: bytes | None, *, ago_s: float = 0.0) -> None:
        lacking = self._lacking
        self._lacking = lambda why: lacking(why) if "is stale" in why else None
        try:
            take(self, data, ago_s=ago_s)
        finally:
            self._lacking = lacking

    with patch.object(Heard, "take", wrong):
        yield


@contextmanager
def agents_written_behind_the_board() -> Iterator[None]:
    """The board says that the doors know the agents; the file follows with the next heartbeat."""
    written, apply, beat = Obey._agents_written, Obey._apply, Obey._beat

    def wrong(self: Obey, entry: Any, wall_ns: int) -> None:
        self._agents_written = lambda: True  # type: ignore[method-assign]
        apply(self, entry, wall_ns)
        del self._agents_written

    def late(self: Obey, *said: Any) -> None:
        beat(self, *said)
        written(self)

    with patch.object(Obey, "_apply", wrong), patch.object(Obey, "_beat", late):
        yield


@contextmanager
def agents_read_once() -> Iterator[None]:
    """A door reads the agents when it begins, and not when they have changed."""
    made = obeyed.Obeyed.__init__

    def init(self: obeyed.Obeyed, board: Any, bundles: Any, folder: Any, agents: Any) -> None:
        known: list[bool] = []
        made(self, board, bundles, folder, lambda: bool(known) or (known.append(agents()) or known[0]))

    with patch.object(obeyed.Obeyed, "__init__", init):
        yield


PLANTED: dict[str, tuple[Planted, str]] = {
    "freshness from when a heartbeat is read": (fresh_from_when_it_is_read, "fresh"),
    "floors that are forgotten": (floors_forgotten, "forgets"),
    "an epoch that is acknowledged before it is kept": (acknowledged_before_it_is_kept, "acks"),
    "a digest that is not compared": (digest_not_compared, "states"),
    "entries that are not verified": (entries_not_verified, "states"),
    "the epoch of a forged removal": (epoch_of_a_forged_removal, "acks"),
    "a pause that is lost in a join": (pause_lost_in_a_join, "states"),
    "a revocation that is never lifted": (lift_never_comes, "states"),
    "policies that are named before they are here": (policies_named_before_they_are_here, "runs"),
    "a removed host that goes on": (right_not_asked, "right"),
    "no look before the record": (no_look_before_the_record, "fresh"),
    "no look before the act": (no_look_before_the_act, "act"),
    "policies that are acknowledged too early": (policies_acknowledged_when_they_are_named, "acks"),
    "old policies in a door that stood still": (old_policies_until_the_new_are_ready, "policies"),
    "a stale board that is believed": (stale_is_go, "fresh"),
    "a host that answers for its doors": (host_answers_for_its_doors, "report"),
    "agents that are written behind the board": (agents_written_behind_the_board, "agents"),
    "agents that are read once": (agents_read_once, "agents"),
    "a host that cannot begin and is not heard": (nobody_is_heard_who_joins, "converges"),
}
"""What it is -> the bug, and the rule that catches it."""
