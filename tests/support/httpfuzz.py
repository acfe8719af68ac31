"""Requests for an egress door, mutated from a seed, and its parser held to two other readings of them.

    read_request(data)    what the door's parser makes of the bytes
    why_refused(head)     the first rule that a head breaks, by a slow reading line by line that shares nothing with the parser
    by_h11(head)          what h11 makes of it
    judge(data)           all three: the parser may refuse what the others take, never the other way round
    mutants(seed)         endless bytes near good requests
    run(seed, count)      judge so many, and say how many were taken and refused, and for what
"""

import ipaddress
import random
from collections import Counter
from collections.abc import Iterator

import h11

from enforcers.core.http.fields import IN_REQUESTS, NAMES_KEPT_MAX
from enforcers.core.http.forward import request_head
from enforcers.core.http.framing import CHUNKED, LENGTH, NONE
from enforcers.core.http.head import BadRequest, Request, find_head, parse_request
from enforcers.core.http.target import Where, read_target
from tests.support.malformed import table

LIMIT = 65_536


def read_request(data: bytes) -> tuple[Request, Where, bytes] | None:
    """What the parser makes of the bytes: (request, where, what is behind the head); None when it asks for more.

    Raises BadRequest.
    """
    size = find_head(data, LIMIT)
    if not size:
        return None
    request = parse_request(data[:size])
    return request, read_target(request), data[size:]


def by_h11(head: bytes) -> h11.Request | None:
    """What h11 makes of a head; None where it refuses it."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * LIMIT)
    server.receive_data(head)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def why_refused(head: bytes) -> str:
    """The first rule of ours that `head` breaks; empty for none."""
    text = head.decode("latin-1")
    if text[-4:] != "\r\n\r\n":
        return "no end"
    lines = text[:-4].split("\r\n")
    if any((c < " " and c != "\t") or c == "\x7f" for line in lines for c in line):
        return "a control character"
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1") or not set(words[0]) <= TOKEN or not words[0]:
        return "the first line"
    fields: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or not set(name) <= TOKEN:
            return "a field"
        fields.setdefault(name.lower(), []).append(value)
    for once in ("host", "content-length", "transfer-encoding", "proxy-authorization", "expect", "upgrade"):
        if len(fields.get(once, ())) > 1:
            return f"two {once}"
    length, coding = fields.get("content-length"), fields.get("transfer-encoding")
    if length and coding:
        return "length and coding"
    if length and not (length[0].removeprefix(" ").isdecimal() and length[0].isascii()):
        return "a length that is no number"
    if coding and (coding[0].removeprefix(" ") != "chunked" or words[2] == "HTTP/1.0"):
        return "a coding"
    if words[2] == "HTTP/1.1" and "host" not in fields:
        return "no host"
    if words[0] in ("CONNECT", "TRACE") and (coding or (length and int(length[0]))):
        return "a body"
    return _why_target_refused(words[0], words[1], fields["host"][0].removeprefix(" ") if "host" in fields else None)


def _why_target_refused(method: str, target: str, host: str | None) -> str:
    if "#" in target or not target.isascii():
        return "the target's characters"
    if method == "CONNECT":
        authority = target
        default = "80" if target.endswith(":80") else "443"
        if ":" not in target.rpartition("]")[2]:
            return "no port"
    else:
        if target[:7].lower() != "http://":
            return "no absolute http"
        before, _, _ = target[7:].partition("?")
        authority, slash, path = before.partition("/")
        default, path = "80", slash + path
        if "\\" in path or {".", ".."} & {part.split(";")[0] for part in path.lower().replace("%2e", ".").split("/")}:
            return "the path"
    if why := _why_authority_refused(authority):
        return why
    if host is not None and (_why_authority_refused(host) or _spelled(host, default) != _spelled(authority, default)):
        return "another host"
    return ""


def _spelled(authority: str, default: str) -> tuple[str, str]:
    host, port = _split(authority)
    if host.startswith("["):
        return ipaddress.IPv6Address(host[1:-1]).exploded, port or default
    return host.lower().removesuffix("."), port or default


def _split(authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, _, rest = authority.partition("]")
        return f"{host}]", rest.removeprefix(":")
    host, _, port = authority.partition(":")
    return host, port


def _why_authority_refused(authority: str) -> str:
    host, port = _split(authority)
    said = authority[len(host) :]
    if said and (said[0] != ":" or not port.isdecimal() or not port.isascii() or port[0] == "0" or not 0 < int(port) < 65536):
        return "a port"
    if host.startswith("["):
        try:
            return "an address" if "." in host or "%" in host or ipaddress.IPv6Address(host[1:-1]).ipv4_mapped else ""
        except ValueError:
            return "an address"
    labels = host.lower().removesuffix(".").split(".")
    if not all(labels) or not set(host.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_."):
        return "a host"
    last = labels[-1]
    if last.isdecimal() or (last[:2] == "0x" and set(last[2:]) <= set("0123456789abcdef")):
        parts = host.split(".")
        if len(parts) != 4 or not all(p.isdecimal() and str(int(p)) == p and int(p) < 256 for p in parts):
            return "an address"
    return ""


def judge(data: bytes) -> str:
    """`taken`, `more`, or the short word that the request is refused with. AssertionError where a reading disagrees."""
    try:
        read = read_request(data)
    except BadRequest as fault:
        return fault.code
    if read is None:
        assert b"\r\n\r\n" not in data, data
        return "more"
    request, where, rest = read
    head = data[: len(data) - len(rest)]
    assert not why_refused(head), (why_refused(head), data)
    other = by_h11(head)
    assert other is not None, ("h11 refuses", data)
    assert (other.method, other.target) == (request.method.encode(), request.target.encode()), data
    assert [(n, v) for n, v in other.headers if n != b"transfer-encoding"] == [
        (n, v) for n, v in request.headers if n != b"transfer-encoding"
    ], data
    if request.method != "CONNECT":
        _judge_rewritten(request, where, data)
    return "taken"


def _judge_rewritten(request: Request, where: Where, data: bytes) -> None:
    """What goes on means the same to h11, says the target's host, and holds nothing that was for this hop."""
    written = request_head(request, where, b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")
    seen = by_h11(written)
    assert seen is not None, (written, data)
    assert (seen.method, seen.target) == (request.method.encode(), where.origin_form), data
    names = [name for name, _ in seen.headers]
    assert names.count(b"host") == 1, data
    assert dict(seen.headers)[b"host"] == where.authority, data
    assert not any(name.startswith(b"proxy-") or name in (b"keep-alive", b"http2-settings") for name in names), data
    lengths = [value for name, value in seen.headers if name == b"content-length"]
    assert lengths == ([b"%d" % request.body.length] if request.body.kind == LENGTH else []), data
    assert (b"transfer-encoding" in names) == (request.body is CHUNKED), data
    assert request.body in (NONE, CHUNKED) or request.body.kind == LENGTH, data
    assert set(names) <= {name for name, _ in request.headers} | {b"host", b"traceparent", b"connection"}, data


GOOD = (
    b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
    b"POST http://api.example.com:8080/v1/items?a=b&c=%20 HTTP/1.1\r\nHost: api.example.com:8080\r\n"
    b"Proxy-Authorization: Basic cmVzZWFyY2hlcjpzZWNyZXQ=\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT http://example.com/x HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"
    b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\r\n",
    b"GET http://[2001:db8::1]/ HTTP/1.1\r\nHost: [2001:db8::1]\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
    b"GET http://192.0.2.1:80/a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"OPTIONS http://example.com HTTP/1.1\r\nHost: example.com\r\nMax-Forwards: 3\r\n\r\n",
    b"GET http://example.com/chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"POST http://example.com/x HTTP/1.1\r\nHost: example.com\r\nExpect: 100-continue\r\nContent-Length: 10\r\nTE: trailers\r\n"
    b"Connection: TE\r\n\r\n",
    b"GET HTTP://Example.COM./?q HTTP/1.1\r\nhost:example.com.\r\nX:\t spaced \t\r\nCookie: a=b; c=d\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1\r\n\r\n",
)
"""Requests that are taken: what the mutants are near to."""

_SCRAPS = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b": ", b",", b";", b"@", b"#", b"%", b"?", b"/", b"\\",
    b"[", b"]", b".", b"..", b"/../", b"%2e", b"+", b"-", b"_", b"0", b"0x", b"\x0b", b"\x7f", b"\x80", b"\xff",
    b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"http://", b"https://", b"127.1", b"0177.0.0.1", b"[::ffff:1.2.3.4]", b"[::1]",
    b"2130706433", b":0", b":80", b":443", b"user:secret@", b"Host: evil.example\r\n", b"Host: example.com\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity, chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer_Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: host\r\n", b"Proxy-Authorization: Basic eDp5\r\n", b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n", b"X: a\r\n b\r\n", b"X: a\nY: b\r\n", b"TE: trailers\r\n", b"Trailer: host\r\n", b"CONNECT ",
    b"TRACE ", b"GET ", b"get ", b"XYZZY ",
)  # fmt: skip


def mutants(seed: int) -> Iterator[bytes]:
    """Endless bytes near good requests and near bad ones, the same for the same seed."""
    rng = random.Random(seed)
    near = [*GOOD * 40, *(case.data for case in table() if len(case.data) < 2000)]
    while True:
        data = bytearray(rng.choice(near))
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 4))):
            _mutate(rng, data, near)
        yield bytes(data)


def _mutate(rng: random.Random, data: bytearray, near: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(9):
        case 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        case 1:
            data[at:at] = rng.choice(_SCRAPS)
        case 2:
            del data[at : at + rng.choice((1, 1, 2, 4, 16))]
        case 3:
            data[at : at + rng.choice((1, 2, 4))] = rng.choice(_SCRAPS)
        case 4:  # a line of its own
            ends = [place + 2 for place in range(len(data) - 1) if data[place : place + 2] == b"\r\n"] or [at]
            place = rng.choice(ends)
            data[place:place] = rng.choice(_SCRAPS)
        case 5:  # a line twice, or two lines exchanged
            lines = bytes(data).split(b"\r\n")
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[one], lines[other] = lines[other], (lines[one] if rng.random() < 0.5 else lines[other])
            data[:] = b"\r\n".join(lines)
        case 6:  # the front of one and the back of another
            other = rng.choice(near)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        case 7:
            data[at : at + 8] = data[at : at + 8].swapcase()
        case _:
            data[at:at] = data[at : at + rng.choice((1, 2, 8, 64))] * rng.choice((1, 1, 2, 40))


def run(seed: int, count: int) -> Counter[str]:
    """Judge so many mutants. AssertionError where a reading disagrees; any other exception is a crash of the parser."""
    seen: Counter[str] = Counter()
    for data, _ in zip(mutants(seed), range(count), strict=False):
        seen[judge(data)] += 1
    assert len(IN_REQUESTS) <= NAMES_KEPT_MAX
    return seen


