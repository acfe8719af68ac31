"""Heads written anew: what goes on to the origin, and what goes back to the client.

What is for one hop only never goes on (RFC 9110, section 7.6.1): `Connection` and what it names, `Keep-Alive`, `Proxy-...`
(and so the proxy credential), `Upgrade` unless both ends go over, `TE` but for `trailers`. `Host` comes from the target, the
framing from us. There is no `Via`: what the origin sees is what the client sent.
"""

from collections.abc import Sequence

from enforcers.core.http.framing import CHUNKED, LENGTH, UNTIL_CLOSE, Framing
from enforcers.core.http.head import Answer, Request
from enforcers.core.http.target import Where


def request_head(
    request: Request, where: Where, traceparent: bytes = b"", framing: Framing | None = None, *, keep_tracestate: bool = True
) -> bytes:
    """The head that the origin of `where` gets, in HTTP/1.1.

    `traceparent` takes the place of the client's; `tracestate` goes on unless its traceparent was not valid. `framing` is how
    the body is sent: as the client framed it where nothing else is said.
    """
    before, behind = _around(request, where, request.body if framing is None else framing)
    return b"%b%b%b" % (before, _trace(request, traceparent, keep_tracestate) if traceparent else b"", behind)


def traced_head(request: Request, where: Where, traceparent: bytes, *, keep_tracestate: bool) -> bytes:
    """The same for a request of which one like it may follow at once: all but the trace is made once.

    It is kept with the request, so `where` must be that request's own.
    """
    around = request.around
    if around is None:
        around = request.around = _around(request, where, request.body)
    return b"%b%b%b" % (around[0], _trace(request, traceparent, keep_tracestate), around[1])


def _trace(request: Request, traceparent: bytes, keep_tracestate: bool) -> bytes:
    line = b"traceparent: %b\r\n" % traceparent
    if request.trace and keep_tracestate:
        line += b"".join([b"tracestate: %b\r\n" % value for name, value in request.trace if name == b"tracestate"])
    return line


def _around(request: Request, where: Where, framing: Framing) -> tuple[bytes, bytes]:
    """What stands before and behind the trace."""
    before = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (
        request.method.encode(), where.origin_form, where.authority, request.onward,
    )  # fmt: skip
    parts: list[bytes] = []
    if framing.kind == LENGTH:
        parts.append(b"Content-Length: %d\r\n" % framing.length)
    elif framing.kind == CHUNKED.kind:
        parts.append(b"Transfer-Encoding: chunked\r\n")
        if request.trailer:
            parts.append(b"Trailer: %b\r\n" % request.trailer)
    if request.expect:
        parts.append(b"Expect: 100-continue\r\n")
    if request.upgrade:
        parts.append(b"Upgrade: %b\r\n" % request.upgrade)
    if request.te_trailers:
        parts += (b"TE: trailers\r\n", b"Connection: Upgrade, TE\r\n" if request.upgrade else b"Connection: TE\r\n")
    elif request.upgrade:
        parts.append(b"Connection: Upgrade\r\n")
    if request.hops >= 0:
        parts.append(b"Max-Forwards: %d\r\n" % request.hops)
    parts.append(b"\r\n")
    return before, b"".join(parts)


def answer_framing(answer: Answer, minor: int) -> Framing:
    """How an answer's body goes to a client of HTTP/1.`minor`.

    One that ends with its connection goes in chunks, so that the client sees when it was cut short; HTTP/1.0 has no chunks.
    """
    if answer.body is CHUNKED or answer.body is UNTIL_CLOSE:
        return CHUNKED if minor else UNTIL_CLOSE
    return answer.body


def answer_head(answer: Answer, minor: int = 1, close: bool = False, extra: Sequence[bytes] = ()) -> bytes:
    """The head that a client of HTTP/1.`minor` gets; the body must go as `answer_framing` says.

    `close` says that the connection ends after it. `extra` are lines of our own, `Name: value` without their CRLF.
    """
    framing = answer_framing(answer, minor)
    parts = [b"HTTP/1.1 %d %b\r\n" % (answer.status, answer.reason), answer.onward]
    if framing.kind == LENGTH:
        parts.append(b"Content-Length: %d\r\n" % framing.length)
    elif framing.kind == CHUNKED.kind:
        parts.append(b"Transfer-Encoding: chunked\r\n")
        if answer.trailer and answer.body.kind == CHUNKED.kind:
            parts.append(b"Trailer: %b\r\n" % answer.trailer)
    parts += [line + b"\r\n" for line in extra]
    if answer.upgrade:
        parts.append(b"Upgrade: %b\r\nConnection: Upgrade\r\n" % answer.upgrade)
    elif close or framing.kind == UNTIL_CLOSE.kind:
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)
