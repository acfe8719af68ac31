"""Connections as the loop sees them: how one is paused and left, and the two ends of a tunnel. What it means, others know."""

import asyncio
import contextlib
from typing import Any, Final, Protocol

from ext.wires import Wire

BUFFER_BYTES: Final = 64 << 10
"""What may wait to be written in one direction before its sender is paused, beside the one read that goes over it."""


class Held(asyncio.Protocol):
    """A connection that is not read while whoever gets what it sends is slow."""

    __slots__ = ("_held", "transport")

    def __init__(self) -> None:
        self.transport: Wire
        self._held = False
        """Whether it is not read for now."""

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


class Joins(Protocol):
    """What an end tells its tunnel."""

    def ended(self, side: "Side") -> None:
        """This end sends no more."""

    def lost(self, side: "Side", exc: Exception | None) -> None:
        """The connection of this end is gone."""

    def heard(self) -> None:
        """The client has sent something, or its end."""

    def left(self) -> None:
        """The client is gone while the origin is not there."""


class Side(asyncio.Protocol):
    """One end of an open tunnel: what it sends goes to the other end."""

    __slots__ = ("_early", "_tunnel", "ended", "gone", "moved", "name", "other", "transport", "write")

    def __init__(self, tunnel: Joins, name: str) -> None:
        self.name = name
        self.moved = 0
        """Bytes that came from this end."""
        self.ended = False
        """Whether it has said that it sends no more."""
        self.gone = False
        self.transport: Wire
        self.other: Side | None = None
        """The other end, from `join` to `part`."""
        self._tunnel = tunnel
        self._early: list[bytes] | None = []
        self.write: Any = self._early.append  # an origin may speak before it is joined: at most one turn of the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The origin is there."""
        self.transport = transport  # type: ignore[assignment]

    def join(self, other: "Side", first: bytes) -> None:
        """What this end sends goes to `other` from now on; `first` and what it said already goes before."""
        early, self._early = self._early, None
        self.other = other
        self.write = other.transport.write
        self.transport.set_write_buffer_limits(BUFFER_BYTES)
        if said := first + b"".join(early or ()):
            self.write(said)

    def part(self) -> None:
        """The tunnel is over: what this end still sends is for nobody. Neither end holds the other any more, so that both are
        freed at once: garbage that waits to be found keeps the memory from being used again while it is in the cache."""
        self.other, self.write = None, drop

    def data_received(self, data: bytes) -> None:
        """On to the other end: nothing else is done with a piece."""
        self.moved += len(data)
        self.write(data)

    def eof_received(self) -> bool:
        """This end sends no more, and may still be sent to."""
        self.ended = True
        if self._early is None:
            self._tunnel.ended(self)
        return True

    def pause_writing(self) -> None:
        """This end reads slowly: the other may not send for a while."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, cleanly or not."""
        self.gone = True
        self._tunnel.lost(self, exc)


class Waiting(asyncio.Protocol):
    """The client's end until the origin is there: what it sends is kept."""

    __slots__ = ("_tunnel", "data", "ended")

    def __init__(self, tunnel: Joins, early: bytes) -> None:
        self.data = bytearray(early)
        self.ended = False
        self._tunnel = tunnel

    def data_received(self, data: bytes) -> None:
        """Keep it, and have the tunnel look at it."""
        self.data += data
        self._tunnel.heard()

    def eof_received(self) -> bool:
        """The client sends no more, and may still be sent to."""
        self.ended = True
        self._tunnel.heard()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._tunnel.left()


def reset(transport: Wire) -> None:
    """Close without sending what waits, here or in the kernel, so that the peer sees a break and no end."""
    transport.reset()


def close(transport: Wire) -> None:
    """Close behind what waits."""
    transport.close()


def drop(_: bytes) -> None:
    """What is sent to nobody."""


def unsent(transport: Wire) -> int:
    """Bytes that wait here or in the kernel until the peer's kernel has them; its end counts as one."""
    return transport.unsent()
