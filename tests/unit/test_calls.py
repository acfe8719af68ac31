"""A line of a recorded-calls file: what is read, what each bad line is told, and that the page for users says the same."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.callfields import DURATION_MS_MAX, SIZE_MAX, STATUS_MAX
from schemas.calls import FIELDS, RecordedCall, mint_trace_id, parse_call
from schemas.errors import OperatorFault
from schemas.limits import LINE_BYTES_MAX, NAME_BYTES_MAX, RESOURCE_BYTES_MAX, STRING_BYTES_MAX
from schemas.records import Outcome
from schemas.vocabulary import agent_uid, user_uid

DIGEST = bytes(range(32))
LEAST: dict[str, Any] = {"time": 0, "agent": "a", "action": "mcp:tools/call", "resource": 'Tool::"s/t"'}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "calls-format.md"


def parse(fields: dict[str, Any] | str | bytes, number: int = 7) -> RecordedCall:
    text = fields if isinstance(fields, str | bytes) else json.dumps(fields)
    return parse_call(text.encode() if isinstance(text, str) else text, number, file="f.jsonl", digest=DIGEST)


def read(**fields: Any) -> RecordedCall:
    return parse(LEAST | fields)


def refused(fields: dict[str, Any] | str | bytes) -> str:
    with pytest.raises(OperatorFault) as caught:
        parse(fields)
    said = str(caught.value)
    assert said.startswith("f.jsonl:7: ")
    assert "\n" not in said
    return said.removeprefix("f.jsonl:7: ")


def test_the_least_line_has_every_default() -> None:
    assert parse(LEAST) == RecordedCall(
        ref=7, time_ns=0, agent="a", chain=('Agent::"a"',), session="", action="mcp:tools/call", resource='Tool::"s/t"',
        bytes_out=0, bytes_in=0, status=0, duration_ns=0, trace_id=mint_trace_id(DIGEST, 7), parent_span=bytes(8),
        outcome=Outcome.OK, error="",
    )  # fmt: skip


def test_a_whole_line_is_read() -> None:
    line = LEAST | {
        "time": "2026-01-31T12:00:00.5+02:00", "agent": 'Agent::"writer"', "chain": ['User::"al\\"ice"', "planner", "writer"],
        "session": "s-1", "token": "0123456789abcdef" * 4, "key": "NzbLsXh8", "grant": "g-7", "issuer": "https://idp.example.com/",
        "credential": "0123456789abcdef" * 2, "client": "2001:db8::7",
        "action": "http:POST", "resource": 'Host::"api.example.com:443"', "bytes_out": 1, "bytes_in": 2,
        "status": -3, "duration_ms": 4.5, "trace_id": "0123456789abcdefABCDEF0123456789", "parent_span": "00000000000000ff",
        "outcome": "error", "error": "line one\nline two",
    }  # fmt: skip
    assert set(line) == set(FIELDS)
    assert parse(line) == RecordedCall(
        ref=7, time_ns=1_769_853_600_500_000_000, agent="writer",
        chain=('User::"al\\"ice"', 'Agent::"planner"', 'Agent::"writer"'), session="s-1",
        token="0123456789abcdef" * 4, key="NzbLsXh8", grant="g-7", issuer="https://idp.example.com/",
        credential="0123456789abcdef" * 2, client="2001:db8::7",
        action="http:POST", resource='Host::"api.example.com:443"', bytes_out=1, bytes_in=2, status=-3,
        duration_ns=4_500_000, trace_id=bytes.fromhex("0123456789abcdefABCDEF0123456789"), parent_span=bytes(7) + b"\xff",
        outcome=Outcome.ERROR, error="line one\nline two",
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in LEAST])
def test_null_is_absent(name: str) -> None:
    assert parse(LEAST | {name: None}) == parse(LEAST)


@pytest.mark.parametrize("name", LEAST)
def test_what_is_required_must_be_there(name: str) -> None:
    assert refused({k: v for k, v in LEAST.items() if k != name}) == f"{name}: is missing"
    assert refused(LEAST | {name: None}) == f"{name}: is missing"


@pytest.mark.parametrize(
    ("said", "nanoseconds"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000 * 10**9),
        (1_700_000_000.123456, 1_700_000_000_123_456_000),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2026-02-28t23:59:59.999999999z", 1_772_323_199_999_999_999),
        ("2026-02-28 23:59:59+00:00", 1_772_323_199 * 10**9),
        ("2199-12-31T23:59:59.9Z", 7_258_118_399_900_000_000),
    ],
)
def test_a_time_is_rfc_3339_or_seconds(said: Any, nanoseconds: int) -> None:
    assert read(time=said).time_ns == nanoseconds


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30)),
    st.integers(0, 999_999_999),
    st.integers(-14 * 60, 14 * 60),
)
def test_a_time_is_what_a_calendar_says(local: datetime, nanoseconds: int, offset: int) -> None:
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    text = f"{local:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    utc = local.replace(microsecond=0) - timedelta(minutes=offset)
    seconds = (utc - datetime(1970, 1, 1)) // timedelta(seconds=1)
    assert read(time=text).time_ns == seconds * 10**9 + nanoseconds


NO_TOKEN = "token: is not the SHA-256 of a token, 64 lower-case hex digits"
NO_CREDENTIAL = "credential: is not the hash that names a credential, 32 or 64 lower-case hex digits"
BAD_VALUES = [
    ("time", "2026-01-31", "time: `2026-01-31` is no RFC 3339 time, such as 2026-01-31T12:00:00.5Z"),
    ("time", "2026-01-31T12:00:00", "time: `2026-01-31T12:00:00` is no RFC 3339 time, such as 2026-01-31T12:00:00.5Z"),
    ("time", "2026-02-30T12:00:00Z", "time: `2026-02-30T12:00:00Z` is no RFC 3339 time, such as 2026-01-31T12:00:00.5Z"),
    ("time", "2200-01-01T00:00:00Z", "time: `2200-01-01T00:00:00Z` is outside 1970 to 2199"),
    ("time", "1969-12-31T23:59:59Z", "time: `1969-12-31T23:59:59Z` is outside 1970 to 2199"),
    ("time", -1, "time: -1 is outside 1970 to 2199"),
    ("time", 7_258_118_400, "time: 7258118400 is outside 1970 to 2199"),
    ("time", True, "time: `true` is true or false, must be RFC 3339 or seconds since 1970"),
    ("agent", "", "agent: is empty"),
    ("agent", 3, "agent: `3` is a number, must be a text"),
    ("agent", "a\tb", "agent: `a\\tb` has the control character U+0009"),
    ("agent", "\ud800", "agent: `\\ud800` has half a surrogate pair"),
    ("agent", "é" * 129, f"agent: `{'é' * 60}...` has 258 bytes, limit is 256"),
    ("agent", 'User::"a"', 'agent: `User::"a"` is no agent'),
    ("agent", 'Agent::"a', 'agent: `Agent::"a` is no entity uid: one is written `Type::"id"`'),
    ("chain", "a", "chain: `a` is not a list of texts"),
    ("chain", ["a", 1], 'chain: `["a", 1]` is not a list of texts'),
    ("chain", [], "chain: ends in nothing, must end in the agent `a`"),
    ("chain", ["a", "b"], 'chain: ends in `Agent::"b"`, must end in the agent `a`'),
    ("chain", ["", "a"], "chain: is empty"),
    ("chain", ['Tool::"x/y"', "a"], 'chain: `Tool::"x/y"` is none of Agent, User, Service'),
    ("chain", ['User::""', "a"], 'chain: `User::""` has an empty name or a control character in it'),
    ("chain", ['User::"\\n"', "a"], 'chain: `User::"\\n"` has an empty name or a control character in it'),
    ("chain", ["b" * 257, "a"], f"chain: `{'b' * 60}...` has 257 bytes, limit is 256"),
    ("chain", [f'User::"{"b" * 257}"', "a"], f"chain: `{'b' * 60}...` has 257 bytes, limit is 256"),
    ("chain", ["b" * 250] * 16 + ["a"], "chain: has 4170 bytes, limit is 4096"),
    ("session", "s" * 257, f"session: `{'s' * 60}...` has 257 bytes, limit is 256"),
    ("session", ["s"], 'session: `["s"]` is a list, must be a text'),
    ("token", "secret", NO_TOKEN),
    ("token", "A" * 64, NO_TOKEN),
    ("token", 7, NO_TOKEN),
    ("key", "k" * 257, f"key: `{'k' * 60}...` has 257 bytes, limit is 256"),
    ("grant", "g\n", "grant: `g\\n` has the control character U+000A"),
    ("issuer", "i" * 1025, f"issuer: `{'i' * 60}...` has 1025 bytes, limit is 1024"),
    ("credential", "swordfish", NO_CREDENTIAL),
    ("credential", "ab" * 24, NO_CREDENTIAL),
    ("credential", "A" * 32, NO_CREDENTIAL),
    ("client", "localhost", "client: `localhost` is neither an IP address nor `unix`"),
    ("client", "192.0.2.1:80", "client: `192.0.2.1:80` is neither an IP address nor `unix`"),
    ("client", "fe80::1%eth0", "client: `fe80::1%eth0` must be written `fe80::1`"),
    ("client", "::ffff:192.0.2.1", "client: `::ffff:192.0.2.1` must be written `192.0.2.1`"),
    ("client", 1, "client: `1` is a number, must be a text"),
    ("action", 'Action::"http:GET"', 'action: `Action::"http:GET"` is a uid, must be its name alone, such as `mcp:tools/call`'),
    ("action", "http:read", "action: `http:read` is a group of actions, no action of a call"),
    ("resource", "s/t", 'resource: `s/t` is no entity uid: one is written `Type::"id"`'),
    ("resource", 'Tool::"bare"', 'resource: `Tool::"bare"` has no `/` between server and tool'),
    ("resource", 'Tool::"/t"', "resource: server is empty"),
    ("resource", 'Host::"example.com"', 'resource: `Host::"example.com"` has no `:` and port at its end'),
    ("resource", 'Host::"Example.com:443"',
     'resource: `Host::"Example.com:443"` must be written `Host::"example.com:443"`'),
    ("resource", 'Host::"example.com:0443"',
     'resource: `Host::"example.com:0443"` must be written `Host::"example.com:443"`'),
    ("resource", 'Host::"example.com:70000"', "resource: port `70000` is not in 1..65535"),
    ("resource", 'Thing::"é\\u{e9}"', 'resource: `Thing::"é\\u{e9}"` is no entity uid: one is written `Type::"id"`'),
    ("resource", f'Thing::"{"x" * 1016}"', f'resource: `Thing::"{"x" * 52}...` has 1025 bytes, limit is 1024'),
    ("bytes_out", -1, f"bytes_out: -1 is outside 0 to {SIZE_MAX}"),
    ("bytes_in", SIZE_MAX + 1, f"bytes_in: {SIZE_MAX + 1} is outside 0 to {SIZE_MAX}"),
    ("bytes_in", 1.0, "bytes_in: `1.0` is a number, must be a whole number"),
    ("bytes_in", "1", "bytes_in: `1` is a text, must be a whole number"),
    ("bytes_in", True, "bytes_in: `true` is true or false, must be a whole number"),
    ("status", STATUS_MAX + 1, f"status: {STATUS_MAX + 1} is outside {-STATUS_MAX - 1} to {STATUS_MAX}"),
    ("duration_ms", -0.5, f"duration_ms: -0.5 is outside 0 to {DURATION_MS_MAX}"),
    ("duration_ms", DURATION_MS_MAX + 1, f"duration_ms: {DURATION_MS_MAX + 1} is outside 0 to {DURATION_MS_MAX}"),
    ("duration_ms", "1", "duration_ms: `1` is a text, must be a number"),
    ("trace_id", "0" * 32, "trace_id: is all zeros"),
    ("trace_id", "ab", "trace_id: `ab` is not 32 hex digits"),
    ("trace_id", "a " * 16, f"trace_id: `{'a ' * 16}` is not 32 hex digits"),
    ("parent_span", "g" * 16, f"parent_span: `{'g' * 16}` is not 16 hex digits"),
    ("outcome", "lost", "outcome: `lost` is none of ok, error"),
    ("outcome", 1, "outcome: `1` is none of ok, error"),
    ("error", "e" * 4097, f"error: `{'e' * 60}...` has 4097 bytes, limit is 4096"),
    ("error", {}, "error: `{}` is an object, must be a text"),
    ("agnet", "a", "`agnet`: unknown field, known are " + ", ".join(FIELDS)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(BAD_VALUES)])
def test_a_bad_value_is_named_with_its_limit(name: str, value: Any, message: str) -> None:
    assert refused(LEAST | {name: value}) == message


def test_a_token_is_the_credential_unless_the_line_names_another() -> None:
    """As at a door, where a token's credential is its hash."""
    assert (read(token="ab" * 32).credential, read(token="ab" * 32, credential="cd" * 16).credential) == ("ab" * 32, "cd" * 16)
    assert (read().credential, read(client="unix").client, read(client="192.0.2.1").client) == ("", "unix", "192.0.2.1")


def test_every_field_has_a_bad_value() -> None:
    assert {name for name, _, _ in BAD_VALUES} >= set(FIELDS)


BAD_LINES = {
    "the line is empty": b"",
    "the line is empty ": b"  \t\n",
    "column 1: is no JSON: expecting value": b"nonsense",
    "column 2: is no JSON: expecting property name enclosed in double quotes": b"{",
    "column 4: is no JSON: extra data": b"{} {}",
    "is no JSON object but a list": b"[]",
    "is no JSON object but null": b"null",
    "byte 7 is not UTF-8": b'{"a":"\xff"}',
    "`a`: stands twice": b'{"a":1,"a":1}',
    "`NaN` is no number": b'{"time":NaN}',
    "`-Infinity` is no number": b'{"time":-Infinity}',
    "has a number with too many digits": b'{"time":' + b"9" * 5000 + b"}",
    "is nested too deeply": b'{"chain":' + b"[" * 30_000 + b"}",
    f"the line has {LINE_BYTES_MAX + 1} bytes, limit is {LINE_BYTES_MAX}": b" " * (LINE_BYTES_MAX + 1),
    "begins with a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize(("message", "line"), BAD_LINES.items(), ids=list(range(len(BAD_LINES))))
def test_a_bad_line_is_named(message: str, line: bytes) -> None:
    assert refused(line) == message.rstrip()


def test_an_ok_call_has_no_error() -> None:
    assert refused(LEAST | {"outcome": "ok", "error": "no"}) == "outcome: `ok` with the error `no`"
    assert read(outcome="error").outcome is Outcome.ERROR
    assert read(error="broken").outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent", "a" * NAME_BYTES_MAX),
        ("session", "s" * NAME_BYTES_MAX),
        ("key", "k" * NAME_BYTES_MAX),
        ("grant", "g" * NAME_BYTES_MAX),
        ("issuer", "i" * RESOURCE_BYTES_MAX),
        ("action", "x" * NAME_BYTES_MAX),
        ("resource", f'Thing::"{"x" * (RESOURCE_BYTES_MAX - 9)}"'),
        ("error", "é" * (STRING_BYTES_MAX // 2)),
        ("bytes_out", SIZE_MAX),
        ("status", -STATUS_MAX - 1),
        ("duration_ms", DURATION_MS_MAX),
    ],
)
def test_a_value_at_its_limit_is_read(name: str, value: Any) -> None:
    read(**{name: value})


def test_a_line_at_its_limit_is_read() -> None:
    line = json.dumps(LEAST).encode()
    assert parse(line + b" " * (LINE_BYTES_MAX - len(line)) + b"\n") == parse(LEAST)


def test_a_chain_that_is_too_deep_is_a_line_all_the_same() -> None:
    """The call is refused, not the file: see the core's tests."""
    assert len(read(chain=[*map(str, range(30)), "a"]).chain) == 31


def test_a_minted_trace_id_depends_on_the_file_and_the_line_alone() -> None:
    assert parse(LEAST, 7).trace_id == parse(LEAST | {"agent": "b"}, 7).trace_id
    assert parse(LEAST, 7).trace_id != parse(LEAST, 8).trace_id
    assert mint_trace_id(DIGEST, 7) != mint_trace_id(bytes(32), 7)


@given(st.binary(max_size=60) | st.text("{}[]\",:0eE+-.nulltruefalse \\ud8\n", max_size=40).map(str.encode))
def test_any_bytes_are_a_call_or_one_line_of_complaint(data: bytes) -> None:
    said = ""
    try:
        parse(data)
    except OperatorFault as fault:
        said = str(fault)
    assert not said or re.fullmatch(r"f\.jsonl:7: [^\n\r]+", said)


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names | st.lists(names)


@given(st.sampled_from([*FIELDS, "other"]), values)
def test_any_value_in_any_field_is_read_or_complained_of_in_one_line(name: str, value: Any) -> None:
    said = ""
    try:
        parse(LEAST | {name: value})
    except OperatorFault as fault:
        said = str(fault)
    assert not said or re.fullmatch(r"f\.jsonl:7: [^\n\r]+", said)


@given(agent=names, above=st.lists(st.tuples(st.booleans(), names), max_size=5), as_uid=st.booleans())
def test_names_and_uids_of_a_chain_mean_the_same(agent: str, above: list[tuple[bool, str]], as_uid: bool) -> None:
    uids = [user_uid(name) if human else agent_uid(name) for human, name in above]
    plain = [user_uid(name) if human else name for human, name in above]
    if any('::"' in name for name in (agent, *plain)):
        return  # a name that looks like a uid is read as one
    call = read(agent=agent_uid(agent) if as_uid else agent, chain=[*(uids if as_uid else plain), agent])
    assert call.chain == (*uids, agent_uid(agent))
    assert call.agent == agent


def test_the_page_for_users_has_every_field_and_limit() -> None:
    text = PAGE.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (required|optional) \|", text, re.MULTILINE))
    assert rows == FIELDS
    for number in (NAME_BYTES_MAX, STRING_BYTES_MAX, RESOURCE_BYTES_MAX, LINE_BYTES_MAX, DURATION_MS_MAX):
        assert re.search(rf"\b{number:,}\b", text), number


def test_the_examples_on_the_page_are_read() -> None:
    examples = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert examples is not None
    calls = [parse(line) for line in examples[1].splitlines()]
    assert [call.agent for call in calls] == ["researcher", "assistant"]
