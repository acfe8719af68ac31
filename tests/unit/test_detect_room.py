"""The sets of detectors of one worker have one memory: together they keep no more than one set may."""

from collections.abc import Callable

import pytest

from pipeline.core.detect.beacon import Beacons
from pipeline.core.detect.denials import DenyBursts
from pipeline.core.detect.firstseen import FirstSeen
from pipeline.core.detect.holder import SecondHolders
from pipeline.core.detect.interface import Detector, make_room
from pipeline.core.detect.leak import Leaks
from pipeline.core.detect.sequence import Sequences
from pipeline.core.detect.volume import Volumes
from schemas.records import Verdict
from tests.support.aggregating import START_US, rows_of
from tests.support.frames import Record, record

MADE: dict[str, Callable[[], Detector]] = {
    "beacon": lambda: Beacons(pairs=40, days=50), "deny-burst": lambda: DenyBursts(agents=40, windows=50),
    "volume": lambda: Volumes(agents=40, days=50), "sequence": lambda: Sequences(tasks=40, pairs=100),
    "first-seen": lambda: FirstSeen(pairs=40), "second-holder": lambda: SecondHolders(credentials=40),
    "leak": lambda: Leaks(pairs=40, items=2_000, agents=40),
}  # fmt: skip


def calls(first: int, count: int) -> list[Record]:
    """Calls of as many agents, of which no two have anything in common; half of them refused calls of tools."""
    made: list[Record] = []
    for n in range(first, first + count):
        tool = {"action": "mcp:tools/call", "resource": f'Tool::"server-{n}/read"', "host": "", "domain": ""}
        host = {"action": "http:GET", "resource": f'Host::"name-{n}.d{n}.example:443"', "host": f"name-{n}.d{n}.example",
                "domain": f"d{n}.example"}  # fmt: skip
        common = {"agent": f"agent-{n}", "session": f"s-{n}", "credential": f"c-{n}", "proof": "secret", "time": START_US + n,
                  "address": f"10.0.{n >> 8}.{n & 255}:1", "verdict": Verdict.DENY}  # fmt: skip
        made += [record(2 * n + 1, **common, **tool), record(2 * n + 2, **common, **host)]
    return made


def kept(sets: list[Detector]) -> list[int]:
    return [sum(one.room[which].kept for one in sets) for which in range(len(sets[0].room))]


@pytest.mark.parametrize("name", MADE)
def test_two_sets_keep_together_what_one_may_and_count_what_made_room(name: str) -> None:
    sets = [MADE[name](), MADE[name]()]
    for first in range(0, 400, 20):
        one = sets[first % 40 // 20]
        one.take(rows_of(calls(first, 20), first + 1).of(one.subject))
        make_room([[one] for one in sets])
        assert all(got <= room.most for got, room in zip(kept(sets), one.room, strict=True))
    assert kept(sets)[0] > 20, "it is full, and not empty"
    assert sum(one.evicted for one in sets) > 300


@pytest.mark.parametrize("name", MADE)
def test_the_set_that_keeps_most_makes_room(name: str) -> None:
    small, large = MADE[name](), MADE[name]()
    small.take(rows_of(calls(0, 4), 1).of(small.subject))
    before = small.room
    for first in range(100, 500, 20):
        large.take(rows_of(calls(first, 20), first).of(large.subject))
        make_room([[small], [large]])
    assert (small.room, small.evicted) == (before, 0)


@pytest.mark.parametrize("name", MADE)
def test_sets_with_room_do_not_notice_each_other(name: str) -> None:
    sets = [MADE[name]() for _ in range(3)]
    for number, one in enumerate(sets):
        one.take(rows_of(calls(10 * number, 5), number + 1).of(one.subject))
    before = [one.room for one in sets]
    make_room([[one] for one in sets])
    assert [one.room for one in sets] == before
    assert not any(one.evicted for one in sets)
