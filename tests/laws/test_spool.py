"""The spool: what was appended is read in order with the same values, within its limits, and at no cost but a number."""

import gc
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.spool import Run, SpoolReader, SpoolWriter
from schemas.errors import AgentFault, OperatorFault, SpoolFull
from schemas.layout import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from schemas.limits import RECORD_BYTES_MAX, STRING_BYTES_MAX
from schemas.records import STRING_FIELDS, Kind, Verdict
from tests.support import oracles
from tests.support.oracles import Rec
from tests.support.spooling import BOOT, SEGMENT, padded, put, read_all, records, segments, told, writer


@given(data=st.binary(max_size=400).map(lambda data: data + bytes(-len(data) % 8)))
def test_the_check_shows_every_exchanged_bit(data: bytes) -> None:
    check = oracles.mix32(data)
    for at in range(0, len(data) * 8, 37):
        other = bytearray(data)
        other[at // 8] ^= 1 << at % 8
        assert oracles.mix32(bytes(other)) != check


@given(recs=st.lists(records, min_size=1, max_size=6))
def test_the_bytes_of_a_segment_are_those_of_the_oracle(recs: list[Rec]) -> None:
    with TemporaryDirectory() as folder:
        spool = writer(Path(folder))
        for rec in recs:
            put(spool, rec)
        data = segments(Path(folder))[0].read_bytes()
    expected = oracles.encode_header(BOOT, 1, 1, 0, SEGMENT)
    expected += b"".join(oracles.encode_record(seq, rec) for seq, rec in enumerate(recs, 1))
    assert data == expected.ljust(SEGMENT, b"\0")


@settings(max_examples=60)
@given(recs=st.lists(records, max_size=30), extra=st.sampled_from([0, 0, 150]), data=st.data())
def test_what_was_appended_is_read_in_order_with_the_same_values(recs: list[Rec], extra: int, data: st.DataObject) -> None:
    expected: list[tuple[int, Rec]] = []
    runs: list[Run] = []
    with TemporaryDirectory() as folder:
        spool = writer(Path(folder))
        reader = SpoolReader(folder, BOOT)
        for number, rec in enumerate(recs):
            for filler in range(extra if number == 0 else 0):
                expected.append(put(spool, padded(filler, 1_000)))
            expected.append(put(spool, rec))
            if data.draw(st.booleans(), label="read now"):
                runs += reader.read(data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 900, 5_000, 1 << 30])))
        while more := reader.read(1 << 20, 1 << 30):
            runs += more
        assert told(runs) == expected
        assert all(run.first == runs[at - 1].last + 1 for at, run in enumerate(runs) if at)
        for run in runs:
            found = told([run])
            assert (run.boot, run.first, run.last, run.records) == (BOOT, found[0][0], found[-1][0], len(found))
            assert run.last_ref == max(rec.ref for _, rec in found)
            assert (run.opened, run.closed) == oracles.open_and_closed(found)
        assert (reader.last_seq, reader.torn) == (len(expected), "")
        assert (spool.last_seq, spool.last_ref) == (len(expected), max((rec.ref for _, rec in expected), default=0))
        after = data.draw(st.integers(0, len(expected)))
        assert read_all(Path(folder), after) == (expected[after:], "")


def test_the_generator_reaches_open_and_ended_calls() -> None:
    """A property that nobody exercises proves nothing."""
    seen = set()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(recs=st.lists(records, min_size=3, max_size=12), start=st.integers(1, 6))
    def look(recs: list[Rec], start: int) -> None:
        found = [(seq, replace(rec, call_seq=rec.call_seq or seq)) for seq, rec in enumerate(recs, start)]
        opened, closed = oracles.open_and_closed(found)
        allowed = sum(rec.kind == Kind.DECISION and rec.verdict == Verdict.ALLOW for _, rec in found)
        seen.add((bool(opened), bool(closed), len(opened) < allowed))

    look()
    for fact in zip(*seen, strict=True):
        assert set(fact) == {True, False}


def test_a_reader_gives_one_record_however_long(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    put(spool, padded(1, RECORD_BYTES_MAX))
    put(spool, padded(2, 176))
    reader = SpoolReader(str(tmp_path), BOOT)
    assert [run.records for run in reader.read(10, 1)] == [1]
    assert [run.records for run in reader.read(10, -5)] == [1]
    assert reader.read(10, 1) == []


def test_a_reader_waits_for_a_spool_that_has_no_segment_yet(tmp_path: Path) -> None:
    reader = SpoolReader(str(tmp_path), BOOT)
    assert (reader.read(1, 1), reader.segment, reader.torn) == ([], 0, "")
    put(writer(tmp_path), Rec())
    assert len(told(reader.read(1, 1))) == 1
    assert reader.segment == 1


def test_a_view_outlives_reader_writer_and_file(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    seq, rec = put(spool, Rec(texts=("kept",) * 20))
    reader = SpoolReader(str(tmp_path), BOOT)
    (run,) = reader.read(1, 1)
    view = run.view
    assert view.readonly
    assert isinstance(view.obj, Run)
    spool.close()
    reader.close()
    segments(tmp_path)[0].unlink()
    del run, spool, reader
    gc.collect()
    assert list(oracles.parse_records(bytes(view))) == [(seq, rec)]


def test_a_segment_is_never_sparse(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    spool.prepare()
    for path in tmp_path.glob("*.seg"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size == SEGMENT


def test_a_prepared_segment_is_taken_and_an_unused_one_removed(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    spool.prepare()
    (spare,) = tmp_path.glob("next-*.seg")
    inode = spare.stat().st_ino
    while len(segments(tmp_path)) == 1:
        put(spool, padded(1, 1_024))
    assert segments(tmp_path)[1].stat().st_ino == inode
    spool.prepare()
    spool.prepare()
    assert len(list(tmp_path.glob("next-*.seg"))) == 1
    spool.close()
    assert not list(tmp_path.glob("next-*.seg"))


def test_a_folder_may_be_renamed_while_it_is_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    spool = writer(tmp_path / "a")
    reader = SpoolReader(str(tmp_path / "a"), BOOT)
    (tmp_path / "a").rename(tmp_path / "b")
    for number in range(200):
        put(spool, padded(number, 1_024))
    assert len(told(reader.read(1_000, 1 << 30))) == 200
    assert len(segments(tmp_path / "b")) == 4


def test_a_reopened_spool_goes_on_where_it_was(tmp_path: Path) -> None:
    expected: list[tuple[int, Rec]] = []
    for start in range(1, 9):
        spool = writer(tmp_path)
        assert (spool.last_seq, spool.last_ref) == (len(expected), 10 * (start - 1))
        expected += [put(spool, replace(padded(0, 1_024), ref=10 * start)), put(spool, padded(1, 8 * 1_024))]
        spool.close()
    assert read_all(tmp_path) == (expected, "")
    for path in segments(tmp_path)[:-1]:
        path.unlink()
    assert writer(tmp_path).last_ref == 80, "the header says what the removed segments said"


FULL = 4 * SEGMENT
FITTING = (SEGMENT - SEGMENT_HEADER_BYTES) // 1_024


def fill(spool: SpoolWriter, *, reserved: bool = False) -> int:
    """Append until there is no room; returns how many went in."""
    before = spool.last_seq
    while True:
        try:
            put(spool, padded(1, 1_024), reserved=reserved)
        except SpoolFull as full:
            said = str(full)
            break
    assert re.fullmatch("the spool has [^\n]* limit is [^\n]*[^.]", said)
    return spool.last_seq - before


def test_the_reserved_room_is_for_reserved_records_only(tmp_path: Path) -> None:
    spool = writer(tmp_path, spool=FULL, reserved=SEGMENT + SEGMENT // 2)
    plain = fill(spool)
    assert 2.4 * FITTING < plain < 2.5 * FITTING
    assert fill(spool) == 0
    assert plain + fill(spool, reserved=True) == 4 * FITTING
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == FULL
    assert [seq for seq, _ in read_all(tmp_path)[0]] == list(range(1, 4 * FITTING + 1))


def test_a_full_spool_takes_records_again_when_segments_are_removed(tmp_path: Path) -> None:
    spool = writer(tmp_path, spool=FULL)
    reader = SpoolReader(str(tmp_path), BOOT)
    seen = []
    for _ in range(5):
        assert fill(spool) > 0
        fill(spool, reserved=True)
        seen += [seq for seq, _ in told(reader.read(1 << 20, 1 << 30))]
        for path in segments(tmp_path):
            if int(path.stem) < reader.segment:
                path.unlink()
    assert seen == list(range(1, spool.last_seq + 1))


@given(
    segments_max=st.integers(2, 5),
    reserved=st.integers(0, 4 * SEGMENT),
    steps=st.lists(
        st.tuples(st.sampled_from(["plain", "reserved", "prepare", "read", "read all"]), st.integers(22, 500)), max_size=80
    ),
)
@settings(max_examples=60)
def test_no_limit_is_passed_and_none_holds_for_ever(segments_max: int, reserved: int, steps: list[tuple[str, int]]) -> None:
    """Whatever the order of appends, refusals and removals: all or nothing, within the limit, never stuck once it is read."""
    limit = segments_max * SEGMENT
    reserved = min(reserved, limit - SEGMENT)
    with TemporaryDirectory() as name:
        folder = Path(name)
        spool, reader = writer(folder, spool=limit, reserved=reserved), SpoolReader(name, BOOT)
        accepted: list[tuple[int, Rec]] = []
        seen: list[tuple[int, Rec]] = []

        def read(records_max: int) -> None:
            seen.extend(told(reader.read(records_max, 1 << 30)))
            for path in segments(folder):
                if int(path.stem) < reader.segment:
                    path.unlink()

        def try_to(number: int, words: int, kind: str) -> bool:
            before = spool.last_seq
            try:
                accepted.append(put(spool, padded(number, 8 * words), reserved=kind == "reserved"))
            except SpoolFull:
                assert spool.last_seq == before
                return False
            return True

        for number, (step, words) in enumerate(steps):
            if step == "prepare":
                spool.prepare()
            elif step.startswith("read"):
                read(1 << 20 if step == "read all" else words)
            else:
                for _ in range(10):
                    try_to(number, words, step)
            assert sum(path.stat().st_size for path in folder.iterdir()) <= limit
        for number in range(3):
            # the first refusal may begin a segment, so that the reader can leave the one before it in the next look
            for _ in range(2):
                if try_to(number, 2_048, "plain"):
                    break
                read(1 << 20)
            else:
                assert try_to(number, 2_048, "plain"), "everything is read, so there is room"
        read(1 << 20)
        assert seen == accepted


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((SEGMENT, 2 * SEGMENT - 1, 0), "a spool of 131071 bytes, 0 of them reserved, needs room for two segments of 65536"),
        ((SEGMENT, 2 * SEGMENT, SEGMENT + 1), "one of them not reserved"),
        ((16_384, 2 * SEGMENT, 0), "a spool segment has 16384 bytes, the least is 32768"),
    ],
)
def test_limits_that_cannot_work_are_refused(tmp_path: Path, sizes: tuple[int, int, int], said: str) -> None:
    with pytest.raises(OperatorFault, match=said):
        SpoolWriter(str(tmp_path), BOOT, *sizes)


BAD_TEXTS = {
    "one text is too long": ({"path": "x" * (STRING_BYTES_MAX + 1)}, "`path` has 4097 bytes, limit is 4096"),
    "its UTF-8 is too long": ({"host": "é" * (STRING_BYTES_MAX // 2 + 1)}, "`host` has 4098 bytes, limit is 4096"),
    "a lone surrogate": ({"agent": "a\ud800"}, "`agent` has a lone surrogate, which no UTF-8 can say"),
    "all together are too long": (
        dict.fromkeys(("tenant", "door", "session", "agent"), "x" * (STRING_BYTES_MAX - 40)),
        f"the record has {-(-(4 * (STRING_BYTES_MAX - 40) + RECORD_HEADER_BYTES) // 8) * 8} bytes, limit is {RECORD_BYTES_MAX}",
    ),
}


@pytest.mark.parametrize(("texts", "said"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, texts: dict[str, str], said: str) -> None:
    spool = writer(tmp_path)
    first = put(spool, Rec(ref=1))
    before = segments(tmp_path)[0].read_bytes()
    with pytest.raises(AgentFault) as fault:
        put(spool, Rec(ref=2, texts=tuple(texts.get(name, "") for name in STRING_FIELDS)))
    assert str(fault.value) == said
    assert segments(tmp_path)[0].read_bytes() == before
    assert (spool.last_seq, spool.last_ref) == (1, 1)
    second = put(spool, Rec(ref=3))
    assert read_all(tmp_path) == ([first, second], "")


@pytest.mark.parametrize(
    "wrong",
    [{"texts": ("",) * 19}, {"texts": (*("",) * 19, b"")}, {"trace_id": b"short"}, {"parent_span": b""}, {"kind": 256},
     {"bytes_out": -1}, {"bytes_in": 1 << 64}, {"status": 1 << 31}, {"time_ns": 1 << 63}, {"query_bits": 1 << 32}],
    ids=str,
)  # fmt: skip
def test_arguments_of_the_wrong_form_leave_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    spool = writer(tmp_path)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        put(spool, replace(Rec(), **wrong))  # type: ignore[arg-type]
    assert spool.last_seq == 0
    assert read_all(tmp_path) == ([], "")


def test_a_reader_is_idle_exactly_when_a_read_would_find_nothing(tmp_path: Path) -> None:
    spool, reader = writer(tmp_path), SpoolReader(str(tmp_path), BOOT)
    assert not reader.idle, "it has not looked yet"
    segments = set()
    for turn in range(400):
        if turn % 3:
            put(spool, Rec(texts=("x" * (turn % 200),) * 20))
        segments.add(len(list(tmp_path.glob("0*.seg"))))
        if turn % 5 == 0:
            idle = reader.idle
            found = reader.read(1 << 20, 1 << 30)
            assert turn == 0 or idle is (not found)
            assert reader.idle
    assert len(segments) > 1, "it has gone on in another segment, which also shows"
    reader.close()
    assert not reader.idle


def test_a_closed_spool_takes_nothing(tmp_path: Path) -> None:
    spool, reader = writer(tmp_path), SpoolReader(str(tmp_path), BOOT)
    for closed in (spool, reader, spool, reader):
        closed.close()
    with pytest.raises(ValueError, match="closed"):
        put(spool, Rec())
    with pytest.raises(ValueError, match="closed"):
        reader.read(1, 1)
    spool.prepare()
    assert not list(tmp_path.glob("next-*"))


@pytest.mark.parametrize("texts", [("plain",) * 20, ("日本🙂é",) * 20], ids=["ascii", "not ascii"])
def test_an_append_allocates_nothing_but_its_number(tmp_path: Path, texts: tuple[str, ...]) -> None:
    spool = SpoolWriter(str(tmp_path), BOOT, 1 << 20, 1 << 22, 0)
    arguments, append, numbers = Rec(texts=texts).arguments(), spool.append, list(range(1_000, 2_000))
    for _ in range(1_000):  # seqs above 256 are objects of their own
        append(*arguments)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for at in range(1_000):
            numbers[at] = append(*arguments)
        after = sys.getallocatedblocks()
    finally:
        gc.enable()
    assert numbers == list(range(1_001, 2_001))
    assert after - before <= 4, "each returned number took the place of another"
    assert struct.unpack_from("<Q", segments(tmp_path)[0].read_bytes(), 16) == (1,)
