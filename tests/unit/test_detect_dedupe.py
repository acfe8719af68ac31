"""Frames that were taken: each once, by lane, with few ranges whatever the numbers are."""

import random

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.detect.dedupe import Dedupe
from schemas.frame import Lane
from tests.support.aggregating import rows_of
from tests.support.frames import record


def rows(*numbers: int, host: str = "e1", boot: int = 1) -> pa.Table:
    """Two rows for each frame."""
    return pa.table({
        "lane_host": pa.array([host for number in numbers for _ in range(2)], pa.utf8()).dictionary_encode(),
        "lane_boot": pa.array([boot] * 2 * len(numbers), pa.uint64()),
        "lane_partition": pa.array([0] * 2 * len(numbers), pa.uint32()),
        "frame_no": pa.array([number for number in numbers for _ in range(2)], pa.uint64()),
        "row": pa.array(range(2 * len(numbers))),
    })  # fmt: skip


def test_a_frame_is_taken_once_in_each_lane() -> None:
    dedupe = Dedupe()
    assert dedupe.fresh(rows(1, 2)).num_rows == 4
    assert dedupe.fresh(rows(2, 3, 1))["frame_no"].to_pylist() == [3, 3]
    assert dedupe.fresh(rows(2, boot=2)).num_rows == 2
    assert dedupe.fresh(rows(2, host="e2")).num_rows == 2
    assert dedupe.fresh(rows(1, 2, 3)).num_rows == 0
    assert dedupe.fresh(rows()).num_rows == 0


def test_real_rows_pass_with_their_schema() -> None:
    dedupe = Dedupe()
    table = rows_of([record(1), record(2)], 5, Lane(host="e", host_boot=1, partition=3)).agents
    assert dedupe.fresh(table).equals(table)
    assert dedupe.fresh(table).schema == table.schema


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40))
def test_what_is_new_is_what_a_set_says(numbers: list[int]) -> None:
    dedupe, seen = Dedupe(), set[int]()
    for number in numbers:
        assert dedupe.fresh(rows(number)).num_rows == 2 * (number not in seen)
        seen.add(number)
    runs = sum(number - 1 not in seen for number in seen)
    assert dedupe.entries == runs


def test_of_too_many_ranges_the_lowest_gap_counts_as_taken() -> None:
    dedupe = Dedupe(ranges=50)
    numbers = list(range(2, 602, 2))
    random.Random(4).shuffle(numbers)
    for number in numbers:
        dedupe.fresh(rows(number))
        assert dedupe.entries <= 50
    assert dedupe.fresh(rows(3)).num_rows == 0
    assert dedupe.fresh(rows(601)).num_rows == 2


def test_lanes_beyond_the_limit_make_room_and_are_counted() -> None:
    dedupe = Dedupe(lanes=10)
    for boot in range(1, 16):
        dedupe.fresh(rows(1, boot=boot))
    assert (dedupe.entries, dedupe.evicted) == (10, 5)
    assert dedupe.fresh(rows(1, boot=15)).num_rows == 0
    assert dedupe.fresh(rows(1, boot=1)).num_rows == 2
    dedupe.clear()
    assert dedupe.entries == 0
