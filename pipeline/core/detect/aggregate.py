"""Sum up the calls of a frame by agent, credential and domain: what detectors take (`schemas.egress`).

    decision            counted where and when it was made; kept until its end when it let the call out, and is not whole
    progress, effect    the bytes on top of what was known, where and when the decision was made: with the decision where both
                        are in one frame, else in a row of its own
    lost, withdrawn     the same; an effect that takes the verdict back counts as denied

Groups are made by Arrow; there is a Python object for each distinct text that is kept for an open call, none for each record.
What is summed over all frames does not depend on their order: an end that comes before its decision waits for it.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ext.opencalls import OpenCalls
from pipeline.core.detect.coded import (
    all_said,
    before_of,
    coded_of,
    combined_of,
    constant_of,
    indices_of,
    numbers_of,
    of_values,
    plain_of,
    recoded_by,
    text_of,
    times_of,
)
from schemas.egress import AGENT_ROWS, CREDENTIAL_ROWS, DOMAIN_ROWS, network_of, subject_partition
from schemas.frame import Lane
from schemas.limits import AGENTS_MAX, OPEN_CALLS_MAX
from schemas.records import SEPARATOR, Kind, Outcome, Verdict
from schemas.vocabulary import SAFE_METHODS

PLACE: Final = ("agent", "host", "domain", "action", "resource")
"""What an end inherits from its decision."""

LANE: Final = ("lane_host", "lane_boot", "lane_partition", "frame_no")
SECOND_US: Final = 1_000_000
HOUR_S: Final = 3600
_SERVER: Final = re.compile(r'Tool::"([^/"]+)/')

Place: TypeAlias = tuple[str, str, str, str, str]
Columns: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregates:
    """The rows of one frame, or of many, for each kind of subject."""

    agents: pa.Table
    credentials: pa.Table
    domains: pa.Table

    def of(self, subject: str) -> pa.Table:
        """The rows of `agent`, `credential` or `domain`."""
        tables: dict[str, pa.Table] = {"agent": self.agents, "credential": self.credentials, "domain": self.domains}
        return tables[subject]


class Aggregator:
    """Sums up frames, each by itself but for the calls whose end lies in a later one. One for all partitions of a worker."""

    def __init__(self, open_calls: int = OPEN_CALLS_MAX, agents: int = AGENTS_MAX) -> None:
        self._open = OpenCalls(open_calls)
        self._places = _Places(open_calls + open_calls // 4)
        self._agents_max = agents
        self._since: OrderedDict[str, int] = OrderedDict()
        """Since when an agent is known, as it was said last. What had to make room is said again."""

    @property
    def entries(self) -> int:
        """Calls whose end has not come."""
        return self._open.entries

    @property
    def evicted(self) -> int:
        """Calls that had to make room before their end came."""
        return self._open.evicted

    def take(self, batch: pa.RecordBatch, lane: Lane, frame_no: int) -> Aggregates:
        """The rows of one frame's records. `batch` has the columns of `ARROW_SCHEMA`."""
        return self.take_all([(batch, lane, frame_no)])

    def take_all(self, frames: Sequence[tuple[pa.RecordBatch, Lane, int]], rows: pa.Table | None = None) -> Aggregates:
        """The rows of several frames' records: the same as taking them one by one, and much cheaper where they are small.

        `rows` are their records one behind the other, where somebody has them together already.
        """
        batches, lanes, numbers = zip(*frames, strict=True)
        keys = pa.table({
            "lane_host": pa.array([lane.host for lane in lanes]),
            "lane_boot": pa.array([lane.host_boot for lane in lanes], pa.uint64()),
            "lane_partition": pa.array([lane.partition for lane in lanes], pa.uint32()),
            "frame_no": pa.array(numbers, pa.uint64()),
        })  # fmt: skip
        frame = np.repeat(np.arange(len(batches), dtype=np.int32), [batch.num_rows for batch in batches])
        return self._sum(pa.Table.from_batches(batches) if rows is None else rows, keys, frame)

    def rebuild(self, rows: pa.Table) -> Aggregates:
        """The rows of many frames' records as the store has them: with `enforcer`, `enforcer_boot`, `partition`, `frame_no`.

        Texts may be dictionaries or not. The same as taking the frames one by one, in any order.
        """
        names = dict(zip(("enforcer", "enforcer_boot", "partition", "frame_no"), LANE, strict=True))
        keys = pa.table({new: plain_of(rows[old]) for old, new in names.items()})
        codes = combined_of([coded_of(keys[name]) for name in LANE])
        _, first, frame = np.unique(codes, return_index=True, return_inverse=True)
        return self._sum(rows, keys.take(pa.array(first)), frame.astype(np.int32))

    def _sum(self, rows: pa.Table, frames: pa.Table, frame: NDArray[np.int32]) -> Aggregates:
        if any(column.num_chunks > 1 for column in rows.columns):
            rows = rows.unify_dictionaries()
        kind = numbers_of(rows, "kind", np.uint8)
        decided = np.flatnonzero(kind == Kind.DECISION)
        ended = np.flatnonzero((kind == Kind.PROGRESS) | (kind == Kind.EFFECT) | (kind == Kind.LOST))
        seq, boot, time = numbers_of(rows, "call_seq"), numbers_of(rows, "boot"), times_of(rows)
        # in time, so that the first row of a group is its first call, however the rows came
        decided = decided[np.lexsort((seq[decided], boot[decided], time[decided]))]
        # in the order of their records, so that totals grow
        ended = ended[np.lexsort((numbers_of(rows, "seq")[ended], boot[ended]))]
        decisions, early = self._decisions(rows.take(pa.array(decided)), frame[decided])
        ends = self._ends(rows.select(_OF_ENDS).take(pa.array(ended)), frame[ended], decisions)
        counted = [_plain_rows(some) for some in (decisions, early, ends) if some is not None]
        known = self._known(decisions)
        every = _joined(counted)
        domains = _joined([_domains(every), *([] if known is None else [known])])
        return Aggregates(
            agents=_finished(_agents(every), frames, AGENT_ROWS),
            credentials=_finished(_credentials(decisions, frames), frames, CREDENTIAL_ROWS),
            domains=_finished(domains, frames, DOMAIN_ROWS),
        )

    def _decisions(self, rows: pa.Table, frame: NDArray[np.int32]) -> tuple[Columns, Columns | None]:
        """The decisions; and of those whose end came in a frame before, what it brought."""
        texts = {name: text_of(rows[name]) for name in (*PLACE, "session", "credential", "proof", "address")}
        time, boot, seq = times_of(rows), numbers_of(rows, "boot"), numbers_of(rows, "call_seq")
        bytes_out, bytes_in = numbers_of(rows, "bytes_out"), numbers_of(rows, "bytes_in")
        denied = (numbers_of(rows, "verdict", np.uint8) == Verdict.DENY).astype(np.uint8)
        over = denied | (numbers_of(rows, "outcome", np.uint8) != Outcome.OPEN).astype(np.uint8)
        place = self._places.numbers([texts[name] for name in PLACE], over == 0, self._open)
        more_out, more_in, back = np.zeros_like(bytes_out), np.zeros_like(bytes_in), np.zeros_like(denied)
        self._open.decided(boot, seq, place, time, bytes_out, bytes_in, over, more_out, more_in, back)
        early = self._brought(place, time, boot, seq, more_out, more_in, back, frame)
        query_bits = numbers_of(rows, "query_bits", np.uint32)
        writes = _writes(texts["action"]) | (query_bits > 0)
        decisions = texts | {
            "task": _tasks(texts["session"], rows["trace_id"]), "where": _where(texts), "time": time, "call_boot": boot,
            "call_seq": seq, "bytes_out": bytes_out.copy(), "bytes_in": bytes_in.copy(), "denied": denied.astype(np.uint32),
            "calls": np.ones(len(seq), np.uint32), "writes": writes.astype(np.uint32), "query_bits": query_bits,
            "query_hash": numbers_of(rows, "query_hash"), "frame": frame,
        }  # fmt: skip
        return decisions, early

    def _ends(self, rows: pa.Table, frame: NDArray[np.int32], decisions: Columns) -> Columns | None:
        """What ends brought: with their decision where that is in the same frame, else as rows."""
        count = rows.num_rows
        boot, seq = numbers_of(rows, "boot"), numbers_of(rows, "call_seq")
        bytes_out, bytes_in = numbers_of(rows, "bytes_out").copy(), numbers_of(rows, "bytes_in").copy()
        last = (numbers_of(rows, "kind", np.uint8) != Kind.PROGRESS).astype(np.uint8)
        back = (numbers_of(rows, "verdict", np.uint8) == Verdict.DENY).astype(np.uint8)
        place, time, decision = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.int32)
        self._open.ended(boot, seq, bytes_out, bytes_in, last, back, place, time, decision)
        near = np.flatnonzero(decision >= 0)
        near = near[decisions["frame"][decision[near]] == frame[near]]
        for name, more in (("bytes_out", bytes_out), ("bytes_in", bytes_in)):
            np.add.at(decisions[name], decision[near], more[near])
        np.maximum.at(decisions["denied"], decision[near], back[near].astype(np.uint32))
        place[near] = -1
        return self._brought(place, time, boot, seq, bytes_out, bytes_in, back, frame)

    def _brought(
        self, place: NDArray[np.int32], time: NDArray[np.int64], boot: NDArray[np.uint64], seq: NDArray[np.uint64],
        bytes_out: NDArray[np.uint64], bytes_in: NDArray[np.uint64], back: NDArray[np.uint8], frame: NDArray[np.int32],
    ) -> Columns | None:  # fmt: skip
        """What ends brought on top of their decisions, as rows; None where they brought nothing."""
        says = np.flatnonzero((place >= 0) & ((bytes_out > 0) | (bytes_in > 0) | (back > 0)))
        if not len(says):
            return None
        says = says[np.lexsort((seq[says], boot[says], time[says]))]
        texts = self._places.texts(place[says])
        nothing = np.zeros(len(says), np.uint32)
        return texts | {
            "task": constant_of("", len(says)), "where": _where(texts), "time": time[says], "call_boot": boot[says],
            "call_seq": seq[says], "bytes_out": bytes_out[says], "bytes_in": bytes_in[says],
            "denied": back[says].astype(np.uint32), "calls": nothing, "writes": nothing, "query_bits": nothing,
            "query_hash": nothing.astype(np.uint64), "frame": frame[says],
        }  # fmt: skip

    def _known(self, decisions: Columns) -> pa.Table | None:
        """A row for each agent that is known for longer than was said."""
        table = pa.table({name: decisions[name] for name in ("agent", "time", "call_boot", "call_seq", "frame")})
        table = _grouped(table, ["agent", "frame"], (), ("time", "call_boot", "call_seq"), ())
        rows: list[int] = []
        for row, (agent, time) in enumerate(zip(table["agent"].to_pylist(), table["time"].to_pylist(), strict=True)):
            if agent and time < self._since.get(agent, time + 1):
                while len(self._since) >= self._agents_max:
                    self._since.popitem(last=False)
                self._since[agent] = time
                rows.append(row)
        if not rows:
            return None
        table = table.take(pa.array(rows))
        time, nothing = table["time"].combine_chunks().to_numpy(), np.zeros(len(rows), np.uint32)
        said = {
            "where": constant_of("", len(rows)), "agent": table["agent"], "hour": time // (SECOND_US * HOUR_S),
            "calls": nothing, "writes": nothing, "denied": nothing, "bytes_out": nothing.astype(np.uint64), "time": time,
            "last": time, "call_boot": table["call_boot"], "call_seq": table["call_seq"], "frame": table["frame"],
        }  # fmt: skip
        return pa.table(said)


_OF_ENDS: Final = ["kind", "boot", "seq", "call_seq", "verdict", "bytes_out", "bytes_in"]


class _Places:
    """The texts that open calls inherit from their decisions, each set of them once. Bounded: what no call needs is dropped."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[Place, int] = {}
        self._listed: list[Place] = []

    def numbers(self, texts: Sequence[pa.DictionaryArray], wanted: NDArray[np.bool_], calls: OpenCalls) -> NDArray[np.int32]:
        """The number of each row's place; 0 for rows that are not wanted."""
        found = np.zeros(len(wanted), np.int32)
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return found
        codes = combined_of([(indices_of(text)[rows], len(text.dictionary)) for text in texts])
        _, first, back = np.unique(codes, return_index=True, return_inverse=True)
        at = rows[first]
        # from the dictionary: an array with one gives its items as scalars first, which is ten times as slow
        places = list(zip(*(text.dictionary.take(pa.array(indices_of(text)[at])).to_pylist() for text in texts), strict=True))
        if len(self._known) + len(places) > self._most:
            self._sweep(calls)
        found[rows] = np.array([self._number(place) for place in places], np.int32)[back]
        return found

    def _number(self, place: Place) -> int:
        number = self._known.setdefault(place, len(self._listed))
        if number == len(self._listed):
            self._listed.append(place)
        return number

    def texts(self, numbers: NDArray[np.int32]) -> Columns:
        """The five columns of rows with these places."""
        used, back = np.unique(numbers, return_inverse=True)
        at = pa.array(back.astype(np.int32))
        places = [self._listed[number] for number in used]
        return {
            name: pa.array([place[column] for place in places], pa.utf8()).dictionary_encode().take(at)
            for column, name in enumerate(PLACE)
        }

    def _sweep(self, calls: OpenCalls) -> None:
        used = np.zeros(len(self._listed), np.uint8)
        calls.places(used)
        calls.renumber((np.cumsum(used) - 1).astype(np.int32))
        self._listed = [self._listed[old] for old in np.flatnonzero(used)]
        self._known = {place: number for number, place in enumerate(self._listed)}


def _plain_rows(rows: Columns) -> pa.Table:
    """Decisions or ends, before they are grouped."""
    second = rows["time"] // SECOND_US
    made = {name: rows[name] for name in _COUNTED} | {"second": second, "hour": second // HOUR_S, "last": rows["time"]}
    return pa.table(made)


def _agents(rows: pa.Table) -> pa.Table:
    keys = ["agent", "host", "domain", "action", "resource", "task", "second", "query_hash", "query_bits", "frame"]
    return _grouped(rows.select([*keys, *_SUMS, *_FIRST]), keys, _SUMS, _FIRST, ())


def _domains(rows: pa.Table) -> pa.Table:
    keys, sums = ["where", "agent", "hour", "frame"], ("calls", "writes", "denied", "bytes_out")
    table = rows.select([*keys, *sums, *_FIRST, "last"])
    return _grouped(table.filter(pc.not_equal(table["where"], "")), keys, sums, _FIRST, ("last",))


def _credentials(rows: Columns, frames: pa.Table) -> pa.Table:
    keys = ["credential", "proof", "agent", "network", "frame"]
    shown = np.flatnonzero(of_values(rows["credential"], bool)[indices_of(rows["credential"])])
    at = pa.array(shown)
    network = recoded_by(before_of(rows["address"], SEPARATOR).take(at), network_of)
    made = {name: rows[name] for name in ("credential", "proof", "agent", "frame", "calls", *_FIRST)} | {"last": rows["time"]}
    found = _grouped(pa.table(made).take(at).append_column("network", network), keys, ("calls",), _FIRST, ("last",))
    return found.append_column("enforcer", frames["lane_host"].take(found["frame"]))


_SUMS: Final = ("calls", "denied", "bytes_out", "bytes_in")
_FIRST: Final = ("time", "call_boot", "call_seq")
_COUNTED: Final = (*PLACE, "where", "task", "query_hash", "query_bits", "frame", "writes", *_SUMS, *_FIRST)


def _grouped(table: pa.Table, keys: list[str], sums: Sequence[str], first: Sequence[str], last: Sequence[str]) -> pa.Table:
    """One row for each key, which keeps the first row's `first` and the last one's `last`: rows are in the order of time."""
    wanted = [*((name, "sum") for name in sums), *((name, "first") for name in first), *((name, "max") for name in last)]
    found = table.group_by(keys, use_threads=False).aggregate(wanted)
    found = found.select([*keys, *(f"{name}_{how}" for name, how in wanted)])
    return found.rename_columns([*keys, *(name for name, _ in wanted)])


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    schema = tables[0].schema
    return pa.concat_tables([table.select(schema.names).cast(schema) for table in tables]).unify_dictionaries().combine_chunks()


def _finished(table: pa.Table, frames: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of groups in a schema of rows: the frame spelled out, and columns by the names and types that they have there."""
    made = []
    names = {"first": "time", "domain": "where" if schema is DOMAIN_ROWS else "domain"}
    for field in schema:
        if field.name in LANE:
            column = frames[field.name].take(table["frame"])
        else:
            column = table[names.get(field.name, field.name)]
            if field.name == "hour":
                column = pc.multiply(column, HOUR_S)
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        made.append(column if column.type == field.type else column.cast(field.type))
    return pa.Table.from_arrays(made, schema=schema).combine_chunks()


def split(table: pa.Table, subject: str, partitions: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each partition of `egress`: by the hash of their subject, and in every one the rows that have none.

    Texts that a partition's rows do not use are not in its dictionaries.
    """
    if not table.num_rows:
        return
    text = text_of(table[subject])
    of = np.array([subject_partition(value, partitions) if value else -1 for value in text.dictionary.to_pylist()], np.int64)
    where = of[indices_of(text)]
    for partition in range(partitions):
        rows = np.flatnonzero((where == partition) | (where == -1))
        if len(rows):
            yield partition, _compact(table.take(pa.array(rows)))


def _compact(table: pa.Table) -> pa.Table:
    columns = [
        column.cast(pa.utf8()).dictionary_encode() if _is_loose(column, table.num_rows) else column for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema).combine_chunks()


def _is_loose(column: pa.ChunkedArray, rows: int) -> bool:
    """Whether a dictionary may have more texts that no row has than it is worth to look for."""
    return pa.types.is_dictionary(column.type) and int(column.chunk(0).dictionary.nbytes) > 4 * rows


def _writes(action: pa.DictionaryArray) -> NDArray[np.bool_]:
    return of_values(action, _is_write)[indices_of(action)]


def _is_write(action: str) -> bool:
    family, _, verb = action.partition(":")
    return action == "tcp:CONNECT" or (family == "http" and verb not in SAFE_METHODS)


def where_of(domain: str, host: str, resource: str) -> str:
    """What a domain row is about: the registrable domain, else the host, else a tool's MCP server, else the resource."""
    found = _SERVER.match(resource)
    return domain or host or (found[1] if found else resource)


def _where(texts: Columns) -> pa.DictionaryArray:
    if all_said(texts["domain"]):
        return texts["domain"]
    domain, host = texts["domain"].cast(pa.utf8()), texts["host"].cast(pa.utf8())
    named = pc.if_else(pc.equal(domain, ""), host, domain)
    server = recoded_by(texts["resource"], lambda resource: where_of("", "", resource))
    return pc.if_else(pc.equal(named, ""), server.cast(pa.utf8()), named).dictionary_encode()


def _tasks(session: pa.DictionaryArray, trace_id: pa.ChunkedArray) -> pa.DictionaryArray:
    """The session, and of calls without one the trace id in hex digits."""
    if all_said(session):
        return session
    plain = session.cast(pa.utf8())
    digits = trace_id.cast(pa.binary(16)).combine_chunks()
    _, data = digits.buffers()
    text = data.slice(16 * digits.offset, 16 * len(digits)).to_pybytes().hex().encode()
    offsets = np.arange(0, 32 * len(digits) + 1, 32, dtype=np.int32)
    hexed = pa.StringArray.from_buffers(len(digits), pa.py_buffer(offsets), pa.py_buffer(text))
    return pc.if_else(pc.equal(plain, ""), hexed, plain).dictionary_encode()
