"""Operations that cross enforcers, as records, and what a stitcher has said of them in the end, as the store would keep it.

    first = Op(1).call(ALICE, "planner", at=0, until=900)
    ops = [first, *...]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.stitch.stitcher import Stitched, Stitcher, StitchLimits
from schemas.findings import Finding
from schemas.frame import ARROW_SCHEMA
from schemas.layout import VERDICT_UNSAID
from schemas.records import SEPARATOR, Kind, Outcome, Verdict, call_id, make_boot
from tests.support.frames import batch_of, record

BEGAN_US = 1_790_000_000_000_000
QUIET_US = 3_600_000_000
"""Later than anything settles."""

FIRST_DOOR = make_boot(1_700_000_000, 0x11111111)
SECOND_DOOR = make_boot(1_700_000_100, 0x22222222)

ALICE, BOB = 'User::"alice"', 'User::"bob"'
PLANNER, RESEARCHER, SCRAPER = 'Agent::"planner"', 'Agent::"researcher"', 'Agent::"scraper"'


def span_of(boot: int, seq: int) -> bytes:
    """What a call is named upstream, written down apart from the code that is tested."""
    return bytes.fromhex(f"{boot:016x}"[8:] + f"{seq:016x}"[8:])


@dataclass(frozen=True)
class Made:
    """A call and its records."""

    boot: int
    seq: int
    records: tuple[dict[str, Any], ...]

    @property
    def id(self) -> str:
        return call_id(self.boot, self.seq)

    @property
    def span(self) -> bytes:
        return span_of(self.boot, self.seq)

    @property
    def whole(self) -> "Made":
        """The same call as one record, where a door could have written it so: it was let out, and has ended."""
        decision, *ends = self.records
        if not ends or decision["verdict"] != Verdict.ALLOW:
            return self
        (end,) = ends
        took = {"duration_us": end["time"] - decision["time"], "outcome": end["outcome"]}
        return replace(self, records=(decision | took | {"address": f"{decision['address']}{SEPARATOR}192.0.2.1:443"},))


def call(
    trace: int | bytes, seq: int, chain: Sequence[str], *, boot: int = FIRST_DOOR, at: int = 0, until: int = 0,
    parent: bytes = bytes(8), assurance: Sequence[str] | None = None, allowed: bool = True, end_seq: int = 0, **fields: Any,
) -> Made:  # fmt: skip
    """A call that began `at` and ended at `until` (0: it has not), milliseconds from BEGAN_US."""
    trace_id = trace if isinstance(trace, bytes) else trace.to_bytes(16, "big")
    said = ["signed"] * (len(chain) - 1) if assurance is None else assurance
    texts = {
        "chain": SEPARATOR.join(chain), "root": chain[0] if chain else "", "assurance": SEPARATOR.join(said),
        "agent": chain[-1][8:-1] if chain else "", "tenant": "default", "depth": len(chain),
    }  # fmt: skip
    where = {"boot": boot, "trace_id": trace_id, "parent_span": parent}
    verdict = Verdict.ALLOW if allowed else Verdict.DENY
    records = [record(seq, verdict=verdict, time=BEGAN_US + at * 1000, **texts, **where, **fields)]
    if until:
        end = {"kind": Kind.EFFECT, "call_seq": seq, "verdict": VERDICT_UNSAID, "outcome": Outcome.OK}
        empty = dict.fromkeys(("chain", "root", "assurance", "agent", "session", "resource", "action"), "")
        records.append(record(end_seq or seq + 1000, time=BEGAN_US + until * 1000, **where, **end, **empty))
    return Made(boot, seq, tuple(records))


def records_of(calls: Iterable[Made]) -> list[tuple[str, dict[str, Any]]]:
    """(enforcer, record) of each: the first door is `enforce-1`'s, the second `enforce-2`'s."""
    return [("enforce-2" if one.boot == SECOND_DOOR else "enforce-1", row) for one in calls for row in one.records]


def stored_rows(records: Iterable[tuple[str, dict[str, Any]]]) -> pa.Table:
    """Records as the store gives them back: with their enforcer, texts plain."""
    mine = list(records)
    table = pa.Table.from_batches([batch_of([row for _, row in mine])])
    plain = [column.cast(pa.utf8()) if pa.types.is_dictionary(column.type) else column for column in table.columns]
    made = pa.Table.from_arrays(plain, names=table.column_names)
    return made.append_column("enforcer", pa.array([name for name, _ in mine], pa.utf8()))


@dataclass
class Kept:
    """The store's side: the highest version of each row."""

    traces: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    edges: dict[tuple[bytes, int, int], dict[str, Any]] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    written: int = 0

    def keep(self, said: Stitched) -> None:
        """As ReplacingMergeTree does; of one version the last one written."""
        for row in said.traces.to_pylist():
            self.written += 1
            if row["version"] >= self.traces.get(row["trace_id"], {"version": 0})["version"]:
                self.traces[row["trace_id"]] = row
        for row in said.edges.to_pylist():
            self.written += 1
            key = row["trace_id"], row["boot"], row["seq"]
            if row["version"] >= self.edges.get(key, {"version": 0})["version"]:
                self.edges[key] = row
        for one in said.findings:
            if one.id not in self.findings or one.version >= self.findings[one.id].version:
                self.findings[one.id] = one

    def said(self) -> Any:
        """What is known in the end, without how often it was said before."""
        traces = {key: {n: v for n, v in row.items() if n != "version"} for key, row in self.traces.items()}
        edges = {key: {n: v for n, v in row.items() if n != "version"} for key, row in self.edges.items()}
        findings = {
            key: (one.terms, one.evidence, one.title, one.calls, one.withdrawn) for key, one in self.findings.items()
        }
        return traces, edges, findings

    def versions(self) -> dict[bytes, int]:
        """How much was known of each trace in the end."""
        return {key: row["version"] for key, row in self.traces.items()}

    def grade(self, trace: int | bytes) -> str:
        """Of one trace."""
        row = self.traces.get(trace if isinstance(trace, bytes) else trace.to_bytes(16, "big"))
        return str(row["grade"]) if row else "none"

    def edge(self, one: Made) -> tuple[str, str, tuple[str, ...], str]:
        """Parent's id, assurance, effective chain and grade of a call; of one in a trace without edges, what it says itself."""
        found = (row for (_, boot, seq), row in self.edges.items() if (boot, seq) == (one.boot, one.seq))
        if (row := next(found, None)) is None:
            (trace_id,) = {record["trace_id"] for record in one.records}
            assert trace_id in self.traces
            return "", "", tuple(one.records[0]["chain"].split(SEPARATOR)), "complete"
        parent = call_id(row["parent_boot"], row["parent_seq"]) if row["parent_seq"] else ""
        return parent, row["assurance"], tuple(row["chain"]), row["grade"]


def small(**limits: Any) -> Stitcher:
    """A stitcher with little room."""
    made = {"traces_max": 64, "calls_max": 256, "per_trace_max": 64, "gone_max": 1 << 12} | limits
    return Stitcher(StitchLimits(**made), key=0x5EED)


def feed(stitcher: Stitcher, kept: Kept, records: Sequence[tuple[str, dict[str, Any]]], now_us: int = BEGAN_US) -> None:
    """One batch for each run of records of one enforcer."""
    at = 0
    while at < len(records):
        end = at
        while end < len(records) and records[end][0] == records[at][0]:
            end += 1
        kept.keep(stitcher.take(batch_of([row for _, row in records[at:end]]), records[at][0], now_us))
        at = end


def told(calls: Iterable[Made], **limits: Any) -> Kept:
    """What is said in the end of calls that come in order."""
    stitcher, kept = small(**limits), Kept()
    feed(stitcher, kept, records_of(calls))
    kept.keep(stitcher.settle(BEGAN_US + QUIET_US))
    return kept


def many(first: int, count: int, *, each: int = 1, chains: int = 1) -> pa.RecordBatch:
    """So many calls, with their ends, of traces that have `each` of them and that nobody has had before; `chains` users."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    traces = np.zeros((count, 2), np.uint64)
    traces[:, 0] = numbers // each * np.uint64(0x9E3779B97F4A7C15)
    traces[:, 1] = numbers // each + 1
    twice = np.repeat(traces, 2, axis=0)
    ends = np.tile(np.array([0, 1]), count)
    users = pa.array([SEPARATOR.join((f'User::"u{first + n}"', PLANNER)) for n in range(chains)])
    columns: dict[str, Any] = {}
    for column in ARROW_SCHEMA:
        if pa.types.is_dictionary(column.type):
            names = users if column.name == "chain" else pa.array(["signed" if column.name == "assurance" else "x"])
            index = np.repeat(np.arange(count) % len(names), 2).astype(np.int32)
            columns[column.name] = pa.DictionaryArray.from_arrays(pa.array(index), names)
        elif pa.types.is_timestamp(column.type):
            columns[column.name] = pa.array(BEGAN_US + np.repeat(numbers, 2).astype(np.int64)).cast(column.type)
        elif pa.types.is_fixed_size_binary(column.type):
            data = twice if column.name == "trace_id" else np.zeros(2 * count, np.uint64)
            columns[column.name] = pa.FixedSizeBinaryArray.from_buffers(column.type, 2 * count, [None, pa.py_buffer(data)])
        else:
            columns[column.name] = pa.array(np.zeros(2 * count, np.int64)).cast(column.type)
    columns |= {
        "kind": pa.array(np.where(ends, int(Kind.EFFECT), int(Kind.DECISION)).astype(np.uint8)),
        "boot": pa.array(np.full(2 * count, FIRST_DOOR, np.uint64)), "call_seq": pa.array(np.repeat(numbers, 2)),
        "verdict": pa.array(np.where(ends, VERDICT_UNSAID, 1).astype(np.uint8)),
    }  # fmt: skip
    return pa.RecordBatch.from_arrays([columns[column.name] for column in ARROW_SCHEMA], schema=ARROW_SCHEMA)
