"""What a field of a recorded call may be (`calls`): each function reads one value, and says what is wrong with it."""

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from schemas.errors import AgentFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX, STRING_BYTES_MAX
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

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEX: Final = re.compile(r"[0-9a-fA-F]*")
_TOKEN: Final = re.compile(r"[0-9a-f]{64}")
_CREDENTIAL: Final = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_UID: Final = re.compile(r'[A-Za-z_]\w*(::[A-Za-z_]\w*)*::"', re.ASCII)
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CACHED: Final = 8192
_OUTCOMES: Final = {"ok": Outcome.OK, "error": Outcome.ERROR}
_ABSENT: Final = object()


class BadField(Exception):
    """What is wrong with a line."""


def read_text(name: str, value: Any, limit: int, *, required: bool = False) -> str:
    """A text of `limit` bytes at most."""
    if value is None and not required:
        return ""
    if type(value) is not str:
        wrong = "is missing" if value is None else f"{shown_value(value)} is {kind_of(value)}, must be a text"
        raise BadField(f"{name}: {wrong}")
    if required and not value:
        raise BadField(f"{name}: is empty")
    _bounded(name, value, limit)
    if found := _CONTROL.search(value):
        raise BadField(f"{name}: {shown_value(value)} has the control character U+{ord(found[0]):04X}")
    return value


def _bounded(name: str, value: str, limit: int) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadField(f"{name}: {shown_value(value)} has half a surrogate pair") from None
    if size > limit:
        raise BadField(f"{name}: {shown_value(value)} has {size} bytes, limit is {limit}")


def read_whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if value is None:
        return 0
    if type(value) is not int:
        raise BadField(f"{name}: {shown_value(value)} is {kind_of(value)}, must be a whole number")
    if not low <= value <= high:
        raise BadField(f"{name}: {value} is outside {low} to {high}")
    return int(value)


def read_duration(value: Any) -> int:
    """Milliseconds, as nanoseconds."""
    if value is None:
        return 0
    if type(value) not in (int, float):
        raise BadField(f"duration_ms: {shown_value(value)} is {kind_of(value)}, must be a number")
    if not 0 <= value <= DURATION_MS_MAX:
        raise BadField(f"duration_ms: {value} is outside 0 to {DURATION_MS_MAX}")
    nanoseconds: int = round(value * 1_000_000)
    return nanoseconds


def read_time(value: Any) -> int:
    """A time, as nanoseconds since 1970."""
    if type(value) is str:
        return _rfc3339(value)
    if value is None:
        raise BadField("time: is missing")
    if type(value) not in (int, float):
        raise BadField(f"time: {shown_value(value)} is {kind_of(value)}, must be RFC 3339 or seconds since 1970")
    if not (math.isfinite(value) and 0 <= value < TIME_BEFORE.timestamp()):
        raise BadField(f"time: {value} is outside 1970 to {TIME_BEFORE.year - 1}")
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
        raise BadField(f"time: {shown_value(value)} is no RFC 3339 time, such as 2026-01-31T12:00:00.5Z") from None
    if moment >= TIME_BEFORE or moment.timestamp() < 0:
        raise BadField(f"time: {shown_value(value)} is outside 1970 to {TIME_BEFORE.year - 1}")
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def read_hex(name: str, value: Any, size: int) -> bytes:
    """`size` bytes in hex."""
    if type(value) is not str or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise BadField(f"{name}: {shown_value(value)} is not {2 * size} hex digits")
    found = bytes.fromhex(value)
    if not any(found):
        raise BadField(f"{name}: is all zeros")
    return found


def read_token(value: Any) -> str:
    """The SHA-256 of a token, in hex."""
    if value is None:
        return ""
    if type(value) is not str or not _TOKEN.fullmatch(value):
        # not shown: it may be the token itself, which is never written down
        raise BadField("token: is not the SHA-256 of a token, 64 lower-case hex digits")
    return value


def read_credential(value: Any) -> str:
    """What names a credential: a hash in hex, whole or half."""
    if value is None:
        return ""
    if type(value) is not str or not _CREDENTIAL.fullmatch(value):
        # not shown, as a token is not
        raise BadField("credential: is not the hash that names a credential, 32 or 64 lower-case hex digits")
    return value


def read_ended(outcome: Any, error: Any) -> tuple[Outcome, str]:
    """How a call ended, and with which error."""
    if error is None:
        text = ""
    elif type(error) is str:
        _bounded("error", error, STRING_BYTES_MAX)
        text = error
    else:
        raise BadField(f"error: {shown_value(error)} is {kind_of(error)}, must be a text")
    if outcome is None:
        return (Outcome.ERROR if text else Outcome.OK), text
    said = _OUTCOMES.get(outcome) if type(outcome) is str else None
    if said is None:
        raise BadField(f"outcome: {shown_value(outcome)} is none of {', '.join(_OUTCOMES)}")
    if said is Outcome.OK and text:
        raise BadField(f"outcome: `ok` with the error {shown_value(text)}")
    return said, text


def read_chain(value: Any, agent: str) -> tuple[str, ...]:
    """Who acts for whom, from the root to the agent."""
    acting = _uid_of_agent(agent)
    if value is None:
        return (acting,)
    if type(value) is not list or not all(type(entry) is str for entry in value):
        raise BadField(f"chain: {shown_value(value)} is not a list of texts")
    chain = tuple(_principal(read_text("chain", entry, RESOURCE_BYTES_MAX, required=True)) for entry in value)
    if not chain or chain[-1] != acting:
        raise BadField(f"chain: ends in {shown_value(chain[-1]) if chain else 'nothing'}, must end in the agent `{agent}`")
    size = len(SEPARATOR.join(chain).encode())
    if size > STRING_BYTES_MAX:
        raise BadField(f"chain: has {size} bytes, limit is {STRING_BYTES_MAX}")
    return chain


@lru_cache(_CACHED)
def read_agent(text: str) -> str:
    """The name in `name` or `Agent::"name"`."""
    if not _UID.match(text):
        return text
    kind, name = _parse_uid("agent", text)
    if kind != "Agent":
        raise BadField(f"agent: {shown_value(text)} is no agent")
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
        raise BadField(f"chain: {shown_value(text)} is none of {', '.join(PRINCIPALS)}")
    _bounded("chain", name, NAME_BYTES_MAX)
    return text


@lru_cache(_CACHED)
def read_resource(text: str) -> str:
    """A uid in its one spelling, so that no policy misses a host for its capital letters."""
    kind, name = _parse_uid("resource", text)
    try:
        if kind == "Tool":
            server, slash, tool = name.partition("/")
            if not slash:
                raise BadField(f"resource: {shown_value(text)} has no `/` between server and tool")
            tool_uid(server, tool)
        elif kind == "Host":
            host, colon, port = name.rpartition(":")
            if not colon or not port.isascii() or not port.isdecimal():
                raise BadField(f"resource: {shown_value(text)} has no `:` and port at its end")
            if (canonical := host_uid(host, int(port))) != text:
                raise BadField(f"resource: {shown_value(text)} must be written {shown_value(canonical)}")
    except AgentFault as fault:
        raise BadField(f"resource: {fault}") from None
    return text


@lru_cache(_CACHED)
def read_client(text: str) -> str:
    """Where the call came from."""
    if text in ("", UNIX):
        return text
    try:
        canonical = peer_address(text)
    except ValueError:
        raise BadField(f"client: {shown_value(text)} is neither an IP address nor `{UNIX}`") from None
    if canonical != text:
        raise BadField(f"client: {shown_value(text)} must be written {shown_value(canonical)}")
    return text


@lru_cache(_CACHED)
def read_action(text: str) -> str:
    """What was done there."""
    if _UID.match(text):
        raise BadField(f"action: {shown_value(text)} is a uid, must be its name alone, such as `mcp:tools/call`")
    try:
        action_uid(text)
    except AgentFault as fault:
        raise BadField(f"action: {fault}") from None
    return text


def _parse_uid(field: str, text: str) -> tuple[str, str]:
    try:
        kind, name = parse_uid(text)
    except AgentFault as fault:
        raise BadField(f"{field}: {fault}") from None
    if not name or _CONTROL.search(name):
        raise BadField(f"{field}: {shown_value(text)} has an empty name or a control character in it")
    return kind, name


def kind_of(value: Any) -> str:
    """What kind of JSON value something is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def shown_value(value: Any) -> str:
    """A value for a message: one short line, whatever is in it."""
    text = value if type(value) is str else json.dumps(value, ensure_ascii=False)
    short = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:60])
    return f"`{short}{'...' if len(text) > 60 else ''}`"
