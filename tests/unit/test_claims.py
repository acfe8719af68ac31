"""What a verified token says: for whom, until when, and along which chain."""

from typing import Any

import pytest

from enforcers.core.caller import Caller, NoIdentity
from enforcers.core.claims import caller_of, check_claims, issuer_of
from schemas.agents import Agent, encode, parse
from schemas.records import SEPARATOR
from tests.support.tokens import AUDIENCE, ISSUER, NOW_S, claims

OTHER = "https://other.example"
AGENTS = parse(
    encode(
        [
            Agent(name="researcher", owner="o", secret="", subs=((ISSUER, "r-17"),)),
            Agent(name="planner", owner="o", secret="", subs=((ISSUER, "p-3"), (OTHER, "p-3"))),
            Agent(name="stranger's", owner="o", secret="", subs=((OTHER, "x"),)),
        ],
        7,
    ),
    "agents.json",
)


def caller(said: Any, **more: Any) -> Caller:
    given = {"issuer": ISSUER, "until_s": 9, "issued_s": 3, "token": "f" * 64, "key": "thumb", **more}
    return caller_of(said, AGENTS, **given)


def code(said: Any, **more: Any) -> str:
    with pytest.raises(NoIdentity) as caught:
        caller(said, **more)
    assert "\n" not in str(caught.value)
    return caught.value.code


# -- times and audience --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {}, {"aud": [AUDIENCE]}, {"aud": ["a", AUDIENCE]}, {"iat": None}, {"nbf": NOW_S}, {"nbf": 0}, {"exp": NOW_S + 0.5},
        {"iat": NOW_S}, {"jti": "x"}, {"iat": 1.5},
    ],
)  # fmt: skip
def test_a_good_token_is_good(more: dict[str, Any]) -> None:
    until, issued = check_claims(claims(**more), audience=AUDIENCE, now_s=NOW_S)
    assert until in (NOW_S + 600, NOW_S)
    assert issued == int(more.get("iat", NOW_S - 5) or 0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no aud": ({"aud": None}, "token-claims"),
    "an aud that is a number": ({"aud": 1}, "token-claims"),
    "an aud that is an object": ({"aud": {AUDIENCE: 1}}, "token-claims"),
    "an empty aud": ({"aud": []}, "token-claims"),
    "an aud with something else in it": ({"aud": [AUDIENCE, 1]}, "token-claims"),
    "an aud in an aud": ({"aud": [[AUDIENCE]]}, "token-claims"),
    "an aud of many": ({"aud": [AUDIENCE] * 65}, "token-claims"),
    "another aud": ({"aud": "https://other.example"}, "token-audience"),
    "an aud that begins like ours": ({"aud": AUDIENCE + "/"}, "token-audience"),
    "an aud in other case": ({"aud": AUDIENCE.upper()}, "token-audience"),
    "no exp": ({"exp": None}, "token-claims"),
    "an exp that is a text": ({"exp": str(NOW_S + 600)}, "token-claims"),
    "an exp that is true": ({"exp": True}, "token-claims"),
    "an exp that is a list": ({"exp": [NOW_S + 600]}, "token-claims"),
    "an exp below zero": ({"exp": -1}, "token-claims"),
    "an exp without end": ({"exp": 1e300}, "token-claims"),
    "an exp that is infinite": ({"exp": float("inf")}, "token-claims"),
    "an exp that is reached": ({"exp": NOW_S}, "token-expired"),
    "an exp that has passed": ({"exp": NOW_S - 1}, "token-expired"),
    "an nbf to come": ({"nbf": NOW_S + 1}, "token-early"),
    "an nbf that is a text": ({"nbf": "0"}, "token-claims"),
    "an nbf that is null": ({"nbf": ...}, "token-claims"),
    "an iat to come": ({"iat": NOW_S + 1}, "token-early"),
    "an iat that is false": ({"iat": False}, "token-claims"),
    "a jti that is a number": ({"jti": 5}, "token-claims"),
    "a token bound to a key": ({"cnf": {"jkt": "x"}}, "token-bound"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(name: str) -> None:
    more, expected = BAD[name]
    said = {claim: None if value is ... else value for claim, value in claims(**more).items()}
    with pytest.raises(NoIdentity) as caught:
        check_claims(said, audience=AUDIENCE, now_s=NOW_S)
    assert caught.value.code == expected


@pytest.mark.parametrize("issuer", [None, 1, [ISSUER], {"a": 1}, "", "a\x1fb", "a\nb", "x" * 1025, "\ud800", True])
def test_an_issuer_is_one_text(issuer: Any) -> None:
    with pytest.raises(NoIdentity) as caught:
        issuer_of({"iss": issuer} if issuer is not None else {})
    assert caught.value.code == "token-claims"


# -- the chain -----------------------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an agent for itself": ({}, ('Agent::"researcher"',)),
    "a user's agent": ({"sub": "alice", "act": {"sub": "r-17"}}, ('User::"alice"', 'Agent::"researcher"')),
    "the outermost acts": (
        {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "p-3"}}},
        ('User::"alice"', 'Agent::"planner"', 'Agent::"researcher"'),
    ),
    "an actor of another issuer": (
        {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "p-3", "iss": OTHER}}},
        ('User::"alice"', 'Agent::"planner"', 'Agent::"researcher"'),
    ),
    "an agent as the root": (
        {"sub": "p-3", "act": {"sub": "r-17"}}, ('Agent::"planner"', 'Agent::"researcher"'),
    ),
    "a service as the root": (
        {"sub": "cron", "sub_profile": "service", "act": {"sub": "r-17"}}, ('Service::"cron"', 'Agent::"researcher"'),
    ),
    "a workload is a service": (
        {"sub": "cron", "sub_profile": "workload", "act": {"sub": "r-17"}}, ('Service::"cron"', 'Agent::"researcher"'),
    ),
    "a user that says so": (
        {"sub": "alice", "sub_profile": "user", "act": {"sub": "r-17"}}, ('User::"alice"', 'Agent::"researcher"'),
    ),
    "a service between": (
        {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "gw", "sub_profile": "service"}}},
        ('User::"alice"', 'Service::"gw"', 'Agent::"researcher"'),
    ),
    "who acts for itself hands nothing on": ({"sub": "r-17", "act": {"sub": "r-17"}}, ('Agent::"researcher"',)),
    "what is inside act beside names means nothing": (
        {"sub": "alice", "act": {"sub": "r-17", "exp": 1, "aud": "x", "cnf": {}, "nbf": "x"}},
        ('User::"alice"', 'Agent::"researcher"'),
    ),
    "a name that needs quotes": ({"sub": 'a"b\\', "act": {"sub": "r-17"}}, ('User::"a\\"b\\\\"', 'Agent::"researcher"')),
    "may_act gives nobody anything": (
        {"sub": "alice", "may_act": {"sub": "x"}, "act": {"sub": "r-17"}}, ('User::"alice"', 'Agent::"researcher"'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_chain_is_read_from_its_root(name: str) -> None:
    more, expected = GOOD[name]
    made = caller(claims(**more))
    assert (made.chain.principals, made.agent, made.chain.agent) == (expected, "researcher", "researcher")
    assert made.assurance == SEPARATOR.join(["signed"] * (len(expected) - 1))


def test_a_caller_has_what_may_be_revoked_and_what_it_is_known_by() -> None:
    made = caller(claims(sub="alice", act={"sub": "r-17", "act": {"sub": "p-3"}}), session="s", twin="e" * 64)
    assert (made.proof, made.token, made.twin, made.credential) == ("jws", "f" * 64, "e" * 64, "f" * 64)
    assert (made.key, made.issuer, made.session, made.until_s, made.issued_s) == ("thumb", ISSUER, "s", 9, 3)
    assert made.listed == ((ISSUER, "r-17", "researcher"), (ISSUER, "p-3", "planner"))


def nested(depth: int) -> dict[str, Any]:
    """`depth` actors, all agents of ours."""
    act: dict[str, Any] = {}
    for number in range(depth):
        act = {"sub": "r-17" if number == depth - 1 else "p-3", **({"act": act} if act else {})}
    return claims(sub="alice", act=act)


def test_a_chain_that_is_too_deep_is_kept_whole_and_has_no_link_that_may_act() -> None:
    assert not caller(nested(7)).chain.too_deep
    deep = caller(nested(8))
    assert (deep.chain.too_deep, deep.chain.links, deep.chain.depth, deep.agent) == (True, (), 9, "researcher")
    assert caller(nested(300)).chain.depth == 255


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a subject nobody knows": ({"sub": "alice"}, "token-agent"),
    "a subject of another issuer": ({"sub": "x"}, "token-agent"),
    "an actor nobody knows": ({"sub": "alice", "act": {"sub": "z"}}, "token-agent"),
    "an actor of another issuer than it says": ({"sub": "alice", "act": {"sub": "r-17", "iss": OTHER}}, "token-agent"),
    "a service that acts": ({"sub": "alice", "act": {"sub": "gw", "sub_profile": "service"}}, "token-agent"),
    "a user that acts": ({"sub": "alice", "act": {"sub": "bob", "sub_profile": "user"}}, "token-agent"),
    "an agent between that nobody knows": ({"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "z"}}}, "token-agent"),
    "an agent that says that it is a service": (
        {"sub": "alice", "act": {"sub": "r-17", "act": {"sub": "z", "sub_profile": "service ai_agent"}}}, "token-agent",
    ),
    "a root that is an agent nobody knows": (
        {"sub": "z", "sub_profile": "ai_agent", "act": {"sub": "r-17"}}, "token-agent",
    ),
    "a root of a kind nobody knows": ({"sub": "z", "sub_profile": "robot", "act": {"sub": "r-17"}}, "token-agent"),
    "no subject": ({"sub": None}, "token-claims"),
    "a subject that is a list": ({"sub": ["r-17"]}, "token-claims"),
    "an empty subject": ({"sub": ""}, "token-claims"),
    "a long subject": ({"sub": "x" * 257}, "token-claims"),
    "a subject with the mark between principals": ({"sub": "alice\x1fAgent", "act": {"sub": "r-17"}}, "token-claims"),
    "a subject with half a character": ({"sub": "\ud800", "act": {"sub": "r-17"}}, "token-claims"),
    "an act that is a text": ({"sub": "alice", "act": "r-17"}, "token-chain"),
    "an act that is a list": ({"sub": "alice", "act": [{"sub": "r-17"}]}, "token-chain"),
    "an act that is null": ({"sub": "alice", "act": ...}, "token-chain"),
    "an act without sub": ({"sub": "alice", "act": {"iss": ISSUER}}, "token-claims"),
    "an act whose iss is a list": ({"sub": "alice", "act": {"sub": "r-17", "iss": [ISSUER]}}, "token-claims"),
    "an act whose iss is empty": ({"sub": "alice", "act": {"sub": "r-17", "iss": ""}}, "token-claims"),
    "an act with client_profile": ({"sub": "alice", "act": {"sub": "r-17", "client_profile": "x"}}, "token-chain"),
    "an inner act that is a number": ({"sub": "alice", "act": {"sub": "r-17", "act": 1}}, "token-chain"),
    "a profile that is a list": ({"sub": "alice", "sub_profile": ["user"], "act": {"sub": "r-17"}}, "token-chain"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_chain_that_cannot_be_read_is_nobody(name: str) -> None:
    more, expected = WRONG[name]
    said = {claim: None if value is ... else value for claim, value in claims(**more).items()}
    assert code(said) == expected


def test_the_user_name_must_be_the_agents() -> None:
    assert caller(claims(), name="researcher").agent == "researcher"
    assert code(claims(), name="planner") == "token-agent"
    assert code(claims(sub="p-3", act={"sub": "r-17"}), name="planner") == "token-agent"


def test_a_subject_that_two_agents_have_is_nobodys() -> None:
    twice = [Agent(name=name, owner="o", secret="", subs=((ISSUER, "r-17"),)) for name in "ab"]
    with pytest.raises(NoIdentity, match="no agent of ours"):
        caller_of(claims(), parse(encode(twice, 1), "x"), issuer=ISSUER, until_s=1, issued_s=0, token="", key="")
