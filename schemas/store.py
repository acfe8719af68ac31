"""The evidence in ClickHouse: what its tables take (`migrate` makes them), and the statements that worker and store share.

One MergeTree table `records` has a row per record and, in the same insert, a row per frame (kind 0, boot 0, call_seq = the
host's boot, seq = frame_no). So one insert is one block, one part, all or nothing: a frame's number is there exactly when its
records are.

A worker owns partitions by a **fence**: it writes (partition, epoch, owner) with an epoch above all before, and every insert
carries the condition that its epochs are still the highest. A worker that was stopped and comes back stores nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from schemas.frame import ARROW_SCHEMA, NO_FRAME
from schemas.records import Kind, Outcome, Verdict

FENCED: Final = "FENCED"
"""The text in the error (code FENCED_CODE) of an insert whose owner has lost a partition: nothing was stored, leave."""

FENCED_CODE: Final = 395

INSERT_RECORDS_MAX: Final = 500_000
"""Rows that one insert may have and still be one part."""

FRAME_KIND: Final = 0
"""`kind` of a frame's own row. Records begin at 1."""

WHOLE: Final = f"(kind = {Kind.DECISION:d} AND verdict = {Verdict.ALLOW:d} AND outcome != {Outcome.OPEN:d})"
"""The condition on a row of `records` that it is a whole decision (`schemas.records`): its call's end is in it."""

ENDING: Final = f"(kind IN ({Kind.EFFECT:d}, {Kind.LOST:d}) OR {WHOLE})"
"""The condition that it says how a call ended that was let out."""

ENDED_US: Final = f"(toUnixTimestamp64Micro(time) + if(kind = {Kind.DECISION:d}, toInt64(duration_us), 0))"
"""Of such a row, when that was: us since 1970."""

FLAG_GOOD: Final = ""
FLAG_DEAD: Final = "dead"
FLAG_CHAIN: Final = "chain"

DEADLETTER_STATES: Final = ("new", "retried")

WANTED_SOON: Final = frozenset({"findings_stored", "responses_stored"})
"""Tables whose rows somebody waits for, to act on them. The embedded store does not queue them behind inserts of calls."""

_TEXT: Final = pa.dictionary(pa.int32(), pa.utf8())

FRAME_FIELDS: Final = (
    pa.field("frame_digest", pa.binary(32), nullable=False),
    pa.field("frame_previous", pa.binary(32), nullable=False),
    pa.field("frame_records", pa.uint32(), nullable=False),
    pa.field("frame_bytes", pa.uint32(), nullable=False),
    pa.field("frame_created", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("frame_ranges", pa.list_(pa.field("item", pa.uint64(), nullable=False)), nullable=False),
    pa.field("frame_flag", _TEXT, nullable=False),
    pa.field("frame_offset", pa.uint64(), nullable=False),
    pa.field("frame_head", pa.binary(), nullable=False),
)
"""What only a frame's own row has. `frame_ranges` is (boot, first, last) flattened, `frame_head` signed head and signature."""

INSERT_SCHEMA: Final = pa.schema(
    [
        *ARROW_SCHEMA,
        pa.field("enforcer", _TEXT, nullable=False),
        pa.field("enforcer_boot", pa.uint64(), nullable=False),
        pa.field("partition", pa.uint32(), nullable=False),
        pa.field("frame_no", pa.uint64(), nullable=False),
        pa.field("ingested", pa.timestamp("s", tz="UTC"), nullable=False),
        *FRAME_FIELDS,
    ]
)
"""The Arrow columns of an insert into `records`. All rows of one insert have the same `ingested`, so that it is one part."""

DEADLETTER_SCHEMA: Final = pa.schema(
    [
        pa.field("received", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("partition", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),
        pa.field("enforcer", pa.utf8(), nullable=False),
        pa.field("enforcer_boot", pa.uint64(), nullable=False),
        pa.field("frame_no", pa.uint64(), nullable=False),
        pa.field("reason", pa.utf8(), nullable=False),
        pa.field("message", pa.utf8(), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
        pa.field("state", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `deadletters`; `digest` is SHA-256 of `data`. The same bytes again replace their row."""

FRONTIER_SCHEMA: Final = pa.schema(
    [
        pa.field("partition", pa.uint32(), nullable=False),
        pa.field("enforcer", pa.utf8(), nullable=False),
        pa.field("enforcer_boot", pa.uint64(), nullable=False),
        pa.field("frame_no", pa.uint64(), nullable=False),
        pa.field("stored", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("worker", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `frontiers`: the floor of a lane whose first frames were dropped with an old day."""

CONTROL_SCHEMA: Final = pa.schema(
    [
        pa.field("journal", pa.uint32(), nullable=False),
        pa.field("epoch", pa.uint64(), nullable=False),
        pa.field("key", pa.utf8(), nullable=False),
        pa.field("kind", pa.utf8(), nullable=False),
        pa.field("name", pa.utf8(), nullable=False),
        pa.field("value", pa.utf8(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("actor", pa.utf8(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `control`: an entry, its value as JSON without secrets, empty for a removal."""

ACK_SCHEMA: Final = pa.schema(
    [
        pa.field("journal", pa.uint32(), nullable=False),
        pa.field("host", pa.utf8(), nullable=False),
        pa.field("host_boot", pa.utf8(), nullable=False),
        pa.field("door", pa.utf8(), nullable=False),
        pa.field("epoch", pa.uint64(), nullable=False),
        pa.field("policy_digest", pa.utf8(), nullable=False),
        pa.field("applied", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("state", pa.utf8(), nullable=False),
        pa.field("doors", pa.uint16(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
        pa.field("said", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""The Arrow columns of an insert into `acknowledged`: what a host (`door` empty) or one of its doors has said of itself."""

TRACE_SCHEMA: Final = pa.schema(
    [
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("version", pa.uint64(), nullable=False),
        pa.field("grade", pa.utf8(), nullable=False),
        pa.field("root", pa.utf8(), nullable=False),
        pa.field("agents", pa.list_(pa.field("item", pa.utf8(), nullable=False)), nullable=False),
        pa.field("enforcers", pa.list_(pa.field("item", pa.utf8(), nullable=False)), nullable=False),
        pa.field("calls", pa.uint32(), nullable=False),
        pa.field("denied", pa.uint32(), nullable=False),
        pa.field("depth", pa.uint8(), nullable=False),
        pa.field("started", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("ended", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("why", pa.utf8(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `traces_stored`; `why` says what a grade other than `complete` comes from. A higher
version replaces a row."""

EDGE_SCHEMA: Final = pa.schema(
    [
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("boot", pa.uint64(), nullable=False),
        pa.field("seq", pa.uint64(), nullable=False),
        pa.field("version", pa.uint64(), nullable=False),
        pa.field("parent_boot", pa.uint64(), nullable=False),
        pa.field("parent_seq", pa.uint64(), nullable=False),
        pa.field("assurance", pa.utf8(), nullable=False),
        pa.field("chain", pa.list_(pa.field("item", pa.utf8(), nullable=False)), nullable=False),
        pa.field("grade", pa.utf8(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `edges_stored`: a call of a trace, the call that caused it (0, 0: none that is known),
how that is known, and the effective chain (principal uids, root first)."""

RESPONSE_SCHEMA: Final = pa.schema(
    [
        pa.field("finding", pa.utf8(), nullable=False),
        pa.field("rule", pa.utf8(), nullable=False),
        pa.field("selector", pa.utf8(), nullable=False),
        pa.field("state", pa.utf8(), nullable=False),
        pa.field("epoch", pa.uint64(), nullable=False),
        pa.field("for_s", pa.uint64(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("why", pa.utf8(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
        pa.field("worker", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `responses_stored`: what a rule did about a finding. `state` is one of those of
`pipeline.core.respond`; the latest of (finding, rule, selector, epoch)."""

ACK_GONE: Final = "gone"
"""`state` of a door that its host names no more. The others are those of `schemas.ack`; a door has `ready`."""

INSERT_FORMAT: Final = "ArrowStream"

INSERT_SETTINGS: Final[Mapping[str, str]] = {
    "async_insert": "0",
    "optimize_on_insert": "0",
    "max_insert_threads": "1",
    "max_insert_block_size": str(2 * INSERT_RECORDS_MAX),
    "min_insert_block_size_rows": str(2 * INSERT_RECORDS_MAX),
    "min_insert_block_size_bytes": "0",
    "insert_deduplicate": "1",
}
"""One block, one part, whatever the row count up to INSERT_RECORDS_MAX. The caller adds `insert_deduplication_token`."""

_ARROW_TYPES: Final[Mapping[str, str]] = {
    "uint8": "UInt8", "uint32": "UInt32", "uint64": "UInt64", "int32": "Int32", "string": "String", "binary": "String",
    "fixed_size_binary[8]": "FixedString(8)", "fixed_size_binary[16]": "FixedString(16)",
    "fixed_size_binary[32]": "FixedString(32)", "timestamp[us, tz=UTC]": "DateTime64(6, 'UTC')",
    "timestamp[s, tz=UTC]": "DateTime('UTC')", "double": "Float64", "uint16": "UInt16",
}  # fmt: skip


def quote_text(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_name(name: str) -> str:
    """A ClickHouse identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def clickhouse_type(kind: pa.DataType) -> str:
    """The ClickHouse type that holds an Arrow type of INSERT_SCHEMA."""
    if pa.types.is_dictionary(kind):
        return f"LowCardinality({clickhouse_type(kind.value_type)})"
    if pa.types.is_list(kind):
        return f"Array({clickhouse_type(kind.value_type)})"
    return _ARROW_TYPES[str(kind)]


def structure(schema: pa.Schema) -> str:
    """`name Type, ...` as `input()` and `file()` take it."""
    return ", ".join(f"{quote_name(field.name)} {clickhouse_type(field.type)}" for field in schema)


def insert_sql(database: str, owned: Mapping[int, int]) -> str:
    """The insert into `records` of a batch, `fenced_into` with the format of its data."""
    return f"INSERT INTO {fenced_into(database, owned)} FORMAT {INSERT_FORMAT}"


def fenced_into(database: str, owned: Mapping[int, int]) -> str:
    """Where a batch goes whose rows lie in the partitions of `owned` (partition -> our epoch): what follows `INSERT INTO`.

    Its data is one Arrow stream with INSERT_SCHEMA. It stores everything, or nothing: with FENCED when another worker has taken
    one of the partitions.
    """
    assert owned, "a batch has a partition"
    columns = ", ".join(quote_name(field.name) for field in INSERT_SCHEMA)
    pairs = ", ".join(f"({partition}, {epoch})" for partition, epoch in sorted(owned.items()))
    partitions = ", ".join(str(partition) for partition in sorted(owned))
    base = quote_name(database)
    held = (
        f"SELECT countIf((partition, top) IN ({pairs})) FROM (SELECT partition, max(epoch) AS top FROM {base}.fence"
        f" WHERE partition IN ({partitions}) GROUP BY partition)"
    )
    return (
        f"{base}.records ({columns}) SELECT {columns} FROM input({quote_text(structure(INSERT_SCHEMA))})"
        f" WHERE throwIf(ifNull(({held}), 0) != {len(owned)}, '{FENCED}') = 0"
    )


def take_over_sql(database: str, partitions: Iterable[int], owner: str) -> tuple[str, str]:
    """Take partitions: the statement that writes their new epochs, and the query that reads them as (partition, epoch).

    The high half of an epoch counts the takings, the low half is a hash of `owner` (unique for each taking, e.g. a UUID), so
    that two workers that take at the same moment get different epochs and the lower one is fenced.
    """
    wanted = sorted(set(partitions))
    listed = ", ".join(str(partition) for partition in wanted)
    base, name = quote_name(database), quote_text(owner)
    write = (
        f"INSERT INTO {base}.fence (partition, epoch, owner)"
        " SELECT p, bitShiftLeft(bitShiftRight(maxIf(epoch, partition = p), 32) + 1, 32)"
        f" + bitAnd(sipHash64({name}), 4294967295), {name}"
        f" FROM (SELECT arrayJoin(CAST([{listed}], 'Array(UInt32)')) AS p) AS wanted"
        f" LEFT JOIN {base}.fence AS held ON held.partition = wanted.p GROUP BY p"
    )
    read = (
        f"SELECT partition, max(epoch) FROM {base}.fence WHERE owner = {name} AND partition IN ({listed})"
        " GROUP BY partition ORDER BY partition"
    )
    return write, read


def lane_state_sql(database: str, partition: int) -> str:
    """What the store has of each lane of a partition: (enforcer, enforcer_boot, frontier, beyond).

    `frontier` is the highest n so that frames 1 to n are all there (or below the floor in `frontiers`), `beyond` the sorted
    numbers of frames that are there although an earlier one is not. Dead-lettered frames count.
    """
    base = quote_name(database)
    there = (
        f"SELECT toString(enforcer) AS enforcer, call_seq AS host_boot, toUInt64(0) AS low, groupUniqArray(seq) AS seqs"
        f" FROM {base}.records WHERE boot = 0 AND kind = {FRAME_KIND} AND partition = {partition} GROUP BY enforcer, call_seq"
        " UNION ALL SELECT enforcer, enforcer_boot, max(frame_no), CAST([], 'Array(UInt64)')"
        f" FROM {base}.frontiers WHERE partition = {partition} GROUP BY enforcer, enforcer_boot"
    )
    lanes = (
        "SELECT enforcer, host_boot, max(low) AS floor,"
        " arraySort(arrayFilter(n -> n > floor, groupUniqArrayArray(seqs))) AS numbers,"
        " arrayFirstIndex((n, i) -> n != floor + i, numbers, arrayEnumerate(numbers)) AS broken"
        f" FROM ({there}) GROUP BY enforcer, host_boot"
    )
    return (
        "SELECT enforcer, host_boot AS enforcer_boot,"
        " toUInt64(floor + if(broken = 0, length(numbers), broken - 1)) AS frontier,"
        f" arrayFilter(n -> n > frontier, numbers) AS beyond FROM ({lanes}) ORDER BY enforcer, enforcer_boot"
    )


def control_known_sql(database: str) -> str:
    """How much of the control log the store has: the latest journal (0: none), and its highest epoch."""
    return f"SELECT journal, max(epoch) FROM {quote_name(database)}.control GROUP BY journal ORDER BY journal DESC LIMIT 1"


def control_has_sql(database: str, journal: int, epoch: int) -> str:
    """What the store has at one epoch of a journal: (key, time in microseconds since 1970)."""
    return (
        f"SELECT key, toUnixTimestamp64Micro(time) FROM {quote_name(database)}.control FINAL"
        f" WHERE journal = {journal} AND epoch = {epoch}"
    )


def control_live_sql(database: str, journal: int, epoch: int, columns: str) -> str:
    """`columns` of the keys that are live in the store and of which nothing above `epoch` was said."""
    return (
        f"SELECT {columns} FROM (SELECT key, argMax(value, epoch) AS value, max(epoch) AS top"
        f" FROM {quote_name(database)}.control FINAL WHERE journal = {journal} GROUP BY key)"
        f" WHERE value != '' AND top <= {epoch}"
    )


def ack_state_sql(database: str, journal: int, host: str, host_boot: str) -> str:
    """The last word of a host's start and of its doors: (door, epoch, policies, applied, state, doors, said), times in us."""
    return (
        "SELECT door, word.3 AS epoch, word.4, toUnixTimestamp64Micro(word.2), word.5, word.6, toUnixTimestamp64Micro(word.1)"
        " FROM (SELECT door, max((heard, applied, epoch, toString(policy_digest), toString(state), doors)) AS word"
        " FROM (SELECT door, epoch, policy_digest, applied, state, doors, min(said) AS heard"
        f" FROM {quote_name(database)}.acknowledged WHERE journal = {journal} AND host = {quote_text(host)}"
        f" AND host_boot = {quote_text(host_boot)} GROUP BY ALL) GROUP BY door)"
    )


def frame_row(
    *,
    enforcer: str,
    enforcer_boot: int,
    partition: int,
    frame_no: int,
    ingested_s: int,
    digest: bytes,
    previous: bytes,
    records: int,
    size: int,
    created_us: int,
    ranges: Sequence[int],
    flag: str,
    offset: int,
    head: bytes,
) -> dict[str, Any]:
    """A frame's own row as column -> value, every record column at its zero. Times in seconds and microseconds since 1970."""
    row: dict[str, Any] = {field.name: zero_of(field.type) for field in INSERT_SCHEMA}
    row |= {
        "kind": FRAME_KIND, "boot": 0, "call_seq": enforcer_boot, "seq": frame_no, "enforcer": enforcer,
        "enforcer_boot": enforcer_boot, "partition": partition, "frame_no": frame_no, "ingested": ingested_s,
        "frame_digest": digest, "frame_previous": previous, "frame_records": records, "frame_bytes": size,
        "frame_created": created_us, "frame_ranges": list(ranges), "frame_flag": flag, "frame_offset": offset,
        "frame_head": head,
    }  # fmt: skip
    return row


def zero_of(kind: pa.DataType) -> Any:
    """The value that stands for "nothing" in a column of INSERT_SCHEMA."""
    if pa.types.is_dictionary(kind):
        return zero_of(kind.value_type)
    if pa.types.is_list(kind):
        return []
    if pa.types.is_string(kind):
        return ""
    if pa.types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    return b"" if pa.types.is_binary(kind) else 0


assert len(NO_FRAME) == 32, "the `previous` of a first frame is the zero of its column"
