"""The gate: what the board says goes before what the policies say, at every moment until the act."""

from pathlib import Path

import pytest

from enforcers.core import gate as gates
from enforcers.core.call import Call, End, decision_record, effect_record, target_of, withdrawn
from enforcers.core.chain import make_chain
from enforcers.core.gate import Gate, caller_of
from ext.board import BoardWriter
from ext.decide import Matcher
from schemas.bundle import Bundle, Rule
from schemas.layout import VERDICT_UNSAID
from schemas.limits import CHAIN_LINKS_MAX, NAME_BYTES_MAX, STRING_BYTES_MAX
from schemas.records import STRING_FIELDS, Decision, Kind, Outcome, Verdict
from schemas.selectors import make_selector
from schemas.vocabulary import agent_uid, user_uid
from tests.support.boards import board, lift, reader, revoke, soon

ALICE, PLANNER, READER = user_uid("alice"), agent_uid("planner"), agent_uid("reader")
CHAIN = (ALICE, PLANNER, READER)
PERMIT = Matcher(Bundle(rules=(Rule(id="all", forbid=False),)).encode())
FORBID = Matcher(Bundle(rules=(Rule(id="none", forbid=True),)).encode())
RESOURCE = 'Host::"api.example.co.uk:443"'


def call(chain: tuple[str, ...] = CHAIN, resource: str = RESOURCE, **fields: object) -> Call:
    least = {"time_ns": 5, "door": "replay", "action": "http:GET", "trace_id": bytes(16)}
    return Call(chain=make_chain(chain), target=target_of(resource), **{**least, **fields})  # type: ignore[arg-type]


@pytest.fixture
def writer(tmp_path: Path) -> BoardWriter:
    made = board(tmp_path)
    made.replace((), epoch=41, paused=False, policy=b"")
    return made


@pytest.fixture
def gate(tmp_path: Path, writer: BoardWriter) -> Gate:
    return Gate(reader(tmp_path), PERMIT)


def refused(reason: str, epoch: int, matcher: Matcher = PERMIT) -> Decision:
    return Decision(reason=reason, policy_digest=matcher.digest, epoch=epoch)


def test_a_call_that_nothing_is_said_of_is_the_policies_to_decide(gate: Gate) -> None:
    assert gate.decide(call()) == Decision(
        verdict=Verdict.ALLOW, because=("all",), reason="permit", policy_digest=PERMIT.digest
    )
    gate.matcher = FORBID
    assert gate.decide(call()) == Decision(because=("none",), reason="forbid", policy_digest=FORBID.digest)
    assert gate.epoch == 41


NAMED = {
    "the agent that acts": (("agent", "reader", False), {}),
    "an agent in the middle, with cascade": (("agent", "planner", True), {}),
    "the agent that acts, with cascade": (("agent", "reader", True), {}),
    "the one that acts": (("principal", READER, False), {}),
    "the root": (("principal", "alice", False), {}),
    "a principal in the middle, with cascade": (("principal", PLANNER, True), {}),
    "the session": (("session", "s-1", False), {"session": "s-1"}),
    "the token": (("token", "AB" * 32, False), {"token": "ab" * 32}),
    "the token, by itself": (("token", "secret", False), {"token": make_selector("token", "secret").name}),
    "the key": (("key", "thumb", False), {"key": "thumb"}),
    "the grant": (("grant", "g-1", False), {"grant": "g-1"}),
    "the issuer": (("issuer", "https://issuer", False), {"issuer": "https://issuer"}),
    "a host and its port": (("destination", "API.example.co.uk:443", False), {}),
    "a host": (("destination", "api.example.co.uk", False), {}),
    "a registrable domain": (("destination", "example.co.uk", False), {}),
    "a tool": (("destination", "s/t", False), {"resource": 'Tool::"s/t"'}),
    "a server": (("destination", "s", False), {"resource": 'Tool::"s/t"'}),
}


@pytest.mark.parametrize(("named", "fields"), NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("matcher", [PERMIT, FORBID], ids=["permitted", "forbidden"])
def test_what_is_revoked_is_refused_for_that_whatever_policy_says(
    gate: Gate, writer: BoardWriter, matcher: Matcher, named: tuple[str, str, bool], fields: dict[str, str]
) -> None:
    gate.matcher = matcher
    asked = call(**fields)
    before = gate.decide(asked)
    assert before.reason in ("permit", "forbid")
    kind, name, cascade = named
    text = make_selector(kind, name, cascade=cascade).text
    revoke(writer, text, epoch=42)
    assert gate.decide(asked) == refused("revoked", 42, matcher)
    assert gate.epoch == 42
    lift(writer, text, epoch=43)
    assert gate.decide(asked) == before


OTHERS = {
    "an agent in the middle, without cascade": "agent:planner",
    "a principal in the middle, without cascade": f"principal:{PLANNER}",
    "a human of that agent's name": 'principal:User::"reader"',
    "another port": "destination:api.example.co.uk:444",
    "a name above the registrable domain": "destination:co.uk",
    "another kind of the same name": "session:reader",
    "a key that is not shown": "key:",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_true_of_a_call_does_not_refuse_it(gate: Gate, writer: BoardWriter, text: str) -> None:
    revoke(writer, text)
    assert gate.decide(call()).reason == "permit"


def test_a_call_without_anybody_may_touch_a_revoked_destination_no_more(gate: Gate, writer: BoardWriter) -> None:
    assert gate.decide(call(())).reason == "identity"
    revoke(writer, "destination:example.co.uk")
    assert gate.decide(call(())).reason == "revoked"


def test_a_principal_is_revoked_in_a_chain_of_any_length(gate: Gate, writer: BoardWriter) -> None:
    """Also where no record can hold the chain, and where it is refused for its depth."""
    quoted = [agent_uid('"' * (NAME_BYTES_MAX - 3) + f"{number:03}") for number in range(CHAIN_LINKS_MAX)]
    long, deep = tuple(quoted), tuple(agent_uid(f"a-{number}") for number in range(400))
    assert make_chain(long).text == ""
    assert len("\x1f".join(long)) > STRING_BYTES_MAX
    assert [gate.decide(call(chain)).reason for chain in (long, deep)] == ["permit", "chain"]
    revoke(writer, f"principal*:{long[3]}", "agent*:a-200", epoch=42)
    assert [gate.decide(call(chain)).reason for chain in (long, deep)] == ["revoked", "revoked"]


def test_a_chain_that_is_too_deep_is_not_kept() -> None:
    kept = gates._caller.cache_info().currsize
    asked = call(tuple(agent_uid(f"b-{number}") for number in range(400)))
    assert caller_of(asked).texts == caller_of(asked).texts
    assert gates._caller.cache_info().currsize == kept


def test_when_a_credential_was_issued_counts(gate: Gate, writer: BoardWriter) -> None:
    writer.change([("issuer:i", 1_000)], (), epoch=42, paused=False, policy=b"")
    reasons = [gate.decide(call(issuer="i", issued_s=issued_s)).reason for issued_s in (0, 999, 1_000)]
    assert reasons == ["revoked", "revoked", "permit"]


def test_what_has_no_utf8_is_nobody(gate: Gate) -> None:
    assert gate.decide(call(session="\ud800")) == refused("identity", 41)


def test_everything_is_refused_while_paused_and_while_stale(gate: Gate, writer: BoardWriter) -> None:
    writer.change([("agent:reader", 0)], (), epoch=42, paused=True, policy=b"")
    assert gate.decide(call()) == refused("paused", 42)
    writer.fresh(0)
    assert gate.decide(call()) == refused("stale", 42)
    writer.fresh(soon())
    writer.change((), (), epoch=43, paused=False, policy=b"")
    assert gate.decide(call()) == refused("revoked", 43)


def test_a_decision_that_had_to_wait_for_its_record_is_asked_for_again(gate: Gate, writer: BoardWriter) -> None:
    gate.decide(call())
    assert gate.unchanged()
    revoke(writer, "agent:other", epoch=42)
    assert not gate.unchanged()
    assert gate.decide(call()).reason == "permit"
    assert (gate.unchanged(), gate.epoch) == (True, 42)
    writer.fresh(0)
    assert not gate.unchanged()


def test_a_call_is_stopped_by_what_came_between_its_record_and_its_act(gate: Gate, writer: BoardWriter) -> None:
    gate.decide(call())
    assert gate.stopped(call()) == ""
    revoke(writer, "agent:other", epoch=42)
    assert gate.stopped(call()) == ""
    revoke(writer, "destination:example.co.uk", epoch=43)
    assert (gate.stopped(call()), gate.epoch) == ("revoked", 43)
    assert gate.stopped(call()) == "revoked", "it is said as often as it is asked"
    assert gate.decide(call(resource='Tool::"s/t"')).reason == "permit"
    assert gate.unchanged()
    assert gate.stopped(call()) == "revoked", "whatever else was asked between"
    writer.change((), (), epoch=44, paused=True, policy=b"")
    assert gate.stopped(call()) == "paused"
    writer.fresh(0)
    assert gate.stopped(call()) == "stale"


def test_a_stopped_call_takes_its_verdict_back() -> None:
    record = effect_record(call(ref=9), 7, withdrawn("revoked", 11), 12, 43)
    assert record[:20] == (
        Kind.EFFECT, 7, 11, 12, Verdict.DENY, Outcome.REFUSED, 0, 0, 0, 0, 0, 0, 0, 43, 9, 0, 0, 0, bytes(16), bytes(8),
    )  # fmt: skip
    assert {name: text for name, text in zip(STRING_FIELDS, record[20], strict=True) if text} == {
        "tenant": "default", "reason": "revoked", "error": "revoked while waiting",
    }  # fmt: skip
    assert record[21] is True


def test_an_end_without_a_reason_leaves_the_verdict_and_the_epoch_alone() -> None:
    assert effect_record(call(), 7, End(time_ns=1, outcome=Outcome.OK), 2)[4] == VERDICT_UNSAID
    assert effect_record(call(), 7, End(time_ns=1, outcome=Outcome.OK), 2)[13] == 0


def test_the_epoch_that_a_decision_obeys_is_recorded(gate: Gate, writer: BoardWriter) -> None:
    decision = gate.decide(call())
    assert decision_record(call(), decision, 6, gate.epoch)[13] == 41
    revoke(writer, "agent:reader", epoch=42)
    refusal = gate.decide(call())
    assert [decision_record(call(), refusal, 6, *epoch)[13] for epoch in ((), (gate.epoch,))] == [42, 42]
