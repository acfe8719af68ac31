"""What a client's connection is before it means anything: when its time is up, whether it is read, how it is left."""

import asyncio
import contextlib
from functools import lru_cache
from typing import Final

from enforcers.doors.egress.ends import Held, reset
from schemas.vocabulary import UNIX, peer_address

FOREVER: Final = float("inf")

SKIP_BYTES: Final = 64 << 10
"""Of a refused request's body: so much is read to keep the connection. A longer one ends it."""

LINGER_S: Final = 2.0
LINGER_BYTES: Final = 4 << 20
"""How long, and for how many bytes, a connection that we end is still read: closed with bytes unread, the kernel would take our
last answer away from the client."""


_spelled = lru_cache(1024)(peer_address)


class Connection(Held):
    """One connection of a client."""

    __slots__ = ("_loop", "due", "peer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.due = FOREVER
        """When its time is up, as the event loop counts."""
        self.peer = ""
        """Where it came from: an IP address without its port, or UNIX; empty where it is gone before we could ask."""
        self._loop = loop

    def meet(self, transport: asyncio.BaseTransport) -> None:
        """It is there. Where it came from is asked once: that is a system call, and does not change."""
        self.transport = transport  # type: ignore[assignment]  # a Wire, which is one in all but name
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = _spelled(name[0])
        elif name is not None:  # a socket on disk: whoever connects to it has no name there, or one that says nothing
            self.peer = UNIX

    def wait_s(self, seconds: float) -> None:
        """Its time is up in so long, whatever it was before."""
        self.due = self._loop.time() + seconds

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
