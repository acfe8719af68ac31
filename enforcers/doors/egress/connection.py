"""What a client's connection is before it means anything: when its time is up, whether it is read, how it is left."""

import asyncio
import contextlib
from typing import Final

from enforcers.doors.egress.ends import reset

FOREVER: Final = float("inf")


class Connection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = ("_held", "_loop", "due", "transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.due = FOREVER
        """When its time is up, as the event loop counts."""
        self.transport: asyncio.Transport
        self._loop = loop
        self._held = False
        """Whether it is not read for now."""

    def wait_s(self, seconds: float) -> None:
        """Its time is up in so long, whatever it was before."""
        self.due = self._loop.time() + seconds

    def hold(self) -> None:
        """Read no more for now."""
        if not self._held:
            self._held = True
            with contextlib.suppress(RuntimeError):  # it is closing
                self.transport.pause_reading()

    def release(self) -> None:
        """Read on."""
        if self._held:
            self._held = False
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Some of an answer."""
        self.transport.write(data)

    def end_writing(self) -> None:
        """Say that nothing more is answered, and read what still comes."""
        with contextlib.suppress(RuntimeError, OSError):  # it is closing
            self.transport.write_eof()
        self.release()

    def break_off(self) -> None:
        """End it so that the client sees no end but a break."""
        reset(self.transport)
