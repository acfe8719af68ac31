"""The bundles of a host: put together from chunks in any order, verified before they have a name, and only a few kept."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from enforcers.core.gather import Gather
from enforcers.host.bundles import KEEP, Shelf, unpack
from schemas.bundle import Bundle, Rule
from schemas.chunks import Chunk, split_bundle
from schemas.errors import FrameFault
from schemas.limits import BUNDLE_BYTES_MAX, CHUNK_BYTES
from tests.support.control import packed

DIGEST = "ab" * 32
PACKED = os.urandom(2 * CHUNK_BYTES + 5)
WANTED = {"digest": DIGEST, "bytes": 10, "packed": len(PACKED), "chunks": 3}


def wire() -> list[bytes]:
    return [chunk.encode() for chunk in split_bundle(DIGEST, PACKED)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0, 0, 2), (2, 1, 0)])
def test_chunks_come_in_any_order_and_more_than_once(order: tuple[int, ...]) -> None:
    gather, chunks = Gather(WANTED), wire()
    other = Chunk(digest="cd" * 32, index=0, count=9, data=b"x").encode()
    for number in order[:-1]:
        assert [gather.add(data) for data in (chunks[number], other, None)] == [None] * 3
    assert gather.add(chunks[order[-1]]) == PACKED
    assert gather.add(chunks[0]) is None, "it begins again"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no chunk", "form"),
        (Chunk(digest=DIGEST, index=0, count=2, data=b"x").encode(), "form"),
        (Chunk(digest=DIGEST, index=2, count=3, data=b"longer than the five bytes that it should have").encode(), "form"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(data: bytes, reason: str) -> None:
    gather, chunks = Gather(WANTED), wire()
    gather.add(chunks[0])
    gather.add(chunks[1])
    with pytest.raises(FrameFault) as caught:
        gather.add(data)
    assert caught.value.reason == reason
    assert [gather.add(chunk) for chunk in chunks][-1] == PACKED, "and does not stop the bundle"


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"chunks": 0}, "form"), ({"packed": "9"}, "form"), ({"digest": None}, "form"),
     ({"bytes": BUNDLE_BYTES_MAX + 1}, "limit")],
)  # fmt: skip
def test_an_entry_that_describes_no_bundle_is_refused(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(FrameFault) as caught:
        Gather(WANTED | more)
    assert caught.value.reason == reason


def bundle(number: int) -> Bundle:
    return Bundle(rules=(Rule(id=f"p{number}", forbid=False),))


def small(made: Bundle) -> tuple[bytes, str, int]:
    said, chunks = packed(made)
    return chunks[0].data, str(said["digest"]), int(said["bytes"])


def test_a_bundle_is_unpacked_only_when_it_is_the_one_that_is_wanted() -> None:
    data, digest, size = small(bundle(1))
    assert unpack(data, digest, size) == bundle(1).encode()
    nonsense = b'{"form":"else"}'
    for wrong in (
        (b"no zstd", digest, size),
        (data, digest, size + 1),
        (data, digest, size - 1),
        (data, DIGEST, size),
        (packed_bytes(nonsense), hashlib.sha256(nonsense).hexdigest(), len(nonsense)),
    ):
        with pytest.raises(FrameFault) as caught:
            unpack(*wrong)
        assert caught.value.reason == "bundle"


def packed_bytes(data: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


def test_the_shelf_has_what_was_put_there_whole_and_keeps_only_the_last_few(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "bundle")
    digests = []
    for number in range(KEEP + 3):
        data, digest, size = small(bundle(number))
        assert not shelf.has(digest)
        shelf.put(data, digest, size)
        os.utime(shelf.path(digest), ns=(number, number))
        digests.append(digest)
    assert {path.stem for path in (tmp_path / "bundle").iterdir()} == set(digests[-KEEP:])
    assert shelf.has(digests[-1])
    shelf.path(digests[-1]).write_bytes(bundle(99).encode())
    assert not shelf.has(digests[-1])
    assert not shelf.path(digests[-1]).exists(), "what is not whole is not kept"
