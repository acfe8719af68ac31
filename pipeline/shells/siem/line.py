"""One sink and everything that is its own: its feeder, its connection to the store, its thread, its cursor file.

Nothing is shared between two lines but the process, so none waits for another's sink. What each step leaves behind in a crash:

    look      nothing
    take      a batch that the sink has and the cursor does not say: it is sent again, with the same ids
    save      the cursor as it was before, or the new one; never half of either
"""

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, assert_never

from pipeline.core.ocsf import Dialect
from pipeline.core.siem.cursor import MARGIN_US, Cursor, decode
from pipeline.core.siem.feeder import Feeder, Look, Save, Send, Wait
from pipeline.shells.siem import metrics
from pipeline.shells.siem.reader import Reader
from pipeline.shells.siem.sinks import cursor_path, sink_of
from schemas.config import Config, Siem
from schemas.errors import OperatorFault, WardlineError
from schemas.home import Home
from schemas.process import private_dir, write_atomic

log = logging.getLogger(__name__)

SAY_AGAIN_S: Final = 300.0
"""How often the log says that a sink is still tried in vain."""


class Line:
    """Feeds one sink until it is stopped."""

    def __init__(self, home: Home, config: Config, table: Siem, product_version: str) -> None:
        """Raises OperatorFault for a cursor that is none, and for files of the sink that are not as they must be."""
        self.name = table.name
        self.kind = table.kind
        self._path = cursor_path(home, table.name)
        overlap_us = config.worker.insert_timeout_s * 10**6 + MARGIN_US
        try:
            cursor = decode(self._path.read_bytes(), overlap_us=overlap_us, where=str(self._path))
        except FileNotFoundError:
            cursor = Cursor(overlap_us=overlap_us)
        except OSError as fault:
            raise OperatorFault(f"{self._path}: cannot be read: {fault.strerror}") from fault
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"siem-{table.name}")
        self.sink = sink_of(home, config, table, self._thread)
        self._reader = Reader(home, config, table.events, Dialect(version=table.ocsf, product_version=product_version))
        self.feeder = Feeder(cursor=cursor, pack=self.sink.pack, retry_s=float(table.retry_s))
        self._stopping = asyncio.Event()
        self._begun = False
        self._said_s = 0.0

    async def run(self) -> None:
        """Feed until `stop`, then until nothing is new or something fails; returns only then, or by cancellation."""
        feeder = self.feeder
        while True:
            command = feeder.next(time.time())
            match command:
                case Wait(until_s):
                    if self._stopping.is_set():
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), max(0.0, until_s - time.time()))
                    continue
                case Look() | Send() | Save():
                    pass
                case _:
                    assert_never(command)
            before = feeder.figures.sent, feeder.figures.batches, feeder.figures.bytes
            try:
                await self._do(command)
            except WardlineError as fault:
                self._failed(str(fault))
            except OSError as fault:
                self._failed(f"{self._path}: cannot be written: {(fault.strerror or str(fault)).lower()}")
            self._count(*before)

    async def _do(self, command: Look | Send | Save) -> None:
        feeder = self.feeder
        match command:
            case Look():
                found = await self._in_thread(self._look)
                feeder.found(found, time.time())
            case Send(batch):
                words = await self.sink.take(batch)
                feeder.taken(time.time())
                log.debug("%s: %s", self.name, words)
            case Save(data):
                await self._in_thread(self._save, data)
                feeder.saved(time.time())
        if self._said_s:
            self._said_s = 0.0
            log.info("%s: %s goes on", self.name, self.sink.where)

    def _look(self) -> Any:
        if not self._begun:
            self._reader.begin(self.feeder.cursor)
            # a cursor from the first look on: what is new while the sink is away is not forgotten by a restart
            self._save(self.feeder.cursor.encode())
            self._begun = True
        return self._reader.look(self.feeder.cursor)

    def _save(self, data: bytes) -> None:
        private_dir(self._path.parent)
        write_atomic(self._path, data)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _failed(self, why: str) -> None:
        now_s = time.time()
        self.feeder.failed(why, now_s)
        metrics.RETRIES.labels(self.name).inc()
        if now_s - self._said_s > SAY_AGAIN_S:
            self._said_s = now_s
            log.warning("%s: %s; trying again, nothing is skipped", self.name, why)

    def _count(self, sent: int, batches: int, size: int) -> None:
        own = self.feeder.figures
        metrics.EVENTS.labels(self.name).inc(own.sent - sent)
        metrics.BATCHES.labels(self.name).inc(own.batches - batches)
        metrics.BYTES.labels(self.name).inc(own.bytes - size)

    def stop(self) -> None:
        """Send what is there, as long as the sink takes it, and end."""
        self._stopping.set()

    async def close(self) -> None:
        """Let go of the sink and of the store."""
        with contextlib.suppress(Exception):
            await self.sink.close()
        with contextlib.suppress(Exception):
            await self._in_thread(self._reader.close)
        self._thread.shutdown(wait=False)

    def say(self) -> dict[str, Any]:
        """As the run file and `wardline status` have it."""
        now_s, own = time.time(), self.feeder.figures
        lag_s = round(self.feeder.lag_s(now_s), 1)
        metrics.LAG.labels(self.name).set(lag_s)
        metrics.WAITING.labels(self.name).set(self.feeder.waiting)
        metrics.STUCK.labels(self.name).set(bool(own.waits_for))
        cut = sum(mark.cut for mark in self.feeder.cursor.marks.values())
        metrics.CUT.labels(self.name).set(cut)
        return {
            "name": self.name, "kind": self.kind, "where": self.sink.where, "sent": own.sent, "waiting": self.feeder.waiting,
            "lag_s": lag_s, "waits_for": own.waits_for, "last_error": own.last_error, "last_error_s": round(own.last_error_s),
            "window_cut": cut,
        }  # fmt: skip
