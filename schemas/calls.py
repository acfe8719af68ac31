"""A line of a recorded-calls file: what `wardline replay` reads. `docs/calls-format.md` is the same for users; a test compares.

One JSON object a line, UTF-8, no blank lines. A field that is `null` counts as absent; a field that is not listed in FIELDS is
refused, so that a misspelt one never silently keeps its default. What a line says about who acts is the file's word.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from schemas.callfields import (
    SIZE_MAX,
    STATUS_MAX,
    BadField,
    kind_of,
    read_action,
    read_agent,
    read_chain,
    read_client,
    read_credential,
    read_duration,
    read_ended,
    read_hex,
    read_resource,
    read_text,
    read_time,
    read_token,
    read_whole,
    shown_value,
)
from schemas.errors import OperatorFault
from schemas.limits import LINE_BYTES_MAX, NAME_BYTES_MAX, RESOURCE_BYTES_MAX
from schemas.records import Outcome

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


def parse_call(line: bytes, number: int, *, file: str, digest: bytes) -> RecordedCall:
    """Read line `number` of `file`, whose SHA-256 is `digest`; a line feed at the end does not count.

    Raises OperatorFault: `FILE:LINE: field: what is wrong, with the value and its limit`.
    """
    try:
        return _parse(line, number, digest)
    except BadField as bad:
        raise OperatorFault(f"{file}:{number}: {bad}") from None


def mint_trace_id(digest: bytes, number: int) -> bytes:
    """The trace id of a line that has none."""
    return hashlib.sha256(b"wardline recorded call\0" + digest + number.to_bytes(8, "big")).digest()[:16]


def _parse(line: bytes, number: int, digest: bytes) -> RecordedCall:
    fields = _read(line)
    take: Callable[..., Any] = fields.pop
    agent = read_agent(read_text("agent", take("agent", None), NAME_BYTES_MAX, required=True))
    chain = read_chain(take("chain", None), agent)
    outcome, error = read_ended(take("outcome", None), take("error", None))
    trace = take("trace_id", None)
    token = read_token(take("token", None))
    span = take("parent_span", None)
    call = RecordedCall(
        ref=number,
        time_ns=read_time(take("time", None)),
        agent=agent,
        chain=chain,
        session=read_text("session", take("session", None), NAME_BYTES_MAX),
        token=token,
        key=read_text("key", take("key", None), NAME_BYTES_MAX),
        grant=read_text("grant", take("grant", None), NAME_BYTES_MAX),
        issuer=read_text("issuer", take("issuer", None), RESOURCE_BYTES_MAX),
        credential=read_credential(take("credential", None)) or token,
        client=read_client(read_text("client", take("client", None), NAME_BYTES_MAX)),
        action=read_action(read_text("action", take("action", None), NAME_BYTES_MAX, required=True)),
        resource=read_resource(read_text("resource", take("resource", None), RESOURCE_BYTES_MAX, required=True)),
        bytes_out=read_whole("bytes_out", take("bytes_out", None), 0, SIZE_MAX),
        bytes_in=read_whole("bytes_in", take("bytes_in", None), 0, SIZE_MAX),
        status=read_whole("status", take("status", None), -STATUS_MAX - 1, STATUS_MAX),
        duration_ns=read_duration(take("duration_ms", None)),
        trace_id=mint_trace_id(digest, number) if trace is None else read_hex("trace_id", trace, 16),
        parent_span=bytes(8) if span is None else read_hex("parent_span", span, 8),
        outcome=outcome,
        error=error,
    )
    if fields:
        raise BadField(f"{shown_value(next(iter(fields)))}: unknown field, known are {', '.join(FIELDS)}")
    return call


def _read(line: bytes) -> dict[str, Any]:
    line = line.removesuffix(b"\n")
    if len(line) > LINE_BYTES_MAX:
        raise BadField(f"the line has {len(line)} bytes, limit is {LINE_BYTES_MAX}")
    if not line.strip():
        raise BadField("the line is empty")
    if line.startswith(b"\xef\xbb\xbf"):
        raise BadField("begins with a byte order mark")
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as fault:
        raise BadField(f"byte {fault.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as fault:
        raise BadField(f"column {fault.colno}: is no JSON: {fault.msg[:1].lower()}{fault.msg[1:]}") from None
    except RecursionError:
        raise BadField("is nested too deeply") from None
    except ValueError:  # a whole number of thousands of digits
        raise BadField("has a number with too many digits") from None
    if type(value) is not dict:
        raise BadField(f"is no JSON object but {kind_of(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadField(f"{shown_value(next(name for name in names if names.count(name) > 1))}: stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise BadField(f"`{text}` is no number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
