"""Bodies taken apart and put together; what is refused in them is in the table of malformed ones."""

import pytest

from enforcers.core.http.fields import NOT_IN_TRAILERS
from enforcers.core.http.framing import CHUNKED, LENGTH, NONE, UNTIL_CLOSE, Body, Framing, chunk, last_chunk
from enforcers.core.http.head import BadAnswer, BadRequest


def test_a_body_of_a_known_length_ends_there() -> None:
    body = Body(Framing(LENGTH, 5))
    assert body.feed(b"") == []
    assert body.feed(b"he") == [b"he"]
    assert not body.done
    assert body.feed(b"lloGET") == [b"llo"]
    assert (body.done, body.extra) == (True, b"GET")
    assert body.feed(b" /") == []
    assert body.extra == b"GET /"


@pytest.mark.parametrize("framing", [NONE, Framing(LENGTH, 0)])
def test_no_body_is_over_before_it_begins(framing: Framing) -> None:
    body = Body(framing)
    assert body.done
    assert body.feed(b"next") == []
    assert body.extra == b"next"
    body.end()


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    body = Body(UNTIL_CLOSE, BadAnswer)
    assert body.open_ended
    assert body.feed(b"a") == [b"a"]
    assert body.feed(b"") == []
    assert not body.done
    body.end()
    assert body.done


@pytest.mark.parametrize("framing", [Framing(LENGTH, 5), CHUNKED])
@pytest.mark.parametrize("fault", [BadRequest, BadAnswer])
def test_a_connection_that_ends_in_a_body_cuts_it_short(framing: Framing, fault: type[BadRequest] | type[BadAnswer]) -> None:
    body = Body(framing, fault)
    body.feed(b"2\r\n")
    with pytest.raises(fault, match="in the middle of a body") as caught:
        body.end()
    assert caught.value.code == "cut-short"


def test_chunks_are_taken_apart_with_their_extensions_dropped() -> None:
    body = Body(CHUNKED)
    assert body.feed(b'5;a;b=c;d="e \\" f"\r\nhello\r\n00A\r\n0123456789\r\n') == [b"hello", b"0123456789"]
    assert not body.done
    assert body.feed(b"000\r\n\r\nGET") == []
    assert (body.done, body.extra, body.trailers) == (True, b"GET", [])


def test_trailers_that_change_what_the_head_said_are_dropped() -> None:
    forbidden = b"".join(name + b": x\r\n" for name in sorted(NOT_IN_TRAILERS)) + b"Proxy-Authorization: x\r\n"
    body = Body(CHUNKED)
    body.feed(b"0\r\nX-Sum:  a \r\n" + forbidden + b"x-Other:b\r\n\r\n")
    assert body.done
    assert body.trailers == [(b"x-sum", b"a"), (b"x-other", b"b")]


def test_content_is_handed_on_as_it_comes_and_not_collected() -> None:
    body = Body(CHUNKED)
    assert body.feed(b"fffffffffffffff\r\n") == []
    piece = b"x" * 65_536
    for _ in range(50):
        assert body.feed(piece) == [piece]
    assert not body.done


def test_extensions_on_chunks_of_data_are_no_waste() -> None:
    """Signed chunks as S3 has them: each has an extension of some ninety bytes, for as long as the body is."""
    body = Body(CHUNKED)
    line = b"1000;chunk-signature=" + b"a" * 64 + b"\r\n" + b"x" * 4096 + b"\r\n"
    assert sum(len(piece) for _ in range(500) for piece in body.feed(line)) == 500 * 4096


def test_small_chunks_without_extensions_are_no_waste() -> None:
    body = Body(CHUNKED)
    assert len(body.feed(b"1\r\nx\r\n" * 100_000)) == 100_000


def test_chunks_are_put_together() -> None:
    assert chunk(b"hello world!!!!!") == b"10\r\nhello world!!!!!\r\n"
    assert chunk(b"") == b""
    assert last_chunk() == b"0\r\n\r\n"
    assert last_chunk([(b"x-sum", b"a"), (b"y", b"")]) == b"0\r\nx-sum: a\r\ny: \r\n\r\n"
