"""Looks at each batch on its way into the store, and says what is in it: which calls belong together, and who did what where.

    a partition is new          what is stored of its traces and open calls is taken in again, before its first batch
    batch, while it is stored   stitched, and summed up by agent, credential and domain
    its rows are stored         findings on chains; then the aggregates go to `egress`, and only when the broker has them are
                                the batch's offsets acknowledged
    a frame that was stored     by whoever had the partition before: perhaps he died before he said what is in it, so its
    already is read again       aggregates go out again, made of the same records; whoever has taken them knows
    each second                 rows of traces and edges; traces that have been quiet settle

What is kept here is bounded and is nobody's evidence: it is made of stored records, and made again by whoever comes next.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from pipeline.core.detect.aggregate import Aggregates, Aggregator
from pipeline.core.parcel import finding_parcels, make_parcels
from pipeline.core.rows import FrameRow, insert_table
from pipeline.core.seen import Exactly, of_frames
from pipeline.core.stitch.stitcher import COLUMNS, Stitched, Stitcher
from pipeline.shells.worker import metrics
from pipeline.shells.worker.cases import Cases
from pipeline.shells.worker.desk import Desk
from pipeline.shells.worker.patience import Given
from pipeline.shells.worker.ports import Carries, Reading
from schemas.config import Config
from schemas.egress import SUBJECTS
from schemas.frame import Lane
from schemas.past import LOOKED_AT
from schemas.records import Kind

log = logging.getLogger(__name__)

RECENT_S: Final = 3_600
"""How far back the traces of a partition are taken in again."""

RECENT_RECORDS: Final = 200_000
"""Records that are taken in again after a take-over, at most: the newest."""

OPEN_S: Final = 86_400
"""How far back open calls are looked for. What an older one carries after a restart is seen when detectors are rebuilt."""

DAY_S: Final = 86_400

TORN_MAX: Final = 5_000
"""Traces that are read back at a time: records came of them after they had made room. The rest come with their next record."""

SETTLE_S: Final = 1.0
"""How often traces are written, and asked whether they have settled."""

UNWRITTEN_MAX: Final = 100_000
"""Rows of traces and edges that wait to be written. Reaching it: the batch waits for them."""


class TapStore(Protocol):
    """What is needed of `past`."""

    def recent(
        self, columns: Sequence[str], partitions: Sequence[int], since_s: int, most: int
    ) -> tuple[pa.Table, int]:
        """The newest records of some partitions."""

    def boots(self, since_s: int) -> list[int]:
        """The starts of doors that are known."""

    def traces(self, columns: Sequence[str], traces: Sequence[bytes], since_s: int) -> pa.Table:
        """The records of some traces."""

    def open_calls(self, partitions: Sequence[int], since_s: int, before_s: int) -> pa.Table:
        """What was recorded before of calls that have not ended."""

    def earlier(self, calls: Sequence[tuple[int, int]]) -> pa.Table:
        """What is stored of some calls."""


class Pen(Protocol):
    """What is needed of another `past`, to write beside the reading."""

    def keep_traces(self, traces: pa.Table, edges: pa.Table) -> None:
        """Store what is known of traces."""


class Tap:
    """One for all partitions of a worker. What takes time runs in a thread of its own, on a connection of its own; traces are
    written in another one, which no batch waits for."""

    def __init__(
        self, config: Config, *, store: TapStore, pen: Pen, cases: Callable[[Callable[..., Awaitable[Any]]], Cases],
        carrier: Carries, sign: Callable[[bytes], bytes], slot: str,
    ) -> None:  # fmt: skip
        self._partitions = config.kafka.partitions
        self._desk = Desk(store, "tap", refused_s=config.worker.insert_timeout_s)
        self._carrier = carrier
        self._sign = sign
        self._slot = slot
        self._aggregator = Aggregator()
        self._stitcher = Stitcher(key=secrets.randbits(64))
        self._fresh: set[int] = set()
        self._torn: set[bytes] = set()
        self._unwritten: list[Stitched] = []
        self._pen = Desk(pen, "pen", refused_s=config.worker.insert_timeout_s)
        self._writing = asyncio.Lock()
        self._looks_back_s = config.detect.lookback_days * DAY_S
        self._turn = asyncio.Lock()
        self._cases = cases(self._desk.persist)

    @property
    def waits_for(self) -> str:
        """Why something is tried again."""
        return self._desk.patience.waits_for or self._carrier.waits_for or self._pen.patience.waits_for

    @property
    def progress_at(self) -> float:
        """When something was last finished here, or somebody else was seen to be what stands still."""
        return self._desk.patience.progress_at

    # -- what the pump calls -----------------------------------------------------------------------------------------

    def begin(self, partition: int) -> None:
        """A partition is ours from now on, in which something is stored."""
        self._fresh.add(partition)

    def close(self) -> None:
        """What is tried in vain is given up: the partitions are being taken away."""
        self._desk.patience.closing.set()
        self._pen.patience.closing.set()

    async def clear(self) -> None:
        """Forget everything: the partitions are perhaps another's from now on."""
        async with self._turn, self._writing:
            self._fresh.clear()
            self._unwritten.clear()
            await self._desk.run(self._forget)
        self._desk.patience.closing.clear()
        self._pen.patience.closing.clear()

    async def read(self, table: pa.Table | None, frames: Sequence[FrameRow], again: Sequence[FrameRow]) -> Reading:
        """Look at a batch: `table` is what is inserted of its `frames`; `again` are frames that somebody stored before.

        Raises what the store raises, and Given when the partitions are taken away meanwhile.
        """
        async with self._turn:
            reading = Reading()
            if fresh := sorted(self._fresh):
                await self._take_over(fresh, frames, reading)
                self._fresh.difference_update(fresh)
            if again:
                await self._read_again(again, reading)
            if table is not None and any(row.batch is not None for row in frames):
                await self._desk.run(lambda: self._look(table, frames, reading))
            return reading

    async def tell(self, reading: Reading) -> None:
        """Say what is in a batch that is stored. Raises as `read`."""
        async with self._turn:
            await self._say(reading)
        if sum(one.traces.num_rows + one.edges.num_rows for one in self._unwritten) > UNWRITTEN_MAX:
            await self._write()

    async def finish(self) -> None:
        """Write what is known of traces."""
        await self._write()

    # -- what the process calls --------------------------------------------------------------------------------------

    async def clock(self) -> None:
        """Settle traces for ever; returns only by cancellation."""
        while True:
            await asyncio.sleep(SETTLE_S)
            async with self._turn:
                if self._desk.patience.closing.is_set():
                    continue
                with contextlib.suppress(Given):  # what was not stored is made again by whoever has the partitions next
                    await self._settle()
            with contextlib.suppress(Given):
                await self._write()

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        torn, self._torn = sorted(self._torn)[:TORN_MAX], set()
        since_s = int(time.time()) - self._looks_back_s
        rows = None
        if torn:
            rows = await self._desk.persist("traces", self._desk.store.traces, COLUMNS, torn, since_s)

        def work() -> list[Stitched]:
            said: list[Stitched] = []
            with self._spared("settled traces"):
                if rows is not None:
                    said.append(self._stitcher.rebuild(rows, _now_us(), torn))
                said.append(self._stitcher.settle(_now_us()))
            return said

        await self._say(Reading(stitched=await self._desk.run(work)))
        self._count()

    async def _say(self, reading: Reading) -> None:
        found = [finding for one in reading.stitched for finding in one.findings]
        self._torn.update(trace for one in reading.stitched for trace in one.wanted)
        # sums first: what they cross a threshold with does not wait for a row about a chain
        await self._send(lambda: self._sums(reading))
        # a crash behind this: they are stored; the traces are made again of their records, and say the same
        await self._cases.keep(found, part=True)
        if found:
            await self._send(lambda: finding_parcels(found, self._partitions, self._slot, self._sign))
        self._unwritten += [one for one in reading.stitched if one.traces.num_rows or one.edges.num_rows]

    def _forget(self) -> None:
        self._aggregator = Aggregator()
        self._stitcher.clear()
        self._torn.clear()

    def _look(self, table: pa.Table, frames: Sequence[FrameRow], reading: Reading) -> None:
        records = table.slice(0, table.num_rows - len(frames))  # behind them lie the rows of the frames themselves
        with self._spared("sums of a batch"):
            reading.sums.append(_summed(self._aggregator, records, frames))
        with self._spared("traces of a batch"):
            reading.stitched.append(self._stitcher.take(records, "", _now_us()))

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """A defect here must not keep calls from being recorded: it is counted and said, and the batch goes on without that."""
        try:
            yield
        except Exception:
            metrics.DEFECTS.labels("tap").inc()
            log.exception("a defect: the %s are missing", what)

    async def _take_over(self, partitions: Sequence[int], frames: Sequence[FrameRow], reading: Reading) -> None:
        """Take in what is stored of partitions, but for the frames that are being stored just now: they come next."""
        coming: dict[Lane, list[int]] = {}
        for row in frames:
            coming.setdefault(row.head.lane, []).append(row.head.frame_no)
        now_s = int(time.time())
        columns = sorted({*LOOKED_AT, *COLUMNS})
        boots = await self._desk.persist("starts of doors", self._desk.store.boots, now_s - self._looks_back_s)
        rows, first_s = await self._desk.persist(
            "recent calls", self._desk.store.recent, columns, partitions, now_s - RECENT_S, RECENT_RECORDS
        )
        older = await self._desk.persist("open calls", self._desk.store.open_calls, partitions, now_s - OPEN_S, first_s)

        def take() -> None:
            stored = ~of_frames(rows, {lane: Exactly(numbers) for lane, numbers in coming.items()})
            before = rows.filter(pa.array(stored))
            with self._spared("open calls"):
                for table in (older, before):
                    if table.num_rows:
                        self._aggregator.rebuild(table)
            with self._spared("recent traces"):
                self._stitcher.know(boots)
                if before.num_rows:
                    reading.stitched.append(self._stitcher.rebuild(before, _now_us()))

        await self._desk.run(take)
        log.info("partitions %s: %d records and %d of open calls are taken in again", partitions, rows.num_rows, older.num_rows)

    async def _read_again(self, rows: Sequence[FrameRow], reading: Reading) -> None:
        """Sum up stored frames as they were summed up first: with what was known of their calls before, and not since."""
        table = await self._desk.run(lambda: insert_table(rows, 0))
        calls = await self._desk.run(lambda: _first_seqs(table))
        earlier = None
        if calls:
            earlier = await self._desk.persist("earlier records", self._desk.store.earlier, list(calls))

        def take() -> None:
            aggregator = Aggregator()
            with self._spared("sums of stored frames"):
                if earlier is not None:
                    aggregator.rebuild(earlier.filter(pa.array(_before(earlier, calls))))
                reading.sums.append(_summed(aggregator, table.slice(0, table.num_rows - len(rows)), rows))

        await self._desk.run(take)
        metrics.UNHEARD.inc(len(rows))

    async def _write(self) -> None:
        """Write rows of traces and edges. A batch does not wait for them: who comes after a crash makes them of its records."""
        async with self._writing:
            waiting, self._unwritten = self._unwritten, []
            if waiting:
                traces = pa.concat_tables([one.traces for one in waiting])
                edges = pa.concat_tables([one.edges for one in waiting])
                # a crash behind this: they are stored; the same rows again replace them
                await self._pen.persist("traces", self._pen.store.keep_traces, traces, edges)

    async def _send(self, make: Callable[[], list[tuple[int, bytes]]]) -> None:
        messages = await self._desk.run(make)
        if messages:
            await self._carrier.carry(messages, self._desk.patience.closing)

    def _sums(self, reading: Reading) -> list[tuple[int, bytes]]:
        messages: list[tuple[int, bytes]] = []
        for frames, sums in reading.sums:
            rows = {subject: sums.of(subject) for subject in SUBJECTS}
            messages += make_parcels(frames, rows, {}, self._partitions, self._slot, self._sign)
        return messages

    def _count(self) -> None:
        metrics.OPEN.set(self._aggregator.entries)
        metrics.OPEN_EVICTED.set(self._aggregator.evicted)
        metrics.TRACES.set(self._stitcher.traces)
        metrics.TRACES_EVICTED.set(self._stitcher.evicted)


def _now_us() -> int:
    return time.time_ns() // 1000


def _summed(
    aggregator: Aggregator, records: pa.Table, frames: Sequence[FrameRow]
) -> tuple[list[tuple[Lane, int]], Aggregates]:
    """The sums of frames whose records lie one behind the other; a dead letter has none."""
    given = [(row.batch, row.head.lane, row.head.frame_no) for row in frames if row.batch is not None]
    named = [(lane, frame_no) for _, lane, frame_no in given]
    return named, aggregator.take_all(given, records)


def _first_seqs(table: pa.Table) -> dict[tuple[int, int], int]:
    """Of each call whose decision is not among these records, the number of its first one that is."""
    kind, boot, call_seq, seq = (table.column(name).to_numpy() for name in ("kind", "boot", "call_seq", "seq"))
    first: dict[tuple[int, int], int] = {}
    decided = set(zip(*(column[kind == Kind.DECISION].tolist() for column in (boot, call_seq)), strict=True))
    ends = np.isin(kind, (Kind.PROGRESS, Kind.EFFECT, Kind.LOST))
    for one, two, number in zip(*(column[ends].tolist() for column in (boot, call_seq, seq)), strict=True):
        if (one, two) not in decided:
            first[one, two] = min(number, first.get((one, two), number))
    return first


def _before(table: pa.Table, first: dict[tuple[int, int], int]) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    calls = zip(*(table.column(name).to_pylist() for name in ("boot", "call_seq", "seq")), strict=True)
    return np.array([seq < first[boot, call_seq] for boot, call_seq, seq in calls], bool)
