"""The bytes of a request's body in an unnamed file, which the engine reads in place: nothing is left when we are killed."""

import os
import tempfile
from typing import Final

import pyarrow as pa

from pipeline.shells.store.refusal import CANNOT_DECOMPRESS, NO_ROOM, TOO_LARGE, Refusal

BODY_BYTES_MAX: Final = 1 << 30
"""Bytes of one request's body as sent, and again as unpacked. More is refused with 413."""

_CHUNK: Final = 1 << 20


class Memory:
    """A growing file without a name: in memory, or in TMPDIR where the kernel has no memory files."""

    def __init__(self, limit: int = BODY_BYTES_MAX) -> None:
        """Take at most `limit` bytes."""
        self._limit = limit
        try:
            self._handle = os.memfd_create("wardline-store", os.MFD_CLOEXEC)
        except OSError:
            with tempfile.TemporaryFile() as file:
                self._handle = os.dup(file.fileno())
        self.size = 0

    @classmethod
    def nothing(cls) -> "Memory":
        """One that is closed already."""
        made = cls.__new__(cls)
        made._handle, made._limit, made.size = -1, 0, 0
        return made

    def handed_over(self) -> "Memory":
        """The same file, under the same path, in new hands: closing this one does nothing any more."""
        made = Memory.nothing()
        made._handle, made._limit, made.size = self._handle, self._limit, self.size
        self._handle = -1
        return made

    @property
    def path(self) -> str:
        """The name under which this process can open it."""
        return f"/proc/self/fd/{self._handle}"

    def add(self, data: bytes) -> None:
        """Append. Raises Refusal at the limit, or when there is no room."""
        if self.size + len(data) > self._limit:
            raise Refusal(TOO_LARGE, f"the body has more than {self._limit} bytes")
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as fault:
            raise Refusal(NO_ROOM, f"there is no room for the body: {fault.strerror}") from None
        self.size += len(data)

    def head(self, size: int) -> bytes:
        """At most `size` bytes from its beginning."""
        return os.pread(self._handle, size, 0)

    def unpacked(self, codec: str) -> "Memory":
        """A new one with the unpacked content; this one is closed. Raises Refusal."""
        made = Memory(self._limit)
        try:
            with pa.OSFile(self.path) as packed, pa.CompressedInputStream(packed, codec) as stream:
                while chunk := stream.read(_CHUNK):
                    made.add(chunk)
        except (OSError, pa.ArrowException):
            made.close()
            raise Refusal(CANNOT_DECOMPRESS, "the body is not what its Content-Encoding says") from None
        except Refusal:
            made.close()
            raise
        self.close()
        return made

    def without(self, start: int, early: bytes = b"") -> "Memory":
        """A new one with `early` and then the bytes from `start`; this one is closed. Raises Refusal."""
        if start == 0 and not early:
            return self
        made = Memory(self._limit + len(early))
        try:
            made.add(early)
            while start < self.size:
                start += os.sendfile(made._handle, self._handle, start, self.size - start)
        except OSError as fault:
            made.close()
            raise Refusal(NO_ROOM, f"there is no room for the body: {fault.strerror}") from None
        made.size = os.fstat(made._handle).st_size
        self.close()
        return made

    def close(self) -> None:
        """Forget the bytes; may be called again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
