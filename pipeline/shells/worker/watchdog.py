"""Ends a worker that lives but does not move, and one whose embedded broker is another one.

A thread of its own, because what it watches may be what stands still. It ends the process at once (exit 75): nothing that is
not stored was acknowledged, so the next start loses nothing.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

AGAIN_EXIT: Final = 75
"""`EX_TEMPFAIL`: start me again."""

TICK_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What a worker shows of itself at a moment. Times are monotonic seconds; 0 means "not yet"."""

    beat_at: float
    """When the event loop last ran."""
    progress_at: float
    """When something was last acknowledged, or the store last answered, be it by refusing a connection."""
    heartbeat_at: float
    """When the group's coordinator last knew this worker."""
    behind: int
    """Messages that wait to be committed."""


def verdict(signs: Signs, now: float, limit_s: float) -> str:
    """Why the worker must end; empty while it may live."""
    if signs.beat_at and now - signs.beat_at > limit_s:
        return f"the event loop has not run for {now - signs.beat_at:.0f} s"
    if signs.heartbeat_at and now - signs.heartbeat_at > limit_s:
        return f"the broker has not answered a heartbeat for {now - signs.heartbeat_at:.0f} s"
    if signs.behind and now - signs.progress_at > limit_s:
        return f"{signs.behind} messages wait and nothing was finished for {now - signs.progress_at:.0f} s"
    return ""


class Watchdog:
    """Looks every TICK_S until the process ends."""

    def __init__(self, *, limit_s: float, signs: Callable[[], Signs], broker: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._signs = signs
        self._broker = broker
        self._known = broker()
        self._looked = time.monotonic()

    def start(self) -> None:
        """Watch in a daemon thread."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(TICK_S)
            if why := self.look(time.monotonic()):
                log.error("%s: this worker ends, to be started again", why)
                os._exit(AGAIN_EXIT)

    def look(self, now: float) -> str:
        """Why the process must end now; empty while it may live."""
        late, self._looked = now - self._looked > self._limit_s / 2, now
        found = self._broker()
        if found is not None and found != self._known:
            return "the embedded broker is a new one"
        # after a pause of this very thread (a stopped process) every clock is old: the others get a turn first
        return "" if late else verdict(self._signs(), now, self._limit_s)
