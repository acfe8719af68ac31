"""Heads: where one ends, and what a request's or an answer's means. What has two readings is refused.

    find_head       bytes of the head, 0 while more is needed
    parse_request   Request, or BadRequest (the status to answer, a short word for the record)
    parse_answer    Answer, or BadAnswer (502)

Our rules are those of RFC 9112, and stricter where it lets a recipient guess; `opinion` must agree with what they make of a
head. `Upgrade` to HTTP/2 or TLS is dropped: the client goes on in HTTP/1.1.
"""

import copy
import re
from typing import Final

from enforcers.core.http.fields import (
    BARE_LF,
    SORT_ANSWER,
    SORT_REQUEST,
    TOKEN,
    BadAnswer,
    BadRequest,
    Fault,
    Fields,
    Role,
    broken_rule,
    connection,
    read_fields,
    why_refused,
)
from enforcers.core.http.framing import CHUNKED, NONE, UNTIL_CLOSE, Framing, read_coding, read_length
from enforcers.core.http.opinion import confirm_answer, confirm_request
from schemas.vocabulary import shown

__all__ = ["Answer", "BadAnswer", "BadRequest", "Request", "find_head", "parse_answer", "parse_request"]

METHOD_BYTES_MAX: Final = 32
"""Bytes of a method. A longer one is refused (501)."""

TARGET_BYTES_MAX: Final = 16 << 10
"""Bytes of a request's target. A longer one is refused (414)."""

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]++) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t -~\x80-\xff]*+))?\r\n")
_FIRST: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""What a head may begin with: a token's characters."""
_TOKEN = re.compile(TOKEN)
_PROTOCOLS = re.compile(rb"[\t ]*[!#$%&'*+\-./^_`|~0-9A-Za-z]++[\t ]*(?:,[\t ]*[!#$%&'*+\-./^_`|~0-9A-Za-z]++[\t ]*)*+")
_HOPS_LEFT = re.compile(rb"[1-9][0-9]{0,8}")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_LENGTH: Final = int(Role.LENGTH)
_CODING: Final = int(Role.CODING)
_HOST: Final = int(Role.HOST)
_CREDENTIAL: Final = int(Role.CREDENTIAL)
_CONNECTION: Final = int(Role.CONNECTION)
_UPGRADE: Final = int(Role.UPGRADE)
_TRAILER: Final = int(Role.TRAILER)
_EXPECT: Final = int(Role.EXPECT)
_TE: Final = int(Role.TE)
_HOPS: Final = int(Role.HOPS)

_NOT_SPOKEN: Final = (b"h2c", b"h2", b"tls", b"http")
"""Protocols that an `Upgrade` asks for in vain: inside them nobody could tell one request from the next."""


class Request:
    """What a request's head means."""

    __slots__ = (
        "_fields_at", "_head", "around", "body", "close", "credential", "expect", "hops", "host", "method", "minor", "onward",
        "target", "te_trailers", "trace", "trailer", "upgrade",
    )  # fmt: skip

    method: str
    target: str
    minor: int
    """0 or 1: of HTTP/1."""
    close: bool
    """Whether the client's connection must end after the answer."""
    expect: bool
    """Whether the client waits for `100 Continue`. It goes on to the origin unless the door sets it to False."""
    upgrade: bytes
    """The protocol, in lower case, that both ends may go over to; empty for none."""
    body: Framing
    host: bytes | None
    credential: bytes | None
    """The one `Proxy-Authorization`."""
    onward: bytes
    """The fields that are for the origin, in their order: each the name as the client wrote it, `: `, the value, and CRLF."""
    trailer: bytes
    te_trailers: bool
    trace: Fields
    """Its `traceparent` and `tracestate` fields, however many."""
    hops: int
    """What is left of `Max-Forwards`, where it counts; -1 elsewhere."""
    around: tuple[bytes, bytes] | None
    """What goes to the origin before and behind the trace, once somebody has made it."""
    _head: bytes
    _fields_at: int

    @property
    def headers(self) -> Fields:
        """Every field, read anew each time. What goes on is `onward`."""
        return read_fields(self._head[self._fields_at :], BadRequest)

    def bare(self) -> "Request":
        """The same without what may be a secret: its fields, whether they go on or not, and the credential."""
        made = copy.copy(self)
        made._head, made._fields_at, made.credential, made.onward, made.around = b"\r\n", 0, None, b"", None
        return made


class Answer:
    """What the head of an origin's answer means."""

    __slots__ = ("_fields_at", "_head", "body", "close", "minor", "onward", "reason", "status", "trailer", "upgrade")

    status: int
    reason: bytes
    minor: int
    close: bool
    """Whether the origin's connection must end after this answer."""
    body: Framing
    upgrade: bytes
    """The protocol that a 101 goes over to."""
    onward: bytes
    """The fields that are for the client, in their order: each the name as the origin wrote it, `: `, the value, and CRLF."""
    trailer: bytes
    _head: bytes
    _fields_at: int

    @property
    def headers(self) -> Fields:
        """Every field, read anew each time. What goes on is `onward`."""
        return read_fields(self._head[self._fields_at :], BadAnswer)


def find_head(buffer: bytes | bytearray, limit: int, start: int = 0, fault: Fault = BadRequest) -> int:
    """Bytes of the head that `buffer` begins with, its empty line included; 0 when more is needed.

    `start` is how much an earlier look has seen. Raises BadRequest or BadAnswer as soon as it can never become a head of at
    most `limit` bytes: too long, not HTTP, a line that ends in a bare LF.
    """
    if buffer and buffer[0] not in _FIRST:
        if buffer[0] in b"\r\n":
            raise fault("empty-line", "an empty line stands before the head")
        raise fault("not-http", "what came is no HTTP/1 message: this port speaks HTTP without TLS")
    end = buffer.find(b"\r\n\r\n", start - 3 if start > 3 else 0)
    if 0 <= end <= limit - 4:
        return end + 4
    if BARE_LF.search(buffer, start - 1 if start > 1 else 0):
        raise fault("bare-lf", "the head has a line that ends in a bare LF")
    if end >= 0 or len(buffer) >= limit:
        raise fault("long-head", f"the head has more than {limit} bytes", fault.TOO_LARGE)
    return 0


def parse_request(head: bytes, before: Request | None = None) -> Request:
    """What a request's head means; `head` is exactly what `find_head` found. Raises BadRequest.

    `before` is any other request: what its fields meant, to the byte the same behind the same method and version, is not found
    out again. The second opinion is asked about all of it, each time.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise _request_line_fault(head)
    method, target, minor = line.groups()
    if len(method) > METHOD_BYTES_MAX:
        raise BadRequest("long-method", f"the method has {len(method)} bytes, limit is {METHOD_BYTES_MAX}", 501)
    if len(target) > TARGET_BYTES_MAX:
        raise BadRequest("long-target", f"the target has {len(target)} bytes, limit is {TARGET_BYTES_MAX}", 414)
    request = Request()
    request.method = name = method.decode("ascii")
    request.target = target.decode("ascii")
    request.minor = 1 if minor == b"1" else 0
    request.around = None
    request._head, request._fields_at = head, (at := line.end())
    if before is not None and before.method == name and before.minor == request.minor and before._head.endswith(head[at:]) and (
        len(head) - at == len(before._head) - before._fields_at
    ):  # fmt: skip
        _same_fields(request, before)
        confirm_request(head, method, target, request.body is not CHUNKED and not request.body.length)
        return request
    found = SORT_REQUEST(head, at)
    if found is None:
        raise why_refused(head[at:], BadRequest)
    request.onward, request.trace, special = found
    request.host = special.get(_HOST)
    if request.host is None and request.minor:
        raise BadRequest("no-host", "the request has no `Host`")
    credential = special.get(_CREDENTIAL)
    request.credential = credential.strip(b"\t ") if credential is not None else None
    request.body = body = _framing(special, request.minor, BadRequest) or NONE
    request.close = request.minor == 0
    request.expect = request.te_trailers = False
    request.upgrade = request.trailer = b""
    request.hops = -1
    if name in _BODILESS and (body.length or body is CHUNKED):
        raise BadRequest("body", f"`{name}` has a body")
    if not special.keys() <= _QUIET:
        _read_special(request, special)
    confirm_request(head, method, target, body is not CHUNKED and not body.length)
    return request


def _same_fields(request: Request, before: Request) -> None:
    request.onward, request.trace, request.host, request.credential = (
        before.onward, before.trace, before.host, before.credential,
    )  # fmt: skip
    request.body, request.close, request.expect, request.te_trailers = (
        before.body, before.close, before.expect, before.te_trailers,
    )  # fmt: skip
    request.upgrade, request.trailer, request.hops = before.upgrade, before.trailer, before.hops


def parse_answer(head: bytes, method: str, upgrade: bytes = b"") -> Answer:
    """What the head of an answer to a `method` request means; `upgrade` is what that request asked to go over to.

    Raises BadAnswer: also for a 101 that nobody asked for, and for a 407, which only a proxy may say.
    """
    line = _STATUS_LINE.match(head)
    if line is None:
        raise BadAnswer("status-line", "the answer does not begin with a status line of HTTP/1")
    minor, status, reason = line.groups()
    answer = Answer()
    answer.minor = 1 if minor == b"1" else 0
    answer.status = code = int(status)
    answer.reason = reason or b""
    answer._head, answer._fields_at = head, (at := line.end())
    found = SORT_ANSWER(head, at)
    if found is None:
        raise why_refused(head[at:], BadAnswer)
    answer.onward, _, special = found
    answer.close = answer.minor == 0
    answer.upgrade = b""
    answer.trailer = special.get(_TRAILER, b"")
    upgrades = False
    if (value := special.get(_CONNECTION)) is not None:
        close, upgrades, named = connection(value, BadAnswer)
        answer.close |= close
        if named:
            answer.onward = _without(answer.onward, named)
    framing = _framing(special, answer.minor, BadAnswer)
    if code < 200 or code == 204:
        if framing is CHUNKED or (framing and framing.length):
            raise BadAnswer("body", f"an answer with status {code} has a body")
        answer.body = NONE
        if code == 101:
            _switch(answer, special.get(_UPGRADE, b"") if upgrades else b"", upgrade)
    elif code == 407:
        raise BadAnswer("proxy-status", "the origin answered 407, which only a proxy may say")
    elif code == 304 or method == "HEAD":
        answer.body = NONE
        if framing and framing is not CHUNKED:  # what the body would have had: it goes on, and frames nothing
            answer.onward += b"Content-Length: %b\r\n" % special[_LENGTH]
    else:
        answer.body = framing or UNTIL_CLOSE
        answer.close |= framing is None
    confirm_answer(head, code)
    return answer


_BODILESS: Final = frozenset({"CONNECT", "TRACE"})
_QUIET: Final = frozenset({_HOST, _LENGTH, _CODING, _CREDENTIAL})
"""What `_read_special` need not look at."""


def _framing(special: dict[int, bytes], minor: int, fault: Fault) -> Framing | None:
    """Where the body ends by what the head says (RFC 9112, section 6.3); None where it says nothing."""
    length = special.get(_LENGTH)
    if (coding := special.get(_CODING)) is not None:
        if length is not None:
            raise fault("length-and-coding", "the head has `Content-Length` and `Transfer-Encoding`")
        return read_coding(coding, minor, fault)
    return read_length(length, fault) if length is not None else None


def _read_special(request: Request, special: dict[int, bytes]) -> None:
    """The fields that few requests have."""
    upgrades = False
    if (value := special.get(_CONNECTION)) is not None:
        close, upgrades, named = connection(value, BadRequest)
        request.close |= close
        if named:
            request.onward = _without(request.onward, named)
    request.trailer = special.get(_TRAILER, b"")
    has_body = request.body is CHUNKED or request.body.length > 0
    if (value := special.get(_EXPECT)) is not None:
        if value.lower() != b"100-continue":
            raise BadRequest("expect", "`Expect` is not `100-continue`", 417)
        request.expect = has_body and request.minor == 1
    if (value := special.get(_TE)) is not None:
        request.te_trailers = request.minor == 1 and b"trailers" in [one.strip(b"\t ") for one in value.lower().split(b",")]
    if (value := special.get(_HOPS)) is not None and request.method in ("TRACE", "OPTIONS"):
        if not _HOPS_LEFT.fullmatch(value):
            raise BadRequest("max-forwards", "`Max-Forwards` is no plain number above zero: a door answers for no origin")
        request.hops = int(value) - 1
    if (value := special.get(_UPGRADE)) is not None and upgrades and request.minor and request.method != "CONNECT":
        request.upgrade = _protocol(value, has_body)


def _protocol(value: bytes, has_body: bool) -> bytes:
    """The one protocol of an `Upgrade` that may be spoken; empty for none. Raises BadRequest for two of them."""
    if not _PROTOCOLS.fullmatch(value):
        raise BadRequest("upgrade", "`Upgrade` is no list of protocols")
    asked = [one.strip(b"\t ") for one in value.lower().split(b",")]
    spoken = [one for one in asked if one.partition(b"/")[0] not in _NOT_SPOKEN]
    if len(spoken) > 1:
        raise BadRequest("upgrade", "`Upgrade` asks for more than one protocol")
    if spoken and has_body:
        raise BadRequest("upgrade-body", "a request to upgrade has a body")
    return spoken[0] if spoken else b""


def _switch(answer: Answer, value: bytes, upgrade: bytes) -> None:
    if not upgrade or value.lower() != upgrade:
        raise BadAnswer("switch", "the origin goes over to a protocol that the request did not ask for")
    answer.upgrade = upgrade


def _without(onward: bytes, named: frozenset[bytes]) -> bytes:
    """What `Connection` names does not go on (RFC 9110, section 7.6.1)."""
    lines = onward.splitlines(keepends=True)
    return b"".join([line for line in lines if line.partition(b":")[0].lower() not in named])


def _request_line_fault(head: bytes) -> BadRequest:
    """Why the first line is no request line."""
    line, _, _ = head.partition(b"\r\n")
    if any((byte < 32 and byte != 9) or byte == 127 for byte in line):
        return BadRequest(*broken_rule(line + b"\r\n"))
    words = line.split(b" ")
    if len(words) != 3 or not all(words) or b"\t" in line:
        return BadRequest("request-line", "the request line is not a method, a target and a version with one space between")
    if not line.isascii():
        return BadRequest("not-ascii", "the request line is not ascii")
    if not _TOKEN.fullmatch(words[0]):
        return BadRequest("method", f"`{shown(words[0].decode())}` is no method")
    version = _VERSION.fullmatch(words[2])
    if version and version[1] != b"1":
        return BadRequest("version", f"version `{words[2].decode()}` is not spoken here: use HTTP/1.1", 505)
    return BadRequest("version", f"version `{shown(words[2].decode())}` is not HTTP/1.1 or HTTP/1.0")
