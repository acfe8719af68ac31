"""Bodies: reading undoes writing, however the bytes come; h11 reads the same, or refuses less."""

import random

import h11
from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.http.framing import CHUNKED, LENGTH, Body, Framing, chunk, last_chunk
from enforcers.core.http.head import BadRequest
from tests.support.malformed import BODIES

contents = st.lists(st.binary(max_size=60), max_size=8)
trailers = st.lists(st.tuples(st.sampled_from([b"x-sum", b"x-a", b"etag"]), st.sampled_from([b"", b"1", b"a b"])), max_size=3)


def read(framing: Framing, data: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes, list[tuple[bytes, bytes]]] | str:
    """(content, whether it is over, what is behind it, trailers), or `refused`, of the bytes in pieces."""
    body, content = Body(framing), b""
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            content += b"".join(body.feed(data[start:end]))
    except BadRequest:
        return "refused"
    return content, body.done, body.extra, body.trailers


@given(contents, trailers, st.binary(max_size=10), st.data())
def test_reading_undoes_writing_however_it_is_cut(
    pieces: list[bytes], ends: list[tuple[bytes, bytes]], rest: bytes, draws: st.DataObject
) -> None:
    data = b"".join(map(chunk, pieces)) + last_chunk(ends) + rest
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    assert read(CHUNKED, data, cuts) == (b"".join(pieces), True, rest, ends)


@given(contents, trailers)
def test_every_proper_prefix_asks_for_more(pieces: list[bytes], ends: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(map(chunk, pieces)) + last_chunk(ends)
    whole = b"".join(pieces)
    for size in range(len(data)):
        got = read(CHUNKED, data[:size], [])
        assert not isinstance(got, str)
        content, done, extra, _ = got
        assert not done
        assert not extra
        assert whole.startswith(content)


@given(st.binary(max_size=80), st.integers(0, 100), st.data())
def test_a_length_is_kept_however_it_is_cut(data: bytes, length: int, draws: st.DataObject) -> None:
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    assert read(Framing(LENGTH, length), data, cuts) == (data[:length], len(data) >= length, data[length:], [])


def h11_reads(data: bytes) -> tuple[bytes, bool] | str:
    """(content, whether it is over) by h11, or `refused`."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(server.next_event(), h11.Request)
    content = b""
    try:
        server.receive_data(data)
        while True:
            event = server.next_event()
            if isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return content, True
            else:
                return content, False
    except h11.RemoteProtocolError:
        return "refused"


SCRAPS = (b"\r", b"\n", b"\r\n", b" ", b"0", b"5", b"f", b";", b";a=b", b'"', b"+", b"0x", b"\0", b"x: y\r\n", b":")


def mutant(rng: random.Random) -> bytes:
    pieces = [rng.randbytes(rng.randrange(20)) for _ in range(rng.randrange(4))]
    data = bytearray(b"".join(map(chunk, pieces)) + last_chunk([(b"x-sum", b"1")][: rng.randrange(2)]) + b"GET")
    if rng.random() < 0.2:
        data[:] = rng.choice(BODIES).data
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        scrap = rng.choice(SCRAPS)
        if rng.random() < 0.5:
            data[at:at] = scrap
        else:
            data[at : at + rng.choice((1, 2))] = scrap if rng.random() < 0.5 else b""
    return bytes(data)


def test_h11_takes_every_body_that_we_take_and_reads_the_same_however_it_is_cut() -> None:
    rng = random.Random(11)
    taken = refused = 0
    for _ in range(10_000):
        data = mutant(rng)
        ours = read(CHUNKED, data, [])
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
        again = read(CHUNKED, data, cuts)
        assert ours == again, (data, cuts)
        if isinstance(ours, str):
            refused += 1
            continue
        assert h11_reads(data) == ours[:2], data
        taken += ours[1]
    assert taken > 2000
    assert refused > 2000
