"""The lines of a head: which names mean something to a proxy, and what a line may be (RFC 9112, section 5).

    name ":" [SP] value CRLF        name: token characters; value: no control character but a tab; no folding, no bare CR or LF

`Role` is what a proxy has to do about a name. A name that becomes one of those when `_` is read as `-`, as CGI programs
do, has two readings and is refused.
"""

import enum
import re
from functools import lru_cache
from typing import Final, TypeAlias

from schemas.errors import AgentFault, PeerFault
from schemas.limits import NAME_BYTES_MAX

FIELDS_MAX: Final = 128
"""Lines in one head or one trailer section. More are refused (431) or fail (502)."""

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
    PARENT = 11
    STATE = 12
    HOPS = 13


PLAIN: Final = 0
"""`Role.PLAIN`, without the cost of looking an enumeration up."""

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
    b"traceparent": Role.PARENT,
    b"tracestate": Role.STATE,
    b"max-forwards": Role.HOPS,
}

REQUEST_ONLY: Final = int(Role.HOST)

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

_LINES = re.compile(rb"^(" + TOKEN + rb"): ?([\t -~\x80-\xff]*+)\r\n", re.MULTILINE)
_TOKEN_LIST = re.compile(rb"[\t ]*" + TOKEN + rb"[\t ]*(?:,[\t ]*" + TOKEN + rb"[\t ]*)*+")
_BARE_CR = re.compile(rb"\r(?!\n)")
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FOLD = re.compile(rb"\r\n[\t ]")
_SPACED_NAME = re.compile(rb"^" + TOKEN + rb"[\t ]+:", re.MULTILINE)


def read_lines(head: bytes, start: int, fault: Fault) -> list[tuple[bytes, bytes]]:
    """The (name, value) of every line from `start` to the empty line that ends `head`, as they are written.

    Raises BadRequest or BadAnswer where one line is not exactly a name and a value.
    """
    found = _LINES.findall(head, start)
    if len(found) != head.count(b"\n", start) - 1 or not head.endswith(b"\r\n"):
        raise form_fault(head, start, fault)
    if len(found) > FIELDS_MAX:
        raise fault("too-many-fields", f"the head has {len(found)} fields, limit is {FIELDS_MAX}", fault.TOO_LARGE)
    return found


def form_fault(head: bytes, start: int, fault: Fault) -> BadRequest | BadAnswer:
    """Why `head` is no head from `start` on: the first rule that it breaks, in a fixed order."""
    rest = head[start:]
    if b"\0" in rest:
        return fault("nul", "the head has a nul character")
    if BARE_LF.search(rest):
        return fault("bare-lf", "the head has a line that ends in a bare LF")
    if _BARE_CR.search(rest):
        return fault("bare-cr", "the head has a CR without its LF")
    if _CONTROL.search(rest):
        return fault("control", "the head has a control character")
    if rest[:1] in (b" ", b"\t") or _FOLD.search(rest):
        return fault("folded", "the head has a folded line")
    if _SPACED_NAME.search(rest):
        return fault("space-before-colon", "the head has a space before a colon")
    return fault("field", "the head has a line that is no field")


@lru_cache(4096)
def known(name: bytes) -> tuple[bytes, int, bytes]:
    """(lower case, role, how a line with it starts when it goes on) of a field's name. Raises BadName."""
    if len(name) > NAME_BYTES_MAX:
        raise BadName("long-name", f"a field's name has {len(name)} bytes, limit is {NAME_BYTES_MAX}")
    lower = name.lower()
    dashed = lower.replace(b"_", b"-")
    if dashed != lower and (dashed in ROLES or dashed.startswith(b"proxy-") or dashed in NOT_TO_NAME):
        raise BadName("odd-name", f"field `{lower.decode()}` may be read as `{dashed.decode()}`")
    role = ROLES.get(lower, Role.HOP if lower.startswith(b"proxy-") else Role.PLAIN)
    return lower, int(role), b"\r\n" + name + b": "


class BadName(Exception):
    """A name that is refused; whoever reads the head says whose fault it is."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def tokens(value: bytes, fault: Fault) -> list[bytes]:
    """The members of a comma-separated list of tokens, in lower case. Raises BadRequest or BadAnswer for anything else."""
    if not _TOKEN_LIST.fullmatch(value):
        raise fault("connection", "`Connection` is no list of names")
    return [one.strip(b"\t ") for one in value.lower().split(b",")]


def connection(value: bytes, fault: Fault) -> tuple[bool, frozenset[bytes]]:
    """(whether it says `close`, the names that it makes hop-by-hop) of a `Connection` (RFC 9110, section 7.6.1)."""
    named = frozenset(tokens(value, fault))
    if wrong := named & NOT_TO_NAME:
        raise fault("connection-names", f"`Connection` names `{min(wrong).decode()}`, which is for the other end")
    return b"close" in named, named
