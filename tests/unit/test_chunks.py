"""A bundle is cut into messages and put together again; what is no chunk is refused."""

import pytest

from schemas.chunks import COUNT_MAX, Chunk, parse_chunk, split_bundle
from schemas.errors import FrameFault
from schemas.limits import CHUNK_BYTES

DIGEST = "ab" * 32


def test_a_bundle_is_cut_and_its_chunks_say_what_they_are() -> None:
    packed = bytes(range(256)) * (CHUNK_BYTES // 256) + b"rest"
    chunks = split_bundle(DIGEST, packed)
    assert [(c.digest, c.index, c.count) for c in chunks] == [(DIGEST, 0, 2), (DIGEST, 1, 2)]
    assert [c.key for c in chunks] == [f"{DIGEST}/0".encode(), f"{DIGEST}/1".encode()]
    assert [parse_chunk(c.encode()) for c in chunks] == chunks
    assert b"".join(c.data for c in chunks) == packed
    assert all(len(c.encode()) < 1_000_000 for c in chunks)


ONE = Chunk(digest=DIGEST, index=0, count=1, data=b"x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "form"),
        (ONE.encode()[:-1], "form"),
        (b"WLB2" + ONE.encode()[4:], "form"),
        (Chunk(digest=DIGEST, index=1, count=1, data=b"x").encode(), "form"),
        (Chunk(digest=DIGEST, index=0, count=COUNT_MAX + 1, data=b"x").encode(), "form"),
        (Chunk(digest=DIGEST, index=0, count=1, data=bytes(CHUNK_BYTES + 1)).encode(), "limit"),
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FrameFault) as caught:
        parse_chunk(data)
    assert caught.value.reason == reason
