"""The detector of beacons: what it says, of what, and that it does not know the order of calls."""

import random
from itertools import pairwise

import pytest

from pipeline.core.detect.beacon import POINTS, SCORE_MIN, Beacons, prevalence_of
from schemas.findings import Finding
from tests.support import beacons
from tests.support.noticing import DAY_S, Row, orders, row, standing, stored, table, words


def polls(
    agent: str = "a", host: str = "c2.example", every: int = 300, since: int = 0, got: int = 178, days: int = 1
) -> list[Row]:
    return [
        row(at, agent, host=host, domain=host, bytes_out=310, bytes_in=got) for at in range(since, since + days * DAY_S, every)
    ]


def test_a_program_that_waits_for_orders_is_found() -> None:
    (finding,) = standing(words(Beacons(), polls())).values()
    assert (finding.agent, finding.host, finding.domain) == ("a", "c2.example", "c2.example")
    assert finding.subject == "agent=a host=c2.example"
    assert finding.window_us == finding.started_us
    assert finding.calls_count == 288
    assert 55 < finding.score < 60


def test_its_score_follows_from_its_evidence() -> None:
    crowd = [row(5, f"b{n}", host="x") for n in range(60)]
    for every, got in ((300, 178), (60, 90), (1777, 400)):
        (finding,) = standing(words(Beacons(), polls(every=every, got=got), crowd)).values()
        seen = stored(finding).evidence
        at, sizes = [s[0] for s in seen["seconds"]], [s[2] / s[1] for s in seen["seconds"]]
        parts = [beacons.regular([b - a for a, b in pairwise(at)], 1), beacons.regular(sizes, 0)]
        parts.append(beacons.lasting(seen["hours"], (seen["last"] - seen["first"]) / DAY_S))
        parts.append(beacons.even(seen["hours"]))
        answers = beacons.wilson(seen["same_answers"], seen["answers"])
        weight = prevalence_of(seen["agents_here"], seen["agents"])
        assert finding.score == pytest.approx(POINTS * (sum(parts) / 4 * answers + weight), abs=0.05)


def test_calls_whose_sizes_nobody_recorded_are_judged_by_the_rest() -> None:
    (finding,) = standing(words(Beacons(), [one | {"bytes_out": 0, "bytes_in": 0} for one in polls()])).values()
    assert [term.name for term in finding.terms] == ["intervals", "lasting", "even", "answers"]
    assert finding.score == pytest.approx(POINTS * beacons.wilson(288, 288), abs=0.05)


def test_alone_it_is_never_more_than_medium() -> None:
    """What is rare in a fleet of a hundred weighs more, and still less than what a rule acts on."""
    crowd = [row(n, f"b{n}", host="common.example") for n in range(100)]
    (finding,) = standing(words(Beacons(), crowd, polls(every=30))).values()
    assert any(term.name == "prevalence" and term.points > 0 for term in finding.terms)
    assert finding.score < 70


def test_news_are_no_orders() -> None:
    """The same polls, of answers that differ as news do."""
    dice = random.Random(1)
    assert not words(Beacons(), [one | {"bytes_in": dice.choice([400, 410, 450, 500])} for one in polls()])


def test_few_calls_prove_little_however_regular() -> None:
    assert not words(Beacons(), polls(every=DAY_S // 14))
    assert words(Beacons(), polls(every=DAY_S // 24))


def test_people_are_no_beacons() -> None:
    dice = random.Random(2)
    clicks = [row(dice.uniform(8 * 3600, 18 * 3600), host="news.example", bytes_out=dice.randint(300, 900)) for _ in range(400)]
    assert not words(Beacons(), clicks)


def test_a_tool_without_a_host_is_not_looked_at() -> None:
    detector = Beacons()
    assert not words(detector, [one | {"host": ""} for one in polls()])
    assert detector.entries == 0


def test_a_host_that_is_known_for_longer_than_a_week_is_not_new() -> None:
    found = sorted(finding.window_us for finding in standing(words(Beacons(), polls(days=9))).values())
    assert found == [polls()[0]["time"] + day * DAY_S * 10**6 for day in range(8)]  # the first day, and seven after it


def test_an_older_call_that_comes_late_takes_the_finding_back() -> None:
    said = words(Beacons(), polls(), [row(-8 * DAY_S, host="c2.example")])
    assert [finding.withdrawn for finding in said][-1:] == [True]
    assert not standing(said)


def test_a_host_that_half_the_fleet_speaks_to_weighs_less_and_the_finding_says_so() -> None:
    mates = [row(n, f"b{n}", host="c2.example") for n in range(12)]
    (finding,) = standing(words(Beacons(), polls(), mates)).values()
    assert [term.points for term in finding.terms if term.name == "prevalence"] == [-9.0]
    varied = [one | {"bytes_in": 178 if at % 8 else at} for at, one in enumerate(polls())]
    assert standing(words(Beacons(), varied))
    assert not standing(words(Beacons(), varied, mates)), "prevalence decides where the rest is close"


def test_it_says_when_the_day_had_become_regular() -> None:
    """Eleven hours must be filled. It said so at once, and says the same at the end of the day."""
    detector = Beacons()
    said = [f for one in polls() for f in words(detector, [one])]
    hours = (said[-1].time_us - said[-1].window_us) / 3.6e9
    assert 10 <= hours < 13
    assert said[0].time_us - said[0].window_us <= (hours + 1) * 3.6e9
    assert said[0].ended_us < said[-1].ended_us


def settled(said: list[Finding]) -> list[tuple[object, ...]]:
    last = standing(said).values()
    return sorted((f.id, f.terms, str(f.evidence), f.started_us, f.ended_us, f.time_us, f.calls_count) for f in last)


def test_the_same_calls_in_any_order_are_the_same_findings() -> None:
    calls = polls(every=600, days=2) + polls("b", "other.example", 900) + polls("b", since=-8 * DAY_S, every=700)
    calls += [row(n * 400, f"c{n}", host="c2.example" if n % 2 else "y") for n in range(14)]
    calls += [one | {"calls": 0, "bytes_in": 40, "bytes_out": 0} for one in polls(every=600)]
    expected = settled(words(Beacons(), calls))
    assert len(expected) >= 3
    for takes in orders(calls, range(6)):
        assert settled(words(Beacons(), *takes)) == expected


def test_a_million_hosts_take_no_more_memory_than_a_few() -> None:
    detector = Beacons(pairs=50, days=40)
    for start in range(0, 2000, 100):
        detector.take(table(row(n, f"a{n}", host=f"h{n}.example") for n in range(start, start + 100)))
        assert detector.entries <= 40
    assert detector.evicted == 2000 - 40
    assert len(detector._days[min(detector._days)].hosts) <= 40
    detector.clear()
    assert (detector.entries, detector.evicted) == (0, 1960)


def test_what_it_needs_at_least_is_what_the_reference_says() -> None:
    assert SCORE_MIN == 0.8
    assert [prevalence_of(here, 100) for here in (1, 2, 3, 49, 50)] == [0.15, 0.15, 0.0, 0.0, -0.15]
    assert prevalence_of(1, 9) == 0.0
