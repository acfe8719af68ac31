"""A connection to an origin. It carries one call at a time; what the origin says without a call is not for anybody.

It is made by the dialer, kept by the pool, and lent to one flight after another, all of one agent.
"""

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from enforcers.core.http.framing import Framing
from enforcers.core.http.head import Answer
from enforcers.doors.egress.ends import BUFFER_BYTES, Held
from ext.wires import Wire

if TYPE_CHECKING:
    from enforcers.doors.egress.flight import Flight
    from enforcers.doors.egress.pool import Key, Pool


class Said(NamedTuple):
    """The head of an answer, and what it means for a request of the same method and version."""

    head: bytes
    asked: tuple[str, int]
    """The method and version: what else the meaning hangs on, where nobody asked to go over to another protocol."""
    answer: Answer
    framing: Framing
    onward: bytes
    """What the client gets where its connection stays."""


class Origin(Held):
    """One connection."""

    __slots__ = ("_pool", "address", "closed", "flight", "key", "last", "used")

    def __init__(self, pool: "Pool", key: "Key") -> None:
        super().__init__()
        self.key = key
        self.address = ""
        """`ADDRESS:PORT` that was dialled."""
        self.flight: Flight | None = None
        self.used = False
        """Whether it has carried a call already: then its origin may have closed it before it sees the next one."""
        self.closed = False
        self.last: Said | None = None
        """Its last answer: the next one has the same head, byte for byte, as long as its clock shows the same second."""
        self._pool = pool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open, and counted from here on."""
        self.transport = transport  # type: ignore[assignment]  # a Wire, which is one in all but name
        self.transport.set_write_buffer_limits(BUFFER_BYTES)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        """Part of an answer, if there is a call."""
        if self.flight is not None:
            self.flight.answered(data)
        else:
            self.close()  # an answer that nobody asked for would be taken for the next call's

    def eof_received(self) -> bool:
        """The origin sends no more: no call can be answered over it."""
        self.closed = True
        if self.flight is not None:
            self.flight.origin_ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, whoever did it."""
        self.closed = True
        if self.flight is not None:
            self.flight.origin_ended(exc)
        self._pool.gone(self)

    def pause_writing(self) -> None:
        """The origin takes less than it gets."""
        if self.flight is not None:
            self.flight.hold_client()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self.flight is not None:
            self.flight.release_client()

    def rest(self) -> bool:
        """Its call is over; whether it can carry another. What is still to be written would go before that one's head."""
        self.used = True
        if self.closed or self.transport.get_write_buffer_size():
            return False
        self.release()
        return True

    def close(self) -> None:
        """Be no more lent to anybody, and close without waiting for what is not written yet."""
        self.closed = True
        self.flight = None
        transport = getattr(self, "transport", None)
        if transport is not None:
            transport.abort()

    def hand_over(self) -> Wire:
        """Let the transport be somebody else's, who sets a protocol of its own: the pool does not count it any more."""
        self.closed = True
        self.flight = None
        self._pool.gone(self)
        return self.transport
