"""Files what was noticed: rows first, then what rules do about it, then what it makes of the agent, then who follows hears.

    words of detectors        those that are news become rows
    rules                     hear of everything that is news, and after a start of what was stored lately: a rule acts once
    agents that they name     meanwhile their findings of the days are read back, which amount to a `risk`, for rules too
    readers                   are woken

A crash behind any line: the words come again, from the message that is not committed or from the rebuild; those that are stored
are not news, and rules find what they have done.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from pipeline.core.detect.fuse import DAY_US, day_of, risks, taken_back
from pipeline.shells.worker import metrics
from pipeline.shells.worker.past import Word, word_of
from schemas.detectors import RISK, TACTICS
from schemas.findings import Finding, finding_row

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1
WORDS_MAX: Final = 100_000
"""Findings whose last word is remembered. Of another one the store is asked."""


class CaseStore(Protocol):
    """What is needed of `past`."""

    def known(self, ids: Sequence[str]) -> dict[str, Word]:
        """What was said of some findings."""

    def keep_findings(self, findings: Sequence[Finding]) -> None:
        """Store words on findings."""

    def of_agents(self, agents: Sequence[str], first_us: int, last_us: int) -> list[Finding]:
        """What was said of some agents' calls between two times."""


class Responder(Protocol):
    """What rules are."""

    async def act(self, findings: Sequence[Finding]) -> None:
        """Do what the rules say about findings, each once. Returns in bounded time, whoever is away."""


class _Desk:
    """A store, how it is asked, and whose turn it is: between what is known and what is kept nobody else says the same."""

    def __init__(self, store: CaseStore, stored: Callable[..., Awaitable[Any]]) -> None:
        self.store = store
        self.stored = stored
        self.turn = asyncio.Lock()


class Cases:
    """`stored(what, work, *arguments)` does blocking work of the store until it succeeds; `wake(agent, id)` tells readers.

    `fusing` is another store and its `stored`, for risks: what is read back for them keeps no finding waiting.

    `excepted()` is (detector, subject) of what somebody has called false; None while that is not known, and then no risk is
    said: it would be made of what is false.
    """

    def __init__(
        self, store: CaseStore, *, stored: Callable[..., Awaitable[Any]], wake: Callable[[str, str], None], slot: str,
        responder: Responder | None = None, excepted: Callable[[], Collection[tuple[str, str]] | None] = lambda: (),
        fusing: "tuple[CaseStore, Callable[..., Awaitable[Any]]] | None" = None,
    ) -> None:  # fmt: skip
        self._words_desk = _Desk(store, stored)
        self._risks_desk = _Desk(*fusing) if fusing is not None else self._words_desk
        self._wake = wake
        self._slot = slot
        self._responder = responder
        self._excepted = excepted
        self._words: OrderedDict[str, Word] = OrderedDict()
        self.filed = 0
        """Words that became rows since the start."""

    async def keep(self, findings: Sequence[Finding], *, part: bool = False) -> list[Finding]:
        """Store those words of detectors that are news; returns them.

        `part`: who says them may know less than who spoke last: then they count only with a higher version. Else the last word
        counts that says something else than what is stored, and gets a higher version where it has none: what a detector counts
        begins anew with each rebuild.
        """
        if not findings:
            return []
        async with self._words_desk.turn:
            return await self._keep(self._words_desk, findings, part=part)

    async def _keep(self, desk: _Desk, findings: Sequence[Finding], *, part: bool = False) -> list[Finding]:
        last: dict[str, Finding] = {}
        for finding in findings:
            if finding.id not in last or finding.version >= last[finding.id].version:
                last[finding.id] = finding
        unknown = [one for one in last if one not in self._words]
        if unknown:
            for one, word in (await desk.stored("findings", desk.store.known, unknown)).items():
                self._remember(one, word)
        news = [one for finding in last.values() if (one := self._news(finding, part=part)) is not None]
        if news:
            # a crash behind this: they are stored, and the words that come again are not news
            try:
                await desk.stored("findings", desk.store.keep_findings, news)
            except BaseException:
                for finding in news:  # nobody knows whether they are: the store is asked when they come again
                    self._words.pop(finding.id, None)
                raise
            for finding in news:
                self._remember(finding.id, word_of(finding_row(finding, self._slot)))
                metrics.FINDINGS.labels(finding.detector).inc()
            self.filed += len(news)
        return news

    def _news(self, finding: Finding, *, part: bool) -> Finding | None:
        stored = self._words.get(finding.id)
        if stored is None:
            return None if finding.withdrawn else finding
        if stored.said == word_of(finding_row(finding, self._slot)).said:
            return None
        if finding.version > stored.version:
            return finding
        return None if part else replace(finding, version=stored.version + 1)

    def _remember(self, one: str, word: Word) -> None:
        self._words[one] = word
        self._words.move_to_end(one)
        while len(self._words) > WORDS_MAX:
            self._words.popitem(last=False)

    async def file(
        self, findings: Sequence[Finding], again: Sequence[Finding] = (), part: Sequence[Finding] = (),
        owns: Callable[[str], bool] = lambda agent: True,
    ) -> list[Finding]:  # fmt: skip
        """Do everything about these words. `again` are stored already; what is to be done about them may not have been.
        `part` is said by who may know less than who spoke last.

        `owns` says of which agents the risk is made here: of one agent one worker makes it, or two would say it twice. Returns
        what is to be handed to the owners of the others.
        """
        told = [*await self.keep(findings), *await self.keep(part, part=True), *again]
        return await self.follow(told, [self.acting(told)], owns)

    def acting(self, told: Sequence[Finding]) -> "asyncio.Task[None]":
        """Have rules act on stored findings from now on: what a detector is sure of does not wait for a risk."""
        acting = asyncio.create_task(self._act(told))
        acting.add_done_callback(lambda task: task.cancelled() or task.exception())  # where risks fail, nobody asks
        return acting

    async def follow(
        self, told: Sequence[Finding], acting: "Sequence[asyncio.Task[None]]", owns: Callable[[str], bool]
    ) -> list[Finding]:
        """Do what is left to do about stored findings, while rules act on them; returns as `file`."""
        await asyncio.sleep(0)  # rules have heard of them before they hear of a risk
        risks: list[Finding] = []
        if mine := [one for one in told if owns(one.agent)]:
            async with self._risks_desk.turn:
                risks = await self._keep(self._risks_desk, await self._risks(mine))
        for one in (*acting, self.acting(risks)):
            await one
        for finding in (*told, *risks):
            self._wake(finding.agent, finding.id)
        return [one for one in told if one.agent and not owns(one.agent)]

    async def _act(self, findings: Sequence[Finding]) -> None:
        if self._responder is not None and findings:
            await self._responder.act(findings)

    async def _risks(self, findings: Sequence[Finding]) -> list[Finding]:
        """The words on the risk of each agent, for each day that findings of one of its days may change.

        What somebody has called false is no part of a risk.
        """
        touched = {(f.agent, day_of(f.time_us) + more) for f in findings if f.agent and f.detector in TACTICS
                   for more in (0, DAY_US)}  # fmt: skip
        if not touched:
            return []
        days = [day for _, day in touched]
        agents = sorted({agent for agent, _ in touched})
        first, last = min(days) - DAY_US, max(days) + DAY_US - 1
        desk = self._risks_desk
        stored = await desk.stored("findings", desk.store.of_agents, agents, first, last)
        while (false := self._excepted()) is None:
            await asyncio.sleep(LOOK_S)
        known = [replace(f, withdrawn=True) if (f.detector, f.subject) in false and f.detector != RISK else f for f in stored]
        words: list[Finding] = []
        for agent in agents:
            own = [f for f in known if f.agent == agent]
            said = {f.window_us: f for f in own if f.detector == RISK and not f.withdrawn}
            now = {f.window_us: f for f in risks(own)}
            words += [now[day] for one, day in touched if one == agent and day in now]
            words += [taken_back(said[day], own) for one, day in touched if one == agent and day in said and day not in now]
        return words
