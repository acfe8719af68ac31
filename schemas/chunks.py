"""A policy bundle on its way: packed (zstd), and cut into messages of the topic `bundles` that any Kafka takes.

    0 magic `WLB1`   4 the bundle's SHA-256 [32]   36 index u32   40 count u32   44 bytes of the packed bundle

The Kafka key is `DIGEST/INDEX`. A chunk proves nothing by itself: the bundle is what has the digest that a signed entry names.
"""

import struct
from dataclasses import dataclass
from typing import Final

from schemas.errors import FrameFault
from schemas.limits import BUNDLE_BYTES_MAX, CHUNK_BYTES

MAGIC: Final = b"WLB1"
_HEAD: Final = struct.Struct("<4s32sII")
COUNT_MAX: Final = BUNDLE_BYTES_MAX // CHUNK_BYTES + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One message."""

    digest: str
    """SHA-256 of the whole bundle, unpacked, 64 hex digits."""
    index: int
    count: int
    data: bytes

    @property
    def key(self) -> bytes:
        """The Kafka key."""
        return f"{self.digest}/{self.index}".encode()

    def encode(self) -> bytes:
        """The Kafka message."""
        return _HEAD.pack(MAGIC, bytes.fromhex(self.digest), self.index, self.count) + self.data


def count_chunks(packed: bytes) -> int:
    """How many chunks a packed bundle has."""
    return -(-len(packed) // CHUNK_BYTES)


def split_bundle(digest: str, packed: bytes) -> list[Chunk]:
    """Cut a packed bundle."""
    count = count_chunks(packed)
    parts = [packed[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] for index in range(count)]
    return [Chunk(digest=digest, index=index, count=count, data=part) for index, part in enumerate(parts)]


def parse_chunk(data: bytes) -> Chunk:
    """Read a message of the topic `bundles`. Raises FrameFault `form` or `limit`."""
    if len(data) > _HEAD.size + CHUNK_BYTES:
        raise FrameFault("limit", f"a chunk of a bundle has {len(data)} bytes, limit is {_HEAD.size + CHUNK_BYTES}")
    if len(data) <= _HEAD.size or data[: len(MAGIC)] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes are no chunk of a bundle")
    _, digest, index, count = _HEAD.unpack_from(data)
    if not index < count <= COUNT_MAX:
        raise FrameFault("form", f"a chunk of a bundle says that it is number {index} of {count}")
    return Chunk(digest=digest.hex(), index=index, count=count, data=data[_HEAD.size :])
