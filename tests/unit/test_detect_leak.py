"""The leak meter: what counts, when it trips, and that its score follows from its evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.core.detect.leak import Leaks
from schemas.findings import Finding
from schemas.records import Verdict, call_id
from tests.support.aggregating import DAY_US, START_US, content, last_words, rows_of, taken
from tests.support.frames import BOOT, record

HOUR_US = DAY_US // 24
LONG = "abcdefghijklmnopqrstuvwxyz234567"
"""32 different characters: 160 bits as a name."""


def named(seq: int, name: str, at_us: int = 0, **fields: Any) -> dict[str, Any]:
    """A call to a name below example.com."""
    return record(seq, time=START_US + at_us, host=f"{name}.example.com", domain="example.com", action="http:GET", **fields)


def asked(seq: int, bits: int, at_us: int = 0, **fields: Any) -> dict[str, Any]:
    """A call with a query that nobody else asks."""
    said = {"query_hash": seq << 16 | bits, "query_bits": bits, "host": "example.com", "domain": "example.com"}
    return record(seq, **({"time": START_US + at_us, "action": "http:GET"} | said | fields))


def turned(count: int) -> list[str]:
    """Names of 160 bits each, all different."""
    return [LONG[n:] + LONG[:n] for n in range(count)]


def rescored(evidence: dict[str, Any]) -> float:
    """The score, from the evidence alone."""
    score = 0.0
    if evidence.get("bits_24h", 0) >= 1024 and evidence["names"] + evidence["refused_queries"] >= 2:
        score += 95 if evidence["bits_24h"] >= 4096 else 70
        score += 5 if evidence["bits_1h"] >= 1024 else 0
    elif evidence.get("bits_total", 0) >= 4096:
        score += 40
    excess = evidence.get("query_bits_today", 0) - evidence.get("query_bits_usual", 0)
    if excess >= 1024:
        score += 60 if excess >= 4096 else 40
    return min(100.0, score)


def bits_of(name: str) -> float:
    return -sum(n * math.log2(n / len(name)) for n in Counter(name).values())


def test_the_seventh_name_of_160_bits_trips_it_at_its_call() -> None:
    found = taken(Leaks(), [[named(n, name, at_us=n)] for n, name in enumerate(turned(10), 1)])
    assert [one.score for one in found] == [75.0]
    assert (found[0].evidence["names"], found[0].version) == (7, 7)
    assert found[0].time_us == START_US + 7
    assert found[0].calls == tuple(call_id(BOOT, n) for n in range(1, 8))
    assert found[0].evidence["bits_24h"] == pytest.approx(7 * bits_of(LONG), abs=0.01)


def test_a_name_counts_once_and_its_dots_do_not() -> None:
    names = ["ab.cd", "abcd", "a.b.c.d", "abcd"]
    leaks = Leaks()
    assert not taken(leaks, [[named(n, name) for n, name in enumerate(names, 1)]])
    assert leaks.totals(5) == [('Agent::"planner"', "example.com", 8.0)]


def test_one_name_alone_never_trips_it() -> None:
    assert not taken(Leaks(), [[named(1, ".".join(turned(7)))]])
    assert taken(Leaks(), [[named(1, ".".join(turned(7))), named(2, "ab")]])


def test_refused_calls_count_as_well() -> None:
    frames = [[named(n, name, verdict=Verdict.DENY)] for n, name in enumerate(turned(7), 1)]
    assert [one.score for one in taken(Leaks(), frames)] == [75.0]


def test_from_4096_bits_it_is_hard_and_beyond_it_speaks_at_each_doubling_only() -> None:
    found = taken(Leaks(), [[named(n, f"{name}{n}", at_us=n)] for n, name in enumerate(turned(32) * 4, 1)])
    assert [one.score for one in found] == [75.0, 100.0, 100.0, 100.0]
    assert len(last_words(found)) == 1
    assert [one.time_us for one in found] == [found[0].time_us] * 4


def test_bits_halve_in_a_day_so_a_drip_does_not_trip_and_shows_in_the_total() -> None:
    leaks = Leaks()
    frames = [[named(n, f"{7919 * n:08d}", at_us=n * HOUR_US)] for n in range(1, 301)]  # some 20 bits an hour
    found = last_words(taken(leaks, frames)).values()
    assert {term.name for one in found for term in one.terms} == {"drip"}
    assert {one.score for one in found} == {40.0}
    ((_, _, total),) = leaks.totals(1)
    assert total == pytest.approx(sum(bits_of(f"{7919 * n:08d}") for n in range(1, 301)), abs=0.1)
    assert total > 4096
    assert max(one.evidence["bits_24h"] for one in found) < 1024


def test_queries_that_are_let_out_teach_for_a_day() -> None:
    assert not taken(Leaks(), [[asked(n, 900, at_us=n) for n in range(1, 50)]])


def test_queries_to_a_new_place_trip_it_when_the_agent_is_known_for_a_day() -> None:
    old = [asked(1, 0, query_hash=0, host="other.org", domain="other.org")]
    found = taken(Leaks(), [old, *([asked(n, 600, at_us=DAY_US + n)] for n in range(2, 9))])
    assert [(one.score, one.evidence["query_bits_usual"]) for one in found] == [(40.0, 0.0), (60.0, 0.0)]


def test_queries_are_held_against_what_is_usual_there() -> None:
    usual = [[asked(100 * day + n, 500, at_us=day * DAY_US + n) for n in range(10)] for day in range(1, 4)]
    calm = [asked(9000 + n, 500, at_us=5 * DAY_US + n) for n in range(12)]
    start = [asked(1, 0, query_hash=0)]
    first_day = [one.window_us for one in taken(Leaks(), [start, *usual, calm])]
    assert set(first_day) == {START_US + DAY_US}  # the first day after the agent began: nothing was usual yet
    much = [asked(8000 + n, 500, at_us=6 * DAY_US + n) for n in range(30)]
    found = [one for one in taken(Leaks(), [start, *usual, calm, much]) if one.window_us == START_US + 6 * DAY_US]
    assert found[-1].evidence["query_bits_usual"] == 2 * 12 * 500


def test_what_an_agent_told_one_place_on_its_first_day_is_usual_everywhere() -> None:
    first = [asked(n, 500, at_us=n, host="api.org", domain="api.org") for n in range(1, 5)]
    calm, much = ([asked(100 + n, 500, at_us=2 * DAY_US + n) for n in range(count)] for count in (10, 11))
    assert not taken(Leaks(), [first, calm])
    found = taken(Leaks(), [first, much])
    assert [one.evidence["query_bits_usual"] for one in found] == [4000.0]
    late = content(taken(Leaks(), [much, [asked(1, 0, query_hash=0)], first]))
    assert late == content(taken(Leaks(), [[asked(1, 0, query_hash=0)], first, much]))


def test_refused_queries_count_at_once() -> None:
    frames = [[asked(n, 300, verdict=Verdict.DENY)] for n in range(1, 5)]
    found = taken(Leaks(), frames)
    assert [(one.score, one.evidence["refused_queries"]) for one in found] == [(75.0, 4)]


def test_an_address_has_no_names_but_queries() -> None:
    frames = [[asked(n, 900, host="10.1.2.3", domain="", verdict=Verdict.DENY)] for n in range(1, 4)]
    found = taken(Leaks(), frames)
    assert [(one.domain, one.host) for one in found] == [("", "10.1.2.3")]


def test_a_late_call_that_takes_the_day_away_takes_the_word_back() -> None:
    frames = [[named(n, name, at_us=DAY_US + n)] for n, name in enumerate(turned(7), 1)]
    late = [named(50, turned(1)[0], at_us=-6 * DAY_US)]
    found = taken(Leaks(), [*frames, late])
    assert [(one.withdrawn, one.version) for one in found] == [(False, 7), (True, 8)]
    assert not last_words(found)


def scripts() -> list[Sequence[Sequence[dict[str, Any]]]]:
    start = [asked(1, 0, query_hash=0)]
    return [
        [[named(n, name)] for n, name in enumerate(turned(7), 1)],
        [[named(n, f"{name}{n}", at_us=n)] for n, name in enumerate(turned(32) * 2, 1)],
        [[named(n, name, at_us=4 * n * HOUR_US)] for n, name in enumerate(turned(32), 1)],
        [[named(n, f"{7919 * n:08d}", at_us=n * HOUR_US)] for n in range(1, 301)],
        [start, *([asked(n, 600, at_us=DAY_US + n)] for n in range(2, 9))],
        [start, [named(n + 50, name, at_us=DAY_US) for n, name in enumerate(turned(30))],
         *([asked(n, 600, at_us=DAY_US + n)] for n in range(2, 5))],
        [[asked(n, 300, verdict=Verdict.DENY)] for n in range(1, 30)],
    ]  # fmt: skip


@pytest.mark.parametrize("frames", scripts())
def test_the_score_follows_from_the_evidence(frames: Sequence[Sequence[dict[str, Any]]]) -> None:
    found: list[Finding] = taken(Leaks(), frames)
    assert found
    for one in found:
        assert one.score == rescored(dict(one.evidence))
        assert all(term.value in one.evidence.values() or term.name == "queries" for term in one.terms)


def test_any_order_says_the_same() -> None:
    frames = [frame for script in scripts() for frame in script]
    for number, frame in enumerate(frames):  # one agent of all scripts, each call once
        frames[number] = [one | {"seq": 1000 * number + n, "call_seq": 1000 * number + n} for n, one in enumerate(frame, 1)]
    want = content(taken(Leaks(), frames))
    assert want
    assert content(taken(Leaks(), frames[::-1])) == want
    assert content(taken(Leaks(), [[one for frame in frames for one in frame]])) == want


def test_pairs_beyond_the_limit_make_room_and_nothing_is_taken_back() -> None:
    leaks = Leaks(pairs=100, items=2048)
    found = taken(leaks, [[named(n, name) for n, name in enumerate(turned(7), 1)]])
    crowd = [record(100 + n, host=f"a.d{n}.org", domain=f"d{n}.org") for n in range(500)]
    found += leaks.take(rows_of(crowd).agents)
    assert (leaks.entries, leaks.evicted) == (100, 401)
    found += leaks.take(rows_of([named(1000 + n, name, at_us=DAY_US) for n, name in enumerate(turned(9))]).agents)
    assert [(one.withdrawn, one.window_us) for one in found] == [(False, START_US), (False, START_US + DAY_US)]
