"""Work of the store that is tried until it succeeds: how long each error is waited for, and what is said meanwhile.

    the store is away         again, for as long as it takes
    the store refuses         again, for `insert_timeout_s`
    fenced, a wrong setting   at once to whoever asked: another try would not change it
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pipeline.shells.worker import metrics
from pipeline.shells.worker.sink import StoreAway, StoreRefuses
from schemas.errors import WardlineError

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S: Final = 0.2
RETRY_MAX_S: Final = 1.0


class Given(Exception):
    """A try was given up because the partitions are being taken away."""


class Patience:
    """One thing at a time. `run` does blocking work in the store's thread."""

    def __init__(self, run: Callable[[Callable[[], Any]], Awaitable[Any]], *, refused_s: float) -> None:
        self._run = run
        self._refused_s = refused_s
        self.closing = asyncio.Event()
        """Set while a drain wants the thread: what is tried in vain is given up."""
        self.progress_at = time.monotonic()
        self.waits_for = ""
        """Why something is tried again; empty when nothing is."""

    async def persist(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do `work` until it succeeds.

        Raises Given when a drain wants the thread, StoreRefuses in the end, and at once whatever another try would not change.
        """
        refused_since: float | None = None
        wait_s = RETRY_S
        while True:
            try:
                done: T = await self._run(lambda: work(*arguments))
            except (StoreAway, StoreRefuses) as fault:
                now = time.monotonic()
                if isinstance(fault, StoreRefuses):
                    refused_since = now if refused_since is None else refused_since
                    if now - refused_since > self._refused_s:
                        raise
                else:
                    refused_since = None
                self._tried_in_vain(what, fault)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), wait_s)
                if self.closing.is_set():
                    raise Given from fault
                wait_s = min(2 * wait_s, RETRY_MAX_S)
            else:
                self.waits_for = ""
                self.progress_at = time.monotonic()
                return done

    def stands(self, why: str) -> None:
        """Somebody else is what stands still, not this worker."""
        self.progress_at = time.monotonic()
        self.waits_for = why

    def _tried_in_vain(self, what: str, fault: WardlineError) -> None:
        metrics.RETRIES.inc()
        if not self.waits_for:
            log.warning("%s: %s; trying again", what, fault)
        self.stands(f"{what}: {fault}")
