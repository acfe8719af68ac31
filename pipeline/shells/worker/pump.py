"""Moves frames from Kafka to the store: judge, batch, insert, acknowledge, say.

    event of another assignment       dropped, not acknowledged: whoever has the partition now reads it
    first event of a partition        take it over: fence, then read what is stored
    of a host that nobody knows       waits until all that control has said is known, then judged again
    judged                            joins the batch in offset order, duplicates and dead letters too
    batch is due                      dead letters -> records and frame rows -> the tap says it -> acknowledge -> frontiers
    stored by whoever was before us   read again once: the tap says what is in it, since he may have died before that
    the store is away                 the same insert again, for as long as it takes
    the store refuses                 again for `insert_timeout_s`, then this worker ends with 1
    fenced                            this worker ends with 75

One batch is inserted while the next one fills, and while the tap says what is in the one before. Nothing is acknowledged before
its rows are stored and said, so a crash anywhere here costs a second reading and nothing else.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pyarrow as pa
from faust.types import TP

from pipeline.core.batch import Batch
from pipeline.core.intake import Dead, Duplicate, Judged, PutOff, judge
from pipeline.core.ledger import Ledger
from pipeline.core.rows import FrameRow, Room, insert_table, insert_token
from pipeline.shells.worker import metrics
from pipeline.shells.worker.entries import Entries, Entry
from pipeline.shells.worker.notes import Notes
from pipeline.shells.worker.patience import Given, Patience
from pipeline.shells.worker.ports import Keys, Looks, Reading, Store, Voice
from pipeline.shells.worker.sink import Fenced
from schemas.config import Config
from schemas.errors import OperatorFault, WardlineError

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S: Final = 0.5
LANES_SAID_MAX: Final = 1000
"""Lanes whose frontier is said once after a take-over, those of the newest hosts. Others are said when a frame comes."""

AGAIN_EXIT: Final = 75
CRASH_EXIT: Final = 1
OPERATOR_EXIT: Final = 2


class Pump:
    """Everything between Faust and the store. All methods run on the event loop."""

    def __init__(
        self,
        config: Config,
        *,
        store: Store,
        voice: Voice,
        keys: Keys,
        generation: Callable[[], int],
        slot: str,
        tap: Looks | None = None,
    ) -> None:
        self._config = config.worker
        self._tap = tap
        self._store = store
        self._voice = voice
        self._keys = keys
        self._generation = generation
        self._slot = slot
        self._ledger = Ledger()
        self._batch: Batch[Entry] = Batch(records_max=self._config.batch_records, quiet_ns=self._config.quiet_ms * 1_000_000)
        self._epochs: dict[int, int] = {}
        self._next: dict[TP, int] = {}
        self._assigned: set[TP] = set()
        self._turn = asyncio.Lock()
        self._open = asyncio.Event()
        self._filled = asyncio.Event()
        self._flight: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._untold = False
        """Whether a batch was given up that is stored and not said: what comes behind it is not acknowledged either."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._room = Room()
        self._notes = Notes(store, slot, self._in_thread)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._patience = Patience(self._in_thread, refused_s=self._config.insert_timeout_s)
        self.figures = metrics.Figures()
        self._entries = Entries(self._ledger, voice, self.figures, tells=tap is not None)

    # -- what Faust calls --------------------------------------------------------------------------------------------

    @property
    def progress_at(self) -> float:
        """When something was last finished, or somebody else was seen to be what stands still (monotonic seconds)."""
        return max(self._patience.progress_at, self._tap.progress_at if self._tap is not None else 0.0)

    @property
    def waits_for(self) -> str:
        """Why the store is tried again, or no frame judged; empty when neither is so."""
        return self._patience.waits_for or (self._tap.waits_for if self._tap is not None else "")

    @property
    def is_open(self) -> bool:
        """Whether partitions are assigned (perhaps none)."""
        return self._open.is_set()

    @property
    def assigned(self) -> set[int]:
        """The partitions that are ours."""
        return {tp.partition for tp in self._assigned} if self._open.is_set() else set()

    def open(self, assigned: set[TP]) -> None:
        """Take events of these partitions from now on."""
        self._assigned = set(assigned)
        self._patience.progress_at = time.monotonic()
        self._open.set()

    async def take(self, event: Any) -> None:
        """Judge one event and put it into the batch; waits while the batch is full and the one before is being inserted."""
        while not self._ended.done():
            # events may come before the assignment is known here; dropping one would leave a hole in its partition for ever
            await self._open.wait()
            await self._keys_ready()
            async with self._turn:
                if not self._open.is_set():
                    continue
                await self._guarded(self._take(event))
                return
        await asyncio.Event().wait()

    async def drain(self) -> None:
        """Let the running insert end, forget what is not stored, and close until the next assignment."""
        self._open.clear()
        self._patience.closing.set()
        if self._tap is not None:
            self._tap.close()
        async with self._turn:
            await self._landed()
            await self._told()
            self._untold = False
            self._batch.cut()
            self._ledger.clear()
            self._next.clear()
            self._epochs.clear()
            if self._tap is not None:
                await self._tap.clear()
        self._patience.closing.clear()

    async def finish(self) -> None:
        """Close, and store what has been taken in (`drain` would leave it to the next start)."""
        self._open.clear()
        async with self._turn:
            await self._landed()
            if len(self._batch) and not self._ended.done():
                self._start()
                await self._landed()
            await self._told()
            if self._tap is not None and not self._ended.done():
                await self._guarded(self._tap.finish())

    # -- what the process calls --------------------------------------------------------------------------------------

    async def clock(self) -> None:
        """Cut the batch when it has waited long enough, until this worker must end."""
        while not self._ended.done():  # a batch stays due then: going on would never give the loop back
            due = self._batch.due_ns()
            if due is None:
                self._filled.clear()
                await self._filled.wait()
                continue
            wait_s = (due - time.monotonic_ns()) / 1e9
            if wait_s > 0 and not self._batch.full:
                await asyncio.sleep(wait_s)
                continue
            await self._landed()
            await self._open.wait()
            async with self._turn:
                if self._may_start() and self._batch.due(time.monotonic_ns()):
                    self._start()

    async def ended(self) -> int:
        """Wait until this worker must end; returns the exit code."""
        return await asyncio.shield(self._ended)

    def busy(self) -> bool:
        """Whether something is stored and not acknowledged yet."""
        return self._flight is not None or (self._telling is not None and not self._telling.done())

    # -- inside ------------------------------------------------------------------------------------------------------

    def _end(self, code: int, why: str) -> None:
        if not self._ended.done():
            log.error("%s: this worker ends with %d", why, code)
            self._ended.set_result(code)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Whatever goes wrong ends this worker; an exception that reached Faust would acknowledge what it stands for."""
        try:
            await work
        except Given:
            pass
        except Fenced as fault:
            self._end(AGAIN_EXIT, str(fault))
        except OperatorFault as fault:
            self._end(OPERATOR_EXIT, str(fault))
        except WardlineError as fault:
            self._end(CRASH_EXIT, str(fault))
        except Exception:
            log.exception("a defect")
            self._end(CRASH_EXIT, "an error that nobody foresaw")

    async def _take(self, event: Any) -> None:
        message = event.message
        tp: TP = message.tp
        if message.generation_id != self._generation() or tp not in self._assigned:
            metrics.STALE.inc()
            return
        expected = self._next.get(tp, message.offset)
        if message.offset != expected:
            raise WardlineError(f"{tp.topic}/{tp.partition}: offset {message.offset} came where {expected} belongs")
        if not self._ledger.holds(tp.partition):
            await self._take_over(tp.partition)
        judged = judge(message.value, tp.partition, self._keys.key_of, self._ledger)
        if isinstance(judged, Dead) and judged.reason == "key":
            judged = await self._stranger(message.value, tp.partition)
        entry = self._entries.make(event, judged)
        rows, size = entry.rows, entry.size
        while not self._batch.takes(rows, size):
            await self._landed()
            if not self._may_start():
                raise Given
            self._start()
        self._next[tp] = message.offset + 1
        if entry.row is not None:
            head = entry.row.head
            self._ledger.begin(head.lane, head.frame_no, entry.row.digest, head.previous)
        self._batch.add(entry, rows, size, time.monotonic_ns())
        self._filled.set()
        if self._batch.full and self._may_start():
            self._start()

    async def _keys_ready(self) -> None:
        """Wait for the first registry, outside of `_turn`: a drain must not wait for control."""
        while self._keys.why:
            self._patience.stands(self._keys.why)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._keys.ready(), LOOK_S)
            if not self._keys.why:
                self._patience.waits_for = ""

    async def _stranger(self, data: bytes, partition: int) -> Judged:
        """Judge a frame whose host has no key here once more, when everything that control has said by now is known.

        Where that cannot be had, its host keeps the frame and sends it again.
        """
        sure = await self._keys.caught_up()
        judged = judge(data, partition, self._keys.key_of, self._ledger)
        if not isinstance(judged, Dead) or judged.reason != "key" or judged.head is None:
            return judged
        known = judge(data, partition, self._keys.former_of, self._ledger)
        if isinstance(known, Duplicate):
            return known  # stored before its host was removed, and read again: a restart must not bury it
        return judged if sure else PutOff(lane=judged.head.lane, frame_no=judged.head.frame_no)

    async def _take_over(self, partition: int) -> None:
        taken = await self._patience.persist(f"take-over of partition {partition}", self._store.take_over, partition)
        self._epochs[partition] = taken.epoch
        self._ledger.take(partition, taken.lanes, taken.dead)
        if self._tap is not None and taken.lanes:
            self._tap.begin(partition)
        newest = sorted(self._ledger.lanes(partition), key=lambda lane: lane.host_boot)[-LANES_SAID_MAX:]
        for lane in newest:
            if frontier := self._ledger.frontier(lane):
                self._voice.say(lane, frontier)
        log.info("partition %d is ours, epoch %d, with %d lanes", partition, taken.epoch, len(taken.lanes))

    def _may_start(self) -> bool:
        return self._flight is None and self._open.is_set() and not self._ended.done()

    async def _landed(self) -> None:
        """Wait until no insert runs."""
        if self._flight is not None:
            await asyncio.wait([self._flight])

    def _start(self) -> None:
        """Cut the batch and insert it in the background."""
        assert self._flight is None
        entries = self._batch.cut()
        owned = {row.head.lane.partition: self._epochs[row.head.lane.partition] for e in entries if (row := e.row) is not None}
        self._flight = asyncio.create_task(self._guarded(self._fly(entries, owned)))
        self._flight.add_done_callback(self._down)

    def _down(self, _: "asyncio.Task[None]") -> None:
        self._flight = None

    async def _fly(self, entries: Sequence[Entry], owned: Mapping[int, int]) -> None:
        letters = [entry.letter for entry in entries if entry.letter is not None]
        frames = [entry.row for entry in entries if entry.row is not None]
        if letters:
            # a crash behind this: they are kept, read again, and replace their own rows
            await self._patience.persist("dead letters", self._store.keep, letters)
        table, ingested_s = None, int(time.time())
        if frames:
            table = await self._in_thread(lambda: insert_table(frames, ingested_s))
        looking = self._look(table, frames, entries)
        try:
            if table is not None:
                await self._insert(table, frames, ingested_s, owned)
            if looking is None:
                await self._told()
                await self._acknowledge(entries, frames)
                return
            await self._told()  # the batch before: two wait at most, and are acknowledged in their order
            self._telling = asyncio.create_task(self._guarded(self._tell(looking, entries, frames)))
        except BaseException:
            if looking is not None:
                looking.cancel()
            raise

    async def _tell(self, looking: "asyncio.Task[Reading]", entries: Sequence[Entry], frames: Sequence[FrameRow]) -> None:
        """Have said what is in a stored batch, then acknowledge it.

        A crash before: its frames are read again, and said by whoever did not store them. One behind `tell`: they are said
        again, and whoever has heard it knows.
        """
        assert self._tap is not None
        if self._untold:
            raise Given
        self._untold = True
        await self._tap.tell(await looking)
        self._untold = False
        await self._acknowledge(entries, frames)

    async def _told(self) -> None:
        """Wait until the tap has said what it has to say of the last stored batch."""
        if self._telling is not None:
            await asyncio.wait([self._telling])

    async def _acknowledge(self, entries: Sequence[Entry], frames: Sequence[FrameRow]) -> None:
        if self._untold:
            raise Given
        for entry in entries:
            if entry.row is not None:
                self._stored(entry.row)
            entry.event.ack()
        self._count(entries, frames)
        await self._notes.write()

    def _look(
        self, table: pa.Table | None, frames: Sequence[FrameRow], entries: Sequence[Entry]
    ) -> "asyncio.Task[Reading] | None":
        """Look at a batch, while it is inserted."""
        again = [entry.again for entry in entries if entry.again is not None]
        if self._tap is None or not (again or any(row.batch is not None for row in frames)):
            return None
        looking = asyncio.create_task(self._tap.read(table, frames, again))
        looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # where the insert fails, nobody asks
        return looking

    async def _insert(self, table: pa.Table, frames: Sequence[FrameRow], ingested_s: int, owned: Mapping[int, int]) -> None:
        stream = await self._in_thread(lambda: self._room.write(table))
        began = time.monotonic()
        # a crash behind this: the rows are stored, the offsets are not; they are read again and known by lane and number
        await self._patience.persist("insert", self._store.insert, stream, insert_token(frames, ingested_s), owned)
        metrics.INSERTS.observe(time.monotonic() - began)
        self.figures.inserts += 1

    def _stored(self, row: FrameRow) -> None:
        lane, dead = row.head.lane, row.digest if row.batch is None else None
        if self._ledger.stored(lane, row.head.frame_no, dead=dead):
            frontier = self._ledger.frontier(lane)
            self._notes.moved(lane, frontier)
            self._voice.say(lane, frontier)

    def _count(self, entries: Sequence[Entry], frames: Sequence[FrameRow]) -> None:
        good = [row.batch.num_rows for row in frames if row.batch is not None]
        metrics.RECORDS.inc(sum(good))
        metrics.FRAMES.inc(len(good))
        self.figures.records += sum(good)
        self.figures.frames += len(good)
        for entry in entries:
            if entry.letter is not None:
                metrics.DEAD.labels(entry.reason).inc()
                self.figures.dead_letters += 1
                self._voice.wake(entry.letter["digest"].hex())
        self._patience.progress_at = time.monotonic()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
