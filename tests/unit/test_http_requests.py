"""Requests that a door takes: what their heads mean, where they go, and what goes on to the origin."""

import ipaddress

import pytest

from enforcers.core.http.fields import IN_REQUESTS, NAMES_KEPT_MAX
from enforcers.core.http.forward import request_head
from enforcers.core.http.framing import CHUNKED, LENGTH, NONE, Framing
from enforcers.core.http.head import BadAnswer, BadRequest, Request, find_head, parse_request
from enforcers.core.http.target import CACHED_TARGET_BYTES_MAX, Where, _read, read_target
from tests.support.httpfuzz import GOOD, by_h11, read_request, why_refused
from tests.support.malformed import CREDENTIAL


def taken(first: bytes, *lines: bytes) -> tuple[Request, Where]:
    read = read_request(b"\r\n".join((first, *lines, b"", b"")))
    assert read is not None
    return read[0], read[1]


def sent(first: bytes, *lines: bytes, traceparent: bytes = b"") -> list[bytes]:
    """The lines that the origin gets."""
    head = request_head(*taken(first, *lines), traceparent)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


@pytest.mark.parametrize("data", GOOD)
def test_the_good_requests_of_the_fuzzer_are_taken_by_all_three_readings(data: bytes) -> None:
    read = read_request(data)
    assert read is not None
    head = data[: len(data) - len(read[2])]
    assert why_refused(head) == ""
    assert by_h11(head) is not None


def test_a_request_says_what_its_head_says() -> None:
    request, where = taken(
        b"POST http://API.example.com:8080/a/b%20c?q=1&r HTTP/1.1", b"Host: api.example.com:8080",
        b"Proxy-Authorization: " + CREDENTIAL, b"Content-Length: 12", b"X-Empty:", b"x-spaced: \t a b \t",
    )  # fmt: skip
    assert (request.method, request.minor, request.close, request.expect, request.upgrade) == ("POST", 1, False, False, b"")
    assert Framing(LENGTH, 12) == request.body
    assert request.credential == CREDENTIAL
    assert request.headers == [
        (b"host", b"api.example.com:8080"), (b"proxy-authorization", CREDENTIAL), (b"content-length", b"12"),
        (b"x-empty", b""), (b"x-spaced", b"a b"),
    ]  # fmt: skip
    assert (
        where.scheme, where.host, where.port, where.path, where.query
    ) == ("http", "api.example.com", 8080, "/a/b%20c", b"q=1&r")  # fmt: skip
    assert where.uid == 'Host::"api.example.com:8080"'
    assert (where.authority, where.origin_form, where.literal) == (b"api.example.com:8080", b"/a/b%20c?q=1&r", None)


@pytest.mark.parametrize(
    ("target", "host", "port", "authority", "origin_form"),
    [
        (b"http://example.com", "example.com", 80, b"example.com", b"/"),
        (b"HTTP://Example.COM:80/", "example.com", 80, b"example.com", b"/"),
        (b"http://example.com.:8080/x", "example.com", 8080, b"example.com:8080", b"/x"),
        (b"http://example.com?", "example.com", 80, b"example.com", b"/?"),
        (b"http://example.com?a=/../b", "example.com", 80, b"example.com", b"/?a=/../b"),
        (b"http://example.com//a/...;b/.c?#"[:-1], "example.com", 80, b"example.com", b"//a/...;b/.c?"),
        (b"http://a_b-c.example/", "a_b-c.example", 80, b"a_b-c.example", b"/"),
        (b"http://localhost:1/@x:y", "localhost", 1, b"localhost:1", b"/@x:y"),
        (b"http://192.0.2.1/", "192.0.2.1", 80, b"192.0.2.1", b"/"),
        (b"http://[2001:DB8:0:0::1]:443/", "[2001:db8::1]", 443, b"[2001:db8::1]:443", b"/"),
        (b"http://0x7f.example/", "0x7f.example", 80, b"0x7f.example", b"/"),
        (b"http://xn--bcher-kva.example/%2e%2e%2fx", "xn--bcher-kva.example", 80, b"xn--bcher-kva.example", b"/%2e%2e%2fx"),
    ],
)
def test_a_target_has_one_spelling(target: bytes, host: str, port: int, authority: bytes, origin_form: bytes) -> None:
    said = target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
    _, where = taken(b"GET " + target + b" HTTP/1.1", b"Host: " + said)
    assert (host, port, authority, origin_form) == (where.host, where.port, where.authority, where.origin_form)
    assert where.uid == f'Host::"{host}:{port}"'
    _, again = taken(b"GET http://" + authority + origin_form + b" HTTP/1.1", b"Host: " + authority)
    assert (again.uid, again.origin_form) == (where.uid, where.origin_form)


@pytest.mark.parametrize(
    ("host", "literal"), [(b"192.0.2.1", "192.0.2.1"), (b"[2001:db8::1]", "2001:db8::1"), (b"a.example", "")]
)
def test_an_address_is_handed_over_as_one(host: bytes, literal: str) -> None:
    _, where = taken(b"CONNECT " + host + b":443 HTTP/1.1", b"Host: " + host + b":443")
    assert where.literal == (ipaddress.ip_address(literal) if literal else None)


def test_a_tunnel_has_a_host_and_a_port_and_nothing_else() -> None:
    request, where = taken(b"CONNECT Example.com.:8443 HTTP/1.1", b"Host: example.com:8443", b"Content-Length: 0")
    assert (where.scheme, where.host, where.port, where.path, where.query) == ("connect", "example.com", 8443, "", b"")
    assert where.uid == 'Host::"example.com:8443"'
    assert (request.body.length, where.authority) == (0, b"example.com:8443")


def test_a_host_without_a_port_means_that_of_http_or_https_for_a_tunnel() -> None:
    """Java, Node.js and aiohttp leave the scheme's own port out of a tunnel's `Host`."""
    taken(b"CONNECT example.com:443 HTTP/1.1", b"Host: example.com")
    taken(b"CONNECT example.com:80 HTTP/1.1", b"Host: example.com")
    with pytest.raises(BadRequest, match="`Host` is not the target's"):
        taken(b"CONNECT example.com:8080 HTTP/1.1", b"Host: example.com")
    with pytest.raises(BadRequest, match="`Host` is not the target's"):
        taken(b"GET http://example.com:443/ HTTP/1.1", b"Host: example.com")


def test_http_1_0_needs_no_host_and_closes() -> None:
    request, where = taken(b"CONNECT example.com:443 HTTP/1.0")
    assert (request.close, request.minor, where.host) == (True, 0, "example.com")
    request, _ = taken(b"GET http://example.com/ HTTP/1.0", b"Connection: keep-alive", b"Content-Length: 3")
    assert (request.close, request.body) == (True, Framing(LENGTH, 3))


@pytest.mark.parametrize(("line", "close"), [(b"close", True), (b"keep-alive", False), (b"X, Close", True), (b"x", False)])
def test_a_client_says_when_its_connection_ends(line: bytes, close: bool) -> None:
    assert taken(b"GET http://example.com/ HTTP/1.1", b"Host: example.com", b"Connection: " + line)[0].close is close


@pytest.mark.parametrize(
    ("lines", "expect"),
    [
        ([b"Expect: 100-continue", b"Content-Length: 1"], True),
        ([b"Expect: 100-Continue", b"Transfer-Encoding: chunked"], True),
        ([b"Expect: 100-continue"], False),
        ([b"Expect: 100-continue", b"Content-Length: 0"], False),
    ],
)
def test_a_client_waits_for_100_only_before_a_body(lines: list[bytes], expect: bool) -> None:
    first = b"PUT http://example.com/ HTTP/1.1"
    assert taken(first, b"Host: example.com", *lines)[0].expect is expect
    assert (b"Expect: 100-continue" in sent(first, b"Host: example.com", *lines)) is expect


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        ([b"Connection: Upgrade", b"Upgrade: WebSocket"], b"websocket"),
        ([b"Connection: keep-alive, upgrade", b"Upgrade: websocket"], b"websocket"),
        ([b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"], b""),
        ([b"Connection: Upgrade", b"Upgrade: h2c, websocket"], b"websocket"),
        ([b"Connection: Upgrade", b"Upgrade: TLS/1.0, HTTP/2.0"], b""),
        ([b"Upgrade: websocket"], b""),
    ],
)
def test_only_a_protocol_that_can_be_spoken_is_gone_over_to(lines: list[bytes], upgrade: bytes) -> None:
    first = b"GET http://example.com/ HTTP/1.1"
    assert taken(first, b"Host: example.com", *lines)[0].upgrade == upgrade
    tail = [b"Upgrade: " + upgrade, b"Connection: Upgrade"] if upgrade else []
    assert [b"GET / HTTP/1.1", b"Host: example.com", *tail] == sent(first, b"Host: example.com", *lines)


def test_http_1_0_cannot_go_over_to_another_protocol() -> None:
    assert taken(b"GET http://example.com/ HTTP/1.0", b"Connection: upgrade", b"Upgrade: websocket")[0].upgrade == b""


def test_what_is_for_one_hop_does_not_go_on() -> None:
    assert sent(
        b"GET http://example.com/x?y HTTP/1.1", b"User-Agent: curl/8", b"HOST: example.com",
        b"Proxy-Authorization: " + CREDENTIAL, b"Proxy-Connection: Keep-Alive", b"Proxy-Anything: x",
        b"Connection: keep-alive, x-hop, X-Other", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"x-other: 2", b"TE: gzip",
        b"Trailer: x", b"x-MIXED:Case",
    ) == [b"GET /x?y HTTP/1.1", b"Host: example.com", b"User-Agent: curl/8", b"x-MIXED: Case"]  # fmt: skip


def test_a_body_is_framed_anew() -> None:
    first, host = b"PUT http://example.com/ HTTP/1.1", b"Host: example.com"
    assert [b"PUT / HTTP/1.1", host, b"Content-Length: 7"] == sent(first, b"Content-Length: 7", host)
    assert [b"PUT / HTTP/1.1", host, b"Content-Length: 0"] == sent(first, b"Content-Length: 0", host)
    assert [b"PUT / HTTP/1.1", host] == sent(first, host)
    assert [b"PUT / HTTP/1.1", host, b"Transfer-Encoding: chunked", b"Trailer: X-Sum"] == sent(
        first, b"Transfer-Encoding: chunked", host, b"Trailer: X-Sum"
    )
    request, where = taken(first, host, b"Transfer-Encoding: chunked")
    assert b"Content-Length: 9\r\n" in request_head(request, where, framing=Framing(LENGTH, 9))
    assert b"ength" not in request_head(request, where, framing=NONE)


def test_a_body_of_a_get_goes_on() -> None:
    request, _ = taken(b"GET http://example.com/ HTTP/1.1", b"Host: example.com", b"Transfer-Encoding: chunked")
    assert request.body is CHUNKED


def test_a_trace_goes_on_under_our_own_span() -> None:
    lines = b"Host: example.com", b"traceparent: theirs", b"tracestate: a=1", b"Tracestate: b=2"
    first = b"GET http://example.com/ HTTP/1.1"
    assert [b"GET / HTTP/1.1", lines[0], b"traceparent: ours", b"tracestate: a=1", b"tracestate: b=2"] == sent(
        first, *lines, traceparent=b"ours"
    )
    request, where = taken(first, *lines)
    assert request.trace == [(b"traceparent", b"theirs"), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert b"tracestate" not in request_head(request, where, b"ours", keep_tracestate=False)
    assert b"trace" not in request_head(request, where)


def test_trailers_that_a_client_takes_are_asked_for() -> None:
    lines = b"Host: example.com", b"TE: trailers, deflate;q=0.5"
    first = b"GET http://example.com/ HTTP/1.1"
    assert sent(first, *lines)[2:] == [b"TE: trailers", b"Connection: TE"]
    both = b"Connection: upgrade, te", b"Upgrade: websocket"
    assert sent(first, *lines, *both)[2:] == [b"Upgrade: websocket", b"TE: trailers", b"Connection: Upgrade, TE"]


@pytest.mark.parametrize("method", [b"TRACE", b"OPTIONS"])
def test_max_forwards_is_counted_down_where_it_counts(method: bytes) -> None:
    assert b"Max-Forwards: 2" in sent(method + b" http://example.com/ HTTP/1.1", b"Host: example.com", b"Max-Forwards: 3")
    assert sent(
        b"GET http://example.com/ HTTP/1.1", b"Host: example.com", b"Max-Forwards: 3"
    ) == [b"GET / HTTP/1.1", b"Host: example.com"]


def test_options_for_a_whole_host_has_an_asterisk() -> None:
    assert sent(b"OPTIONS http://example.com HTTP/1.1", b"Host: example.com")[0] == b"OPTIONS * HTTP/1.1"
    assert sent(b"OPTIONS http://example.com/ HTTP/1.1", b"Host: example.com")[0] == b"OPTIONS / HTTP/1.1"
    assert sent(b"GET http://example.com HTTP/1.1", b"Host: example.com")[0] == b"GET / HTTP/1.1"


def test_a_request_without_fields_is_taken_in_http_1_0_only() -> None:
    assert sent(b"GET http://example.com/ HTTP/1.0") == [b"GET / HTTP/1.1", b"Host: example.com"]


def test_a_long_target_is_read_though_it_is_not_remembered() -> None:
    path = b"/" + b"x" * 10_000
    _, where = taken(b"GET http://example.com" + path + b" HTTP/1.1", b"Host: example.com")
    assert where.origin_form == path


def test_a_head_is_found_however_it_comes() -> None:
    head = b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"
    buffer = bytearray()
    for at, byte in enumerate(head + b"rest"):
        buffer.append(byte)
        assert find_head(buffer, 1000, at) == (len(head) if at + 1 == len(head) else 0) or at >= len(head)
    assert find_head(head, len(head)) == len(head)
    assert find_head(b"", 10) == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "long-head"), (b"G" * 40, "long-head"),
        (b"\x16\x03\x01", "not-http"), (b"GET x\n", "bare-lf"), (b" GET", "not-http"), (b"\r\n", "empty-line"),
    ],
)  # fmt: skip
def test_what_can_never_become_a_head_is_refused_at_once(data: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        find_head(data, 40)
    assert (code, 431 if code == "long-head" else 400) == (caught.value.code, caught.value.status)
    with pytest.raises(BadAnswer):
        find_head(data, 40, 0, BadAnswer)


def test_a_name_is_remembered_by_meaning_and_not_without_bound() -> None:
    for at in range(10_000):
        parse_request(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nX-%d: y\r\n\r\n" % at)
    assert len(IN_REQUESTS) <= NAMES_KEPT_MAX


def test_ten_thousand_targets_leave_a_bounded_memory() -> None:
    for at in range(10_000):
        host = b"h%d.example" % at
        request = parse_request(b"GET http://" + host + b"/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert read_target(request).host == host.decode()
    before = _read.cache_info()
    assert before.currsize == before.maxsize
    long = b"/" + b"x" * CACHED_TARGET_BYTES_MAX
    taken(b"GET http://example.com" + long + b" HTTP/1.1", b"Host: example.com")
    assert _read.cache_info().misses == before.misses


def read_behind(head: bytes, before: Request | None) -> list[object]:
    """Everything that a head means, read behind another request; the refusal where it is none."""
    try:
        request = parse_request(head, before)
    except BadRequest as fault:
        return [fault.code, str(fault), fault.status]
    return [*(getattr(request, slot) for slot in Request.__slots__), request.headers]


def test_a_head_means_the_same_whatever_was_read_before_it() -> None:
    heads = []
    for data in GOOD:
        read = read_request(data)
        assert read is not None
        head = data[: len(data) - len(read[2])]
        line, _, fields = head.partition(b"\r\n")
        method, target, version = line.split(b" ")
        other_lines = (
            b"%b %b %b" % (method, target + b"x", version), b"%b %b HTTP/1.0" % (method, target),
            b"PUT %b %b" % (target, version), b"%b http://[ %b" % (method, version),
            b"CONNECT example.com:443 %b" % version,
        )  # fmt: skip
        heads += [head, head.replace(b"\r\n\r\n", b"\r\nX-More: 1\r\n\r\n"), *(one + b"\r\n" + fields for one in other_lines)]
    good = [request for head in heads if (request := parsed(head)) is not None]
    assert len(good) > 3 * len(GOOD)
    for head in heads:
        alone = read_behind(head, None)
        assert all(read_behind(head, before) == alone for before in good)


def parsed(head: bytes) -> Request | None:
    try:
        return parse_request(head)
    except BadRequest:
        return None
