"""Heads written anew: what goes on to the origin, and what goes back to the client.

What is for one hop only never goes on (RFC 9110, section 7.6.1): `Connection` and what it names, `Keep-Alive`, `Proxy-...`
(and so the proxy credential), `Upgrade` unless both ends go over, `TE` but for `trailers`. `Host` comes from the target, the
framing from us. There is no `Via`: what the origin sees is what the client sent.
"""

from collections.abc import Sequence
from typing import Final

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
    framing = request.body if framing is None else framing
    parts = [request.method.encode(), b" ", where.origin_form, b" HTTP/1.1\r\nHost: ", where.authority, *request.onward]
    if traceparent:
        parts += (b"\r\ntraceparent: ", traceparent)
        if request.trace and keep_tracestate:
            for name, value in request.trace:
                if name == b"tracestate":
                    parts += (b"\r\ntracestate: ", value)
    if framing.kind == LENGTH:
        parts.append(b"\r\nContent-Length: %d" % framing.length)
    elif framing.kind == CHUNKED.kind:
        parts.append(b"\r\nTransfer-Encoding: chunked")
        if request.trailer:
            parts += (b"\r\nTrailer: ", request.trailer)
    if request.expect:
        parts.append(b"\r\nExpect: 100-continue")
    if request.upgrade:
        parts += (b"\r\nUpgrade: ", request.upgrade)
    if request.upgrade or request.te_trailers:
        parts.append(_CONNECTIONS[bool(request.upgrade), request.te_trailers])
    if request.hops >= 0:
        parts.append(b"\r\nMax-Forwards: %d" % request.hops)
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


_CONNECTIONS: Final = {
    (True, False): b"\r\nConnection: Upgrade",
    (False, True): b"\r\nTE: trailers\r\nConnection: TE",
    (True, True): b"\r\nTE: trailers\r\nConnection: Upgrade, TE",
}


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
    parts = [b"HTTP/1.1 %d " % answer.status, answer.reason, *answer.onward]
    framing = answer_framing(answer, minor)
    if framing.kind == LENGTH:
        parts.append(b"\r\nContent-Length: %d" % framing.length)
    elif framing.kind == CHUNKED.kind:
        parts.append(b"\r\nTransfer-Encoding: chunked")
        if answer.trailer and answer.body.kind == CHUNKED.kind:
            parts += (b"\r\nTrailer: ", answer.trailer)
    for line in extra:
        parts += (b"\r\n", line)
    if answer.upgrade:
        parts += (b"\r\nUpgrade: ", answer.upgrade, b"\r\nConnection: Upgrade")
    elif close or framing.kind == UNTIL_CLOSE.kind:
        parts.append(b"\r\nConnection: close")
    parts.append(b"\r\n\r\n")
    return b"".join(parts)
