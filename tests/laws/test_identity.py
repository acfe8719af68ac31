"""Whatever a stranger sends, it is a credential or nobody: one kind of error, one printable line, nothing of a secret in it."""

import base64
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.core.caller import Caller, NoIdentity
from enforcers.core.claims import caller_of, check_claims, issuer_of
from enforcers.core.credentials import Basic, Token, read
from enforcers.core.jws import parse_jwks, parse_token, verify
from schemas.errors import OperatorFault
from schemas.limits import CHAIN_LINKS_MAX, NAME_BYTES_MAX
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, NOW_S, agents, b64, claims, jwks, token

KEYS = parse_jwks(jwks(ED, EC), "keys")
AGENTS = agents(researcher="r-17", planner="p-3")

near = st.sampled_from([b"Basic ", b"Bearer ", b"basic", b" ", b":", b"+", b"YTpi", b"=", b".", b"eyJ", b"\xff", b"\0", b","])
values = st.one_of(
    st.binary(max_size=40),
    st.lists(near, max_size=8).map(b"".join),
    st.binary(max_size=40).map(lambda raw: b"Basic " + base64.b64encode(raw)),
    st.text(max_size=20).map(lambda text: b"Basic " + base64.b64encode(text.encode(errors="surrogatepass"))),
    st.tuples(st.text("ab+é", max_size=6), st.text("ab:.", max_size=6)).map(
        lambda pair: b"Basic " + base64.b64encode(":".join(pair).encode())
    ),
)


def attempt(job: Callable[[], Any]) -> Any:
    """What it gives, or the one error that it may raise."""
    try:
        return job()
    except (NoIdentity, OperatorFault) as fault:
        return fault


@given(st.lists(st.tuples(st.sampled_from([b"proxy-authorization", b"host"]), values), max_size=3))
def test_a_credential_is_read_or_nobody_is_known(headers: list[tuple[bytes, bytes]]) -> None:
    said = attempt(lambda: read(headers))
    if isinstance(said, NoIdentity):
        assert str(said).isprintable()
        assert said.claimed.isprintable()
        assert len(said.claimed) <= 4 * NAME_BYTES_MAX
        return
    assert len([name for name, _ in headers if name == b"proxy-authorization"]) == 1
    if isinstance(said, Basic):
        assert said.name
        assert said.password
        assert said.user in (said.name, f"{said.name}+{said.session}")
    else:
        assert isinstance(said, Token)
        assert said.text


parts = st.one_of(
    st.text("abcXYZ019-_=.", max_size=12), st.binary(max_size=30).map(b64), st.sampled_from(token().split(".")),
    st.sampled_from(token(key=EC).split(".")),
)  # fmt: skip


@given(st.lists(parts, max_size=4).map(".".join))
def test_a_text_is_a_token_that_was_signed_or_none(text: str) -> None:
    found = attempt(lambda: verify(parse_token(text), KEYS))
    if isinstance(found, NoIdentity):
        assert str(found).isprintable()
    else:
        assert text.rpartition(".")[0] in (token().rpartition(".")[0], token(key=EC).rpartition(".")[0])


names = st.sampled_from(["r-17", "p-3", "alice", "", "x" * 300, "\x1f", ISSUER, "ai_agent", "service", "user", "é"])
odd = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), names),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(names, inner, max_size=2)),
    max_leaves=4,
)
profile = st.sampled_from(["ai_agent", "service", "user", "user service", "robot"])
acts = st.recursive(
    st.fixed_dictionaries({"sub": st.sampled_from(["r-17", "p-3"])}, optional={"iss": st.just(ISSUER), "sub_profile": profile}),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"sub": st.sampled_from(["r-17", "p-3", "gw"]), "act": inner}, optional={"sub_profile": profile}),
        st.fixed_dictionaries({"act": inner}, optional={"sub": odd, "iss": odd, "sub_profile": odd}),
    ),
    max_leaves=12,
)
said_of = st.one_of(
    st.fixed_dictionaries({"sub": names, "act": acts}, optional={"sub_profile": profile}),
    st.dictionaries(st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "act", "sub_profile", "jti"]), odd, max_size=3),
)


def known(more: dict[str, Any]) -> Any:
    """The caller by a token with these claims."""
    said = {**claims(), **more}

    def read_all() -> Caller:
        issuer_of(said)
        until_s, issued_s = check_claims(said, audience=AUDIENCE, now_s=NOW_S)
        return caller_of(said, AGENTS, issuer=ISSUER, until_s=until_s, issued_s=issued_s, token="t", key="k")

    return attempt(read_all)


@given(said_of)
def test_claims_name_an_agent_of_ours_or_nobody(more: dict[str, Any]) -> None:
    made = known(more)
    if isinstance(made, NoIdentity):
        assert str(made).isprintable()
        return
    assert made.agent in ("researcher", "planner")
    assert made.chain.principals[-1] == f'Agent::"{made.agent}"'
    assert made.chain.too_deep == (len(made.chain.principals) > CHAIN_LINKS_MAX)
    assert made.until_s >= NOW_S
    named = {name for _, _, name in made.listed}
    assert {uid for uid in made.chain.principals if uid.startswith("Agent::")} == {f'Agent::"{name}"' for name in named}


def test_the_claims_that_are_tried_reach_every_end() -> None:
    """A law that only ever refuses proves nothing."""
    seen: set[object] = set()

    @settings(max_examples=500, database=None, derandomize=True)
    @given(said_of)
    def look(more: dict[str, Any]) -> None:
        made = known(more)
        seen.add(made.code if isinstance(made, NoIdentity) else min(len(made.chain.principals), 3))

    look()
    assert seen >= {1, 2, 3, "token-claims", "token-chain", "token-agent"}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.sampled_from(["OKP", "EC", "Ed25519", "P-256"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["keys", "kty", "crv", "x", "y", "kid", "use", "alg", "d"]), inner, max_size=5),
    ),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=30), json_values.map(lambda value: json.dumps(value).encode()),
                 st.lists(json_values, max_size=3).map(lambda keys: json.dumps({"keys": keys}).encode())))  # fmt: skip
def test_a_key_set_has_keys_or_an_operator_is_told(data: bytes) -> None:
    found = attempt(lambda: parse_jwks(data, "keys.json"))
    if isinstance(found, OperatorFault):
        assert str(found).startswith("keys.json: ")
        assert "\n" not in str(found)
    else:
        assert found
