"""The traces that are alive, and what is new of them after each batch.

    take     records of a batch -> rows of the traces they touch, findings; `wanted`: traces that were put away before
    settle   time -> the traces that have been quiet for `settle_s`: no more provisional
    rebuild  rows of the store -> as take; after a start, and for `wanted`

What is said of a trace depends on the set of its records, on the doors that are known and on whether it has settled: not on
the order of records, nor on how they were batched, nor on what was put away and read back. Its version counts its records, a
whole decision as two, and whether it has settled, so that a part never replaces more.

A trace of one call that nothing is missing of is complete from its start and has no row. A crash between a batch and its rows
costs nothing: the batch is read again, or its traces are rebuilt from the store, and the same rows come of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ext.traces import TraceBook
from pipeline.core.stitch.finding import chain_finding, offence
from pipeline.core.stitch.judge import judge, named_by_door
from pipeline.core.stitch.model import DECIDED, HAS_EFFECT, HAS_LOST, Calls, Flags, Grade, Ints, Judged, Words
from pipeline.core.stitch.rows import Facts, edge_table, said, trace_table
from pipeline.core.stitch.whos import Whos
from schemas.findings import Finding
from schemas.limits import (
    STITCH_CALLS_MAX,
    STITCH_GONE_MAX,
    STITCH_TEXT_BYTES_MAX,
    STITCH_TRACES_MAX,
    TRACE_CALLS_MAX,
    TRACE_SETTLE_S,
)
from schemas.records import Kind
from schemas.store import EDGE_SCHEMA, TRACE_SCHEMA

COLUMNS: Final = (
    "kind", "boot", "call_seq", "time", "duration_us", "verdict", "outcome", "mode", "trace_id", "parent_span", "tenant",
    "chain", "assurance", "enforcer",
)  # fmt: skip
"""What `rebuild` reads of the table `records`: rows of the kinds in KINDS. `take` is given the enforcer of a frame apart."""

KINDS: Final = (int(Kind.DECISION), int(Kind.EFFECT), int(Kind.LOST))

PIECE: Final = 65_536
"""Records that are taken at once, half the traces that are held at most."""

BOOTS_MAX: Final = 200_000
"""Starts of doors that are known, the newest; a parent of an older one that is not there counts as the agent's own span."""

_SETTLED: Final = 1
_TORN: Final = 2
"""The bits of a trace, as `ext.traces` sets them."""

_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchLimits:
    """How much is held; the defaults are those of `schemas.limits`."""

    traces_max: int = STITCH_TRACES_MAX
    calls_max: int = STITCH_CALLS_MAX
    per_trace_max: int = TRACE_CALLS_MAX
    gone_max: int = STITCH_GONE_MAX
    text_bytes_max: int = STITCH_TEXT_BYTES_MAX
    settle_s: float = TRACE_SETTLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """What is new: rows of TRACE_SCHEMA and EDGE_SCHEMA, findings, and trace ids (16 bytes) whose records are in the store and
    not here: give them to `rebuild` with all that the store has of them, and say nothing of them before."""

    traces: pa.Table = field(default_factory=TRACE_SCHEMA.empty_table)
    edges: pa.Table = field(default_factory=EDGE_SCHEMA.empty_table)
    findings: tuple[Finding, ...] = ()
    wanted: tuple[bytes, ...] = ()


class Stitcher:
    """One worker's traces, of all its partitions. One thread."""

    def __init__(self, limits: StitchLimits | None = None, *, key: int = 0) -> None:
        """`key` is 64 random bits: it keys a hash of trace ids, which callers choose."""
        self._limits = limits or StitchLimits()
        one = self._limits
        self._book = TraceBook(one.traces_max, max(one.calls_max, one.traces_max), one.per_trace_max, one.gone_max, key)
        self._piece = max(1, min(PIECE, one.traces_max // 2))
        self._whos = Whos()
        self._enforcers: dict[str, int] = {}
        self._boots: Words = np.zeros(0, np.uint64)
        self._offences = np.zeros(one.traces_max, np.uint64)
        """Of each trace, a number for what its finding says; 0 for none."""
        self.evicted = 0
        """Traces that were put away for want of room."""

    # -- figures -----------------------------------------------------------------------------------------------------

    @property
    def traces(self) -> int:
        """Traces in memory."""
        return self._book.traces

    @property
    def calls(self) -> int:
        """Their calls."""
        return self._book.calls

    @property
    def text_bytes(self) -> int:
        """Bytes of the chains that they name, about."""
        return self._whos.bytes

    @property
    def forgotten(self) -> int:
        """Traces that were put away and are not known to have been."""
        return self._book.forgotten

    # -- what comes in -----------------------------------------------------------------------------------------------

    def take(self, batch: pa.RecordBatch | pa.Table, enforcer: str, now_us: int) -> Stitched:
        """Records with ARROW_SCHEMA that are stored now. Where they have a column `enforcer` that counts, not the argument."""
        return _merged([part for piece in _pieces(batch, self._piece) for part in self._take(piece, enforcer, now_us)])

    def rebuild(self, rows: pa.RecordBatch | pa.Table, now_us: int, wanted: Iterable[bytes] = ()) -> Stitched:
        """Rows of the table `records` (COLUMNS of KINDS, in any order); `wanted` are the ids that `take` asked for, whatever
        was found of them. What comes back may have been said before: then it is the same again."""
        parts = [part for piece in _pieces(rows, self._piece) for part in self._take(piece, "", now_us, whole=True)]
        slots = self._slots(wanted)
        if len(slots):
            parts += self._tell(slots, settled=False)
        return _merged(parts)

    def know(self, boots: Iterable[int]) -> None:
        """Doors that have made calls, by their boots: what a start reads from the store (`SELECT DISTINCT boot`)."""
        self._learn(np.array(list(boots), np.uint64))

    def settle(self, now_us: int) -> Stitched:
        """What is said for good of the traces that have been quiet for `settle_s`: ask every second or so."""
        slots = self._book.settle(now_us - int(self._limits.settle_s * _US))
        return _merged(list(self._tell(slots, settled=True)))

    def clear(self) -> None:
        """Forget everything: another worker has the partitions now."""
        self._book.clear()
        self._whos.clear()
        self._offences[:] = 0
        self._boots = np.zeros(0, np.uint64)

    def _take(self, piece: pa.RecordBatch, enforcer: str, now_us: int, *, whole: bool = False) -> Iterator[Stitched]:
        columns = _Columns(piece)
        if not columns.count:
            return
        if not self._book.room(columns.count):
            yield from self._evict(columns.count)
        self._learn(columns.boot)
        if self._whos.bytes > self._limits.text_bytes_max:
            yield from self._shed()
        touched = self._book.add(
            columns.ids, columns.parents, columns.kind, columns.boot, columns.seq, columns.time, columns.duration,
            columns.verdict, columns.outcome, columns.mode, columns.who(self._whos),
            columns.enforcer(self._enforcers, enforcer), now_us,
        )  # fmt: skip
        if whole:
            self._book.flags[touched] &= 0xFF ^ _TORN
        torn = touched[(self._book.flags[touched] & _TORN) != 0]
        yield from self._tell(touched, settled=False)
        if len(torn):
            yield Stitched(wanted=tuple(one.tobytes() for one in self._book.ids[torn]))

    def _learn(self, boots: Words) -> None:
        low = np.unique(boots[boots != 0] & np.uint64(0xFFFF_FFFF))
        if len(low) and not (len(self._boots) and named_by_door(low << np.uint64(32), self._boots).all()):
            self._boots = np.union1d(self._boots, low)[-BOOTS_MAX:]

    # -- room --------------------------------------------------------------------------------------------------------

    def _evict(self, records: int) -> Iterator[Stitched]:
        """Make room for so many records, and for as many again, so that it is not asked for each."""
        book = self._book
        want = 2 * records
        yield from self._away(book.oldest(want - (book.traces_max - book.traces), want - (book.calls_max - book.calls)))

    def _shed(self) -> Iterator[Stitched]:
        """Let go of chains that no call names; where that is not enough, of the oldest traces too."""
        while True:
            self._whos.keep(np.unique(self._book.who[self._places()]).tolist())
            if self._whos.bytes <= self._limits.text_bytes_max // 2 or not self._book.traces:
                return
            yield from self._away(self._book.oldest(self._book.traces // 2 + 1, 0))

    def _places(self) -> Ints:
        everything = self._book.oldest(self._book.traces, 0)
        return self._book.gather(everything)[0]

    def _away(self, slots: npt.NDArray[np.int32]) -> Iterator[Stitched]:
        """Say the last word on those that have not settled, and put them away. What a record that is on its way might explain
        is no finding yet: nobody would be here to take it back."""
        open_ = slots[(self._book.flags[slots] & _SETTLED) == 0]
        for part in self._tell(open_, settled=True):
            yield replace(part, findings=())
        self._offences[slots] = 0
        self._book.drop(slots)
        self.evicted += len(slots)

    def _slots(self, ids: Iterable[bytes]) -> npt.NDArray[np.int32]:
        """Those of them that are torn: whole now, as far as the store has them."""
        wanted = np.frombuffer(b"".join(ids), np.uint64).reshape(-1, 2)
        if not len(wanted):
            return np.zeros(0, np.int32)
        live = self._book.oldest(self._book.traces, 0)
        torn = live[(self._book.flags[live] & _TORN) != 0]
        names = {one.tobytes() for one in wanted}
        mine = np.array([slot for slot in torn.tolist() if self._book.ids[slot].tobytes() in names], np.int32)
        self._book.flags[mine] &= 0xFF ^ _TORN
        return mine

    # -- what is said ------------------------------------------------------------------------------------------------

    def _tell(self, slots: npt.NDArray[np.int32], *, settled: bool) -> Iterator[Stitched]:
        """Judge what there is to judge of some traces."""
        book = self._book
        slots = slots[(book.flags[slots] & _TORN) == 0]
        slots = slots[self._worth(slots)]
        if not settled and len(slots):
            slots = slots[~self._dull(slots)]
        if not len(slots):
            return
        places, trace = book.gather(slots)
        state = book.state[places]
        records = np.bincount(trace, _records(state), len(slots))
        unseen = book.unseen[slots].astype(np.int64)
        version = (2 * (records.astype(np.int64) + unseen) + settled).astype(np.uint64)
        calls = Calls(
            trace=trace, boot=book.boot[places], seq=book.seq[places], start=book.start[places], end=book.end[places],
            parent=book.parent[places], who=book.who[places].astype(np.int64), state=state,
        )  # fmt: skip
        judged = judge(calls, self._whos.by_number, self._boots, np.full(len(slots), settled, np.uint8))
        places = places[judged.order]
        facts = Facts(
            ids=book.ids[slots], version=version, unseen=unseen, enforcer=book.enforcer[places].astype(np.int64),
            enforcers=list(self._enforcers), whos=self._whos.by_number,
        )  # fmt: skip
        many = np.bincount(judged.calls.trace, minlength=len(slots))
        wrong = np.zeros(len(slots), bool)
        wrong[judged.calls.trace[judged.cause != 0]] = True
        shown = (many > 1) | ((many == 1) & (wrong | (unseen > 0)))
        mark = said(judged)
        # of a call that no other caused, and that is right, the call itself says all; it has a row only once it had another one
        plain = (judged.parent < 0) & (judged.cause == 0) & (book.said[places] == 0) & (unseen[judged.calls.trace] == 0)
        rows = np.flatnonzero(shown[judged.calls.trace] & (book.said[places] != mark) & ~plain)
        book.said[places[rows]] = mark[rows]
        yield Stitched(
            traces=trace_table(judged, facts, np.flatnonzero(shown), book.per_trace_max),
            edges=edge_table(judged, facts, rows),
            findings=tuple(self._findings(judged, facts, slots)),
        )

    def _worth(self, slots: npt.NDArray[np.int32]) -> Flags:
        """Whether there is anything to say of them: more than one call, or one whose parent should be here."""
        book = self._book
        head = book.head[slots]
        parent, state = book.parent[head], book.state[head]
        alone = (book.count[slots] == 1) & (book.unseen[slots] == 0)
        asks = alone & ((state & DECIDED) != 0) & (parent != 0)
        worth: Flags = ~alone
        rows = np.flatnonzero(asks)
        if len(rows):
            ours = named_by_door(parent[rows], self._boots)
            others = np.flatnonzero(~ours)
            who = book.who[head[rows[others]]]
            for one in np.unique(who).tolist():
                if self._whos.by_number[one].agents >= 2:
                    ours[others[who == one]] = True
            worth[rows] = ours
        return worth

    def _dull(self, slots: npt.NDArray[np.int32]) -> Flags:
        """Whether none of their calls names a parent that should be here: then no cause is known but by time, and what seems
        wrong may still come right. Of such a trace nothing is said before it has settled."""
        book = self._book
        places, trace = book.gather(slots)
        begin = np.searchsorted(trace, np.arange(len(slots)))
        who, parent = book.who[places], book.parent[places]
        distinct, which = np.unique(who, return_inverse=True)
        chained = np.array([self._whos.by_number[one].agents >= 2 if one else False for one in distinct.tolist()], bool)[which]
        asks = (parent != 0) & (chained | named_by_door(parent, self._boots))
        dull: Flags = (book.unseen[slots] == 0) & (self._offences[slots] == 0) & ~np.logical_or.reduceat(asks, begin)
        return dull

    def _findings(self, judged: Judged, facts: Facts, slots: npt.NDArray[np.int32]) -> Iterator[Finding]:
        bad = np.zeros(len(slots), bool)
        bad[judged.calls.trace[judged.grade >= Grade.WIDENED]] = True
        for trace in np.flatnonzero(bad | (self._offences[slots] != 0)).tolist():
            low, high = (int(one) for one in np.searchsorted(judged.calls.trace, [trace, trace + 1]))
            mark = np.uint64(offence(judged, trace, low, high))
            if high > low and self._offences[slots[trace]] != mark:
                self._offences[slots[trace]] = mark
                yield chain_finding(judged, facts, trace, low, high)


def _records(state: Any) -> Any:
    """How many records there are of calls: decision, effect, loss. A whole decision is two: the state is the same."""
    return ((state & DECIDED) != 0).astype(np.int64) + ((state & HAS_EFFECT) != 0) + ((state & HAS_LOST) != 0)


def _merged(parts: Sequence[Stitched]) -> Stitched:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Stitched()
    return Stitched(
        traces=pa.concat_tables([part.traces for part in parts]),
        edges=pa.concat_tables([part.edges for part in parts]),
        findings=tuple(one for part in parts for one in part.findings),
        wanted=tuple(one for part in parts for one in part.wanted),
    )


def _pieces(rows: pa.RecordBatch | pa.Table, size: int) -> Iterator[pa.RecordBatch]:
    """Those of KINDS, so many at a time."""
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    names = [name for name in COLUMNS if name in table.column_names]
    table = table.select(names).unify_dictionaries().combine_chunks()
    for batch in table.to_batches(max_chunksize=size):
        kind = batch.column("kind").to_numpy()
        keep = np.flatnonzero((kind == KINDS[0]) | (kind == KINDS[1]) | (kind == KINDS[2]))
        yield batch if len(keep) == len(kind) else batch.take(pa.array(keep))


class _Columns:
    """The columns of a batch as NumPy sees them."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.count = batch.num_rows
        self.ids = _plain(batch.column("trace_id"), 16)
        self.parents = _plain(batch.column("parent_span"), 8)
        self.kind, self.verdict, self.outcome, self.mode = (
            self._numbers(name, np.uint8) for name in ("kind", "verdict", "outcome", "mode")
        )
        self.boot, self.seq, self.duration = (self._numbers(name, np.uint64) for name in ("boot", "call_seq", "duration_us"))
        self.time = np.ascontiguousarray(batch.column("time").cast(pa.timestamp("us", "UTC")).view(pa.int64()).to_numpy())

    def _numbers(self, name: str, kind: Any) -> Any:
        return np.ascontiguousarray(self._batch.column(name).to_numpy(), dtype=kind)

    def who(self, whos: Whos) -> npt.NDArray[np.int32]:
        """Of decisions, who acts; 0 for the others."""
        found = np.zeros(self.count, np.int32)
        rows = np.flatnonzero(self.kind == KINDS[0])
        if not len(rows):
            return found
        texts = [_texts(self._batch.column(name)) for name in ("tenant", "chain", "assurance")]
        key = np.zeros(len(rows), np.int64)
        for index, names in texts:
            key = key * len(names) + index[rows]
        distinct, which = np.unique(key, return_inverse=True)
        numbers = []
        (_, tenants), (_, chains), (_, assurances) = texts
        for one in distinct.tolist():
            rest, assurance = divmod(one, len(assurances))
            tenant, chain = divmod(rest, len(chains))
            numbers.append(whos.number(tenants[tenant].as_py(), chains[chain].as_py(), assurances[assurance].as_py()))
        found[rows] = np.array(numbers, np.int32)[which]
        return found

    def enforcer(self, known: dict[str, int], name: str) -> npt.NDArray[np.int32]:
        """Numbers of the hosts that the records come from."""
        if "enforcer" not in self._batch.schema.names:
            return np.full(self.count, known.setdefault(name, len(known)), np.int32)
        index, names = _texts(self._batch.column("enforcer"))
        present = np.unique(index)
        numbers = np.zeros(len(names), np.int32)
        for at in present.tolist():
            numbers[at] = known.setdefault(names[at].as_py(), len(known))
        found: npt.NDArray[np.int32] = numbers[index]
        return found


def _texts(column: pa.Array) -> tuple[Any, pa.Array]:
    """A text column as indices and the texts that they point at."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.utf8()).dictionary_encode()
    return column.indices.to_numpy(), column.dictionary


def _plain(column: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    """The bytes of a column whose values have one width."""
    if not pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary()).cast(pa.binary(width))
    data = column.buffers()[1]
    return np.frombuffer(data, np.uint8, len(column) * width, column.offset * width) if len(column) else np.zeros(0, np.uint8)
