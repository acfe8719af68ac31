"""The beacon kernel: RITA's own numbers, the kernel against its oracle, and what is kept of a day."""

import io
import random
import tarfile
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.beacon import PairDay, fill, rita, wilson
from tests.support import beacons
from tests.support.data import data_folder

LOW, HIGH = 1_672_858_122, 1_672_944_522
"""The day of RITA's test data."""

GOOGLE_S = [1672857304, 1672863013, 1672872074, 1672932892, 1672935023, 1672944522]
GOOGLE_BYTES = [2259, 2064, 2259, 1856, 2155, 2012]

Row = tuple[int, int, int, int]
"""Second of the day, calls, bytes sent, bytes got."""


def test_it_scores_rita_s_google_as_rita_does() -> None:
    found = rita(GOOGLE_S, GOOGLE_BYTES, LOW, HIGH)
    assert found == pytest.approx((0.586, 0.48, 0.865, 1.0, 0.0), abs=0.0006)


def proxied(host: str) -> tuple[list[int], list[int]]:
    """The seconds and the bytes of 10.136.0.18's calls to a host through the proxy: CONNECT joined to its connection."""
    with tarfile.open(data_folder() / "rita" / "http-and-proxy.tar.gz") as tar:
        logs = {}
        for name in ("http", "conn"):
            file = tar.extractfile(next(m for m in tar.getmembers() if m.name.endswith(f"proxy/{name}.log")))
            assert file is not None
            lines = [line.rstrip("\n").split("\t") for line in io.TextIOWrapper(file, "utf-8")]
            fields = next(line for line in lines if line[0] == "#fields")[1:]
            logs[name] = [dict(zip(fields, line, strict=True)) for line in lines if not line[0].startswith("#")]
    asked = {r["uid"] for r in logs["http"] if r["host"] == host and r["id.orig_h"] == "10.136.0.18"}
    calls = [r for r in logs["conn"] if r["uid"] in asked and float(r["ts"]) >= 1672855200]
    return [int(float(r["ts"])) for r in calls], [int(r["orig_ip_bytes"]) for r in calls]


@pytest.mark.data
def test_it_scores_rita_s_beacon_as_rita_does() -> None:
    seconds, sizes = proxied("www.honestimnotevil.com")
    assert len(seconds) == 357
    assert set(sizes) == {1049}
    found = rita(seconds, sizes, LOW, HIGH)
    assert found is not None
    assert found[0] == pytest.approx(0.979, abs=0.05)
    assert found[1:] == pytest.approx((0.921, 0.995, 1.0, 1.0), abs=0.05)


seconds = st.one_of(st.integers(0, 86_399), st.integers(0, 143).map(lambda n: n * 600), st.integers(0, 400))
steps = st.integers(200, 4000).flatmap(lambda step: st.integers(4, 86_000 // step).map(lambda n: [k * step for k in range(n)]))
regular = st.tuples(steps, st.integers(0, 300), st.randoms(use_true_random=False)).map(
    lambda drawn: [(at + drawn[2].randint(0, drawn[1]), 100 + drawn[2].randint(0, drawn[1])) for at in drawn[0]]
)
calls = st.one_of(st.lists(st.tuples(seconds, st.integers(0, 3000)), min_size=1, max_size=120), regular)


@given(calls)
@settings(max_examples=300, deadline=None)
def test_the_score_is_the_oracle_s(calls: list[tuple[int, int]]) -> None:
    at, sizes = [a for a, _ in calls], [s for _, s in calls]
    found, expected = rita(at, sizes, 0, 86_400), beacons.rita(at, sizes, 0, 86_400)
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, abs=0.0006)


def test_the_generator_reaches_every_part_of_the_score() -> None:
    """A law that nobody exercises proves nothing: days that are long or not, and even or not, and none at all."""
    met = set()

    @settings(max_examples=300, database=None, derandomize=True, deadline=None)
    @given(calls)
    def look(calls: list[tuple[int, int]]) -> None:
        found = beacons.rita([a for a, _ in calls], [s for _, s in calls], 0, 86_400)
        met.add("none" if found is None else ("long" if found[3] else "short", "even" if found[4] else "not even"))

    look()
    assert met == {"none", ("long", "even"), ("long", "not even"), ("short", "not even")}  # nothing is even that is short


def added(rows: list[Row], cuts: int = 1) -> PairDay:
    day = PairDay()
    for part in range(cuts):
        some = np.array(rows[part::cuts], np.int64).reshape(-1, 4)
        fill([day], np.zeros(len(some), np.int64), *(np.ascontiguousarray(some[:, column]) for column in range(4)))
    return day


sent = st.sampled_from([0, 900]).flatmap(lambda most: st.just(st.integers(0, most)))
day_rows = sent.flatmap(
    lambda size: st.lists(st.tuples(seconds, st.integers(0, 3), size, st.sampled_from([0, 178, 300])), max_size=150)
)


@given(day_rows)
@settings(max_examples=200, deadline=None)
def test_a_day_is_scored_like_its_calls(rows: list[Row]) -> None:
    """Ends (rows without a call) bring bytes to the second of their call; calls of one second count as one of the mean size."""
    sums: dict[int, list[int]] = {}
    for at, count, sent, got in rows:
        one = sums.setdefault(at, [0, 0, 0])
        one[0], one[1], one[2] = one[0] + count, one[1] + sent, one[2] + got
    spoke = {at: one for at, one in sorted(sums.items()) if one[0]}
    found = added(rows).judge(2)
    if len(spoke) < 4:
        assert found is None
        return
    bins = [sum(one[0] for at, one in spoke.items() if at // 3600 == hour) for hour in range(24)]
    gaps = [b - a for a, b in pairwise(spoke)]
    answers = [one[2] // one[0] for one in spoke.values()]
    same = max(answers.count(size) for size in answers)
    sizes = [one[1] / one[0] for one in spoke.values()]
    parts = [
        beacons.regular(gaps, 1),
        beacons.regular(sizes, 0) if any(sizes) else -1,
        beacons.lasting(bins, (max(sums) - min(sums)) / 86_400),
        beacons.even(bins),
    ]
    score = sum(parts) / 4 if any(sizes) else (sum(parts) + 1) / 3
    expected = (score, *parts, beacons.wilson(same, len(answers)), same, len(answers), -1)
    assert found == pytest.approx(expected, abs=0.0006)


@given(day_rows, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_day_does_not_know_the_order_of_its_rows(rows: list[Row], dice: random.Random, cuts: int) -> None:
    one, other = added(rows), added(dice.sample(rows, len(rows)), cuts)
    assert one.judge(0.3) == other.judge(0.3)
    assert (one.seconds(), one.hours, one.rows, one.calls) == (other.seconds(), other.hours, other.rows, other.calls)


def test_of_a_long_day_the_latest_512_seconds_are_kept_in_any_order() -> None:
    rows: list[Row] = [(60 * n, 1, 100, 50) for n in range(1440)]
    days = [added(random.Random(seed).sample(rows, len(rows)), 7) for seed in range(5)] + [added(rows), added(rows[::-1])]
    assert {day.kept for day in days} == {512}
    assert all(day.seconds() == [(60 * n, 1, 100, 50) for n in range(928, 1440)] for day in days)
    assert all(day.hours == [60] * 24 and day.calls == 1440 and day.full for day in days)
    assert len({day.judge(0.8) for day in days}) == 1


def test_bytes_that_come_after_their_call_are_those_of_its_second() -> None:
    late = added([(10, 0, 5, 178), (10, 1, 100, 0), (11, 1, 7, 7)])
    assert late.seconds() == [(10, 1, 105, 178), (11, 1, 7, 7)]


def test_as_many_calls_as_the_day_has_seconds_are_a_load_and_no_beacon() -> None:
    assert added([(n, 1, 1, 1) for n in range(0, 86_400, 200)]).judge(0.5) is not None
    assert added([(n, 200, 1, 1) for n in range(0, 86_400, 200)]).judge(0.5) is None


@pytest.mark.parametrize(("which", "second", "calls"), [(1, 0, 1), (-1, 0, 1), (0, 86_400, 1), (0, -1, 1), (0, 0, -1)])
def test_a_row_of_no_day_is_refused(which: int, second: int, calls: int) -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="row 0 is of no day"):
        fill([PairDay()], one + which, one + second, one + calls, one, one)


def test_columns_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="not of one length"):
        fill([PairDay()], one, one, two, one, one)


@pytest.mark.parametrize(("seconds", "sizes", "low", "high"), [([1, 2, 3, 4], [], 0, 10), ([1, 2, 3, 4], [1], 10, 10)])
def test_a_score_of_nothing_is_refused(seconds: list[int], sizes: list[int], low: int, high: int) -> None:
    with pytest.raises(ValueError, match=r"without sizes|has no width"):
        rita(seconds, sizes, low, high)


@given(st.integers(1, 500), st.integers(0, 500))
def test_the_share_is_wilson_s(count: int, hits: int) -> None:
    hits = min(hits, count)
    assert wilson(hits, count) == pytest.approx(max(0.0, beacons.wilson(hits, count)), abs=1e-9)
