"""Findings on their way: what is slow keeps nothing else waiting, and nothing is committed before all about it is done."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pipeline.shells.worker import filing
from pipeline.shells.worker.cases import Cases
from pipeline.shells.worker.filing import Filing, Heard
from pipeline.shells.worker.parts import Part
from pipeline.shells.worker.past import Word, word_of
from pipeline.shells.worker.patience import Given
from schemas.detectors import DENY_BURST, RISK
from schemas.findings import Finding, finding_row
from tests.support.found import finding

LEAKS = finding(score=60.0)
BURST = finding(score=60.0, detector=DENY_BURST, subject="agent=reader")


class Desk:
    """Rows, and a store that stands still, or fails, where a test says so."""

    def __init__(self) -> None:
        self.rows: dict[str, Finding] = {}
        self.acted: list[str] = []
        self.done: list[int] = []
        self.lost: list[int] = []
        self.goes = {name: asyncio.Event() for name in ("known", "keep_findings", "of_agents")}
        for event in self.goes.values():
            event.set()
        self.fault: BaseException | None = None
        self.part = Part([])
        cases = Cases(self, stored=self.stored, fusing=(self, self.stored), wake=lambda agent, one: None, slot="w",
                      responder=self)  # fmt: skip
        self.filing = Filing(cases, valid=lambda one: one.part is self.part, owns=lambda agent: True, hand=self.hand,
                             done=self.taken, lost=lambda one: self.lost.append(one.end))  # fmt: skip

    async def stored(self, _: str, work: Callable[..., Any], *arguments: Any) -> Any:
        await self.goes[work.__name__].wait()
        if self.fault is not None:
            raise self.fault
        return work(*arguments)

    def known(self, ids: Sequence[str]) -> dict[str, Word]:
        return {one: word_of(finding_row(self.rows[one], "w")) for one in ids if one in self.rows}

    def keep_findings(self, findings: Sequence[Finding]) -> None:
        self.rows |= {one.id: one for one in findings}

    def of_agents(self, agents: Sequence[str], first_us: int, last_us: int) -> list[Finding]:
        return list(self.rows.values())

    async def act(self, findings: Sequence[Finding]) -> None:
        self.acted += [one.detector for one in findings]

    async def hand(self, findings: Sequence[Finding]) -> None:
        assert not findings

    async def taken(self, one: Heard) -> None:
        self.done.append(one.end)

    async def put(self, end: int, *words: Finding) -> None:
        await self.filing.put(Heard(partition=0, part=self.part, end=end, size=1, words=words, handed=()))


def desk(play: Callable[[Desk], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def main() -> None:
            async with asyncio.timeout(10):
                there = Desk()
                await play(there)
                await there.filing.stop()

        asyncio.run(main())

    test.__name__ = play.__name__
    return test


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@desk
async def test_a_finding_is_stored_and_rules_hear_of_it_while_the_risk_of_the_one_before_is_being_made(there: Desk) -> None:
    there.goes["of_agents"].clear()
    await there.put(1, LEAKS)
    await settled()
    await there.put(2, BURST)
    await settled()
    assert {LEAKS.id, BURST.id} == set(there.rows)
    assert (there.acted, there.done) == ([LEAKS.detector, BURST.detector], []), "nothing is committed before its risk is a row"
    there.goes["of_agents"].set()
    await there.filing.idle()
    assert (there.acted[2:], there.done) == ([RISK], [1, 2])


@desk
async def test_what_waits_for_a_slow_store_is_one_question_more(there: Desk) -> None:
    there.goes["keep_findings"].clear()
    for end in range(1, 9):
        await there.put(end, finding(score=60.0, version=end))
    await settled()
    there.goes["keep_findings"].set()
    await there.filing.idle()
    assert there.done == list(range(1, 9))
    assert there.rows[LEAKS.id].version == 8


@desk
async def test_no_more_is_on_its_way_than_there_is_room_for(there: Desk) -> None:
    there.goes["known"].clear()
    for end in range(filing.HEARD_MAX):
        await there.put(end, LEAKS)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(there.put(99, BURST), 0.05)
    there.goes["known"].set()
    await there.put(99, BURST)
    await there.filing.idle()
    assert there.done == [*range(filing.HEARD_MAX), 99]


@desk
async def test_what_is_given_up_is_made_again_and_the_others_go_on(there: Desk) -> None:
    there.fault = Given()
    await there.put(1, LEAKS)
    await there.filing.idle()
    there.fault = None
    await there.put(2, BURST)
    await there.filing.idle()
    assert (there.lost, there.done, set(there.rows)) == ([1], [2], {BURST.id})


@desk
async def test_old_detectors_say_nothing_once_their_partition_is_made_again(there: Desk) -> None:
    there.goes["known"].clear()
    await there.put(1, LEAKS)
    await settled()
    await there.put(2, BURST)
    there.part = Part([])
    there.goes["known"].set()
    await there.filing.idle()
    assert (there.lost, there.done, set(there.rows)) == ([], [], {LEAKS.id})


@desk
async def test_an_error_is_raised_where_more_is_brought(there: Desk) -> None:
    there.fault = OSError("the disk")
    await there.put(1, LEAKS)
    with pytest.raises(OSError, match="the disk"):
        await there.filing.idle()
    assert there.lost == [1]
    with pytest.raises(OSError, match="the disk"):
        await there.put(2, BURST)
