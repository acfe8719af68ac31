"""What a revocation names against an oracle that knows no texts: a call is revoked by a selector when the words say so."""

import hashlib
import random
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.control import Entry, parse_entry
from schemas.errors import OperatorFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX
from schemas.selectors import KINDS, POSITIONED, Selector, caller_texts, make_selector, target_texts
from schemas.vocabulary import entity_uid, host_uid, registrable_domain, tool_uid
from tests.support.entries import CONTROL

NAMES = ("a", "b", "A", 'q"', "x/y", "a:1", "é", "agent*:a")
HASHES = tuple(hashlib.sha256(name.encode()).hexdigest() for name in NAMES)
HOSTS = (("example.com", 443), ("api.example.com", 443), ("api.example.com", 80), ("10.0.0.1", 443), ("::1", 443))
TOOLS = (("files", "read"), ("files", "Read"), ("Files", "read"), ("example.com", "x/y"), ("f:1", "read"))


@dataclass(frozen=True)
class Call:
    chain: tuple[str, ...]
    session: str
    token: str
    key: str
    grant: str
    issuer: str
    host: tuple[str, int] | None
    tool: tuple[str, str] | None

    @property
    def resource(self) -> str:
        if self.host is not None:
            return host_uid(*self.host)
        assert self.tool is not None
        return tool_uid(*self.tool)

    @property
    def domain(self) -> str:
        return registrable_domain(self.host[0]) if self.host is not None else ""

    @property
    def texts(self) -> set[str]:
        return {*self.caller, *target_texts(self.resource, self.domain)}

    @property
    def caller(self) -> tuple[str, ...]:
        said = {"session": self.session, "token": self.token, "key": self.key, "grant": self.grant, "issuer": self.issuer}
        return caller_texts(self.chain, **said)


def make_call(rng: random.Random) -> Call:
    """Any call of few names, so that they often meet those of a selector."""
    chain = [entity_uid(rng.choice(("User", "Agent", "Service")), rng.choice(NAMES)) for _ in range(rng.randrange(4))]
    at_host = rng.random() < 0.5
    return Call(
        chain=(*chain, entity_uid("Agent", rng.choice(NAMES))),
        session=rng.choice(("", *NAMES)), token=rng.choice(("", *HASHES)), key=rng.choice(("", *NAMES)),
        grant=rng.choice(("", *NAMES)), issuer=rng.choice(("", *NAMES)),
        host=rng.choice(HOSTS) if at_host else None, tool=None if at_host else rng.choice(TOOLS),
    )  # fmt: skip


DESTINATIONS = (
    "example.com", "Example.COM.", "api.example.com", "api.example.com:443", "API.example.com.:443", "example.com:80",
    "10.0.0.1", "10.0.0.1:443", "::1", "[::1]", "[0:0::1]:443", "0:0:0:0:0:0:0:1", "files", "FILES", "files/read", "files/Read",
    "f:1", "example.com/x/y",
    'Host::"api.example.com:443"', 'Tool::"files/read"', 'McpServer::"files"', 'Domain::"example.com"',
)  # fmt: skip


def said(kind: str, name: str) -> str:
    """What an operator writes for a thing of that name, here and there in another way than the one spelling."""
    return entity_uid("Agent", name) if kind == "agent" and name in ('q"', "é") else name


SELECTORS = [
    *((kind, said(kind, name), name) for kind in ("agent", "key", "session", "grant", "issuer") for name in NAMES),
    *(("principal", name, name) for name in NAMES),
    *(("principal", uid, uid) for uid in (entity_uid(kind, name) for kind in ("User", "Agent", "Service") for name in NAMES)),
    *(("token", name, name) for name in (*HASHES, *NAMES)),
    *(("token", name.upper(), name) for name in HASHES),
    *(("destination", name, name) for name in DESTINATIONS),
]
"""Kind, what an operator writes, and the name that it means."""


def hits(call: Call, kind: str, name: str, cascade: bool) -> bool:
    """The words of `schemas.selectors` on their own."""
    match kind:
        case "agent":
            return entity_uid("Agent", name) in (call.chain if cascade else call.chain[-1:])
        case "principal":
            uid = name if '::"' in name else entity_uid("User", name)
            return uid in (call.chain if cascade else (call.chain[0], call.chain[-1]))
        case "token":
            return call.token == (name if len(name) == 64 else hashlib.sha256(name.encode()).hexdigest())
        case "destination":
            return touches(call, name)
    return bool(name) and name == getattr(call, kind)


def touches(call: Call, name: str) -> bool:
    _, _, quoted = name.partition('::"')
    name = quoted[:-1] if quoted else name
    if call.tool is not None:
        server, tool = call.tool
        return name == f"{server}/{tool}" or ("/" not in name and name.lower().rstrip(".") == server.lower())
    assert call.host is not None
    host, port = call.host
    if host == "::1":
        return name in {"::1", "[::1]", "[0:0::1]:443", "0:0:0:0:0:0:0:1"}
    name = name.lower()
    at, _, wanted = name.partition(":")
    if wanted not in ("", str(port)):
        return False
    return at.rstrip(".") in ({host} if wanted else {host, registrable_domain(host)})


@pytest.mark.parametrize("cascade", [False, True])
def test_a_call_has_a_selectors_text_when_the_selector_is_true_of_it(cascade: bool) -> None:
    seen = set()
    selectors = [(make_selector(kind, written, cascade=cascade).text, kind, name) for kind, written, name in SELECTORS]
    for seed in range(400):
        call = make_call(random.Random(seed))
        texts = call.texts
        for text, kind, name in selectors:
            hit = hits(call, kind, name, cascade)
            assert (text in texts) == hit, f"{seed=}: {text} {call}"
            seen.add((kind, hit))
    assert seen == {(kind, hit) for kind in KINDS for hit in (False, True)}


def test_the_texts_of_a_call_are_few_and_none_is_said_twice() -> None:
    for seed in range(400):
        call = make_call(random.Random(seed))
        assert len(call.caller) == len(set(call.caller)) <= 2 * len(call.chain) + 8
        assert len(target_texts(call.resource, call.domain)) <= 3


@given(st.sampled_from(KINDS), st.text(max_size=40), st.booleans())
@example("agent", 'Agent::""', False)
@example("agent", 'Agent::"a\\nb"', False)
@example("destination", 'Host::""', False)
@example("destination", ".", False)
@example("agent", "\udcff", False)
@example("token", "\udcff", False)
@example("principal", 'User::"\ud800"', False)
@example("principal", '"' * RESOURCE_BYTES_MAX, False)
@example("issuer", "x" * RESOURCE_BYTES_MAX, False)
@example("key", "x" * (NAME_BYTES_MAX + 1), False)
@settings(max_examples=1_000)
def test_any_text_is_a_selector_in_its_one_spelling_or_is_refused_in_one_line(kind: str, name: str, cascade: bool) -> None:
    """What is accepted must fit into an entry: else control would sign what every enforcer refuses."""
    try:
        selector = make_selector(kind, name, cascade=cascade)
    except OperatorFault as fault:
        text = str(fault)
        selector = None
    if selector is None:
        assert text.isprintable()
        return
    assert selector.name
    assert make_selector(kind, selector.name, cascade=cascade).name == selector.name or kind == "agent"
    entry = Entry(epoch=1, key=f"revocation/{selector.text}", time_ns=0, actor="", value={})
    assert parse_entry(entry.encode(CONTROL.key_id, CONTROL.sign)).entry.name == selector.text


def test_a_token_is_never_written_down() -> None:
    secret = "s3cret-\ud800"
    with pytest.raises(OperatorFault) as found:
        make_selector("token", secret)
    assert "s3cret" not in str(found.value)
    assert found.value.__cause__ is None
    assert make_selector("token", "s3cret").name == hashlib.sha256(b"s3cret").hexdigest()


def test_cascade_is_a_star_where_there_are_positions_and_nothing_elsewhere() -> None:
    for kind in KINDS:
        text = Selector(kind=kind, name="n", cascade=True).text
        assert text == (f"{kind}*:n" if kind in POSITIONED else f"{kind}:n")


REFUSED = {
    ("robot", "x"): "`robot` cannot be revoked, only agent, key, token, session, destination, principal, grant, issuer",
    ("agent", ""): "agent `` is empty",
    ("token", ""): "token `` is empty",
    ("agent", "a\nb"): "agent `a\\nb` has a control character",
    ("agent", 'Agent::"x'): '`Agent::"x` is no entity uid: one is written `Type::"id"`',
    ("principal", 'User::"x" '): '`User::"x" ` is no entity uid: one is written `Type::"id"`',
    ("session", "x" * 257): f"session `{'x' * 57}...` has 257 bytes, limit is 256",
    ("destination", "x" * 1025): f"destination `{'x' * 57}...` has 1025 bytes, limit is 1024",
    ("grant", "\ud800"): "this grant has a lone surrogate: it is not valid unicode",
}


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_a_refusal_says_what_is_wrong(kind: str, name: str) -> None:
    with pytest.raises(OperatorFault) as found:
        make_selector(kind, name)
    assert str(found.value) == REFUSED[kind, name]
