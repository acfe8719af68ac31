"""The detector of bursts of refusals."""

import math
import random

import pytest

from pipeline.core.detect.denials import RATE_MIN, SURPRISE_MIN, DenyBursts, rate_of, surprise_of
from schemas.findings import CALLS_MAX, Finding
from tests.support.noticing import DAY_S, Row, orders, row, standing, stored, table, words


def refusals(count: int, since: float = 0, agent: str = "a", every: float = 1, targets: int = 1) -> list[Row]:
    return [row(since + n * every, agent, denied=1, resource=f'Host::"h{n % targets}:443"') for n in range(count)]


def quiet(hours: int, since: float = 0, agent: str = "a") -> list[Row]:
    """A call every five minutes, none refused."""
    return [row(since + 300 * n, agent) for n in range(12 * hours)]


def tail(count: int, rate: float) -> float:
    """P(X >= count), term by term."""
    return sum(math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(count, count + 400))


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 7.5, 60.0])
@pytest.mark.parametrize("count", [1, 2, 5, 10, 40, 100])
def test_the_surprise_is_that_of_poisson(count: int, rate: float) -> None:
    expected = -math.log10(tail(count, rate)) if count > rate else 0.0
    assert surprise_of(count, rate) == pytest.approx(expected, abs=0.0006)


def test_a_surprise_has_an_end() -> None:
    assert surprise_of(100_000, 0.1) == 300.0


def test_an_agent_without_a_past_may_be_refused_nine_times() -> None:
    assert not words(DenyBursts(), refusals(9))
    (finding,) = standing(words(DenyBursts(), refusals(10))).values()
    assert (finding.agent, finding.calls_count, len(finding.calls)) == ("a", 10, 10)
    assert finding.time_us == finding.ended_us, "the tenth crossed the threshold"


def test_an_agent_that_is_never_refused_may_be_so_four_times() -> None:
    assert not words(DenyBursts(), quiet(24), refusals(4, DAY_S))
    assert len(standing(words(DenyBursts(), quiet(24), refusals(5, DAY_S)))) == 1


def test_an_agent_that_is_often_refused_is_used_to_it() -> None:
    used = [one for hour in range(24 * 12) for one in refusals(8, 300 * hour, every=30)]
    assert not words(DenyBursts(), used[8:], refusals(12, DAY_S))


def test_its_score_follows_from_its_evidence() -> None:
    bursts = [refusals(12, 2 * DAY_S, targets=4), refusals(300, 2 * DAY_S + 400, every=0.5, targets=40)]
    for burst in bursts:
        (finding,) = standing(words(DenyBursts(), quiet(24), refusals(3, 3 * 3600), burst)).values()
        seen = stored(finding).evidence
        rate = max(0.1, (seen["past_denied"] + 1) / (seen["past_windows"] + 1))
        surprise = min(300.0, -math.log10(max(tail(seen["denied"], rate), 1e-300)))
        points = min(40.0, 20 + 2 * (surprise - 6)) + min(30.0, 5.0 * (seen["targets"] - 1))
        assert finding.score == pytest.approx(points, abs=0.01)
        assert (seen["past_denied"], seen["past_windows"]) == (3, 288)


def test_a_burst_of_many_targets_is_worth_more_than_one_of_retries() -> None:
    (one,), (many,) = (standing(words(DenyBursts(), refusals(20, targets=t))).values() for t in (1, 20))
    assert many.score == one.score + 30


def test_a_burst_that_goes_on_is_one_finding_and_another_a_day_later_a_second() -> None:
    rows = quiet(24) + refusals(600, DAY_S, every=10) + quiet(5, DAY_S + 6000) + refusals(20, 2 * DAY_S)
    first, second = sorted(standing(words(DenyBursts(), rows)).values(), key=lambda f: f.window_us)
    assert first.calls_count == 600
    assert len(first.calls) <= CALLS_MAX
    assert len(first.evidence["windows"]) == 20
    assert second.calls_count == 20


def test_an_attack_does_not_make_itself_normal() -> None:
    attack = [one for hour in range(40) for one in refusals(30, DAY_S + 7200 * hour)]
    found = standing(words(DenyBursts(), quiet(24), attack))
    assert len(found) == 40
    assert {finding.evidence["past_denied"] for finding in found.values()} == {0}


def test_an_older_call_that_comes_late_can_take_a_finding_back() -> None:
    late = [one for hour in range(288) for one in refusals(3, 300 * hour)]
    said = words(DenyBursts(), refusals(9, DAY_S + 10) + quiet(30, -DAY_S)[:-1], late)
    assert [finding.withdrawn for finding in said] == [False, True]
    assert said[1].version > said[0].version
    assert not standing(said)


def settled(said: list[Finding]) -> list[tuple[object, ...]]:
    last = standing(said).values()
    return sorted((f.id, f.terms, str(f.evidence), f.calls, f.started_us, f.ended_us, f.time_us, f.calls_count) for f in last)


def test_the_same_calls_in_any_order_are_the_same_findings() -> None:
    dice = random.Random(3)
    calls = quiet(40) + quiet(20, agent="b")
    for start in (0, 3 * 3600, 20 * 3600, 26 * 3600, 50 * 3600):
        for agent in "ab":
            calls += refusals(dice.randint(3, 90), start, agent, every=dice.choice([0.5, 7.0]), targets=dice.randint(1, 50))
    expected = settled(words(DenyBursts(), calls))
    assert len(expected) >= 4
    for takes in orders(calls, range(12)):
        assert settled(words(DenyBursts(), *takes)) == expected


def test_a_million_agents_take_no_more_memory_than_a_few() -> None:
    detector = DenyBursts(agents=50, windows=80)
    for start in range(0, 3000, 100):
        detector.take(table(row(600 * (n % 3), f"a{n // 3}", denied=1) for n in range(start, start + 100)))
        assert detector.entries <= 50
        assert detector._windows <= 80
    assert detector.evicted > 900
    detector.clear()
    assert detector.entries == detector._windows == 0


def test_what_is_old_stands_as_it_was_said_although_its_past_is_forgotten() -> None:
    """Refusals that were normal do not become a burst, and a burst does not become normal, when what came before is gone."""
    used = [one for window in range(24 * 12 * 8) for one in refusals(8, 300 * window, every=30)]
    detector = DenyBursts()
    assert not words(detector, used[8:], quiet(1, 20 * DAY_S))
    said = words(detector, refusals(20, 30 * DAY_S), quiet(1, 39 * DAY_S), quiet(1, 60 * DAY_S))
    assert [finding.withdrawn for finding in said] == [False]
    assert detector._windows == 0


def test_its_numbers_are_those_of_the_reference() -> None:
    assert (SURPRISE_MIN, RATE_MIN) == (6.0, 0.1)
    assert [rate_of(0, 0), rate_of(0, 99), rate_of(50, 99)] == [1.0, 0.1, 0.51]
