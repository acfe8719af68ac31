"""A door as a process: the shipped gate and the replay's own door, with a spool that only remembers.

Its policies are stand-ins that take their time to be made ready. `Reader` is the shipped board reader; between two of its looks
the world may go on, so that anything can happen between a decision, its record and its act.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enforcers.doors import obeyed
from enforcers.doors.replay import ReplayDoor
from ext.board import BoardReader, SeenReader, Selectors
from schemas.agents import Agents, parse
from schemas.calls import RecordedCall
from schemas.errors import SpoolFull
from schemas.records import Decision, Kind, Outcome, Standing, Verdict
from schemas.selectors import caller_texts, target_texts
from tests.sim.control.rules import Truth, allows
from tests.sim.story import Died, Story
from tests.support.entries import NOW_NS

AGENTS = tuple(f'Agent::"{name}"' for name in "abcd")
USERS = ('User::"u"', 'User::"v"')
RESOURCES = ('Tool::"files/read"', 'Tool::"files/write"', 'Host::"example.com:443"')
TOKENS = ("", "1f" * 32, "2f" * 32)
BUILD_NS = 3_000_000_000
"""How long it takes to have a policy set ready, at most."""
NESTED_MAX = 3


def make_call(story: Story, number: int) -> RecordedCall:
    """Any call of few names, so that they often meet those of a revocation."""
    chain = [story.pick(USERS)] + [story.pick(AGENTS) for _ in range(1 + story.random.randrange(2))]
    return RecordedCall(
        ref=number, time_ns=NOW_NS, agent=chain[-1].split('"')[1], chain=tuple(chain), action="mcp:tools/call",
        session=story.pick(("", "s")), token=story.pick(TOKENS), resource=story.pick(RESOURCES), trace_id=bytes(16),
    )  # fmt: skip


class GoneOn(Exception):
    """A call that waited was given up."""


class Reader:
    """The shipped reader. Where it would look every 50 ms for another board in its place, it looks at once."""

    def __init__(self, path: str, world: Callable[[], None]) -> None:
        self._path = path
        self._world = world
        self._turns = 0
        self._map()

    def _map(self) -> None:
        self._inode = _inode(self._path)
        self._board = BoardReader(self._path)

    @property
    def turn(self) -> int:
        return self._turns + self._board.turn

    @property
    def epoch(self) -> int:
        return self._board.epoch

    @property
    def policy(self) -> bytes:
        return self._board.policy

    @property
    def generation(self) -> int:
        return self._board.generation

    def check(self, caller: Selectors, target: Selectors, /) -> int:
        found = self._board.check(caller, target)
        if found == Standing.STALE and _inode(self._path) != self._inode:
            self._turns += self._board.turn
            self._map()
            found = self._board.check(caller, target)
        return found

    def unchanged(self) -> bool:
        self._world()
        return self._board.unchanged()


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


class Policies:
    """Stands in for a matcher: decides at once, by its digest."""

    policies = 1

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def decide(self, links: tuple[str, ...], action: str, resource: str, /) -> Decision:
        good = all(allows(self.digest, link.split('"')[1]) for link in links)
        verdict = Verdict.ALLOW if good else Verdict.DENY
        return Decision(verdict=verdict, reason="permit" if good else "forbid", policy_digest=self.digest)


class Matchers:
    """Stands in for the shipped one: the policies that the board names are ready some time later, those before decide."""

    def __init__(self, folder: Path, story: Story) -> None:
        self.current = Policies("")
        self.policy: bytes | None = None
        self.fault = ""
        self._folder = folder
        self._story = story
        self._wanted: bytes | None = None
        self._ready_ns = 0

    def follow(self, wanted: bytes, *, wait: bool = False) -> bool:
        if wanted == self.policy:
            return True
        now_ns = self._story.clock.monotonic_ns()
        if wanted != self._wanted:
            self._wanted, self._ready_ns = wanted, now_ns + self._story.random.randrange(BUILD_NS)
        if wanted and not wait and now_ns < self._ready_ns:
            return False
        assert not wanted or (self._folder / wanted.hex()).exists(), "the board names policies that are not on the disk"
        self.current, self.policy = Policies(wanted.hex()), wanted
        return True


class Spool:
    """Remembers nothing but how many; has no room now and then."""

    def __init__(self, story: Story, truth: Truth, boot: str) -> None:
        self.full = False
        self.last_seq = 0
        self.call: RecordedCall | None = None
        self.seen: SeenReader | None = None
        self.standing: Callable[[RecordedCall], int] = lambda _: Standing.GO
        self.looked_ns = 0
        """When its door last looked at the board before it records."""
        self.may_die = False
        self.agents: Callable[[], tuple[int, frozenset[tuple[str, str]]]] = lambda: (0, frozenset())
        self._acted = False
        self._story = story
        self._truth = truth
        self._boot = boot

    def append(self, record: tuple[Any, ...]) -> int:
        assert self.call is not None
        if record[0] == Kind.EFFECT and record[5] != Outcome.REFUSED and not self._acted:
            self._act(self.call)
        if self.full and self._story.chance(0.2):
            self._story.fault("spool full")
            raise SpoolFull("the spool is full")
        self._acted = False
        self.last_seq += 1
        seen = self.seen.read() if self.seen is not None else None
        now_ns = self._story.clock.monotonic_ns()
        self._truth.recorded(self._boot, self.last_seq, self.call, record, seen, now_ns, self.looked_ns, self.agents())
        if self.may_die and self._story.chance(0.02):
            self._story.fault("door died in a call")
            raise Died
        return self.last_seq

    def complete(self, seq: int, *end: object) -> bool:
        """Its host has read the decision, or has not."""
        assert self.call is not None
        self._act(self.call)
        if self._story.chance(0.3):
            return False
        self._acted = False
        self._truth.ended(self._boot, seq)
        return True

    def _act(self, call: RecordedCall) -> None:
        self._acted = True  # what it waits for from here on is room for its record
        self._truth.acted(self._boot, Standing(self.standing(call)), call, self._story.clock.monotonic_ns())


class Door:
    """One process of a host."""

    def __init__(
        self, story: Story, truth: Truth, host: str, board: Path, bundles: Path, folder: Path, world: Callable[[int], None]
    ) -> None:
        self.story = story
        self.host = host
        self.boot = folder.name
        self.stopped = False
        """SIGSTOP."""
        self.busy = False
        self._depth = 0
        self._world = world
        self._numbers = 0
        folder.mkdir(parents=True)
        truth.door_begins(self.boot, host)
        self._spool = Spool(story, truth, self.boot)
        self._agents = Agents()
        self._file = board.with_name("agents.json")
        self._obeyed = obeyed.Obeyed(board, bundles, folder, self._read_agents)
        self._obeyed.board._world = self._others  # type: ignore[attr-defined]
        self._door = ReplayDoor(self._spool, self._obeyed, self._rest)  # type: ignore[arg-type]
        self.seen = self._spool.seen = SeenReader(str(folder))
        self._spool.standing = self._standing
        self._spool.agents = self._known

    def _known(self) -> tuple[int, frozenset[tuple[str, str]]]:
        agents = self._agents
        return agents.epoch, frozenset((one.name, one.secret) for one in agents.by_name.values())

    def _read_agents(self) -> bool:
        """As a door on the network does that knows its callers by them."""
        self._agents = parse(self._file.read_bytes(), self._file.name, self._agents)
        return True

    def _standing(self, call: RecordedCall) -> int:
        """What the door's board says of a call at this moment."""
        who = caller_texts(call.chain, session=call.session, token=call.token)
        return self._obeyed.board.check(Selectors(who), Selectors(target_texts(call.resource)))

    def look(self, *, wait: bool = False) -> None:
        """What an idle door does every few milliseconds."""
        self._obeyed.look(wait=wait)

    def call(self, *, full: bool = False, may_die: bool = False) -> None:
        """One call, from its decision to its end, unless it waits in vain."""
        self._numbers += 1
        self._spool.full, self._spool.may_die = full, may_die
        self._spool.call = make_call(self.story, self._numbers)
        self.busy = True
        try:
            decision = self._door.call(self._spool.call)
        except GoneOn:
            return
        finally:
            self.busy = False
        self.story.tell(f"door {self.boot[-4:]} of {self.host}: {decision.reason}")
        self.story.seen[f"decision: {decision.reason}"] += 1

    def _others(self) -> None:
        """The rest of the world goes on while this door is between two instructions."""
        self._spool.looked_ns = self.story.clock.monotonic_ns()
        if self.busy and self.story.chance(0.6 if self._door.open else 0.3):
            self._world(8 if self._door.open else 2)

    def _rest(self, why: str, *, may_stop: bool) -> None:
        if may_stop and self.story.chance(0.6):
            raise GoneOn
        self.story.seen["a call waits"] += 1
        self._world(3)
        self._obeyed.look()
