"""Connections to origins, kept for the next call of the same agent to the same host and port, and never for another agent's.

    take    an idle one, the one used last first: its origin is the least likely to have closed it
    wait    none is idle: connect while the agent has fewer than `upstreams_per_agent_host` there, else wait for one, in turn
    give    it can carry another call: the one that has waited longest gets it, else it is kept for `upstream_idle_ms`
    gone    it is closed, by whomever, or has become a tunnel's

Of all idle ones the least recently used makes room beyond `upstreams`. A call that waits is asked with every change of the
board like any other that is open (`Door.open`), and leaves through `leave`.
"""

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, TypeAlias

from enforcers.doors.egress.dial import Refused
from enforcers.doors.egress.origin import Origin
from enforcers.doors.egress.resolve import Unreachable

if TYPE_CHECKING:
    from enforcers.doors.egress.door import Door
    from enforcers.doors.egress.flight import Flight

Key: TypeAlias = tuple[str, str, int]
"""Agent, host, port."""

WAITING_FACTOR: Final = 16
"""Calls that may wait for one of an agent's connections to one origin, for each of these; more are refused at once."""


class _Place:
    """What one agent has at one origin."""

    __slots__ = ("connections", "dials", "idle", "waiting")

    def __init__(self) -> None:
        self.connections = 0
        """Open ones, idle or not."""
        self.dials = 0
        """Those that are being made; for a moment at the end of that they count twice."""
        self.idle: list[Origin] = []
        self.waiting: deque[Flight] = deque()


class Pool:
    """One door's."""

    def __init__(self, door: "Door") -> None:
        self._door = door
        self._places: dict[Key, _Place] = {}
        self._idle: OrderedDict[Origin, float] = OrderedDict()
        """Every idle one and until when it is kept, the least recently used first."""
        self._idle_s = door.config.upstream_idle_ms / 1000
        self._limit = door.config.upstreams_per_agent_host
        self._dials: dict[Flight, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return len(self._idle)

    @property
    def places(self) -> int:
        """Pairs of agent and origin that something is kept for."""
        return len(self._places)

    def take(self, key: Key) -> Origin | None:
        """An idle connection, which is the caller's then."""
        place = self._places.get(key)
        while place is not None and place.idle:
            origin = place.idle.pop()
            del self._idle[origin]
            if not origin.closed:  # its end may be known already, and `gone` is still to come
                return origin
        return None

    def wait(self, flight: "Flight") -> bool:
        """Have `flight.connected`, or one of its kin, called when there is a connection; False where too many wait."""
        place = self._places.get(flight.key)
        if place is None:
            place = self._places[flight.key] = _Place()
        if place.connections + place.dials < self._limit:
            self._dial(place, flight)
            return True
        self._door.figures.reached["upstreams_per_agent_host"] += 1
        if len(place.waiting) >= WAITING_FACTOR * self._limit:
            return False
        place.waiting.append(flight)
        return True

    def leave(self, flight: "Flight") -> None:
        """It does not wait any more: it is cut, or its client is gone."""
        dial = self._dials.pop(flight, None)
        if dial is not None:
            dial.cancel()
            return
        place = self._places.get(flight.key)
        if place is not None and flight in place.waiting:
            place.waiting.remove(flight)

    def give(self, origin: Origin) -> None:
        """A connection that has carried its call, or never began one, and can carry another."""
        place = self._places[origin.key]
        while place.waiting:
            if place.waiting.popleft().connected(origin):
                return
        if self._door.stopping:
            origin.close()
            return
        place.idle.append(origin)
        self._idle[origin] = self._loop.time() + self._idle_s
        if len(self._idle) > self._door.config.upstreams:
            self._door.figures.reached["upstreams"] += 1
            self._leave(next(iter(self._idle)))

    def made(self, origin: Origin) -> None:
        """A connection is open: `gone` follows, once."""
        self._places.setdefault(origin.key, _Place()).connections += 1

    def gone(self, origin: Origin) -> None:
        """It is open no more."""
        place = self._places[origin.key]
        place.connections -= 1
        if self._idle.pop(origin, None) is not None:
            place.idle.remove(origin)
        self._next(place, origin.key)

    def tick(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle:
            origin, until = next(iter(self._idle.items()))
            if until > now:
                return
            self._leave(origin)

    def _leave(self, origin: Origin) -> None:
        """Close an idle one. It is idle no more from here on: `gone` comes only in a later turn of the loop."""
        del self._idle[origin]
        self._places[origin.key].idle.remove(origin)
        origin.close()

    def close(self) -> None:
        """Close what is idle."""
        for origin in list(self._idle):
            origin.close()

    # -- connecting --------------------------------------------------------------------------------------------------

    def _dial(self, place: _Place, flight: "Flight") -> None:
        place.dials += 1
        self._dials[flight] = self._loop.create_task(self._dialled(place, flight))

    async def _dialled(self, place: _Place, flight: "Flight") -> None:
        """One connection, made for one call."""
        key, tried = flight.key, list[Origin]()

        def factory() -> Origin:
            tried.append(Origin(self, key))
            return tried[-1]

        try:
            _, origin, address = await self._door.dialer.dial(key[1], key[2], flight.where.literal, factory)
        except asyncio.CancelledError:
            for one in tried:
                one.close()
        except Refused as fault:
            if self._dials.pop(flight, None):
                flight.refused(fault.reason, str(fault))
        except Unreachable as fault:
            if self._dials.pop(flight, None):
                flight.unreachable(fault.code, str(fault), fault.limit)
        else:
            origin.address = address
            if not self._dials.pop(flight, None):
                origin.close()
            elif origin.closed:
                flight.unreachable("connect", f"{address}: closed at once")
            elif not flight.connected(origin):
                self.give(origin)
        finally:
            self._dials.pop(flight, None)
            place.dials -= 1
            self._next(place, key)

    def _next(self, place: _Place, key: Key) -> None:
        """Where one connection is fewer, the call that has waited longest may make one of its own."""
        while place.waiting and place.connections + place.dials < self._limit:
            self._dial(place, place.waiting.popleft())
        if not place.connections and not place.dials and self._places.get(key) is place:
            del self._places[key]
