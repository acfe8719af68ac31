"""Frame columns: the kernel against its oracle, Kafka's partitioner against Kafka's own numbers, and whose memory it is."""

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.columns import Columns, partition_of
from ext.spool import Run, SpoolReader
from schemas.frame import ARROW_SCHEMA
from schemas.limits import FRAME_RECORDS_MAX
from schemas.records import STRING_FIELDS
from tests.support import oracles
from tests.support.oracles import Rec
from tests.support.spooling import BOOT, padded, put, records, writer

Numbered = list[tuple[int, Rec]]


def runs_of(folder: Path, recs: list[Rec]) -> tuple[list[Run], Numbered]:
    """Records as they come out of a spool, and as they went in."""
    spool = writer(folder, spool=1 << 30)
    found = [put(spool, rec) for rec in recs]
    return SpoolReader(str(folder), BOOT).read(1 << 20, 1 << 40), found


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch as plain rows; times as whole microseconds, which Python's own dates cannot all hold."""
    batch.validate(full=True)
    assert batch.schema.equals(ARROW_SCHEMA, check_metadata=True)
    for name in ("time", "recorded"):
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, name, batch.column(at).cast(pa.int64()))
    found: list[dict[str, Any]] = batch.to_pylist()
    return found


# the numbers of org.apache.kafka.common.utils.UtilsTest
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), VECTORS.items())
def test_the_hash_is_that_of_kafka(key: bytes, expected: int) -> None:
    assert oracles.murmur2(key) == expected
    assert partition_of(key, 1 << 31) == expected & 0x7FFFFFFF


@given(key=st.binary(max_size=40), partitions=st.integers(1, 1024))
def test_the_partition_is_that_of_kafkas_clients(key: bytes, partitions: int) -> None:
    everything = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, everything, everything)
    assert partition_of(key, partitions) == oracles.partition_of(key, partitions)


def test_a_topic_without_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        partition_of(b"", 0)
    with pytest.raises(ValueError, match="at least one partition"):
        Columns(0)


@settings(max_examples=80)
@given(recs=st.lists(records, max_size=40), partitions=st.integers(1, 5), pieces=st.integers(1, 41))
def test_columns_say_what_the_oracle_says(recs: list[Rec], partitions: int, pieces: int) -> None:
    columns = Columns(partitions)
    with TemporaryDirectory() as folder:
        _, found = runs_of(Path(folder), recs)
        reader = SpoolReader(folder, BOOT)
        while runs := reader.read(pieces, 1 << 30):
            for run in runs:
                columns.add(run.view)
    assert columns.records == len(found)
    assert {number: rows(batch) for number, batch in columns.batches()} == oracles.columns(BOOT, found, partitions)
    assert (columns.records, columns.batches()) == (0, [])


def written_by_arrow(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


@settings(max_examples=80)
@given(recs=st.lists(records, max_size=40), partitions=st.integers(1, 5))
def test_a_stream_is_to_the_byte_what_arrow_writes(recs: list[Rec], partitions: int) -> None:
    both = Columns(partitions), Columns(partitions)
    with TemporaryDirectory() as folder:
        for run in runs_of(Path(folder), recs)[0]:
            for columns in both:
                columns.add(run.view)
    streams = [(number, batch.records, batch.stream()) for number, batch in both[0].parts()]
    batches = both[1].batches()
    assert [(number, size) for number, size, _ in streams] == [(number, batch.num_rows) for number, batch in batches]
    for (_, _, stream), (_, batch) in zip(streams, batches, strict=True):
        assert stream == written_by_arrow(batch)
        with pa.ipc.open_stream(stream) as reader:
            assert rows(reader.read_next_batch()) == rows(batch)
            with pytest.raises(StopIteration):
                reader.read_next_batch()


@pytest.mark.parametrize("distinct", [1, 31, 32, 33, 64, 65, 1_000])
def test_a_dictionary_has_each_value_once_in_the_order_of_its_coming(tmp_path: Path, distinct: int) -> None:
    names = [f"agent-{number}" for number in range(distinct)]
    recs = [Rec(texts=tuple(name if field == "agent" else "" for field in STRING_FIELDS)) for name in names]
    recs += recs[::-1] + recs
    runs, _ = runs_of(tmp_path, recs)
    columns = Columns(1)
    for run in runs:
        columns.add(run.view)
    ((_, batch),) = columns.batches()
    agents = batch.column("agent")
    assert agents.dictionary.to_pylist() == names
    assert agents.indices.to_pylist() == [*range(distinct), *reversed(range(distinct)), *range(distinct)]
    assert batch.column("path").dictionary.to_pylist() == [""]


@pytest.mark.parametrize("batch_records", [1, 7, 100])
def test_a_partition_with_many_records_gets_several_batches_in_order(tmp_path: Path, batch_records: int) -> None:
    runs, found = runs_of(tmp_path, [padded(number % 9, 200) for number in range(100)])
    columns = Columns(3, batch_records)
    for run in runs:
        columns.add(run.view)
    assert columns.records == 100
    batches = columns.batches()
    assert [number for number, _ in batches] == sorted(number for number, _ in batches)
    together: dict[int, list[dict[str, Any]]] = {}
    for number, batch in batches:
        assert batch.num_rows <= batch_records
        together.setdefault(number, []).extend(rows(batch))
    assert together == oracles.columns(BOOT, found, 3)
    assert len(batches) == sum(-(-len(part) // batch_records) for part in together.values())


@pytest.mark.parametrize("batch_records", [0, FRAME_RECORDS_MAX + 1])
def test_a_batch_is_at_most_a_frame(batch_records: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {FRAME_RECORDS_MAX} records, not {batch_records}"):
        Columns(1, batch_records)


def test_batches_outlive_everything_they_came_from(tmp_path: Path) -> None:
    runs, found = runs_of(tmp_path, [padded(number, 400) for number in range(50)])
    columns = Columns(2)
    for run in runs:
        columns.add(run.view)
    batches = columns.batches()
    del run, runs, columns
    gc.collect()
    others = Columns(2)  # what was freed is used again
    with TemporaryDirectory() as folder:
        for run in runs_of(Path(folder), [padded(7, 500)] * 300)[0]:
            others.add(run.view)
    assert {number: rows(batch) for number, batch in batches} == oracles.columns(BOOT, found, 2)
    part = batches[0][1].slice(3, 4).column("agent")
    del batches
    gc.collect()
    assert len(part.to_pylist()) == 4


def test_a_batch_survives_the_wire(tmp_path: Path) -> None:
    runs, found = runs_of(tmp_path, [padded(number, 400) for number in range(30)])
    columns = Columns(1)
    for run in runs:
        columns.add(run.view)
    ((_, batch),) = columns.batches()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    (again,) = pa.ipc.open_stream(sink.getvalue())
    assert rows(again) == oracles.columns(BOOT, found, 1)[0]


@pytest.mark.parametrize("keep", [slice(0, -1), slice(1, None), slice(0, 100), slice(8, None)])
def test_bytes_that_are_not_whole_records_are_refused_whole(tmp_path: Path, keep: slice) -> None:
    runs, found = runs_of(tmp_path, [padded(1, 400), padded(2, 408)])
    columns = Columns(1)
    with pytest.raises(ValueError, match=r"byte \d+ of \d+ is not the start of a whole record"):
        columns.add(runs[0].view[keep])
    assert columns.records == 0
    columns.add(runs[0].view)
    assert rows(columns.batches()[0][1]) == oracles.columns(BOOT, found, 1)[0]


def test_bytes_of_no_run_have_no_door(tmp_path: Path) -> None:
    runs, _ = runs_of(tmp_path, [padded(1, 400)])
    with pytest.raises(TypeError, match="not the view of a Run"):
        Columns(1).add(memoryview(bytes(runs[0].view)))
