"""A sink's cursor: its window, what it remembers, its file; and the frames whose refused calls were sent."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.siem import cursor as cursors
from pipeline.core.siem.cursor import Cursor, Mark, Told, decode
from pipeline.core.siem.frames import LATE_S, RECENT_S, Arrived, Frames, with_number
from pipeline.core.siem.questions import calls_sql, frame_of, key_of, recent_sql, unknown_sql
from schemas.errors import OperatorFault

OVERLAP = 180
HOUR_S = 3600


def told(version: int = 1, due_us: int = 0) -> Told:
    return Told(version=version, severity="high", state="open", sent_us=5, agent="ann", due_us=due_us, waits_us=due_us and 4)


def full() -> Cursor:
    cursor = Cursor(overlap_us=OVERLAP)
    cursor.begin(("findings", "revocations"), refusals=True, now_us=HOUR_S * 10**6 + 1000)
    cursor.marks["findings"].take("a:1", 1500, OVERLAP)
    cursor.tell("a", told())
    cursor.tell("b", told(2, 99))
    assert cursor.frames is not None
    cursor.frames.take(Arrived(lane=("enforce-1", 7, 0), number=3, ingested_s=12, records=4, boots=(1,)))
    return cursor


def test_a_cursor_comes_back_from_its_file() -> None:
    cursor = full()
    assert decode(cursor.encode(), overlap_us=OVERLAP, where="x") == cursor


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"format": 1, "marks": 7, "told": {}}', '{"format": 1, "marks": {}}'])
def test_a_file_that_is_no_cursor_is_named(damage: str) -> None:
    with pytest.raises(OperatorFault, match=r"^siem/a\.json: is no cursor of a sink; remove it"):
        decode(damage.encode(), overlap_us=OVERLAP, where="siem/a.json")


def test_a_file_of_a_later_wardline_is_named() -> None:
    value = json.loads(full().encode()) | {"format": 2}
    with pytest.raises(OperatorFault, match="has format `2`, this Wardline knows 1"):
        decode(json.dumps(value).encode(), overlap_us=OVERLAP, where="x")


def test_the_window_ends_behind_the_latest_row_and_forgets_what_is_outside() -> None:
    mark = Mark(at_us=1000, floor_us=1000)
    for at in (1100, 1050, 1200):
        mark.take(f"k{at}", at, OVERLAP)
    assert mark.low_us(OVERLAP) == 1020
    assert set(mark.seen) == {"k1050", "k1100", "k1200"}
    mark.take("later", 1300, OVERLAP)
    assert set(mark.seen) == {"k1200", "later"}
    mark.take("out of turn", 9000, OVERLAP, ahead=True)
    assert (mark.at_us, "out of turn" in mark.seen) == (1300, True)


def test_a_window_that_is_full_ends_where_its_oldest_key_is_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "SEEN_MAX", 10)
    mark = Mark(at_us=0, floor_us=0)
    for at in range(1, 31):
        mark.take(f"k{at}", at, OVERLAP)
        assert len(mark.seen) <= 10
        assert all(one >= mark.low_us(OVERLAP) for one in mark.seen.values())
        assert set(mark.seen) == {f"k{one}" for one in range(max(1, mark.floor_us), at + 1)}, "in the window all are known"
    assert mark.cut == 30 - len(mark.seen)


def test_the_finding_that_was_sent_longest_ago_is_forgotten_first_but_none_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "TOLD_MAX", 3)
    cursor = Cursor(overlap_us=OVERLAP)
    cursor.tell("waits", told(due_us=9))
    for name in "abcd":
        cursor.tell(name, told())
    assert list(cursor.told) == ["waits", "c", "d"]


# -- frames --------------------------------------------------------------------------------------------------------------


def frame(number: int, ingested_s: int = 1000, boot: int = 7) -> Arrived:
    return Arrived(lane=("enforce-1", boot, 0), number=number, ingested_s=ingested_s, records=1, boots=(1,))


@given(st.lists(st.integers(1, 40), max_size=60))
def test_spans_are_the_numbers_that_were_taken(numbers: list[int]) -> None:
    frames = Frames(floor_s=0, high_s=0)
    for number in numbers:
        frames.take(frame(number))
    lane = ("enforce-1", 7, 0)
    assert {n for n in range(50) if frames.knows(lane, n)} == set(numbers)
    spans = frames.spans(lane)
    assert sum(high - low + 1 for low, high in spans) == len(set(numbers))
    assert all(high + 1 < low for (_, high), (low, _) in itertools.pairwise(spans)), "none touches the next"
    assert Frames.decode(json.loads(json.dumps(frames.encode()))) == frames


def test_a_number_joins_the_spans_that_it_lies_between() -> None:
    assert with_number([(1, 3), (5, 9), (20, 21)], 4) == [(1, 9), (20, 21)]


def test_lanes_of_long_ago_are_forgotten_and_their_frames_are_not_looked_for() -> None:
    frames = Frames(floor_s=0, high_s=0)
    frames.take(frame(1, ingested_s=1000))
    frames.take(frame(1, ingested_s=1000 + LATE_S + 1, boot=8))
    assert list(frames.lanes) == [("enforce-1", 8, 0)]
    assert frames.floor_s == 1001
    assert frames.low_s() == 1001 + LATE_S - RECENT_S


def test_a_question_for_frames_leaves_out_what_is_known_and_quotes_names() -> None:
    frames = Frames(floor_s=5, high_s=0)
    assert "AND NOT" not in recent_sql(frames)
    frames.take(Arrived(lane=("it's", 7, 0), number=3, ingested_s=12, records=4, boots=(1,)))
    assert r"AND NOT ((enforcer = 'it\'s' AND call_seq = 7 AND partition = 0 AND seq BETWEEN 3 AND 3))" in recent_sql(frames)
    lanes = [("it's", 7, 0), ("b", 8, 1)]
    assert r"(enforcer = 'it\'s' AND call_seq = 7 AND partition = 0 AND NOT seq BETWEEN 3 AND 3)" in unknown_sql(frames, lanes)
    row = {"lane_host": "a", "lane_boot": 1, "lane_part": 2, "number": 3, "came": 4, "many": 5, "boots": [9, 8, 9]}
    assert frame_of(row).boots == (8, 9)


def test_an_id_that_is_none_has_no_key() -> None:
    assert key_of("0" * 15 + "1" + "0" * 15 + "f") == (1, 15)
    assert key_of("x" * 32) is key_of("12") is None
    assert "boot IN (1, 2) AND seq IN (3, 4)" in calls_sql([(2, 3), (1, 4)])
