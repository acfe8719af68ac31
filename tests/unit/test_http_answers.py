"""Answers of an origin: judged as strictly as requests, and what of them goes back to the client."""

import pytest

from enforcers.core.http.forward import answer_framing, answer_head
from enforcers.core.http.framing import CHUNKED, LENGTH, NONE, UNTIL_CLOSE, Framing
from enforcers.core.http.head import Answer, BadAnswer, find_head, parse_answer
from schemas.errors import PeerFault

OK = b"HTTP/1.1 200 OK"


def taken(first: bytes, *lines: bytes, method: str = "GET", upgrade: bytes = b"") -> Answer:
    head = b"\r\n".join((first, *lines, b"", b""))
    assert find_head(head, 1 << 20, 0, BadAnswer) == len(head)
    return parse_answer(head, method, upgrade)


def passed(answer: Answer, minor: int = 1, close: bool = False, extra: tuple[bytes, ...] = ()) -> list[bytes]:
    """The lines that the client gets."""
    head = answer_head(answer, minor, close, extra)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def test_an_answer_says_what_its_head_says() -> None:
    answer = taken(b"HTTP/1.1 404 Not Found", b"Content-Length: 12", b"Server:x", b"set-cookie: a", b"Set-Cookie:  b ")
    assert (answer.status, answer.reason, answer.minor, answer.close) == (404, b"Not Found", 1, False)
    assert answer.body == Framing(LENGTH, 12)
    assert answer.headers == [(b"content-length", b"12"), (b"server", b"x"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    back = [b"HTTP/1.1 404 Not Found", b"Server: x", b"set-cookie: a", b"Set-Cookie: b", b"Content-Length: 12"]
    assert passed(answer) == back


@pytest.mark.parametrize(
    ("first", "lines", "method", "body", "close"),
    [
        (OK, [b"Content-Length: 0"], "GET", Framing(LENGTH, 0), False),
        (OK, [b"Transfer-Encoding: chunked"], "GET", CHUNKED, False),
        (OK, [b"Connection: close", b"Content-Length: 1"], "GET", Framing(LENGTH, 1), True),
        (OK, [], "GET", UNTIL_CLOSE, True),
        (OK, [b"Content-Length: 5"], "HEAD", NONE, False),
        (OK, [b"Transfer-Encoding: chunked"], "HEAD", NONE, False),
        (OK, [], "HEAD", NONE, False),
        (b"HTTP/1.1 204 No Content", [], "GET", NONE, False),
        (b"HTTP/1.1 204 No Content", [b"Content-Length: 0"], "DELETE", NONE, False),
        (b"HTTP/1.1 304 Not Modified", [b"Content-Length: 5"], "GET", NONE, False),
        (b"HTTP/1.1 100 Continue", [], "POST", NONE, False),
        (b"HTTP/1.1 103 Early Hints", [b"Link: x"], "GET", NONE, False),
        (b"HTTP/1.0 200 OK", [b"Content-Length: 5", b"Connection: keep-alive"], "GET", Framing(LENGTH, 5), True),
        (b"HTTP/1.0 200 OK", [], "GET", UNTIL_CLOSE, True),
        (b"HTTP/1.1 200", [b"Content-Length: 5"], "GET", Framing(LENGTH, 5), False),
        (b"HTTP/1.1 200 ", [b"Content-Length: 5"], "GET", Framing(LENGTH, 5), False),
        (b"HTTP/1.1 200 gut \xfc\t!", [b"Content-Length: 5"], "GET", Framing(LENGTH, 5), False),
    ],
)
def test_where_an_answer_ends(first: bytes, lines: list[bytes], method: str, body: Framing, close: bool) -> None:
    answer = taken(first, *lines, method=method)
    assert (answer.body, answer.close) == (body, close)


@pytest.mark.parametrize(
    ("first", "lines", "code"),
    [
        (b"HTTP/1.2 200 OK", [], "status-line"),
        (b"HTTP/2.0 200 OK", [], "status-line"),
        (b"http/1.1 200 OK", [], "status-line"),
        (b"HTTP/1.1  200 OK", [], "status-line"),
        (b"HTTP/1.1 20 OK", [], "status-line"),
        (b"HTTP/1.1 099 OK", [], "status-line"),
        (b"HTTP/1.1 600 OK", [], "status-line"),
        (b"HTTP/1.1 2000 OK", [], "status-line"),
        (b"HTTP/1.1 +20 OK", [], "status-line"),
        (b"ICY 200 OK", [], "status-line"),
        (b"HTTP/1.1 200 O\x00K", [], "status-line"),
        (b"HTTP/1.1 200 O\rK", [], "status-line"),
        (OK, [b"Content-Length: 5", b"Content-Length: 6"], "two-lengths"),
        (OK, [b"Content-Length: 5", b"Content-Length: 5"], "two-lengths"),
        (OK, [b"Content-Length: 5, 5"], "content-length"),
        (OK, [b"Content-Length: +5"], "content-length"),
        (OK, [b"Content-Length: 5 "], "content-length"),
        (OK, [b"Content-Length: 5", b"Transfer-Encoding: chunked"], "length-and-coding"),
        (OK, [b"Transfer-Encoding: gzip, chunked"], "transfer-encoding"),
        (OK, [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], "two-codings"),
        (OK, [b"Transfer_Encoding: chunked"], "odd-name"),
        (b"HTTP/1.0 200 OK", [b"Transfer-Encoding: chunked"], "old-coding"),
        (OK, [b"X: a", b" folded"], "folded"),
        (OK, [b"X : a"], "space-before-colon"),
        (OK, [b"X"], "field"),
        (OK, [b"X: a\rb"], "bare-cr"),
        (OK, [b"X: a\nb: c"], "bare-lf"),
        (OK, [b"X: a\0"], "nul"),
        (OK, [b"X: a\x08"], "control"),
        (OK, [b"X: a"] * 129, "many-fields"),
        (OK, [b"X" * 300 + b": a"], "long-name"),
        (OK, [b"Connection: content-length"], "connection-names"),
        (OK, [b"Connection: ,"], "connection"),
        (b"HTTP/1.1 204 No Content", [b"Content-Length: 5"], "body"),
        (b"HTTP/1.1 204 No Content", [b"Transfer-Encoding: chunked"], "body"),
        (b"HTTP/1.1 100 Continue", [b"Content-Length: 5"], "body"),
        (b"HTTP/1.1 101 Switching Protocols", [b"Connection: upgrade", b"Upgrade: websocket"], "switch"),
        (b"HTTP/1.1 407 Proxy Authentication Required", [b"Content-Length: 0"], "proxy-status"),
    ],
)
def test_an_answer_with_two_readings_is_the_origins_fault(first: bytes, lines: list[bytes], code: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        taken(first, *lines)
    assert (caught.value.code, caught.value.status, caught.value.blame) == (code, 502, "peer")
    assert isinstance(caught.value, PeerFault)
    assert str(caught.value).isprintable()


def test_an_origin_goes_over_to_what_was_asked_for_and_to_nothing_else() -> None:
    first = b"HTTP/1.1 101 Switching Protocols"
    answer = taken(first, b"Connection: Upgrade", b"Upgrade: WebSocket", b"Sec-WebSocket-Accept: x", upgrade=b"websocket")
    assert (answer.upgrade, answer.body) == (b"websocket", NONE)
    assert passed(answer, close=True) == [first, b"Sec-WebSocket-Accept: x", b"Upgrade: websocket", b"Connection: Upgrade"]
    for lines in ([b"Upgrade: websocket"], [b"Connection: upgrade"], [b"Connection: upgrade", b"Upgrade: other"]):
        with pytest.raises(BadAnswer, match="did not ask for"):
            taken(first, *lines, upgrade=b"websocket")


def test_what_is_for_one_hop_does_not_go_back() -> None:
    answer = taken(
        OK, b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic",
        b"Proxy-Authentication-Info: x", b"Upgrade: h2c", b"Content-Length: 1", b"ETag: x", b"Host: y", b"TE: z",
    )  # fmt: skip
    assert passed(answer) == [OK, b"ETag: x", b"Host: y", b"TE: z", b"Content-Length: 1"]


@pytest.mark.parametrize(("method", "first"), [("HEAD", OK), ("GET", b"HTTP/1.1 304 Not Modified")])
def test_the_length_that_a_body_would_have_had_goes_back(method: str, first: bytes) -> None:
    answer = taken(first, b"Content-Length: 5", b"ETag: x", method=method)
    assert passed(answer) == [first, b"ETag: x", b"Content-Length: 5"]
    assert passed(taken(first, b"Transfer-Encoding: chunked", method=method)) == [first]


def test_a_body_that_ends_with_its_connection_goes_back_in_chunks() -> None:
    answer = taken(OK, b"X: y", b"Trailer: z")
    assert answer_framing(answer, 1) is CHUNKED
    assert passed(answer) == [OK, b"X: y", b"Transfer-Encoding: chunked"]
    assert passed(taken(OK, b"Transfer-Encoding: chunked", b"Trailer: z"))[1:] == [b"Transfer-Encoding: chunked", b"Trailer: z"]


def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    for lines in ([], [b"Transfer-Encoding: chunked"]):
        answer = taken(OK, *lines)
        assert answer_framing(answer, 0) is UNTIL_CLOSE
        assert passed(answer, minor=0) == [OK, b"Connection: close"]


def test_a_door_says_when_it_closes_and_may_add_lines() -> None:
    answer = taken(b"HTTP/1.0 200 Fine", b"Content-Length: 1")
    assert passed(answer, close=True, extra=(b"X-Call: 1",)) == [
        b"HTTP/1.1 200 Fine", b"Content-Length: 1", b"X-Call: 1", b"Connection: close"
    ]  # fmt: skip
    assert passed(answer)[-1] == b"Content-Length: 1"
    assert passed(taken(b"HTTP/1.1 204"))[0] == b"HTTP/1.1 204 "
