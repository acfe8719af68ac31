"""Refusals without a call of their own: counted exactly, in few records, under any flood, and whole through the pipeline."""

from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.call import Record
from enforcers.core.flood import COUNT_MAX, EVERY_NS, MORE, Flood
from enforcers.core.lanes import LaneBook
from enforcers.core.seal import build_frames
from ext.columns import Columns
from ext.spool import SpoolReader, SpoolWriter
from pipeline.core.intake import Accepted, judge
from pipeline.core.ledger import Ledger
from pipeline.core.rows import FrameRow, insert_table
from schemas.errors import SpoolFull
from schemas.frame import Range
from schemas.limits import KIB
from schemas.records import STRING_FIELDS, Kind, Outcome, Verdict

AGENT, REASON, ERROR = (STRING_FIELDS.index(name) for name in ("agent", "reason", "error"))
NOW = 10 * EVERY_NS


def said(record: Record) -> tuple[str, str, int, str, int]:
    texts = record[20]
    return texts[REASON], texts[ERROR], record[8], texts[AGENT], record[9]


def wrong(flood: Flood, name: str = "a", times: int = 1) -> None:
    for _ in range(times):
        flood.add("identity", "credential", name, status=407)


def test_the_first_is_written_at_once_and_the_others_together_a_second_later() -> None:
    flood = Flood("door-1")
    wrong(flood)
    assert [said(one) for one in flood.due(NOW)] == [("identity", "credential", 407, "a", 1)]
    wrong(flood, times=5)
    assert flood.due(NOW + EVERY_NS - 1) == []
    (record,) = flood.due(NOW + EVERY_NS)
    assert said(record) == ("identity", "credential", 407, "a", 5)
    assert (record[12], record[0], record[4], record[5]) == (EVERY_NS, Kind.COUNT, Verdict.DENY, Outcome.REFUSED)
    assert flood.due(NOW + 9 * EVERY_NS) == []


def test_each_kind_is_counted_by_itself() -> None:
    flood = Flood("door-1")
    wrong(flood, "a", 2)
    wrong(flood, "b")
    flood.add("malformed", "two-hosts", status=400)
    flood.add("malformed", "two-hosts", agent="c", claimed="z", status=400)
    flood.add("identity", "busy", "a", status=429)
    assert sorted(map(said, flood.due(NOW))) == [
        ("identity", "busy", 429, "a", 1), ("identity", "credential", 407, "a", 2), ("identity", "credential", 407, "b", 1),
        ("malformed", "two-hosts", 400, "", 1), ("malformed", "two-hosts", 400, "c", 1),
    ]  # fmt: skip


def test_names_beyond_the_limit_are_counted_together_until_others_are_quiet() -> None:
    flood = Flood("door-1", keys_max=3)
    for number in range(10):
        wrong(flood, f"n{number}")
    assert sorted(said(one)[3:] for one in flood.due(NOW)) == [(MORE, 7), ("n0", 1), ("n1", 1), ("n2", 1)]
    wrong(flood, "late")
    assert sorted(said(one)[3:] for one in flood.due(NOW + EVERY_NS)) == [(MORE, 1)]
    wrong(flood, "later")
    assert sorted(said(one)[3:] for one in flood.due(NOW + EVERY_NS)) == [("later", 1)]


@pytest.mark.parametrize("name", ["x" * 300, "a\x1fb", "a\nb", "\ud800", "é" * 200, "\x9b31m"])
def test_a_name_is_one_short_line(name: str) -> None:
    flood = Flood("door-1")
    wrong(flood, name)
    (record,) = flood.due(NOW)
    text = record[20][AGENT]
    assert text.isprintable()
    assert len(text.encode()) <= 256


def test_a_hundred_thousand_wrong_credentials_are_few_records_and_an_exact_sum() -> None:
    flood, now = Flood("door-1"), NOW
    records: list[Record] = []
    for number in range(100_000):
        wrong(flood, f"guess-{number}")
        now += EVERY_NS // 10_000
        if number % 50 == 0:
            records += flood.due(now)
    records += flood.due(now, everything=True)
    assert sum(record[9] for record in records) == flood.counted == 100_000
    assert len(records) <= 12 * 257
    assert len(flood._counts) + len(flood._more) <= 257


def test_what_one_record_cannot_say_is_in_the_next() -> None:
    flood = Flood("door-1")
    wrong(flood)
    flood._counts[("identity", "credential", 407, "a")].count = COUNT_MAX + 3
    assert [said(one)[4] for one in flood.due(NOW)] == [COUNT_MAX]
    assert [said(one)[4] for one in flood.due(NOW + EVERY_NS)] == [3]


steps = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(["a", "b", "c", "d", MORE]), st.integers(1, 9)),
    st.tuples(st.just("write"), st.sampled_from(["", "", "full", "half"]), st.integers(0, 3)),
)


@given(st.lists(steps, max_size=40))
def test_whatever_comes_and_whenever_there_is_room_nothing_is_counted_twice_or_not_at_all(
    story: list[tuple[str, str, int]],
) -> None:
    flood, now = Flood("door-1", keys_max=2), NOW
    added: Counter[str] = Counter()
    written: list[Record] = []

    for what, word, number in story:
        if what == "add":
            wrong(flood, word, number)
            added[word] += number
            continue
        now += number * EVERY_NS // 2
        room = {"full": 0, "half": 1}.get(word, 100)

        def append(record: Record, room: int = len(written) + room) -> int:
            if len(written) >= room:
                raise SpoolFull("the spool is full")
            written.append(record)
            return len(written)

        flood.write(append, now)
        waiting = sum(held.count for counts in (flood._counts, flood._more) for held in counts.values())
        assert sum(record[9] for record in written) + waiting == added.total() == flood.counted
    written += flood.due(now, everything=True)
    by_name: Counter[str] = Counter()
    for record in written:
        by_name[record[20][AGENT]] += record[9]
    assert by_name.total() == added.total()
    assert all(by_name[name] <= added[name] for name in by_name if name != MORE)


def test_a_count_is_a_row_of_the_store_with_its_number(tmp_path: Path) -> None:
    """Spool, columns, frame, intake, insert: the real parts, one after another."""
    boot, key = (1_700_000_000 << 32) | 9, Ed25519PrivateKey.generate()
    spool = SpoolWriter(str(tmp_path), boot, 64 * KIB, 256 * KIB, 64 * KIB)
    flood = Flood("door-1")
    wrong(flood, "mallory", 5)
    flood.add("malformed", "bare-lf", status=400)
    assert flood.write(spool.put, NOW)
    runs = SpoolReader(str(tmp_path), boot).read(100, 1 << 20)
    assert [(run.opened, run.closed) for run in runs] == [([], [])], "a count opens and ends no call"
    columns = Columns(4)
    for run in runs:
        columns.add(run.view)
    (frame,) = build_frames(
        columns.parts(), lanes=LaneBook("enforce-1", 7, resend_ns=1), ranges=[Range(boot=boot, first=1, last=2)],
        frame_records=100, created_ns=NOW, sign=key.sign,
    )  # fmt: skip
    partition, ledger = frame.head.lane.partition, Ledger()
    ledger.take(partition, {})
    judged = judge(frame.wire, partition, lambda _: key.public_key().verify, ledger)
    assert isinstance(judged, Accepted)
    row = FrameRow(
        head=judged.head, digest=judged.digest, signed=judged.signed, wire_bytes=judged.wire_bytes, offset=0, flag="",
        batch=judged.batch,
    )  # fmt: skip
    table = insert_table([row], 1_700_000_000)
    counts = [one for one in table.to_pylist() if one["kind"] == Kind.COUNT]
    assert [(one["agent"], one["reason"], one["error"], one["status"], one["count"]) for one in counts] == [
        ("mallory", "identity", "credential", 407, 5), ("", "malformed", "bare-lf", 400, 1),
    ]  # fmt: skip
    assert {(one["verdict"], one["outcome"], one["door"], one["tenant"]) for one in counts} == {(0, 3, "door-1", "default")}
