"""Trace ids: the caller's `traceparent` is continued, or a trace is begun (W3C Trace Context, level 2).

    one well-formed traceparent   ->  its trace id and flags go on; its parent is the call's parent; tracestate goes on too
    none, several or a bad one    ->  a new trace; tracestate is dropped with it (section 3.3)

Upstream goes the same trace with a parent of our own: the call's span. So the record of a call that an origin makes through
another door names the call that caused it.
"""

import re
from binascii import hexlify
from collections.abc import Iterable
from typing import Final, NamedTuple

SAMPLED: Final = 1
RANDOM: Final = 2
"""The trace id is random (level 2)."""

_NOBODY: Final = bytes(8)
_NEW_FLAGS: Final = SAMPLED | RANDOM

STATE_MEMBERS_MAX: Final = 32
"""List members of `tracestate` (section 3.3.1.1). More: it is dropped, since it cannot be parsed by the rules."""

_FLAGS: Final = [b"-%02x" % flags for flags in range(256)]
_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MEMBER: Final = re.compile(rb"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


class Trace(NamedTuple):
    """Where a call stands."""

    trace_id: bytes
    parent_span: bytes
    """8 bytes; zero where the caller named none."""
    flags: int
    keeps_state: bool
    """Whether the caller's `tracestate` goes on."""


def new_trace(mint: bytes) -> Trace:
    """A trace that begins here."""
    return tuple.__new__(Trace, (mint, _NOBODY, _NEW_FLAGS, False))


def read_trace(headers: Iterable[tuple[bytes, bytes]], mint: bytes) -> Trace:
    """Continue the trace that these headers (names in lower case) name; `mint` is 16 random bytes for a new one."""
    parent: bytes | None = None
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            if parent is not None:
                return new_trace(mint)
            parent = value
        elif name == b"tracestate":
            states.append(value)
    found = _PARENT.fullmatch(parent.strip(b" \t")) if parent is not None else None
    if found is None or not _is_sound(found):
        return new_trace(mint)
    trace_id, span = bytes.fromhex(found[2].decode()), bytes.fromhex(found[3].decode())
    return Trace(trace_id, span, int(found[4], 16) & (SAMPLED | RANDOM), bool(states) and _is_state(b",".join(states)))


def _is_sound(found: re.Match[bytes]) -> bool:
    """Section 3.2: version ff is none, version 00 ends with its flags, no id is all zero."""
    version, trace_id, span, _, rest = found.groups()
    return version != b"ff" and not (version == b"00" and rest) and bool(trace_id.strip(b"0")) and bool(span.strip(b"0"))


def _is_state(state: bytes) -> bool:
    members = [member for part in state.split(b",") if (member := part.strip(b" \t"))]
    return 0 < len(members) <= STATE_MEMBERS_MAX and all(_MEMBER.fullmatch(member) for member in members)


def traceparent(trace_id: bytes, span: bytes, flags: int) -> bytes:
    """The value to send: version 00, whatever the caller's was."""
    return b"00-" + hexlify(trace_id) + b"-" + hexlify(span) + _FLAGS[flags]
