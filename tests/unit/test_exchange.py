"""One call of a network door, event by event: what is asked, what is recorded, and what its caller is told.

A script is a list of steps. Each is something that happens to the call, what it returns, and exactly the records it causes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from enforcers.core.call import Call, Kept, Record, decision_record, target_of
from enforcers.core.caller import Caller
from enforcers.core.chain import make_chain
from enforcers.core.exchange import Desk, Exchange
from enforcers.core.refusal import Refusal
from ext.board import Selectors
from schemas.errors import AgentFault, SpoolFull
from schemas.layout import VERDICT_UNSAID
from schemas.records import STRING_FIELDS, Decision, Kind, Outcome, Verdict, call_id
from schemas.vocabulary import agent_uid

BOOT = 0x6565_6565_0102_0304
AGENT = agent_uid("reader")
CALLER = Caller(agent="reader", chain=make_chain((AGENT,)))
CALL = Call(
    time_ns=1_000, door="door-1", chain=CALLER.chain, action="http:POST", target=target_of('Host::"h:80"', "http"),
    trace_id=b"t" * 16,
)  # fmt: skip
YES = Decision(verdict=Verdict.ALLOW, because=("all",), reason="permit", policy_digest="d")
NO = Decision(because=("none",), reason="forbid", policy_digest="d")


class Digest:
    digest = "d"

    def decide(self, links: tuple[str, ...], action: str, resource: str, /) -> Decision:
        raise AssertionError("the gate decides")


@dataclass
class World:
    """A gate, a board and a spool that do what the script says."""

    says: dict[str, Decision] = field(default_factory=dict)
    """By action; what is not here is allowed."""
    stops: str = ""
    changed: int = 0
    """How often `unchanged` finds that the board is another one."""
    news: int = 0
    """How often `follow` finds something new."""
    may_decide: bool = True
    known: bool = True
    room: int = 1_000
    """Records that find room."""
    reserve: int = 1_000
    """Records that may use the reserve, beyond that."""
    asked: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    matcher: Any = field(default_factory=Digest)
    epoch: int = 7
    on_append: Callable[[], None] = lambda: None
    unread: bool = False
    """Whether nobody has read a decision yet, so that its end may go into it."""
    ends: list[tuple[object, ...]] = field(default_factory=list)

    def decide(self, call: Call) -> Decision:
        self.asked.append(call.action)
        if self.stops:
            return Decision(reason=self.stops, policy_digest="d", epoch=7)
        return self.says.get(call.action, YES)

    def stopped(self, call: Call) -> str:
        assert call is CALL
        return self.stops

    def unchanged(self) -> bool:
        self.changed -= 1
        return self.changed < 0

    def follow(self) -> bool:
        self.news -= 1
        return self.news >= 0

    def append(self, record: Record) -> int:
        self.on_append()
        if self.room > 0:
            self.room -= 1
        elif record[21] and self.reserve > 0:
            self.reserve -= 1
        else:
            raise SpoolFull("no room")
        self.records.append(record)
        return len(self.records)

    def complete(self, *end: object) -> bool:
        if self.unread:
            self.ends.append(end)
        return self.unread

    def desk(self) -> Desk:
        return Desk(self, self, self.append, self.complete, BOOT, lambda caller: self.known)


def said(record: Record) -> tuple[Any, ...]:
    """What matters of a record: kind, its call, verdict, outcome, reason, error."""
    texts = dict(zip(STRING_FIELDS, record[20], strict=True))
    return Kind(record[0]), record[1], record[4], Outcome(record[5]), texts["reason"], texts["error"]


ALLOWED = (Kind.DECISION, 0, 1, Outcome.OPEN, "permit", "")


def decided(reason: str) -> tuple[Any, ...]:
    return (Kind.DECISION, 0, 0, Outcome.REFUSED, reason, "")


def taken_back(reason: str, error: str) -> tuple[Any, ...]:
    return (Kind.EFFECT, 1, 0, Outcome.REFUSED, reason, error)


def ended(outcome: Outcome, error: str = "") -> tuple[Any, ...]:
    return (Kind.EFFECT, 1, VERDICT_UNSAID, outcome, "", error)


BEGIN = lambda x: x.begin(CALL, 1_010)  # noqa: E731
MAY_ACT = lambda x: x.may_act(1_020)  # noqa: E731
ALSO = lambda x: x.also("tcp:CONNECT", 1_020, "port 22")  # noqa: E731
END = lambda x: x.end(Outcome.OK, 200, 10, 20, 1_500)  # noqa: E731
FAIL = lambda x: x.end(Outcome.ERROR, 502, 10, 0, 1_500, "closed")  # noqa: E731
CUT = lambda x: x.cut("revoked", 10, 20, 1_500)  # noqa: E731
LEAVE = lambda x: x.withdraw("revoked", 1_500)  # noqa: E731
ADDRESS = lambda x: x.refuse("address", "loopback: 127.0.0.1:80", 1_500)  # noqa: E731
PROGRESS = lambda x: x.progress(5, 6, 1_200)  # noqa: E731

FORBID_TCP = {"tcp:CONNECT": Decision(reason="no-permit", policy_digest="d")}

SCRIPTS: dict[str, tuple[World, list[tuple[Any, Any, list[Any]]]]] = {
    "an allowed call is recorded, may act, and ends": (
        World(), [(BEGIN, None, [ALLOWED]), (MAY_ACT, None, []), (END, None, [ended(Outcome.OK)])],
    ),
    "a refused call is its decision and nothing else": (
        World(says={"http:POST": NO}),
        [(BEGIN, (403, "forbid"), [decided("forbid")]), (END, None, []), (CUT, (403, "revoked"), [])],
    ),
    "a stale door refuses and records that": (World(stops="stale"), [(BEGIN, (503, "stale"), [decided("stale")])]),
    "a paused one too": (World(stops="paused"), [(BEGIN, (403, "paused"), [decided("paused")])]),
    "without policies to decide by it is stale": (
        World(may_decide=False), [(BEGIN, (503, "stale"), [decided("stale")])],
    ),
    "news of policies and a changed board are decided again before anything is recorded": (
        World(news=2, changed=1), [(BEGIN, None, [ALLOWED])],
    ),
    "news of agents may be that nobody knows this one": (
        World(news=1, known=False), [(BEGIN, (407, "identity"), [decided("identity")])],
    ),
    "who is revoked between record and act is not sent, and the verdict is taken back": (
        World(),
        [(BEGIN, None, [ALLOWED]), ("revoked", None, []),
         (MAY_ACT, (403, "revoked"), [taken_back("revoked", "revoked while waiting")]), (END, None, [])],
    ),
    "a board that goes stale between the two keeps it back too": (
        World(),
        [(BEGIN, None, [ALLOWED]), ("stale", None, []),
         (MAY_ACT, (503, "stale"), [taken_back("stale", "stale while waiting")])],
    ),
    "a waiting call is withdrawn": (
        World(), [(BEGIN, None, [ALLOWED]), (LEAVE, (403, "revoked"), [taken_back("revoked", "revoked while waiting")])],
    ),
    "one that is out is cut": (
        World(),
        [(BEGIN, None, [ALLOWED]), (MAY_ACT, None, []), (CUT, (403, "revoked"), [taken_back("revoked", "revoked while open")]),
         (END, None, []), (CUT, (403, "revoked"), [])],
    ),
    "an address that may not be dialled takes the verdict back": (
        World(),
        [(BEGIN, None, [ALLOWED]), (ADDRESS, (403, "address"), [taken_back("address", "loopback: 127.0.0.1:80")])],
    ),
    "what is allowed for one question is not for the other": (
        World(says=FORBID_TCP),
        [(BEGIN, None, [ALLOWED]), (ALSO, (403, "no-permit"), [taken_back("no-permit", "tcp:CONNECT: port 22")])],
    ),
    "where both are it goes on": (
        World(changed=0), [(BEGIN, None, [ALLOWED]), (ALSO, None, []), (MAY_ACT, None, []), (END, None, [ended(Outcome.OK)])],
    ),
    "a second question of somebody who is revoked by then": (
        World(),
        [(BEGIN, None, [ALLOWED]), ("revoked", None, []),
         (ALSO, (403, "revoked"), [taken_back("revoked", "tcp:CONNECT: port 22")])],
    ),
    "a call that fails on its way says how": (
        World(), [(BEGIN, None, [ALLOWED]), (MAY_ACT, None, []), (FAIL, None, [ended(Outcome.ERROR, "closed")])],
    ),
    "it says how far it is while it is out, and no more when it is over": (
        World(),
        [(BEGIN, None, [ALLOWED]), (PROGRESS, None, [(Kind.PROGRESS, 1, VERDICT_UNSAID, Outcome.OPEN, "", "")]),
         (END, None, [ended(Outcome.OK)]), (PROGRESS, None, [])],
    ),
    "a spool that is full to the reserve refuses, and that is recorded": (
        World(room=0), [(BEGIN, (503, "overloaded"), [decided("overloaded")])],
    ),
    "one without a reserve left refuses unrecorded": (World(room=0, reserve=0), [(BEGIN, (503, "overloaded"), [])]),
    "a refusal without a reserve left is still a refusal": (
        World(says={"http:POST": NO}, room=0, reserve=0), [(BEGIN, (503, "overloaded"), [])],
    ),
    "an effect may use the reserve, progress may not": (
        World(room=1), [(BEGIN, None, [ALLOWED]), (PROGRESS, None, []), (END, None, [ended(Outcome.OK)])],
    ),
    "an effect without room waits, and keeps its place": (
        World(room=1, reserve=0), [(BEGIN, None, [ALLOWED]), (END, None, []), ("room", None, [ended(Outcome.OK)])],
    ),
}  # fmt: skip


def told(answer: Refusal | None) -> Any:
    return None if answer is None else (answer.status, answer.reason)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_call_by_its_script(name: str) -> None:
    first, steps = SCRIPTS[name]
    world = World(**{key: getattr(first, key) for key in first.__dataclass_fields__} | {"asked": [], "records": []})
    desk = world.desk()
    exchange = Exchange(desk, CALLER)
    for step, answer, records in steps:
        before = len(world.records)
        if step == "room":
            world.room = 1_000
            assert desk.retry()
        elif isinstance(step, str):
            world.stops = step
        else:
            assert told(step(exchange)) == answer
        assert [said(record) for record in world.records[before:]] == records, step


def test_a_call_has_the_name_of_its_decision_and_a_span_of_its_own() -> None:
    world = World()
    desk = world.desk()
    first, second = Exchange(desk), Exchange(desk)
    assert first.call_id == ""
    for exchange in (first, second):
        assert exchange.begin(CALL, 1) is None
    assert (first.call_id, second.call_id) == (call_id(BOOT, 1), call_id(BOOT, 2))
    assert (first.span, second.span) == (bytes.fromhex("0102030400000001"), bytes.fromhex("0102030400000002"))


def test_a_refusal_names_the_call_the_policies_and_what_was_asked() -> None:
    world = World(says={"http:POST": NO})
    refusal = Exchange(world.desk(), CALLER).begin(CALL, 1)
    assert refusal is not None
    assert (refusal.call_id, refusal.policies, refusal.agent) == (call_id(BOOT, 1), ("none",), "reader")
    assert (refusal.action, refusal.resource) == ("http:POST", 'Host::"h:80"')
    world = World(room=0, reserve=0)
    refusal = Exchange(world.desk(), CALLER).begin(CALL, 1)
    assert refusal is not None
    assert refusal.call_id == ""  # nothing of it is recorded


def test_while_an_effect_waits_for_room_no_call_begins_and_effects_keep_their_order() -> None:
    world = World(room=3, reserve=0)
    desk = world.desk()
    calls = [Exchange(desk, CALLER) for _ in range(3)]
    for exchange in calls:
        assert exchange.begin(CALL, 1) is None
    for number in (2, 0, 1):
        calls[number].end(Outcome.OK, 200, number, 0, 2)
    assert len(desk.waiting) == 3
    world.room = 1
    late = Exchange(desk, CALLER)
    assert told(late.begin(CALL, 3)) == (503, "overloaded")
    assert not desk.retry()
    assert len(desk.waiting) == 2
    world.room = 10
    assert desk.retry()
    assert [(record[1], record[10]) for record in world.records[3:]] == [(3, 2), (1, 0), (2, 1)]
    assert Exchange(desk, CALLER).begin(CALL, 4) is None


def test_at_once_behind_its_record_a_call_may_act_while_the_board_is_unchanged_and_is_asked_about_where_it_is_not() -> None:
    world = World()
    exchange = Exchange(world.desk(), CALLER)
    assert exchange.begin(CALL, 1) is None
    world.stops = "revoked"
    assert exchange.may_act(2, at_once=True) is None  # the board has not changed: nobody can have been revoked
    world.changed = 1
    assert told(exchange.may_act(3, at_once=True)) == (403, "revoked")


def test_what_was_recorded_obeys_the_epoch_of_its_gate() -> None:
    world = World()
    exchange = Exchange(world.desk(), CALLER)
    exchange.begin(CALL, 1)
    world.epoch, world.stops = 9, "revoked"
    exchange.may_act(2)
    assert [record[13] for record in world.records] == [7, 9]


def test_an_end_says_what_was_dialled_how_much_moved_and_how_long_it_took() -> None:
    world = World()
    exchange = Exchange(world.desk(), CALLER)
    exchange.begin(CALL, 1_010)
    exchange.address = "192.0.2.1:80"
    exchange.end(Outcome.OK, 201, 10, 20, 900)  # the clock was set back meanwhile
    record = world.records[1]
    assert (record[8], record[10], record[11], record[12]) == (201, 10, 20, 0)
    assert dict(zip(STRING_FIELDS, record[20], strict=True))["address"] == "192.0.2.1:80"


def test_an_end_goes_into_its_decision_while_nobody_has_read_that() -> None:
    world = World(unread=True)
    exchange = Exchange(world.desk())
    assert exchange.begin(CALL, 1_010) is None
    exchange.address = "10.0.0.1:80"
    END(exchange)
    END(exchange)
    assert world.ends == [(1, Outcome.OK, 200, 10, 20, 500, "10.0.0.1:80")], "once"
    assert [said(record) for record in world.records] == [ALLOWED]
    assert not exchange.open


@pytest.mark.parametrize("last", [FAIL, CUT, LEAVE, ADDRESS])
def test_an_end_that_says_why_is_a_record_of_its_own(last: Any) -> None:
    world = World(unread=True)
    exchange = Exchange(world.desk())
    exchange.begin(CALL, 1_010)
    last(exchange)
    assert (world.ends, len(world.records)) == ([], 2)


def test_a_call_that_has_told_how_far_it_is_ends_with_a_record_of_its_own() -> None:
    world = World(unread=True)
    exchange = Exchange(world.desk())
    exchange.begin(CALL, 1_010)
    PROGRESS(exchange)
    END(exchange)
    assert world.ends == []
    assert [record[0] for record in world.records] == [Kind.DECISION, Kind.PROGRESS, Kind.EFFECT]


def test_an_end_in_its_decision_needs_no_room() -> None:
    world = World(unread=True, room=1, reserve=0)
    exchange = Exchange(world.desk())
    exchange.begin(CALL, 1_010)
    END(exchange)
    assert (len(world.ends), len(world.records)) == (1, 1)


def test_how_far_it_is_says_what_was_dialled_too() -> None:
    world = World()
    exchange = Exchange(world.desk(), CALLER)
    exchange.begin(CALL, 1)
    exchange.address = "192.0.2.1:80"
    exchange.progress(5, 6, 7)
    assert dict(zip(STRING_FIELDS, world.records[1][20], strict=True))["address"] == "192.0.2.1:80"


def test_a_call_that_no_record_can_hold_is_malformed_and_nothing_goes_out() -> None:
    def fail() -> None:
        raise AgentFault("session has 5000 bytes, limit is 4096")

    world = World(on_append=fail)
    exchange = Exchange(world.desk(), CALLER)
    assert told(exchange.begin(CALL, 1)) == (400, "malformed")
    assert not exchange.open
    assert world.records == []


def test_a_disk_that_cannot_be_written_is_as_one_that_is_full() -> None:
    def fail() -> None:
        raise OSError(5, "input/output error")

    world = World(on_append=fail)
    desk = world.desk()
    assert told(Exchange(desk, CALLER).begin(CALL, 1)) == (503, "overloaded")
    assert not desk.waiting


def test_a_second_question_is_the_same_but_for_its_action_and_is_never_taken_for_the_first() -> None:
    selectors = Selectors(("agent:a",)), Selectors(("destination:h",))
    for kept in (None, Kept()):
        call = CALL._replace(kept=kept, ref=7, client="192.0.2.1")
        if kept is not None:
            kept.selectors = selectors
        first = decision_record(call, YES, 5)
        asked = call.asking("tcp:CONNECT")
        assert asked._replace(action=call.action, kept=None) == call._replace(kept=None)
        second = decision_record(asked, YES, 5)
        named = STRING_FIELDS.index("action")
        assert (first[20][named], second[20][named]) == ("http:POST", "tcp:CONNECT")
        assert decision_record(call, YES, 5) == first
        if kept is not None:
            assert asked.kept is not None
            assert (asked.kept.selectors, asked.kept is kept, kept.decision) == (selectors, False, YES)


def test_what_is_kept_of_a_call_is_said_again_for_the_same_decision_alone() -> None:
    kept = Kept()
    calls = [CALL._replace(kept=kept, time_ns=n, trace_id=bytes([n]) * 16) for n in (1, 2, 3)]
    alone = [call._replace(kept=None) for call in calls]
    for decision in (YES, YES, NO, YES, Decision(reason="stale", policy_digest="d")):
        assert [decision_record(call, decision, 9) for call in calls] == [decision_record(call, decision, 9) for call in alone]
