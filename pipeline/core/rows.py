"""What one insert writes: the records of its frames, and one more row for each frame, in one Arrow stream with one batch.

One batch with one dictionary per column, because the store must take it as one block: an insert is all there or not at all.
The bytes depend only on the arguments: a second try after an ambiguous failure is the same insert, under the same token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.intake import Dead
from schemas.frame import FrameHead
from schemas.store import DEADLETTER_STATES, INSERT_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRow:
    """A frame and what is written for it. `batch` is None for a dead letter: then only the frame's own row is written."""

    head: FrameHead
    digest: bytes
    signed: bytes
    wire_bytes: int
    offset: int
    flag: str
    batch: pa.RecordBatch | None

    @property
    def rows(self) -> int:
        """Rows that the store writes for it."""
        return 1 + (self.batch.num_rows if self.batch is not None else 0)


def letter_row(dead: Dead, data: bytes, partition: int, offset: int, *, received_us: int) -> dict[str, Any]:
    """A message that is kept as a dead letter, as a row of `DEADLETTER_SCHEMA`."""
    head = dead.head
    return {
        "received": received_us, "partition": partition, "offset": offset, "enforcer": head.lane.host if head else "",
        "enforcer_boot": head.lane.host_boot if head else 0, "frame_no": head.frame_no if head else 0, "reason": dead.reason,
        "message": dead.message, "digest": hashlib.sha256(data).digest(), "data": data, "state": DEADLETTER_STATES[0],
    }  # fmt: skip


def insert_token(frames: Sequence[FrameRow], ingested_s: int) -> str:
    """What names the content of an insert: equal for equal rows, other for others."""
    mark = hashlib.sha256(ingested_s.to_bytes(8, "little"))
    for frame in frames:
        mark.update(frame.digest + frame.flag.encode().ljust(8, b"\0") + frame.offset.to_bytes(8, "little", signed=True))
    return mark.hexdigest()


def insert_table(frames: Sequence[FrameRow], ingested_s: int) -> pa.Table:
    """The rows of some frames, in `INSERT_SCHEMA`.

    `ingested_s` (seconds since 1970) is written into each: its day is the partition of the table, so it must not change when
    the insert is tried again.
    """
    table = pa.concat_tables([*_records(frames, ingested_s), _frames(frames, ingested_s)])
    return table.unify_dictionaries().combine_chunks()


class Room:
    """Memory that one insert after another is written into.

    A stream of 100,000 rows has 35 MB: getting fresh pages for it took ten times as long as writing them.
    """

    def __init__(self) -> None:
        self._memory = bytearray()

    def write(self, table: pa.Table) -> memoryview:
        """A table as one Arrow IPC stream with one batch. The view is good until the next `write`."""
        counter = pa.MockOutputStream()
        _write(table, counter)
        size = counter.size()
        if size > len(self._memory):
            self._memory = bytearray(size + size // 4)
        _write(table, pa.FixedSizeBufferWriter(pa.py_buffer(self._memory)))
        return memoryview(self._memory)[:size]


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=table.num_rows)


def _records(frames: Sequence[FrameRow], ingested_s: int) -> list[pa.Table]:
    good = [(frame.head, frame.batch) for frame in frames if frame.batch is not None]
    if not good:
        return []
    heads = [head for head, _ in good]
    counts = [batch.num_rows for _, batch in good]
    total = sum(counts)
    own = pa.Table.from_batches([batch for _, batch in good])
    added: dict[str, Any] = {
        "enforcer": _repeated_texts([head.lane.host for head in heads], counts),
        "enforcer_boot": np.repeat(np.array([head.lane.host_boot for head in heads], np.uint64), counts),
        "partition": np.repeat(np.array([head.lane.partition for head in heads], np.uint32), counts),
        "frame_no": np.repeat(np.array([head.frame_no for head in heads], np.uint64), counts),
    }
    return [_complete(dict(zip(own.column_names, own.columns, strict=True)) | added, total, ingested_s)]


def _frames(frames: Sequence[FrameRow], ingested_s: int) -> pa.Table:
    heads = [frame.head for frame in frames]
    boots = np.array([head.lane.host_boot for head in heads], np.uint64)
    numbers = np.array([head.frame_no for head in heads], np.uint64)
    created = [head.created_ns // 1000 for head in heads]
    columns: dict[str, Any] = {
        "call_seq": boots,
        "seq": numbers,
        "enforcer": _repeated_texts([head.lane.host for head in heads], [1] * len(heads)),
        "enforcer_boot": boots,
        "partition": np.array([head.lane.partition for head in heads], np.uint32),
        "frame_no": numbers,
        "frame_digest": [frame.digest for frame in frames],
        "frame_previous": [head.previous for head in heads],
        "frame_records": [head.records for head in heads],
        "frame_bytes": [frame.wire_bytes for frame in frames],
        "frame_created": created,
        "frame_ranges": [[n for r in head.ranges for n in (r.boot, r.first, r.last)] for head in heads],
        "frame_flag": [frame.flag for frame in frames],
        "frame_offset": [frame.offset for frame in frames],
        "frame_head": [frame.signed for frame in frames],
    }
    return _complete(columns, len(frames), ingested_s)


def _complete(columns: dict[str, Any], rows: int, ingested_s: int) -> pa.Table:
    """Bring what is given into `INSERT_SCHEMA`; what is not given is nothing (0, empty)."""
    made = []
    for field in INSERT_SCHEMA:
        value = ingested_s if field.name == "ingested" else columns.get(field.name)
        if value is None or field.name == "ingested":
            made.append(_constant(value, field.type, rows))
        elif isinstance(value, pa.ChunkedArray):
            made.append(value if value.type == field.type else value.cast(field.type))
        elif isinstance(value, pa.Array):
            made.append(pa.chunked_array([value if value.type == field.type else value.cast(field.type)]))
        else:
            made.append(pa.chunked_array([_array(value, field.type)]))
    return pa.Table.from_arrays(made, schema=INSERT_SCHEMA)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def _constant(value: Any, kind: pa.DataType, rows: int) -> pa.ChunkedArray:
    """One value `rows` times; None means the type's nothing."""
    if pa.types.is_dictionary(kind):
        return pa.chunked_array([
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value or ""], kind.value_type))
        ])  # fmt: skip
    if pa.types.is_fixed_size_binary(kind):
        return pa.chunked_array([pa.repeat(pa.scalar(bytes(kind.byte_width), kind), rows)])
    if pa.types.is_list(kind):
        return pa.chunked_array([pa.ListArray.from_arrays(np.zeros(rows + 1, np.int32), pa.array([], kind.value_type))])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pa.chunked_array([pa.repeat(pa.scalar(value or (b"" if pa.types.is_binary(kind) else ""), kind), rows)])
    return pa.chunked_array([pa.repeat(pa.scalar(value or 0, pa.int64()).cast(kind), rows)])


def _repeated_texts(values: Sequence[str], counts: Sequence[int]) -> pa.Array:
    known = list(dict.fromkeys(values))
    at = np.array([known.index(value) for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(np.repeat(at, counts)), pa.array(known, pa.utf8()))
