"""How far lanes are stored, as rows: they matter when old days are dropped, and to people."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pipeline.shells.worker.ports import Store
from pipeline.shells.worker.sink import StoreAway, StoreRefuses
from schemas.frame import Lane

log = logging.getLogger(__name__)

NOTE_S: Final = 5.0
"""How often frontiers become rows."""


class Notes:
    """`run` does blocking work in the store's thread."""

    def __init__(self, store: Store, slot: str, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._store = store
        self._slot = slot
        self._run = run
        self._moved: dict[Lane, int] = {}
        self._noted_at = time.monotonic()

    def moved(self, lane: Lane, frame_no: int) -> None:
        """Everything of a lane up to a frame is stored."""
        self._moved[lane] = frame_no

    async def write(self) -> None:
        """Write what has moved, now and then. It may fail: the rows of the frames themselves say the same."""
        if not self._moved or time.monotonic() - self._noted_at < NOTE_S:
            return
        self._noted_at = time.monotonic()
        moved, self._moved = self._moved, {}
        rows = [
            {"partition": lane.partition, "enforcer": lane.host, "enforcer_boot": lane.host_boot, "frame_no": frame_no,
             "stored": time.time_ns() // 1000, "worker": self._slot}
            for lane, frame_no in moved.items()
        ]  # fmt: skip
        try:
            await self._run(lambda: self._store.note(rows))
        except (StoreAway, StoreRefuses) as fault:
            log.warning("frontier rows: %s", fault)
            self._moved = moved | self._moved
