"""A line of a recorded-calls file: what `wardline replay` reads. `docs/calls-format.md` is the same for users; a test compares.

One JSON object a line, UTF-8, no blank lines. A field that is `null` counts as absent; a field that is not listed in FIELDS is
refused, so that a misspelt one never silently keeps its default. What a line says about who acts is the file's word.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NoReturn

from schemas.errors import AgentFault, OperatorFault
from schemas.limits import LINE_BYTES_MAX, NAME_BYTES_MAX, RESOURCE_BYTES_MAX, STRING_BYTES_MAX
from schemas.records import SEPARATOR, Outcome
from schemas.vocabulary import UNIX, action_uid, agent_uid, host_uid, parse_uid, peer_address, tool_uid

TIME_BEFORE: Final = datetime(2200, 1, 1, tzinfo=UTC)
"""A call's time is from 1970 to before this: with the longest duration it still fits in 63 bits of nanoseconds."""

SIZE_MAX: Final = (1 << 63) - 1
DURATION_MS_MAX: Final = 10_000_000_000
"""115 days."""

STATUS_MAX: Final = (1 << 31) - 1
PRINCIPALS: Final = ("Agent", "User", "Service")
"""The entity types that can stand in a chain."""

FIELDS: Final = {
    "time": "required",
    "agent": "required",
    "chain": "optional",
    "session": "optional",
    "token": "optional",
    "key": "optional",
    "grant": "optional",
    "issuer": "optional",
    "credential": "optional",
    "client": "optional",
    "action": "required",
    "resource": "required",
    "bytes_out": "optional",
    "bytes_in": "optional",
    "status": "optional",
    "duration_ms": "optional",
    "trace_id": "optional",
    "parent_span": "optional",
    "outcome": "optional",
    "error": "optional",
}

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEX: Final = re.compile(r"[0-9a-fA-F]*")
_TOKEN: Final = re.compile(r"[0-9a-f]{64}")
_CREDENTIAL: Final = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_UID: Final = re.compile(r'[A-Za-z_]\w*(::[A-Za-z_]\w*)*::"', re.ASCII)
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CACHED: Final = 8192
_OUTCOMES: Final = {"ok": Outcome.OK, "error": Outcome.ERROR}
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call that was made somewhere, to be decided and recorded here."""

    ref: int
    """The number of its line, from 1."""
    time_ns: int
    agent: str
    """The acting agent's name."""
    chain: tuple[str, ...]
    """Principal uids, root first; the last is the agent. It may be too deep: then the call is refused, not the line."""
    session: str = ""
    token: str = ""
    """SHA-256 of the token that was shown, 64 lower-case hex digits."""
    key: str = ""
    """Thumbprint of the key that proved the agent."""
    grant: str = ""
    issuer: str = ""
    credential: str = ""
    """Names the secret or token that proved the agent: 32 or 64 lower-case hex digits. The token's, where the line has none."""
    client: str = ""
    """Where the caller's connection came from: an IP address, or `unix`."""
    action: str
    """`http:POST`, `mcp:tools/call`."""
    resource: str
    """A uid: `Tool::"server/tool"`, `Host::"name:port"`."""
    bytes_out: int = 0
    bytes_in: int = 0
    status: int = 0
    duration_ns: int = 0
    trace_id: bytes
    """16 bytes; made from the file's digest and the line where the line has none, so that it is the same each time."""
    parent_span: bytes = bytes(8)
    outcome: Outcome = Outcome.OK
    """OK or ERROR: how it ended where it was made. It counts only where it is allowed here."""
    error: str = ""


class _Bad(Exception):
    """What is wrong with a line."""


def parse_call(line: bytes, number: int, *, file: str, digest: bytes) -> RecordedCall:
    """Read line `number` of `file`, whose SHA-256 is `digest`; a line feed at the end does not count.

    Raises OperatorFault: `FILE:LINE: field: what is wrong, with the value and its limit`.
    """
    try:
        return _parse(line, number, digest)
    except _Bad as bad:
        raise OperatorFault(f"{file}:{number}: {bad}") from None


def mint_trace_id(digest: bytes, number: int) -> bytes:
    """The trace id of a line that has none."""
    return hashlib.sha256(b"wardline recorded call\0" + digest + number.to_bytes(8, "big")).digest()[:16]


def _parse(line: bytes, number: int, digest: bytes) -> RecordedCall:
    fields = _read(line)
    take: Callable[..., Any] = fields.pop
    agent = _agent(_text("agent", take("agent", None), NAME_BYTES_MAX, required=True))
    chain = _chain(take("chain", None), agent)
    outcome, error = _ended(take("outcome", None), take("error", None))
    trace = take("trace_id", None)
    token = _token(take("token", None))
    span = take("parent_span", None)
    call = RecordedCall(
        ref=number,
        time_ns=_time(take("time", None)),
        agent=agent,
        chain=chain,
        session=_text("session", take("session", None), NAME_BYTES_MAX),
        token=token,
        key=_text("key", take("key", None), NAME_BYTES_MAX),
        grant=_text("grant", take("grant", None), NAME_BYTES_MAX),
        issuer=_text("issuer", take("issuer", None), RESOURCE_BYTES_MAX),
        credential=_credential(take("credential", None)) or token,
        client=_client(_text("client", take("client", None), NAME_BYTES_MAX)),
        action=_action(_text("action", take("action", None), NAME_BYTES_MAX, required=True)),
        resource=_resource(_text("resource", take("resource", None), RESOURCE_BYTES_MAX, required=True)),
        bytes_out=_whole("bytes_out", take("bytes_out", None), 0, SIZE_MAX),
        bytes_in=_whole("bytes_in", take("bytes_in", None), 0, SIZE_MAX),
        status=_whole("status", take("status", None), -STATUS_MAX - 1, STATUS_MAX),
        duration_ns=_duration(take("duration_ms", None)),
        trace_id=mint_trace_id(digest, number) if trace is None else _hex("trace_id", trace, 16),
        parent_span=bytes(8) if span is None else _hex("parent_span", span, 8),
        outcome=outcome,
        error=error,
    )
    if fields:
        raise _Bad(f"{_show(next(iter(fields)))}: unknown field, known are {', '.join(FIELDS)}")
    return call


def _read(line: bytes) -> dict[str, Any]:
    line = line.removesuffix(b"\n")
    if len(line) > LINE_BYTES_MAX:
        raise _Bad(f"the line has {len(line)} bytes, limit is {LINE_BYTES_MAX}")
    if not line.strip():
        raise _Bad("the line is empty")
    if line.startswith(b"\xef\xbb\xbf"):
        raise _Bad("begins with a byte order mark")
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as fault:
        raise _Bad(f"byte {fault.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as fault:
        raise _Bad(f"column {fault.colno}: is no JSON: {fault.msg[:1].lower()}{fault.msg[1:]}") from None
    except RecursionError:
        raise _Bad("is nested too deeply") from None
    except ValueError:  # a whole number of thousands of digits
        raise _Bad("has a number with too many digits") from None
    if type(value) is not dict:
        raise _Bad(f"is no JSON object but {_kind(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Bad(f"{_show(next(name for name in names if names.count(name) > 1))}: stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise _Bad(f"`{text}` is no number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _text(name: str, value: Any, limit: int, *, required: bool = False) -> str:
    if value is None and not required:
        return ""
    if type(value) is not str:
        raise _Bad(f"{name}: is missing" if value is None else f"{name}: {_show(value)} is {_kind(value)}, must be a text")
    if required and not value:
        raise _Bad(f"{name}: is empty")
    _bounded(name, value, limit)
    if found := _CONTROL.search(value):
        raise _Bad(f"{name}: {_show(value)} has the control character U+{ord(found[0]):04X}")
    return value


def _bounded(name: str, value: str, limit: int) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _Bad(f"{name}: {_show(value)} has half a surrogate pair") from None
    if size > limit:
        raise _Bad(f"{name}: {_show(value)} has {size} bytes, limit is {limit}")


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if value is None:
        return 0
    if type(value) is not int:
        raise _Bad(f"{name}: {_show(value)} is {_kind(value)}, must be a whole number")
    if not low <= value <= high:
        raise _Bad(f"{name}: {value} is outside {low} to {high}")
    return int(value)


def _duration(value: Any) -> int:
    if value is None:
        return 0
    if type(value) not in (int, float):
        raise _Bad(f"duration_ms: {_show(value)} is {_kind(value)}, must be a number")
    if not 0 <= value <= DURATION_MS_MAX:
        raise _Bad(f"duration_ms: {value} is outside 0 to {DURATION_MS_MAX}")
    nanoseconds: int = round(value * 1_000_000)
    return nanoseconds


def _time(value: Any) -> int:
    if type(value) is str:
        return _rfc3339(value)
    if value is None:
        raise _Bad("time: is missing")
    if type(value) not in (int, float):
        raise _Bad(f"time: {_show(value)} is {_kind(value)}, must be RFC 3339 or seconds since 1970")
    if not (math.isfinite(value) and 0 <= value < TIME_BEFORE.timestamp()):
        raise _Bad(f"time: {value} is outside 1970 to {TIME_BEFORE.year - 1}")
    if isinstance(value, int):
        return value * 1_000_000_000
    return round(float(value) * 1_000_000) * 1_000  # a float has no more than microseconds at this size


def _rfc3339(value: str) -> int:
    parts = _RFC3339.fullmatch(value)
    try:
        if parts is None:
            raise ValueError
        day, clock, fraction, zone = parts.groups()
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        raise _Bad(f"time: {_show(value)} is no RFC 3339 time, such as 2026-01-31T12:00:00.5Z") from None
    if moment >= TIME_BEFORE or moment.timestamp() < 0:
        raise _Bad(f"time: {_show(value)} is outside 1970 to {TIME_BEFORE.year - 1}")
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def _hex(name: str, value: Any, size: int) -> bytes:
    if type(value) is not str or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise _Bad(f"{name}: {_show(value)} is not {2 * size} hex digits")
    found = bytes.fromhex(value)
    if not any(found):
        raise _Bad(f"{name}: is all zeros")
    return found


def _token(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is not str or not _TOKEN.fullmatch(value):
        # not shown: it may be the token itself, which is never written down
        raise _Bad("token: is not the SHA-256 of a token, 64 lower-case hex digits")
    return value


def _credential(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is not str or not _CREDENTIAL.fullmatch(value):
        # not shown, as a token is not
        raise _Bad("credential: is not the hash that names a credential, 32 or 64 lower-case hex digits")
    return value


def _ended(outcome: Any, error: Any) -> tuple[Outcome, str]:
    if error is None:
        text = ""
    elif type(error) is str:
        _bounded("error", error, STRING_BYTES_MAX)
        text = error
    else:
        raise _Bad(f"error: {_show(error)} is {_kind(error)}, must be a text")
    if outcome is None:
        return (Outcome.ERROR if text else Outcome.OK), text
    said = _OUTCOMES.get(outcome) if type(outcome) is str else None
    if said is None:
        raise _Bad(f"outcome: {_show(outcome)} is none of {', '.join(_OUTCOMES)}")
    if said is Outcome.OK and text:
        raise _Bad(f"outcome: `ok` with the error {_show(text)}")
    return said, text


def _chain(value: Any, agent: str) -> tuple[str, ...]:
    acting = _uid_of_agent(agent)
    if value is None:
        return (acting,)
    if type(value) is not list or not all(type(entry) is str for entry in value):
        raise _Bad(f"chain: {_show(value)} is not a list of texts")
    chain = tuple(_principal(_text("chain", entry, RESOURCE_BYTES_MAX, required=True)) for entry in value)
    if not chain or chain[-1] != acting:
        raise _Bad(f"chain: ends in {_show(chain[-1]) if chain else 'nothing'}, must end in the agent `{agent}`")
    size = len(SEPARATOR.join(chain).encode())
    if size > STRING_BYTES_MAX:
        raise _Bad(f"chain: has {size} bytes, limit is {STRING_BYTES_MAX}")
    return chain


@lru_cache(_CACHED)
def _agent(text: str) -> str:
    """The name in `name` or `Agent::"name"`."""
    if not _UID.match(text):
        return text
    kind, name = _parse_uid("agent", text)
    if kind != "Agent":
        raise _Bad(f"agent: {_show(text)} is no agent")
    return name


@lru_cache(_CACHED)
def _uid_of_agent(name: str) -> str:
    return agent_uid(name)


@lru_cache(_CACHED)
def _principal(text: str) -> str:
    """The canonical uid of `name` (an agent) or `User::"name"`."""
    if not _UID.match(text):
        _bounded("chain", text, NAME_BYTES_MAX)
        return agent_uid(text)
    kind, name = _parse_uid("chain", text)
    if kind not in PRINCIPALS:
        raise _Bad(f"chain: {_show(text)} is none of {', '.join(PRINCIPALS)}")
    _bounded("chain", name, NAME_BYTES_MAX)
    return text


@lru_cache(_CACHED)
def _resource(text: str) -> str:
    """A uid in its one spelling, so that no policy misses a host for its capital letters."""
    kind, name = _parse_uid("resource", text)
    try:
        if kind == "Tool":
            server, slash, tool = name.partition("/")
            if not slash:
                raise _Bad(f"resource: {_show(text)} has no `/` between server and tool")
            tool_uid(server, tool)
        elif kind == "Host":
            host, colon, port = name.rpartition(":")
            if not colon or not port.isascii() or not port.isdecimal():
                raise _Bad(f"resource: {_show(text)} has no `:` and port at its end")
            if (canonical := host_uid(host, int(port))) != text:
                raise _Bad(f"resource: {_show(text)} must be written {_show(canonical)}")
    except AgentFault as fault:
        raise _Bad(f"resource: {fault}") from None
    return text


@lru_cache(_CACHED)
def _client(text: str) -> str:
    if text in ("", UNIX):
        return text
    try:
        canonical = peer_address(text)
    except ValueError:
        raise _Bad(f"client: {_show(text)} is neither an IP address nor `{UNIX}`") from None
    if canonical != text:
        raise _Bad(f"client: {_show(text)} must be written {_show(canonical)}")
    return text


@lru_cache(_CACHED)
def _action(text: str) -> str:
    if _UID.match(text):
        raise _Bad(f"action: {_show(text)} is a uid, must be its name alone, such as `mcp:tools/call`")
    try:
        action_uid(text)
    except AgentFault as fault:
        raise _Bad(f"action: {fault}") from None
    return text


def _parse_uid(field: str, text: str) -> tuple[str, str]:
    try:
        kind, name = parse_uid(text)
    except AgentFault as fault:
        raise _Bad(f"{field}: {fault}") from None
    if not name or _CONTROL.search(name):
        raise _Bad(f"{field}: {_show(text)} has an empty name or a control character in it")
    return kind, name


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _show(value: Any) -> str:
    """A value for a message: one short line, whatever is in it."""
    text = value if type(value) is str else json.dumps(value, ensure_ascii=False)
    short = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:60])
    return f"`{short}{'...' if len(text) > 60 else ''}`"
