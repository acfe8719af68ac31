"""Second holders: which first uses are findings, at which call, and that the score follows from the evidence."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.detect.aggregate import Aggregator
from pipeline.core.detect.holder import SecondHolders
from schemas.findings import Finding
from schemas.frame import Lane
from schemas.records import call_id
from tests.support.aggregating import START_US, content, last_words, rows_of, taken
from tests.support.frames import BOOT, record

MINUTE_US = 60_000_000
Call = tuple[int, str, str, str]
"""Minute, enforcer, client, agent."""


def shown(calls: list[Call], credential: str = "c1", detector: SecondHolders | None = None) -> list[Finding]:
    """What is said of a credential that is shown so, each call a frame of its enforcer."""
    holders, aggregator = detector or SecondHolders(), Aggregator()
    found = []
    for number, (minute, enforcer, client, agent) in enumerate(calls, 1):
        call = record(number, time=START_US + minute * MINUTE_US, credential=credential, address=client, agent=agent)
        lane = Lane(host=enforcer, host_boot=7, partition=0)
        found += holders.take(rows_of([call], number, lane, aggregator).credentials)
    return found


def rescored(evidence: dict[str, Any]) -> float:
    """The score, from the evidence alone."""
    bound, other = evidence["bound"], evidence["other"]
    weight = 3 * (bound["enforcer"] != other["enforcer"]) + (bound["agent"] != other["agent"])
    networks = {bound["network"], other["network"]}
    if "" not in networks and len(networks) == 2 and networks != {"unix", "127.0.0.0/24"}:
        weight += 2
    weight += 2 * evidence["both_active"]
    return min(100.0, 17.5 * weight)


def test_a_use_through_another_enforcer_while_the_first_is_active_is_found_at_its_first_call() -> None:
    found = shown([(0, "e1", "unix", "a"), (10, "e2", "unix", "a"), (11, "e2", "unix", "a")])
    assert [(one.score, one.time_us, one.enforcer) for one in found] == [(87.5, START_US + 10 * MINUTE_US, "e2")]
    assert found[0].calls == (call_id(BOOT, 1), call_id(BOOT, 2))
    assert (found[0].credential, found[0].agent) == ("c1", "a")


CASES = {
    "the same holder again": ([(0, "e1", "10.0.0.1", "a"), (1, "e1", "10.0.0.99", "a")], []),
    "another network hours later": ([(0, "e1", "10.0.0.1", "a"), (300, "e1", "10.9.0.1", "a")], [35.0]),
    "another network at the same time": ([(0, "e1", "10.0.0.1", "a"), (20, "e1", "10.9.0.1", "a")], [70.0]),
    "another network in the first minute": ([(0, "e1", "10.0.0.1", "a"), (0, "e1", "10.9.0.1", "a")], []),
    "another network and agent in the first minute": ([(0, "e1", "10.0.0.1", "a"), (0, "e1", "10.9.0.1", "b")], [87.5]),
    "two ways to the enforcer on its machine": ([(0, "e1", "unix", "a"), (20, "e1", "127.0.0.1", "a")], []),
    "another enforcer hours later": ([(0, "e1", "unix", "a"), (300, "e2", "unix", "a")], [52.5]),
    "another enforcer in the first minute": ([(0, "e1", "unix", "a"), (0, "e2", "unix", "a")], [87.5]),
    "another enforcer and network hours later": ([(0, "e1", "10.0.0.1", "a"), (300, "e2", "10.9.0.1", "a")], [87.5]),
    "another enforcer and agent hours later": ([(0, "e1", "unix", "a"), (300, "e2", "unix", "b")], [70.0]),
    "networks that nobody knows": ([(0, "e1", "", "a"), (20, "e1", "10.0.0.1", "a")], []),
    "the first comes back": ([(0, "e1", "unix", "a"), (300, "e2", "unix", "a"), (400, "e1", "unix", "a")], [87.5]),
    "everything at once": ([(0, "e1", "10.0.0.1", "a"), (1, "e2", "10.9.0.1", "b")], [100.0]),
    "two others": ([(0, "e1", "10.0.0.1", "a"), (1, "e2", "10.9.0.1", "a"), (2, "e3", "10.8.0.1", "a")], [100.0, 100.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_a_second_holder(case: str) -> None:
    calls, scores = CASES[case]
    found = shown(calls)
    assert [one.score for one in last_words(found).values()] == scores
    for one in found:
        assert one.score == rescored(dict(one.evidence))


def test_an_older_call_that_comes_late_binds_the_credential_to_its_holder() -> None:
    found = shown([(10, "e1", "10.0.0.1", "a"), (12, "e2", "10.9.0.1", "a"), (5, "e2", "10.9.0.1", "a")])
    assert [(one.enforcer, one.withdrawn) for one in found] == [("e2", False), ("e1", False), ("e2", True)]
    assert [one.enforcer for one in last_words(found).values()] == ["e1"]


def test_a_call_without_a_credential_is_nobodys() -> None:
    detector = SecondHolders()
    assert not shown([(0, "e1", "unix", "a"), (1, "e2", "unix", "a")], credential="", detector=detector)
    assert detector.entries == 0


enforcers, clients = st.sampled_from(["e1", "e2"]), st.sampled_from(["10.0.0.1", "10.9.0.1", ""])
calls = st.lists(st.tuples(st.integers(0, 90), enforcers, clients, st.sampled_from("ab")), min_size=2, max_size=7)


@settings(max_examples=12, deadline=None)
@given(calls=calls, data=st.data())
def test_any_order_of_frames_says_the_same(calls: list[Call], data: st.DataObject) -> None:
    frames = [
        ([record(n, time=START_US + call[0] * MINUTE_US + n, credential="c", address=call[2], agent=call[3])], call[1])
        for n, call in enumerate(calls, 1)
    ]

    def said(order: list[int]) -> dict[str, Any]:
        detector, aggregator = SecondHolders(), Aggregator()
        found = []
        for at in order:
            records, enforcer = frames[at]
            lane = Lane(host=enforcer, host_boot=7, partition=0)
            found += detector.take(rows_of(records, at + 1, lane, aggregator).credentials)
        return content(found)

    inorder = list(range(len(frames)))
    assert said(data.draw(st.permutations(inorder))) == said(inorder)


def test_credentials_and_holders_beyond_the_limits_make_room_and_are_counted() -> None:
    detector = SecondHolders(credentials=50, holders=4)
    detector.take(rows_of([record(n, credential=f"c{n}", address="unix") for n in range(1, 101)]).credentials)
    assert (detector.entries, detector.evicted) == (50, 50)
    times = [START_US + 2 * n * MINUTE_US for n in range(9)]
    found = taken(detector, [[record(200 + n, credential="c", address=f"10.0.{n}.1", time=at)] for n, at in enumerate(times)])
    assert detector.evicted == 51 + 5
    assert len(last_words(found)) == 3
