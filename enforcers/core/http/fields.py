"""The lines of a head: which names mean something to a proxy, and what a line may be (RFC 9112, section 5).

    name ":" [SP] value CRLF        name: token characters; value: no control character but a tab; no folding, no bare CR or LF

`Role` is what a proxy has to do about a name. A name that becomes one of those when `_` is read as `-`, as CGI programs
do, has two readings and is refused.

A head's lines are sorted by the kernel `heads`, which takes them or not. `why_refused` then finds the rule that is broken, line
by line, and takes nothing itself.
"""

import enum
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from ext.heads import Sorter
from schemas.errors import AgentFault, PeerFault
from schemas.limits import NAME_BYTES_MAX

FIELDS_MAX: Final = 128
"""Lines in one head or one trailer section. More are refused (431) or fail (502)."""

NAMES_KEPT_MAX: Final = 4096
"""Field names whose meaning is remembered. Reaching it: all are forgotten."""

Fields: TypeAlias = list[tuple[bytes, bytes]]
"""(name in lower case, value without the space around it), in the order they came."""


class BadRequest(AgentFault):
    """A request that is refused for its form: the status to answer, and a short word for the record."""

    STATUS: Final = 400
    TOO_LARGE: Final = 431

    def __init__(self, code: str, message: str, status: int = STATUS) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class BadAnswer(PeerFault):
    """An origin's answer that cannot be passed on: 502 for the client, and a short word for the record."""

    STATUS: Final = 502
    TOO_LARGE: Final = 502

    def __init__(self, code: str, message: str, status: int = STATUS) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


Fault: TypeAlias = type[BadRequest] | type[BadAnswer]


class Role(enum.IntEnum):
    """What a name means to a proxy. Those from HOST on mean it in a request only; in an answer they are like any other."""

    PLAIN = 0
    CONNECTION = 1
    LENGTH = 2
    CODING = 3
    UPGRADE = 4
    TRAILER = 5
    HOP = 6
    """For the next hop only, and nothing to us: never passed on."""
    CREDENTIAL = 7
    HOST = 8
    EXPECT = 9
    TE = 10
    TRACE = 11
    HOPS = 12


ROLES: Final[dict[bytes, Role]] = {
    b"connection": Role.CONNECTION,
    b"content-length": Role.LENGTH,
    b"transfer-encoding": Role.CODING,
    b"upgrade": Role.UPGRADE,
    b"trailer": Role.TRAILER,
    b"keep-alive": Role.HOP,
    b"http2-settings": Role.HOP,
    b"host": Role.HOST,
    b"proxy-authorization": Role.CREDENTIAL,
    b"expect": Role.EXPECT,
    b"te": Role.TE,
    b"traceparent": Role.TRACE,
    b"tracestate": Role.TRACE,
    b"max-forwards": Role.HOPS,
}

ONCE: Final = {
    int(Role.LENGTH): ("two-lengths", "`Content-Length`"),
    int(Role.CODING): ("two-codings", "`Transfer-Encoding`"),
    int(Role.HOST): ("two-hosts", "`Host`"),
    int(Role.CREDENTIAL): ("two-credentials", "`Proxy-Authorization`"),
    int(Role.EXPECT): ("two-expects", "`Expect`"),
    int(Role.UPGRADE): ("two-upgrades", "`Upgrade`"),
    int(Role.HOPS): ("two-max-forwards", "`Max-Forwards`"),
}
"""What may stand in a head once: the code and name for one that stands there twice, whether they agree or not."""

NOT_IN_TRAILERS: Final = frozenset(ROLES) | {
    b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie", b"set-cookie",
    b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning", b"pragma", b"range", b"www-authenticate",
    b"authentication-info", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"via",
}  # fmt: skip
"""Trailers that are dropped: framing, routing, credentials, and what changes how the head is read (RFC 9110, section 6.5.1)."""

NOT_TO_NAME: Final = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"content-range", b"authorization",
    b"cookie", b"set-cookie", b"expect", b"traceparent", b"tracestate", b"cache-control", b"max-forwards", b"range",
})  # fmt: skip
"""What `Connection` must not name, since it is for the other end: whoever obeyed it would lose the message's meaning."""

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"

_TOKEN_LIST = re.compile(rb"[\t ]*" + TOKEN + rb"[\t ]*(?:,[\t ]*" + TOKEN + rb"[\t ]*)*+")
_TOKEN = re.compile(TOKEN)
_PRINTED = bytes(byte for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127))
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FOLD = re.compile(rb"\r\n[\t ]")
_SPACED_NAME = re.compile(rb"^" + TOKEN + rb"[\t ]+:", re.MULTILINE)


def split_lines(section: bytes, fault: Fault) -> list[bytes]:
    """The lines of `section`, which ends with an empty line; none of them has a control character but tabs.

    Raises BadRequest or BadAnswer where anything else than CRLF ends a line, and for more than FIELDS_MAX lines.
    """
    if section == b"\r\n":
        return []
    lines = section[:-4].split(b"\r\n")
    if not section.endswith(b"\r\n\r\n") or section.translate(None, _PRINTED) != b"\r\n" * (len(lines) + 1):
        raise fault(*broken_rule(section))
    if len(lines) > FIELDS_MAX:
        raise fault("many-fields", f"the head has {len(lines)} fields, limit is {FIELDS_MAX}", fault.TOO_LARGE)
    return lines


def spaced(line: bytes) -> bytes:
    """The same field with one space more behind its colon, where it had none: `name: value` is read faster. Raises BadName."""
    name, colon, value = line.partition(b":")
    if not colon:
        raise BadName("field", "the head has a line that is no field")
    return name + b": " + value.removeprefix(b" ")


def read_fields(section: bytes, fault: Fault) -> Fields:
    """Every field of `section`, which ends with an empty line. Raises BadRequest or BadAnswer."""
    try:
        parts = [spaced(line).partition(b": ") for line in split_lines(section, fault)]
        for name, _, _ in parts:
            IN_REQUESTS[name]  # refuses what is no name
        return [(name.lower(), value.strip(b"\t ")) for name, _, value in parts]
    except BadName as wrong:
        raise name_fault(wrong, section, fault) from None


def name_fault(wrong: "BadName", section: bytes, fault: Fault) -> BadRequest | BadAnswer:
    """What a name that is refused means for whoever sent it."""
    if wrong.code == "field":
        return fault(*broken_rule(section))
    return fault(wrong.code, str(wrong), fault.TOO_LARGE if wrong.code == "long-name" else fault.STATUS)


def broken_rule(section: bytes) -> tuple[str, str]:
    """(code, message) of the first rule, in a fixed order, that `section` breaks, which is no section of fields."""
    if b"\0" in section:
        return "nul", "the head has a nul character"
    if BARE_LF.search(section):
        return "bare-lf", "the head has a line that ends in a bare LF"
    if _BARE_CR.search(section):
        return "bare-cr", "the head has a CR without its LF"
    if _CONTROL.search(section):
        return "control", "the head has a control character"
    if section[:1] in (b" ", b"\t") or _FOLD.search(section):
        return "folded", "the head has a folded line"
    if _SPACED_NAME.search(section):
        return "space-before-colon", "the head has a space before a colon"
    return "field", "the head has a line that is no field"


class Known(dict[bytes, int]):
    """The role of every name that came lately, as it was written. When it is full it begins anew.

    Raises BadName for what is no name or a bad one, and does not keep it. Roles from `end` on are PLAIN.
    """

    def __init__(self, end: int) -> None:
        super().__init__()
        self._end = end

    def __missing__(self, name: bytes) -> int:
        if len(name) > NAME_BYTES_MAX:
            raise BadName("long-name", f"a field's name has {len(name)} bytes, limit is {NAME_BYTES_MAX}")
        if not _TOKEN.fullmatch(name):
            raise BadName("field", "the head has a line that is no field")
        lower = name.lower()
        dashed = lower.replace(b"_", b"-")
        if dashed != lower and (dashed in ROLES or dashed.startswith(b"proxy-") or dashed in NOT_TO_NAME):
            raise BadName("odd-name", f"field `{lower.decode()}` may be read as `{dashed.decode()}`")
        role = int(ROLES.get(lower, Role.HOP if lower.startswith(b"proxy-") else Role.PLAIN))
        if len(self) >= NAMES_KEPT_MAX:
            self.clear()
        self[name] = role = role if role < self._end else 0
        return role


def sorter(end: int, once: Iterable[int] = ONCE) -> Sorter:
    """The kernel for heads in which roles from `end` on mean nothing."""
    return Sorter(
        {name: int(role) for name, role in ROLES.items() if role < end}, guarded=frozenset(ROLES) | NOT_TO_NAME,
        once=[role for role in once if role < end], prefix=b"proxy-", hop=int(Role.HOP), trace=int(Role.TRACE),
        fields=FIELDS_MAX, name_bytes=NAME_BYTES_MAX,
    )  # fmt: skip


IN_REQUESTS: Final = Known(len(Role))
IN_ANSWERS: Final = Known(Role.HOST)
SORT_REQUEST: Final = sorter(len(Role)).sort
SORT_ANSWER: Final = sorter(Role.HOST).sort


def why_refused(section: bytes, fault: Fault) -> BadRequest | BadAnswer:
    """The rule that a section of fields breaks, which the kernel refuses."""
    known = IN_REQUESTS if fault is BadRequest else IN_ANSWERS
    seen: set[int] = set()
    try:
        for line in [spaced(line) for line in split_lines(section, fault)]:
            role = known[line.partition(b": ")[0]]
            if role in ONCE and role in seen:
                code, said = ONCE[role]
                return fault(code, f"the head has {said} twice")
            seen.add(role)
    except BadName as wrong:
        return name_fault(wrong, section, fault)
    except (BadRequest, BadAnswer) as broken:
        return broken
    return fault("disagreement", "two readings of this head differ")


class BadName(Exception):
    """A name or a list of names that is refused; whoever reads the head says whose fault it is."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_USUAL: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings", b"proxy-connection"})
_CONNECTION_CACHED_MAX: Final = 64


def connection(value: bytes, fault: Fault) -> tuple[bool, bool, frozenset[bytes]]:
    """(whether it says `close`, whether it says `upgrade`, the other names it makes hop-by-hop) of a `Connection`.

    RFC 9110, section 7.6.1. Raises BadRequest or BadAnswer for what is no list of names, or names a field of the other end.
    """
    try:
        return _connection(value) if len(value) <= _CONNECTION_CACHED_MAX else _connection.__wrapped__(value)
    except BadName as wrong:
        raise fault(wrong.code, str(wrong)) from None


@lru_cache(256)
def _connection(value: bytes) -> tuple[bool, bool, frozenset[bytes]]:
    if not _TOKEN_LIST.fullmatch(value):
        raise BadName("connection", "`Connection` is no list of names")
    named = frozenset(one.strip(b"\t ") for one in value.lower().split(b","))
    if wrong := named & NOT_TO_NAME:
        raise BadName("connection-names", f"`Connection` names `{min(wrong).decode()}`, which is for the other end")
    return b"close" in named, b"upgrade" in named, named - _USUAL
