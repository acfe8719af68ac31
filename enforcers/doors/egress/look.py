"""The door's clock: it looks at the board every LOOK_S, and at whoever has waited too long every tick.

    look   the board -> policies followed and acknowledged -> where it has changed, everything open is asked again; effects that
           found no room
    tick   every client whose time is up, idle connections to origins, counts that are due

One timer for all instead of one for each: a call that is answered in time costs a store, not a timer.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from enforcers.doors.obeyed import LOOK_S
from schemas.errors import PeerFault
from schemas.records import Standing

if TYPE_CHECKING:
    from enforcers.doors.egress.door import Door

log = logging.getLogger(__name__)

TICK_S_MAX: Final = 0.25
TICK_S_MIN: Final = 0.01
"""How often times are looked at: a tenth of the shortest limit, within these."""

RETRY_S: Final = 0.02
"""How often a spool that has no room is tried again."""


WALK_S: Final = 1.0
"""How often what is open says how far it is, and is asked whether its token still holds."""


class Clock:
    """One door's timers."""

    def __init__(self, door: "Door", fail: Callable[[], None]) -> None:
        """`fail` is called when the door cannot look at its board any more."""
        self._door = door
        self._fail = fail
        its = door.config
        shortest = min(its.header_ms, its.body_ms, its.answer_ms, its.idle_ms, its.upstream_idle_ms, its.dial_ms)
        self.tick_s = min(TICK_S_MAX, max(TICK_S_MIN, shortest / 10_000))
        self._loop = asyncio.get_running_loop()
        self._board: tuple[int, Standing] | None = None
        self._stale_since = 0.0
        """When the board was seen to be stale, as the loop counts; 0 while it is fresh."""
        self._asked_stale = False
        self._walk_at = 0.0
        self._retry_at = 0.0
        self._timers: list[asyncio.TimerHandle] = []

    def start(self) -> None:
        """Look from now on."""
        self._timers = [self._loop.call_later(0, self._look), self._loop.call_later(0, self._tick)]

    def stop(self) -> None:
        """Look no more."""
        for timer in self._timers:
            timer.cancel()

    # -- the board ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._timers[0] = self._loop.call_later(LOOK_S, self._look)
        if self._door.desk.waiting:
            self._retry()
        try:
            self.look()
        except Exception:  # a door that does not look must not serve
            log.exception("the door cannot look at its board: it ends")
            self._door.fail()
            self._fail()

    def look(self) -> None:
        """Read the board; ask everything that is open where it has changed."""
        door = self._door
        obeyed = door.obeyed
        standing = obeyed.look()
        seen = (obeyed.board.turn, standing)
        if seen != self._board:
            door.ask_all(stale_too=False)
        if standing is not Standing.STALE:
            self._stale_since = 0.0
            self._asked_stale = False
        else:
            now = self._loop.time()
            if not self._stale_since:
                self._stale_since = now
            if not self._asked_stale and now - self._stale_since >= door.config.stale_tunnel_ms / 1000:
                self._asked_stale = True
                door.ask_all(stale_too=True)
        self._board = seen

    # -- time --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timers[1] = self._loop.call_later(self.tick_s, self._tick)
        door, now = self._door, self._loop.time()
        for client in [client for client in door.clients if client.due <= now]:
            client.late()
        door.pool.tick(now)
        door.write_counts()
        if now >= self._walk_at:
            self._walk_at = now + WALK_S
            door.walk()

    def _retry(self) -> None:
        now = self._loop.time()
        if now < self._retry_at:
            return
        self._retry_at = now + RETRY_S
        try:
            self._door.desk.retry()
        except PeerFault:
            log.exception("an effect cannot be written yet")
