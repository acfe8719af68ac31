"""The core of every door: a chain read, a call decided, and the exact record that each step writes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.call import (
    Call,
    End,
    Record,
    Target,
    decide,
    decision_record,
    effect_record,
    policies_text,
    progress_record,
    target_of,
)
from enforcers.core.chain import DEPTH_MAX, Chain, make_chain
from ext.decide import Matcher
from schemas.bundle import Bundle, Rule
from schemas.layout import VERDICT_UNSAID
from schemas.limits import CHAIN_LINKS_MAX, STRING_BYTES_MAX
from schemas.records import SEPARATOR, STRING_FIELDS, Decision, Kind, Outcome, Verdict
from schemas.vocabulary import agent_uid, service_uid, user_uid

ALICE, PLANNER, READER = user_uid("alice"), agent_uid("planner"), agent_uid("reader")
PERMIT_ALL = Matcher(Bundle(rules=(Rule(id="all", forbid=False),)).encode())
PERMIT_NONE = Matcher(Bundle().encode())

CHAINS = {
    "nobody acts": ((), Chain()),
    "an agent alone is its own root": (
        (PLANNER,), Chain(links=(PLANNER,), agent="planner", root=PLANNER, depth=1, text=PLANNER),
    ),
    "a human is a fact and no link": (
        (ALICE, PLANNER), Chain(links=(PLANNER,), agent="planner", root=ALICE, depth=2, text=f"{ALICE}\x1f{PLANNER}"),
    ),
    "every agent is a link, in order": (
        (ALICE, PLANNER, service_uid("queue"), READER, PLANNER),
        Chain(links=(PLANNER, READER, PLANNER), agent="planner", root=ALICE, depth=5,
              text=SEPARATOR.join((ALICE, PLANNER, service_uid("queue"), READER, PLANNER))),
    ),
    "where the last principal is no agent nobody acts": (
        (PLANNER, ALICE), Chain(links=(), agent="", root=PLANNER, depth=2, text=f"{PLANNER}\x1f{ALICE}"),
    ),
    "the deepest chain that is decided": (
        (ALICE, *[PLANNER] * (CHAIN_LINKS_MAX - 1)),
        Chain(links=(PLANNER,) * (CHAIN_LINKS_MAX - 1), agent="planner", root=ALICE, depth=CHAIN_LINKS_MAX,
              text=SEPARATOR.join((ALICE, *[PLANNER] * (CHAIN_LINKS_MAX - 1)))),
    ),
    "a deeper one is kept whole and has no link": (
        (ALICE, *[PLANNER] * CHAIN_LINKS_MAX),
        Chain(links=(), agent="planner", root=ALICE, depth=CHAIN_LINKS_MAX + 1, too_deep=True,
              text=SEPARATOR.join((ALICE, *[PLANNER] * CHAIN_LINKS_MAX))),
    ),
    "one that no record can hold keeps its depth alone": (
        (PLANNER,) * 400, Chain(links=(), agent="planner", root=PLANNER, depth=DEPTH_MAX, too_deep=True, text=""),
    ),
    "a name is read out of its uid": (
        (agent_uid('a "b" \\'),),
        Chain(links=(r'Agent::"a \"b\" \\"',), agent='a "b" \\', root=r'Agent::"a \"b\" \\"', depth=1,
              text=r'Agent::"a \"b\" \\"'),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("principals", "chain"), CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_is_read(principals: tuple[str, ...], chain: Chain) -> None:
    assert make_chain(principals) == replace(chain, principals=principals)


@given(st.lists(st.sampled_from([ALICE, service_uid("s"), PLANNER, READER, agent_uid("x" * 256)]), max_size=14))
def test_a_chain_never_loses_a_principal(principals: list[str]) -> None:
    chain = make_chain(tuple(principals))
    assert chain.depth == len(principals)
    assert chain.text.split(SEPARATOR) == (principals or [""]) if chain.text or not principals else chain.too_deep
    agents = [uid for uid in principals if uid.startswith("Agent::")]
    assert list(chain.links) in ([], agents)
    assert bool(chain.links) == bool(principals and principals[-1] in agents and len(principals) <= CHAIN_LINKS_MAX)


def call(*principals: str, resource: str = 'Tool::"s/t"') -> Call:
    return Call(
        time_ns=5, door="replay", chain=make_chain(principals), action="mcp:tools/call", target=target_of(resource),
        trace_id=b"t" * 16, parent_span=b"p" * 8, session="s-1", ref=9,
    )  # fmt: skip


def test_who_acts_and_is_permitted_is_allowed() -> None:
    assert decide(PERMIT_ALL, call(ALICE, PLANNER)) == Decision(
        verdict=Verdict.ALLOW, because=("all",), reason="permit", policy_digest=PERMIT_ALL.digest
    )
    assert decide(PERMIT_NONE, call(ALICE, PLANNER)).verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("principals", "reason"),
    [((), "identity"), ((ALICE,), "identity"), ((PLANNER, ALICE), "identity"), ((PLANNER,) * (CHAIN_LINKS_MAX + 1), "chain")],
)
def test_a_chain_without_links_is_refused_whatever_policy_says(principals: tuple[str, ...], reason: str) -> None:
    assert decide(PERMIT_ALL, call(*principals)) == Decision(reason=reason, policy_digest=PERMIT_ALL.digest)


def texts_of(record: Record) -> dict[str, str]:
    return {name: text for name, text in zip(STRING_FIELDS, record[20], strict=True) if text}


def test_an_allowed_decision_opens_a_call_and_stays_out_of_the_reserve() -> None:
    decision = Decision(verdict=Verdict.ALLOW, because=("a", "b"), reason="permit", policy_digest="d" * 64, epoch=3)
    record = decision_record(call(ALICE, PLANNER, resource='Host::"api.example.co.uk:443"'), decision, 6)
    assert record[:20] == (
        Kind.DECISION, 0, 5, 6, Verdict.ALLOW, Outcome.OPEN, 0, 2, 0, 0, 0, 0, 0, 3, 9, 0, 0, 0, b"t" * 16, b"p" * 8,
    )  # fmt: skip
    assert texts_of(record) == {
        "tenant": "default", "door": "replay", "session": "s-1", "agent": "planner", "root": ALICE,
        "chain": f"{ALICE}\x1f{PLANNER}", "action": "mcp:tools/call", "resource": 'Host::"api.example.co.uk:443"',
        "host": "api.example.co.uk", "domain": "example.co.uk", "policies": "a\x1fb", "reason": "permit",
        "policy_digest": "d" * 64,
    }  # fmt: skip
    assert record[21] is False


def test_a_refusal_ends_its_call_and_may_use_the_reserve() -> None:
    record = decision_record(call(PLANNER), Decision(reason="no-permit", policy_digest="d"), 6)
    assert (record[4], record[5], record[21]) == (Verdict.DENY, Outcome.REFUSED, True)
    assert texts_of(record)["reason"] == "no-permit"


def test_a_forgotten_decision_refuses() -> None:
    assert decision_record(call(PLANNER), Decision(), 6)[4:6] == (Verdict.DENY, Outcome.REFUSED)


def test_an_effect_names_its_decision_and_says_nothing_of_the_verdict() -> None:
    end = End(time_ns=8, outcome=Outcome.ERROR, status=503, bytes_out=1, bytes_in=2, duration_ns=3, error="no answer")
    record = effect_record(call(PLANNER), 41, end, 9)
    assert record[:20] == (
        Kind.EFFECT, 41, 8, 9, VERDICT_UNSAID, Outcome.ERROR, 0, 0, 503, 0, 1, 2, 3, 0, 9, 0, 0, 0, b"t" * 16, b"p" * 8,
    )  # fmt: skip
    assert texts_of(record) == {"tenant": "default", "error": "no answer"}
    assert record[21] is True


def test_credentials_of_a_call_are_recorded() -> None:
    """A replay has none; the doors on the network will."""
    proven = Call(
        time_ns=0, door="egress", chain=make_chain((PLANNER,)), action="http:GET", trace_id=bytes(16), credential="th",
        proof="dpop", assurance="signed", path="/p", query_bytes=7, query_bits=21, query_hash=99,
        target=Target(resource='Host::"h:1"', scheme="https", host="h"),
    )  # fmt: skip
    record = decision_record(proven, Decision(), 0)
    texts = texts_of(record)
    assert {name: texts[name] for name in ("credential", "proof", "assurance", "scheme", "path")} == {
        "credential": "th", "proof": "dpop", "assurance": "signed", "scheme": "https", "path": "/p",
    }  # fmt: skip
    assert "address" not in texts  # nothing is resolved yet
    assert record[15:18] == (99, 7, 21)


def test_the_end_of_a_call_says_what_was_dialled() -> None:
    end = End(time_ns=9, outcome=Outcome.OK, status=200, address="192.0.2.1:80")
    assert texts_of(effect_record(call(PLANNER), 3, end, 10)) == {"tenant": "default", "address": "192.0.2.1:80"}


def test_a_call_that_goes_on_says_how_much_it_moved_since_it_began() -> None:
    record = progress_record(call(PLANNER), 3, 10, 20, 12, 13, "192.0.2.1:80")
    assert record[:2] == (Kind.PROGRESS, 3)
    assert record[4:6] == (VERDICT_UNSAID, Outcome.OPEN)
    assert record[10:13] == (10, 20, 7)
    assert texts_of(record) == {"tenant": "default", "address": "192.0.2.1:80"}
    assert record[21] is False  # the reserved room is for ends and refusals


@given(st.lists(st.text("aé ", min_size=1, max_size=300), max_size=60))
def test_policy_ids_are_whole_and_those_that_do_not_fit_are_counted(ids: list[str]) -> None:
    text = policies_text(tuple(ids))
    assert len(text.encode()) <= STRING_BYTES_MAX
    kept = text.split(SEPARATOR) if ids else []
    if kept != ids:
        assert kept[:-1] == ids[: len(kept) - 1]
        assert kept[-1] == f"+{len(ids) - len(kept) + 1}"
        longer = SEPARATOR.join([*ids[: len(kept)], f"+{len(ids)}"])
        assert len(longer.encode()) > STRING_BYTES_MAX


def test_an_address_has_no_domain() -> None:
    assert target_of('Host::"192.0.2.7:443"') == Target(resource='Host::"192.0.2.7:443"', host="192.0.2.7")
    assert target_of('Host::"[2001:db8::1]:443"').host == "[2001:db8::1]"
    assert target_of('Tool::"s/t"') == Target(resource='Tool::"s/t"')
