"""The chunks of one bundle, as they come: in any order, several times, with others between them, and perhaps forged.

Nothing here proves a bundle: whoever unpacks it compares its digest. A forged chunk in the place of a good one spoils one
attempt; the next begins with nothing.
"""

from collections.abc import Mapping

from schemas.chunks import COUNT_MAX, parse_chunk
from schemas.errors import FrameFault
from schemas.limits import BUNDLE_BYTES_MAX


class Gather:
    """What `policy/main` says of a bundle, and those of its chunks that are here."""

    def __init__(self, wanted: Mapping[str, object]) -> None:
        """Raises FrameFault `form` or `limit` for an entry that describes no bundle of ours."""
        said = [wanted.get(name) for name in ("bytes", "packed", "chunks")]
        numbers = [number for number in said if isinstance(number, int) and number > 0]
        digest = wanted.get("digest")
        if len(numbers) != len(said) or not isinstance(digest, str):
            raise FrameFault("form", "policy/main does not say how large its bundle is")
        self.digest = digest
        self.bytes, self.packed, self.count = numbers
        if self.bytes > BUNDLE_BYTES_MAX or self.count > COUNT_MAX:
            raise FrameFault("limit", f"a bundle has {self.bytes} bytes in {self.count} chunks, limit is {BUNDLE_BYTES_MAX}")
        self._parts: dict[int, bytes] = {}

    def add(self, data: bytes | None) -> bytes | None:
        """Take a message; returns the packed bundle when all of it is here, and begins again with nothing.

        Raises FrameFault for what is no chunk, and for one that says it is of this bundle and does not fit.
        """
        if data is None:
            return None
        chunk = parse_chunk(data)
        if chunk.digest != self.digest:
            return None
        if chunk.count != self.count:
            raise FrameFault("form", f"a chunk is one of {chunk.count}, the bundle has {self.count}")
        self._parts[chunk.index] = chunk.data
        if len(self._parts) < self.count:
            return None
        packed = b"".join(self._parts[index] for index in range(self.count))
        self._parts.clear()
        if len(packed) != self.packed:
            raise FrameFault("form", f"the chunks of a bundle have {len(packed)} bytes, {self.packed} are wanted")
        return packed
