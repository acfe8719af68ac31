"""A call that ends before its decision is read is one record: either the writer or the reader turns its word, never both."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.columns import Columns
from ext.spool import Run, SpoolReader, SpoolWriter
from schemas.layout import END_ADDRESS_BYTES, END_BYTES
from schemas.records import Kind, Outcome, Verdict
from tests.laws.test_columns import rows
from tests.support import oracles
from tests.support.oracles import Ended, Rec
from tests.support.spooling import BOOT, U64, put, read_all, records, segments, told, writer

END = Ended(status=200, bytes_out=619, bytes_in=1_024, duration_ns=1_999, address="203.0.113.9:8080")

ends = st.builds(
    Ended,
    outcome=st.sampled_from([int(Outcome.OK), int(Outcome.ERROR)]),
    status=st.integers(-(1 << 31), (1 << 31) - 1),
    bytes_out=st.integers(0, U64),
    bytes_in=st.integers(0, U64),
    duration_ns=st.integers(0, U64),
    address=st.one_of(st.sampled_from(["", "10.0.0.1:80", "x" * END_ADDRESS_BYTES]), st.text(max_size=12)),
)


def whole(found: tuple[int, Rec], end: Ended = END) -> tuple[int, Rec]:
    """The record with that end in it."""
    return found[0], replace(found[1], end=end)


def one(folder: Path) -> tuple[SpoolWriter, tuple[int, Rec]]:
    """A spool with a call that is out."""
    spool = writer(folder)
    return spool, put(spool, Rec(ref=7, texts=("default", *("",) * 13, "192.0.2.1", *("",) * 5)))


@settings(max_examples=80)
@given(recs=st.lists(records, min_size=1, max_size=25), data=st.data())
def test_each_call_ends_once_wherever_the_reader_is(recs: list[Rec], data: st.DataObject) -> None:
    expected: list[tuple[int, Rec]] = []
    runs: list[Run] = []
    with TemporaryDirectory() as folder:
        spool, reader, read = writer(Path(folder)), SpoolReader(folder, BOOT), 0
        for rec in recs:
            expected.append(put(spool, rec))
            for number in data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=3), label="calls that end"):
                seq, said = expected[number]
                end = data.draw(ends, label="how")
                can = said.has_room and said.end is None and seq > read and len(end.address.encode()) <= END_ADDRESS_BYTES
                assert spool.complete(seq, *end.arguments()) is can
                if can:
                    expected[number] = whole(expected[number], end)
            if data.draw(st.booleans(), label="read now"):
                runs += reader.read(data.draw(st.integers(1, 9)), 1 << 30)
                read = reader.last_seq
        runs += reader.read(1 << 20, 1 << 30)
        assert told(runs) == expected
        assert segments(Path(folder))[0].read_bytes()[64:].startswith(b"".join(
            oracles.encode_record(seq, rec) for seq, rec in expected[:1] if rec.end is not None
        ))  # fmt: skip
    for run in runs:
        mine = [found for found in expected if run.first <= found[0] <= run.last]
        assert (run.opened, sorted(run.closed)) == (oracles.open_and_closed(mine)[0], sorted(oracles.open_and_closed(mine)[1]))
    columns = Columns(3)
    for run in runs:
        columns.add(run.view)
    assert {number: rows(batch) for number, batch in columns.batches()} == oracles.columns(BOOT, expected, 3)


def test_a_call_that_has_ended_is_not_open_and_says_from_where_to_where(tmp_path: Path) -> None:
    spool, found = one(tmp_path)
    assert spool.complete(found[0], *END.arguments())
    (run,) = SpoolReader(str(tmp_path), BOOT).read(9, 1 << 30)
    assert (run.opened, run.closed, told([run])) == ([], [], [whole(found)])
    columns = Columns(1)
    columns.add(run.view)
    (row,) = rows(columns.batches()[0][1])
    assert (row["kind"], row["outcome"], row["status"]) == (Kind.DECISION, Outcome.OK, 200)
    assert (row["bytes_out"], row["bytes_in"], row["duration_us"]) == (619, 1_024, 1)
    assert row["address"] == "192.0.2.1\x1f203.0.113.9:8080"


def test_an_end_comes_too_late_once_the_decision_was_read(tmp_path: Path) -> None:
    spool, found = one(tmp_path)
    reader = SpoolReader(str(tmp_path), BOOT)
    runs = reader.read(9, 1 << 30)
    assert not spool.complete(found[0], *END.arguments())
    columns = Columns(1)
    columns.add(runs[0].view)
    (row,) = rows(columns.batches()[0][1])
    assert (row["outcome"], row["address"], runs[0].opened) == (Outcome.OPEN, "192.0.2.1", [(found[0], bytes(16))])
    # a host that died before it sealed what it had read finds the same
    assert read_all(tmp_path) == ([found], "")


def test_only_a_decision_that_lets_a_call_out_and_lies_near_has_room(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    for rec in (Rec(verdict=int(Verdict.DENY), outcome=int(Outcome.REFUSED)), Rec(kind=int(Kind.EFFECT), call_seq=1)):
        seq, _ = put(spool, rec)
        assert not spool.complete(seq, *END.arguments())
    seq, _ = put(spool, Rec())
    for other in (0, seq + 1, seq + 4_096, U64):
        assert not spool.complete(other, *END.arguments())
    for address in ("x" * (END_ADDRESS_BYTES + 1), "\ud800"):
        assert not spool.complete(seq, *replace(END, address=address).arguments())
    with pytest.raises(OverflowError):
        spool.complete(seq, *replace(END, bytes_out=-1).arguments())
    assert spool.complete(seq, *END.arguments())
    assert not spool.complete(seq, *END.arguments()), "once"
    spool.close()
    assert not spool.complete(seq, *END.arguments())
    assert [rec.end for _, rec in read_all(tmp_path)[0]] == [None, None, END]


def test_a_call_that_outlived_its_segment_has_its_end_apart(tmp_path: Path) -> None:
    spool, found = one(tmp_path)
    while len(segments(tmp_path)) < 2:
        last, _ = put(spool, Rec())
    assert not spool.complete(found[0], *END.arguments())
    assert not spool.complete(last - 1, *END.arguments())
    assert spool.complete(last, *END.arguments())


def test_whatever_is_torn_of_an_end_the_decision_stands_and_the_call_is_open(tmp_path: Path) -> None:
    spool, found = one(tmp_path)
    assert spool.complete(found[0], *END.arguments())
    spool.close()
    (path,) = segments(tmp_path)
    sound, room = path.read_bytes(), 64 + found[1].bytes_needed() - END_BYTES
    for at in range(room, room + END_BYTES):
        damaged = bytearray(sound)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        reader = SpoolReader(str(tmp_path), BOOT)
        (run,) = reader.read(9, 1 << 30)
        columns = Columns(1)
        columns.add(run.view)
        (row,) = rows(columns.batches()[0][1])
        assert (run.opened, reader.torn) == ([(found[0], bytes(16))], "")
        assert (row["outcome"], row["bytes_out"], row["address"]) == (Outcome.OPEN, 0, "192.0.2.1")
        assert writer(tmp_path).last_seq == found[0]


@pytest.mark.parametrize("open_at_once", [1, 40])
def test_a_reader_in_another_process_sees_each_call_end_once(tmp_path: Path, open_at_once: int) -> None:
    calls = 40_000
    command = [sys.executable, "-m", "tests.support.spooling", "calls", str(tmp_path), str(calls), str(open_at_once)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, stdout=subprocess.PIPE)
    runs: list[Run] = []
    deadline = time.monotonic() + 120
    try:
        while not segments(tmp_path):
            assert time.monotonic() < deadline
        reader = SpoolReader(str(tmp_path), BOOT)
        while child.poll() is None and time.monotonic() < deadline:
            runs += reader.read(1 << 20, 1 << 30)
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    runs += reader.read(1 << 20, 1 << 30)
    ended: dict[int, bool] = {}
    began = last = 0
    for seq, rec in told(runs):
        assert seq == last + 1
        last = seq
        if rec.kind == Kind.DECISION:
            began += 1
            assert (rec.ref, rec.status) == (began, 0)
            if rec.end is None:
                continue
            assert rec.end == Ended(status=seq % 600, bytes_out=seq, address=f"10.0.0.1:{seq % 60_000}")
        assert rec.call_seq not in ended
        ended[rec.call_seq] = rec.end is None
    assert (began, len(ended), reader.torn) == (calls, calls, "")
    assert sum(ended.values()) == int(said)
    assert last == calls + int(said)
    assert open_at_once == 1 or int(said) >= open_at_once, "the reader was there while it was written"
