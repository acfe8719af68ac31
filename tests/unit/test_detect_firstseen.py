"""First seen: which domains are new for whom, one finding for a domain and day, and that its score follows from evidence."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.detect.aggregate import Aggregator
from pipeline.core.detect.firstseen import FirstSeen, floor2
from schemas.findings import Finding
from schemas.records import Verdict
from tests.support.aggregating import DAY_US, START_US, content, last_words, rows_of, taken
from tests.support.frames import record

HOUR_US = DAY_US // 24


def call(seq: int, day: float, agent: str = "a", domain: str = "new.org", **fields: Any) -> dict[str, Any]:
    said = {"host": f"www.{domain}", "domain": domain, "action": "http:GET", "bytes_out": 0}
    return record(seq, **(said | {"agent": agent, "time": START_US + int(day * DAY_US)} | fields))


def rescored(evidence: dict[str, Any]) -> float:
    """The score, from the evidence alone."""
    score = 25.0 if evidence["agents_new"] else 0.0
    score += 25 * round(max(0, 1 - 2 * evidence["users"] / evidence["fleet"]), 3)
    score += 25 * (evidence["writes_at_least"] > 0 or evidence["bytes_out_at_least"] >= 4096)
    score += 10 * (evidence["denied_at_least"] > 0)
    return score


def fleet(agents: int) -> list[dict[str, Any]]:
    """The first calls of so many agents."""
    return [call(10_000 + n, 0, agent=f"b{n}", domain="known.org") for n in range(agents)]


def test_what_an_agent_calls_on_its_first_day_is_not_new() -> None:
    assert not taken(FirstSeen(), [[call(1, 0)], [call(2, 0.9, domain="other.org")]])


def test_a_domain_that_is_new_after_a_day_is_found_at_its_first_call() -> None:
    found = taken(FirstSeen(), [[call(1, 0, domain="known.org")], [call(2, 1.25), call(3, 1.5)]])
    assert [(one.subject, one.time_us, one.score) for one in found] == [("domain=new.org", START_US + 5 * DAY_US // 4, 25.0)]
    assert (found[0].agent, found[0].domain, found[0].window_us) == ("a", "new.org", START_US + DAY_US)


def test_a_domain_is_new_again_after_two_weeks() -> None:
    days = [0, 1.5, 15.4, 16.4, 32]
    found = taken(FirstSeen(), [[call(n, day)] for n, day in enumerate(days, 1)])
    assert [one.window_us for one in found] == [START_US + 32 * DAY_US]


def test_one_domain_makes_one_finding_for_all_agents_of_a_day() -> None:
    start = [call(n, 0, agent=f"a{n}", domain="known.org") for n in range(1, 6)]
    later = [[call(10 + n, 2 + n / 24, agent=f"a{n}")] for n in range(1, 4)]
    found = taken(FirstSeen(), [start, *later])
    assert len(last_words(found)) == 1
    assert [one.evidence["agents"] for one in found] == [["a1"], ["a1", "a2"], ["a1", "a2", "a3"]]


def test_rarity_is_a_weight() -> None:
    scores = []
    for users in (0, 1, 3, 8):
        start = [*fleet(16), call(1, 0, domain="known.org")]
        used = [call(20_000 + n, 0, agent=f"b{n}") for n in range(users)]
        scores.append(taken(FirstSeen(), [start + used, [call(2, 1.5)]])[-1].score)
    assert scores == [46.875, 43.75, 37.5, 25.0]


def test_what_may_have_gone_out_and_what_was_refused_count() -> None:
    start = [call(1, 0, domain="known.org")]
    cases = [{}, {"action": "http:POST"}, {"query_bits": 4, "query_hash": 1}, {"bytes_out": 5000}, {"verdict": Verdict.DENY}]
    assert [taken(FirstSeen(), [start, [call(2, 1.5, **case)]])[0].score for case in cases] == [25.0, 50.0, 50.0, 50.0, 35.0]


def test_it_speaks_again_when_a_sum_doubles_not_with_each_call() -> None:
    frames = [[call(1, 0, domain="known.org")], *([call(n, 1 + n / 1000)] for n in range(2, 66))]
    found = taken(FirstSeen(), frames)
    assert [one.evidence["calls_at_least"] for one in found] == [1, 2, 4, 8, 16, 32, 64]
    assert len({one.id for one in found}) == 1


def test_an_older_call_that_comes_late_takes_the_word_back() -> None:
    found = taken(FirstSeen(), [[call(1, 0, domain="known.org")], [call(2, 5)], [call(3, 3)]])
    days = [((one.window_us - START_US) // DAY_US, one.withdrawn) for one in found]
    assert days == [(5, False), (3, False), (5, True)]


def test_an_agent_that_turns_out_to_be_older_has_new_domains_after_all() -> None:
    found = taken(FirstSeen(), [[call(1, 3, domain="known.org")], [call(2, 3.5)], [call(3, 0, domain="elsewhere.org")]])
    assert {one.domain for one in last_words(found).values()} == {"known.org", "new.org"}


def test_what_is_about_an_address_or_a_server_says_so() -> None:
    start = [call(1, 0, domain="known.org")]
    found = taken(FirstSeen(), [start, [call(2, 2, domain="", host="10.1.2.3")],
                                [call(3, 2, domain="", host="", resource='Tool::"bank/send"')]])  # fmt: skip
    said = [(one.subject, one.host, one.domain) for one in found]
    assert said == [("domain=10.1.2.3", "10.1.2.3", ""), ("domain=bank", "", "")]


steps = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["x.org", "y.org"]), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=12, deadline=None)
@given(steps=steps, data=st.data())
def test_any_order_and_partition_of_frames_says_the_same(
    steps: list[tuple[int, str, str, bool]], data: st.DataObject
) -> None:  # fmt: skip
    records = [
        call(n, 0, agent, domain, action="http:POST" if post else "http:GET", time=START_US + half * DAY_US // 2 + n)
        for n, (half, agent, domain, post) in enumerate(steps, 1)
    ]

    def said(order: list[dict[str, Any]], size: int) -> dict[str, Any]:
        detector, aggregator = FirstSeen(), Aggregator()
        found: list[Finding] = []
        for number, at in enumerate(range(0, len(order), size), 1):
            found += detector.take(rows_of(order[at : at + size], number, aggregator=aggregator).domains)
        for one in found:
            assert one.score == pytest.approx(rescored(dict(one.evidence)), abs=0.001)
        return content(found)

    want = said(records, 1)
    assert said(data.draw(st.permutations(records)), 1) == want
    assert said(data.draw(st.permutations(records)), 3) == want


def test_domains_beyond_the_limit_make_room_and_nothing_is_taken_back() -> None:
    detector = FirstSeen(pairs=100)
    found = taken(detector, [[call(1, 0, domain="known.org")], [call(2, 2)]])
    crowd = [call(10 + n, 2, agent=f"z{n}", domain=f"d{n}.org") for n in range(500)]
    found += detector.take(rows_of(crowd).domains)
    assert (detector.entries, detector.evicted) == (100, 402)
    many = [call(1000 + n, 2, agent=f"y{n}", domain="one.org") for n in range(500)]
    detector.take(rows_of(many).domains)
    assert detector.entries == 100
    assert not any(one.withdrawn for one in found)


@pytest.mark.parametrize(("number", "floor"), [(0, 0), (1, 1), (2, 2), (3, 2), (4095, 2048), (4096, 4096)])
def test_the_power_of_two_below(number: int, floor: int) -> None:
    assert floor2(number) == floor
