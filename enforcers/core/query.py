"""What is kept of a query string: how long it is, how much it can have carried out, and a hash that only this home can make.

The query itself is in no record. Its information is bounded from above by two measures and the lower one counts: what a
compressor (raw deflate, level 6, RFC 1951) makes of it, and its order-0 entropy (Shannon, 1948: bytes drawn one by one from the
frequencies that it has). The first sees what repeats, the second what uses few characters, such as hex digits. Both are
measures of the text alone: a short code that both sides have agreed on carries more than its bits.
"""

import hashlib
import math
import zlib
from collections import Counter
from typing import Final

KEY_BYTES: Final = 32
"""Of the key that the hashes are keyed with."""


def measure(query: bytes, key: bytes) -> tuple[int, int, int]:
    """(bytes, bits, hash) of a query string, without its `?`; all 0 where there is none.

    Equal queries have equal hashes in one home: 64 bits of BLAKE2b (RFC 7693), keyed, so that nobody without the key finds a
    query by trying.
    """
    if not query:
        return 0, 0, 0
    digest = hashlib.blake2b(query, digest_size=8, key=key).digest()
    return len(query), information_bits(query), int.from_bytes(digest, "big")


def information_bits(data: bytes) -> int:
    """The lower of both measures, rounded up to whole bits."""
    size = len(data)
    entropy = -sum(n * math.log2(n / size) for n in Counter(data).values())
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = len(packer.compress(data)) + len(packer.flush())
    return min(math.ceil(entropy), 8 * packed)
