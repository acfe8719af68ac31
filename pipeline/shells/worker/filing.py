"""What becomes of what was heard from `egress`, while the lookout hears more: two stages, each as fast as it is.

    heard       words of detectors, and what other workers hand on
    stored      those that are news are rows; rules hear of them at once
    followed    rules have answered, what it makes of the agents is a row too; what others own is handed on; done: its offset is
                committed

A stage takes everything that waits for it at once, so a slow store makes fewer questions and not a longer wait. A crash between
any two stages: the offset is not committed, and what is stored already is not news.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.shells.worker.cases import Cases
from pipeline.shells.worker.parts import Part
from pipeline.shells.worker.patience import Given
from schemas.findings import Finding

HEARD_MAX: Final = 32
"""What is on its way, each from at most `lookout.MESSAGES_MAX` messages. Reaching it: the lookout hears nothing more until one
has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What was heard in messages of one partition."""

    partition: int
    part: Part
    """Its detectors: if the partition has others since, this is made again by them."""
    end: int
    """The offset behind the messages."""
    size: int
    """Their bytes."""
    words: Sequence[Finding]
    handed: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class _Stored:
    heard: Sequence[Heard]
    told: Sequence[Finding]
    acting: "asyncio.Task[None]"


class Filing:
    """One for a life of the lookout's consumer. Everything runs on the event loop.

    `valid(heard)` says whether its partition still has the same detectors; `owns(agent)` whether the risk is ours to make;
    `hand(findings)` hands on what others own; `done(heard)` commits; `lost(heard)` has its partition made again.
    """

    def __init__(
        self, cases: Cases, *, valid: Callable[[Heard], bool], owns: Callable[[str], bool],
        hand: Callable[[Sequence[Finding]], Awaitable[None]], done: Callable[[Heard], Awaitable[None]],
        lost: Callable[[Heard], None],
    ) -> None:  # fmt: skip
        self._cases = cases
        self._valid = valid
        self._owns = owns
        self._hand = hand
        self._done = done
        self._lost = lost
        self._heard: list[Heard] = []
        self._stored: list[_Stored] = []
        self._on_their_way = 0
        self._changed = asyncio.Condition()
        self._ended = False
        self._fault: Exception | None = None
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Give up what is on its way: it is heard again."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def check(self) -> None:
        """Raise what ended the work, if something has."""
        if self._fault is not None:
            raise self._fault

    async def put(self, one: Heard) -> None:
        """Have it filed; waits while too much is on its way. Raises what ended the work."""
        await self._until(lambda: self._on_their_way < HEARD_MAX)
        self._on_their_way += 1
        self._heard.append(one)
        await self._gone(0)

    async def idle(self) -> None:
        """Wait until nothing is on its way. Raises what ended the work."""
        await self._until(lambda: not self._on_their_way)

    async def _until(self, what: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: what() or self._ended)
        self.check()

    async def _gone(self, count: int) -> None:
        async with self._changed:
            self._on_their_way -= count
            self._changed.notify_all()

    async def _run(self) -> None:
        stages = [asyncio.create_task(self._store_all()), asyncio.create_task(self._follow_all())]
        try:
            await asyncio.wait(stages, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for stage in stages:
                stage.cancel()
            ends = await asyncio.gather(*stages, return_exceptions=True)
            self._fault = next((end for end in ends if isinstance(end, Exception)), None)
            self._ended = True
            await self._gone(0)

    async def _store_all(self) -> None:
        while True:
            await self._until(lambda: bool(self._heard))
            heard, self._heard = self._heard, []
            stored = False
            with self._spared(heard):
                # of a partition that is made again its new detectors speak
                valid = [one for one in heard if self._valid(one)]
                news = await self._cases.keep([word for one in valid for word in one.words])
                told = [*news, *(word for one in valid for word in one.handed)]
                # a crash behind this: they are rows, and the rebuild gives those of the last day to the rules once more
                self._stored.append(_Stored(heard, told, self._cases.acting(told)))
                stored = True
            await self._gone(0 if stored else len(heard))

    async def _follow_all(self) -> None:
        while True:
            await self._until(lambda: bool(self._stored))
            stored, self._stored = self._stored, []
            heard = [one for part in stored for one in part.heard]
            with self._spared(heard):
                told = [one for part in stored for one in part.told]
                await self._hand(await self._cases.follow(told, [part.acting for part in stored], self._owns))
                for one in heard:
                    if self._valid(one):
                        await self._done(one)
            await self._gone(len(heard))

    @contextlib.contextmanager
    def _spared(self, heard: Sequence[Heard]) -> Iterator[None]:
        """What is given up is made again, and the others go on; so at whatever ends the work."""
        try:
            yield
        except BaseException as fault:
            for one in heard:
                if self._valid(one):
                    self._lost(one)
            if not isinstance(fault, Given):
                raise
