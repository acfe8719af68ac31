"""Stands in for control's journal on the disk: a change is in it as a whole or not at all, and it outlives every process.

`Books` is what the shipped publisher's recovery and the shipped listener ask of control's books: the real log of
`pipeline.core.control` in memory, made from the journal at each start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.control import OWN, Change, Log
from schemas.control import MAGIC, Entry
from tests.sim.control.rules import Truth
from tests.sim.story import Died, Story
from tests.support.entries import Signer

COUNTERS = 40


@dataclass(slots=True)
class Journal:
    """What is on the disk."""

    entries: list[Entry] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    seals: list[bytes] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    reserved: int = 0
    keys: dict[str, Signer] = field(default_factory=dict)
    """The private keys in their folder, by id."""

    def message(self, epoch: int) -> tuple[str, bytes]:
        """Kafka key and value of an entry."""
        return self.entries[epoch - 1].key, MAGIC + self.seals[epoch - 1] + self.payloads[epoch - 1]


class Books:
    """One process's. `die` is asked at each step of a change, and may raise Died."""

    def __init__(self, story: Story, truth: Truth, journal: Journal, live_bytes_max: int) -> None:
        self.story = story
        self.truth = truth
        self.journal = journal
        self.log = Log(journal.entries, live_bytes_max=live_bytes_max)
        self.empty = not journal.entries
        self.opened = self.log.epoch
        self.keys = self
        self.may_die = False
        self._counter = journal.reserved
        self._void: set[str] = set()

    @property
    def signer(self) -> Signer:
        """The newest key that the log names."""
        return self.journal.keys[self.log.entries("key")[-1].name]

    def _step(self, what: str) -> None:
        if self.may_die and self.story.chance(0.06):
            self.story.fault(f"control died {what}")
            raise Died

    def make(self, request: Mapping[str, Any], request_id: str, actor: str) -> int:
        """Make a change; returns its epoch. Raises OperatorFault and changes nothing, or Died at any step."""
        if (known := self.journal.answers.get(request_id)) is not None:
            return known
        if request_id in self._void:
            raise AssertionError(f"request {request_id} is asked for again after it was denied")
        now_ns = self.story.clock.time_ns()
        change = self.log.change(request, now_ns=now_ns, actor=actor)
        self._step("before a change was committed")
        self._commit(change, request_id)
        self._step("after a change was committed")
        self.log.apply(change)
        return change.entries[-1].epoch

    def _commit(self, change: Change, request_id: str) -> None:
        key = self.signer if self.log.entries("key") else next(iter(self.journal.keys.values()))
        journal = self.journal
        journal.entries += change.entries
        journal.payloads += change.payloads
        journal.seals += [key.key_id + key.sign(MAGIC + payload) for payload in change.payloads]
        journal.answers[request_id] = change.entries[-1].epoch
        self.truth.committed(request_id, change, self.story.clock.monotonic_ns())

    def expire(self) -> None:
        """End what is due."""
        change = self.log.expired(self.story.clock.time_ns())
        if change is not None:
            self.story.fault("revocations ended", f"{len(change.entries)}")
            self._commit(change, f"expiry {change.entries[-1].epoch}")
            self.log.apply(change)

    def sign_again(self) -> None:
        """All that is live, by the key that signs now."""
        key = self.signer
        for epoch in self.log.epochs():
            self.journal.seals[epoch - 1] = key.key_id + key.sign(MAGIC + self.journal.payloads[epoch - 1])

    def answer_for(self, request_id: str) -> int | None:
        """The epoch that a request made; None is final."""
        known = self.journal.answers.get(request_id)
        if known is None:
            self._void.add(request_id)
        return known

    def next_counter(self) -> int:
        """A heartbeat counter that was never used: reserved on the disk before it is."""
        self._counter += 1
        if self._counter > self.journal.reserved:
            self.journal.reserved = self._counter + COUNTERS
        return self._counter

    # -- what the shipped recovery asks ------------------------------------------------------------------------------

    def made(self) -> list[str]:
        return list(self.journal.keys)

    def public(self, name: str) -> str:
        return self.journal.keys[name].public.hex()

    async def begin(self, epoch: int, counter: int) -> None:
        """The first change of an empty journal."""
        if self.empty:
            key = next(iter(self.journal.keys.values()))
            self.make({"do": "key-rotate", "public": key.public.hex()}, "the first key", OWN)
            self.empty = False
        self._counter = max(counter, self._counter)

    async def after(self, epoch: int, limit: int) -> list[tuple[int, bytes]]:
        return list(enumerate(self.journal.payloads[epoch : epoch + limit], epoch + 1))

    async def last_epoch(self, key: str) -> int:
        return max((entry.epoch for entry in self.journal.entries if entry.key == key), default=0)

    async def change(self, request: Mapping[str, Any], *, actor: str) -> None:
        self.make(request, f"own {self.log.epoch}", actor)
