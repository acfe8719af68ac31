"""The detector of volumes: hours and days in which an agent sent far more than it does."""

import random
import statistics

import pytest

from pipeline.core.detect.volume import SPANS, Volumes, spread_of, z_of
from schemas.findings import Finding
from tests.support.noticing import DAY_S, Row, orders, row, standing, stored, table, words

HOUR, DAY = SPANS


def work(hours: int, each: int = 200_000, since: int = 0, agent: str = "a", seed: int = 1) -> list[Row]:
    """Two calls an hour, of about `each` bytes together."""
    dice = random.Random(seed)
    return [
        row(since + 3600 * hour + 1800 * half, agent, bytes_out=round(each / 2 * dice.uniform(0.8, 1.2)))
        for hour in range(hours)
        for half in range(2)
    ]


def test_an_hour_far_above_the_agent_s_own_is_found() -> None:
    said = words(Volumes(), work(48), [row(2 * DAY_S + 60 * n, bytes_out=1_000_000) for n in range(20)])
    (finding,) = standing(said).values()
    assert finding.subject == "agent=a span=hour"
    assert (finding.agent, finding.calls_count, finding.evidence["bytes_out"]) == ("a", 20, 20_000_000)
    assert finding.score > 30
    assert finding.window_us == finding.started_us


def test_it_says_when_it_was_too_much() -> None:
    """To five minutes: of 20 MB in an hour, 1 MB a minute, the first two were enough."""
    burst = [row(2 * DAY_S + 60 * n, bytes_out=1_000_000) for n in range(20)]
    (finding,) = standing(words(Volumes(), work(48), burst)).values()
    assert finding.time_us == finding.window_us + 300_000_000 - 1


def test_an_agent_is_learnt_first() -> None:
    burst = [row(23 * 3600, bytes_out=50_000_000)]
    assert not words(Volumes(), work(23), burst)
    assert words(Volumes(), work(24), [burst[0] | row(24 * 3600, bytes_out=50_000_000)])


def test_less_than_a_megabyte_is_no_export() -> None:
    assert not words(Volumes(), work(48, each=1000), [row(2 * DAY_S, bytes_out=999_999)])
    assert words(Volumes(), work(48, each=1000), [row(2 * DAY_S, bytes_out=1_000_000)])


def test_an_agent_that_sends_much_may() -> None:
    assert not words(Volumes(), work(48, each=50_000_000), [row(2 * DAY_S, bytes_out=60_000_000)])


def test_a_day_of_many_hours_that_are_each_a_little_more_is_found() -> None:
    """Below the threshold of an hour, all day long."""
    slow = [row(7 * DAY_S + 3600 * hour, bytes_out=900_000) for hour in range(24)]
    week = [one for day in range(7) for one in work(2, since=day * DAY_S + 9 * 3600, seed=day)]
    (finding,) = standing(words(Volumes(), week, slow)).values()
    assert finding.subject == "agent=a span=day"
    assert finding.evidence["bytes_out"] == 24 * 900_000
    assert len(finding.evidence["past"]) == 7


def test_its_score_follows_from_its_evidence() -> None:
    for each in (2_000_000, 3_000_000, 400_000_000):
        for finding in standing(words(Volumes(), work(24 * 8, seed=each), [row(8 * DAY_S, bytes_out=each)])).values():
            seen = stored(finding).evidence
            median = statistics.median(seen["past"])
            mad = statistics.median(abs(value - median) for value in seen["past"])
            z = 0.6745 * (seen["bytes_out"] - median) / max(mad, median / 10, 1024)
            points = {"hour": 30, "day": 40}[seen["span"]]
            assert z >= 6
            assert finding.score == pytest.approx(points + min(points, points * (z - 6) / 60), abs=0.01)


def test_the_spread_has_floors() -> None:
    assert spread_of([500] * 30) == (500.0, 1024.0)
    assert spread_of([1_000_000] * 30) == (1_000_000.0, 100_000.0)
    assert spread_of([1_000_000, 2_000_000, 3_000_000]) == (2_000_000.0, 1_000_000.0)
    assert z_of(8_000_000, [1_000_000, 2_000_000, 3_000_000]) == pytest.approx(0.6745 * 6)


def test_an_older_call_that_comes_late_can_take_a_finding_back() -> None:
    """It turns out that the agent always sends so much."""
    burst = [row(2 * DAY_S, bytes_out=20_000_000)]
    late = [row(3600 * hour, bytes_out=20_000_000) for hour in range(48)]
    said = words(Volumes(), work(48), burst, late)
    assert [finding.withdrawn for finding in said] == [False, True]
    assert not standing(said)


def test_bytes_of_an_end_count_for_the_hour_of_its_call() -> None:
    end = row(2 * DAY_S, bytes_out=20_000_000) | {"calls": 0}
    (finding,) = standing(words(Volumes(), work(48), [row(2 * DAY_S)], [end])).values()
    assert finding.calls_count == 1


def settled(said: list[Finding]) -> list[tuple[object, ...]]:
    last = standing(said).values()
    return sorted((f.id, f.terms, str(f.evidence), f.started_us, f.ended_us, f.time_us, f.calls_count) for f in last)


def test_the_same_calls_in_any_order_are_the_same_findings() -> None:
    calls = work(24 * 8) + work(24 * 8, agent="b", each=3_000_000, seed=2)
    calls += [row(3600 * hour + 5, agent, bytes_out=30_000_000) for hour in (30, 31, 77, 150, 190) for agent in "ab"]
    expected = settled(words(Volumes(), calls))
    assert len(expected) >= 6
    for takes in orders(calls, range(12)):
        assert settled(words(Volumes(), *takes)) == expected


def test_a_million_agents_take_no_more_memory_than_a_few() -> None:
    detector = Volumes(agents=50, days=60)
    for start in range(0, 3000, 100):
        detector.take(table(row(DAY_S * (n % 3), f"a{n // 3}", bytes_out=5) for n in range(start, start + 100)))
        assert detector.entries <= 50
        assert detector._days <= 60
    assert detector.evicted > 900
    detector.clear()
    assert detector.entries == detector._days == 0


def test_of_an_agent_fifteen_days_are_kept() -> None:
    detector = Volumes()
    words(detector, work(24 * 40))
    assert sorted(detector._agents["a"].days)[0] == max(detector._agents["a"].days) - 15
    assert detector._days == len(detector._agents["a"].days) == 16
