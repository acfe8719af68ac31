"""A Faust consumer that commits only what was delivered and acknowledged, and never steps over an offset nobody saw.

Faust's own lets one unacknowledged message at the head pass, books a jump of offsets as a compaction gap, and forgets at a
revoke what was acknowledged since its last commit: each loses frames. Here:

    delivered       each offset joins its partition's window; one that does not follow the last crashes the worker
    acknowledged    the head run of the window that is acknowledged may be committed, nothing behind a hole
    assigned        windows start anew at the committed offset (at the earliest one where nothing is committed)
    revoked, stop   first the pump drains: the running insert ends, then what it acknowledged is committed

It holds for topics without compaction and transactions, as the calls topic is.
"""

import asyncio
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import faust.transport.drivers.aiokafka as driver
from faust.types import TP

EMBEDDED_FETCH_WAIT_MS: Final = 20
"""The embedded broker answers an empty fetch only after the wait that it names, and no new message wakes it."""

LOST_MEMBERSHIP_EXIT: Final = 75


class OffsetGap(Exception):
    """An offset did not follow the one before it; a restart reads again from the commit."""


class StrictConsumer(driver.Consumer):  # type: ignore[misc]
    """See the module. `app.pump` is drained and opened at the right moments."""

    logger = logging.getLogger("faust.worker")  # else mode logs its every step under our name

    def __init__(self, transport: Any, callback: Any, *args: Any, **kwargs: Any) -> None:
        self._window: defaultdict[TP, deque[int]] = defaultdict(deque)
        self._last: dict[TP, int] = {}
        self._reader: asyncio.Task[Any] | None = None
        self._seeking = asyncio.Lock()

        async def deliver(message: Any) -> None:
            tp = message.tp
            last = self._last.get(tp, message.offset - 1)
            if message.offset <= last:
                return  # a fetch older than the last seek
            if message.offset != last + 1:
                await self.app.crash(OffsetGap(f"{tp.topic}/{tp.partition}: offset {message.offset} follows {last}"))
                return
            self._last[tp] = message.offset
            self._window[tp].append(message.offset)
            await callback(message)

        super().__init__(transport, deliver, *args, **kwargs)

    def _new_consumer_thread(self) -> "StrictThread":
        return StrictThread(self, loop=self.loop, beacon=self.beacon)

    def _forget(self, tps: Iterable[TP]) -> None:
        for tp in list(tps):
            for kept in (self._window, self._last, self._acked, self._acked_index):
                kept.pop(tp, None)

    async def _drain_messages(self, fetcher: Any) -> None:
        self._reader = asyncio.current_task()
        await super()._drain_messages(fetcher)

    async def perform_seek(self) -> None:
        """Delivery starts again at the commit, and so do the windows. Faust calls it from two places:

        after an assignment, before the flow goes on; and in the reader, when a fetch ended while the flow was stopped and was
        thrown away. That fetch may be of the new assignment already, and the seek that belongs to it over, so the reader
        seeks once more when the flow goes on: it is the one that delivers, so nothing is delivered meanwhile.
        """
        if asyncio.current_task() is self._reader:
            await self.wait(self.can_resume_flow)
            if self.should_stop:
                return
        async with self._seeking:
            await self._seek_all()

    async def _seek_all(self) -> None:
        first = await self.earliest_offsets(*self.assignment())
        await super().perform_seek()
        fresh = {tp: start for tp, start in first.items() if not self._committed_offset.get(tp)}
        # Faust leaves a partition without a commit where it is; what was fetched of it before would never come again
        await self.seek_wait(fresh)
        self._forget(set(self._window) | set(self._last))
        for tp, start in first.items():
            committed = self._committed_offset.get(tp) or 0
            if 0 < committed < start:
                self.log.error("%s/%d: offsets %d to %d are gone: the topic's retention was shorter than the lag; their hosts "
                               "send what is not stored again", tp.topic, tp.partition, committed, start - 1)  # fmt: skip
            self._last[tp] = max(committed, start) - 1

    async def seek(self, partition: TP, offset: int) -> None:
        """A seek starts the partition's window anew."""
        self._forget([partition])
        await super().seek(partition, offset)

    def _new_offset(self, tp: TP) -> int | None:
        window, done, last = self._window[tp], self._acked_index[tp], None
        while window and window[0] in done:
            last = window.popleft()
            done.discard(last)
        if last is None:
            return None
        self._acked[tp][:] = [offset for offset in self._acked[tp] if offset > last]
        return last + 1

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Drain, commit what that acknowledged, then let Faust (and so the next owner) go on."""
        await self.app.pump.drain()
        await self.commit()
        await super().on_partitions_revoked(revoked)
        self._forget(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Open the pump before the flow starts: an event that comes first must not meet a closed one and be dropped."""
        self.app.pump.open(assigned)
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_stop(self) -> None:
        """Drain, then commit (Faust does that)."""
        await self.app.pump.drain()
        await super().on_stop()

    def committed(self) -> Mapping[TP, int]:
        """What is committed of each assigned partition; 0 where nothing is."""
        return {tp: self._committed_offset.get(tp) or 0 for tp in self.assignment()}

    def behind(self) -> int:
        """Messages of our partitions that are not committed, as far as the last fetch knows."""
        total = 0
        for tp, at in self.committed().items():
            total += max(0, (self.highwater(tp) or 0) - at)
        return total


class StrictThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The thread with the real client: short fetches on the embedded broker, and an end when the group has forgotten us."""

    logger = logging.getLogger("faust.worker")  # else mode logs its every step under our name

    heartbeat_at: float = 0.0
    """When the coordinator last knew us (monotonic seconds); 0 before the first time."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        if self.app.embedded:
            consumer._fetch_max_wait_ms = EMBEDDED_FETCH_WAIT_MS  # Faust hard-codes 1500
        return consumer

    async def on_start(self) -> None:
        """Start the client and watch its heartbeats."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        plain = coordinator._do_heartbeat

        async def watched() -> bool:
            good = bool(await plain())
            if not coordinator.member_id and not self.app.should_stop:
                # the group has forgotten us: another process has our slot, or we were stopped for longer than the session.
                # aiokafka would join again without a word, and two live processes of one slot would fight for ever
                self.log.error("the group does not know this worker any more: it ends, to be started again")
                os._exit(LOST_MEMBERSHIP_EXIT)
            if good:
                self.heartbeat_at = time.monotonic()
            return good

        coordinator._do_heartbeat = watched
