"""An enforcer host as a process: the shipped feed on a stand-in for its consumer, a board in shared memory, and a disk.

What a fetch has brought may lie in the consumer's buffer for any time before it is read, and the answer to `where does the log
end` may be late too. `Clocked` is the board's writer: a board is believed until a time on the story's clock, not the machine's.
"""

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import KafkaError

from enforcers.core.obey import parse_floors
from enforcers.host.feed import Feed
from ext.board import BoardWriter, SeenReader
from schemas.config import Config
from schemas.home import Home
from schemas.topics import Topics
from tests.sim.control.control import finished
from tests.sim.control.rules import Truth
from tests.sim.control.topic import Broker, Message
from tests.sim.story import Broken, Died, Story
from tests.support.entries import Signer

HOSTS = ("enforce-1", "enforce-2")
SIGNERS = {name: Signer(name) for name in HOSTS}
FETCH_MAX = 6
WHILE_NS = 50_000_000_000
"""On the machine's clock: no history takes so long."""


class Clocked:
    """A board's writer whose readers go by the story's clock. It outlives its process, as shared memory does."""

    def __init__(self, story: Story, path: Path, boot: int) -> None:
        self.host = path.parent.name
        self._story = story
        self._writer = BoardWriter(str(path), boot, 16)
        self._until_ns = 0
        self._shown = False
        self._epoch = 0
        self._paused = False
        self.between = False
        """Whether it has entries from behind a gap, which it obeys and does not acknowledge."""

    @property
    def entries(self) -> int:
        return self._writer.entries

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def change(self, revoke: Any, lift: Any, *, epoch: int, paused: bool, policy: bytes) -> None:
        """One step."""
        self.between = epoch == self._epoch and bool(self.between or revoke or lift or paused != self._paused)
        self._epoch, self._paused = epoch, paused
        self._writer.change(revoke, lift, epoch=epoch, paused=paused, policy=policy)

    def replace(self, revoked: Any, *, epoch: int, paused: bool, policy: bytes) -> None:
        """The whole set anew."""
        self.between, self._epoch, self._paused = False, epoch, paused
        self._writer.replace(revoked, epoch=epoch, paused=paused, policy=policy)

    def fresh(self, until_ns: int) -> None:
        """Readers may believe it until then."""
        self._until_ns = until_ns
        self._shown = self._story.clock.monotonic_ns() < until_ns
        self._writer.fresh(time.monotonic_ns() + WHILE_NS if self._shown else 0)

    def look(self) -> None:
        """Time has passed: have readers find what they would find now."""
        if self._shown and self._story.clock.monotonic_ns() >= self._until_ns:
            self._shown = False
            self._writer.fresh(0)

    def close(self) -> None:
        """A clean end."""
        self._shown = False
        self._writer.close()


class _Pause:
    """Something that is waited for; whoever drives the coroutine says when it is over."""

    def __init__(self, end: Callable[[], Any] = lambda: None) -> None:
        self._end = end

    def __await__(self) -> Iterator[None]:
        yield None
        return self._end()


async def sleep(_: float) -> None:
    """In the place of `asyncio.sleep` in the shipped feed."""
    await _Pause()


async def to_thread(job: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """In the place of `asyncio.to_thread` there."""
    return job(*args, **named)


class Host:
    """One process. It is thrown away when it dies; its folder and its board stay."""

    def __init__(
        self, story: Story, truth: Truth, home: Home, config: Config, name: str, signer: Signer, broker: Broker, boot: int
    ) -> None:
        self.story = story
        self.truth = truth
        self.name = name
        self.signer = signer
        self.boot = f"{boot:016x}"
        self.cut = False
        """Whether the network keeps it from the broker."""
        self.may_die = False
        self.disk_full = False
        self.board = Clocked(story, home.board(name), boot)
        self.bundles = home.host(name) / "bundle"
        self.broker = broker
        self._home = home
        self.feed = Feed(
            home, config,
            SimpleNamespace(topics=Topics(config.kafka.prefix), embedded=broker.embedded),  # type: ignore[arg-type]
            name=name, key=signer.public.hex(), board=self.board, hosts=lambda: (),  # type: ignore[arg-type]
        )  # fmt: skip
        floors = self.feed.obey.floors()
        assert floors is None
        kept = self.feed.obey._kept
        truth.host_begins(name, kept.epoch, kept.counter, story.clock.monotonic_ns())
        self._identity: int | None = None
        self._buffer: list[tuple[list[Message], int]] = []
        self._next = 0
        self._asking: Iterator[None] | None = None

    @property
    def reached(self) -> bool:
        """Whether it can talk to the broker."""
        return self.broker.up and not self.cut

    # -- the feed ----------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """The consumer asks for messages, or is made anew; what it gets waits in its buffer."""
        if not self.reached:
            return
        if self._identity != self.broker.identity:
            self._identity = self.broker.identity
            self.feed._begin()
            self._connect()
        elif self.story.chance(0.02):
            self.story.fault("new consumer")
            self._connect()
        log = self.broker.control
        messages = log.after(self._next, 1 + self.story.random.randrange(FETCH_MAX))
        if messages:
            self._next = messages[-1].offset + 1
        else:
            self._next = max(self._next, log.messages[0].offset if log.messages else log.end)
        self._buffer.append((messages, log.end))

    def _connect(self) -> None:
        self._buffer.clear()
        self._next = self.feed._next
        self.feed._asked.clear()
        self._asking = None
        self.feed.obey.trouble = ""

    def read(self) -> None:
        """Take what the oldest fetch has brought."""
        if not self._buffer:
            return
        messages, end = self._buffer.pop(0)
        finished(self.feed._read(messages, end))
        if self.feed.obey.broken:
            why = self.feed.obey.why.replace(str(self._home.root), "")  # which no two tellings share
            self.story.fault("log read again", f"{self.name}: {why or 'it differs'}"[:90])
            finished(self.feed._again(self))  # type: ignore[arg-type]

    def seek(self, _: object, offset: int) -> None:
        """What the feed asks of its consumer."""
        self._buffer.clear()
        self._next = offset

    def ask(self) -> None:
        """The other half of where the log ends: the question goes out, or its answer comes."""
        if self._asking is None:
            self._asking = self.feed._ask(self).__await__()  # type: ignore[arg-type]
        next(self._asking)

    async def end_offsets(self, wanted: Iterable[object]) -> dict[object, int]:
        """What the feed asks of its consumer."""

        def answer() -> int:
            if not self.reached:
                raise KafkaError("no answer")
            return self.broker.control.end

        end = await _Pause(answer)
        return dict.fromkeys(wanted, end)

    # -- the disk ----------------------------------------------------------------------------------------------------

    def write(self, path: Path, data: bytes, *, sync: bool) -> None:
        """In the place of `write_atomic` in the shipped feed."""
        if self.disk_full:
            self.story.fault("no space")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        agents = path.name == "agents.json"
        if self.may_die and self.story.chance(0.15 if agents else 0.02):
            self.story.fault(f"host died before its {'agents' if agents else 'floors'} were kept")
            raise Died
        path.write_bytes(data)
        if agents:
            if self.may_die and self.story.chance(0.02):
                self.story.fault("host died after its agents were kept")
                raise Died
            return
        floors = parse_floors(data, path.name)
        self.truth.host_keeps(self.name, floors.epoch, floors.counter)
        if self.may_die and self.story.chance(0.02):
            self.story.fault("host died after its floors were kept")
            raise Died

    def keep(self) -> None:
        """Have on the disk what must be there, and look at the clock."""
        floors = self.feed.obey.floors(())
        if floors is not None:
            finished(self.feed._write(floors))
        self.feed._look()

    def bundle(self, *, now: bool = False) -> None:
        """The policies that are wanted are fetched, or are on the disk already."""
        obey = self.feed.obey
        wanted = obey.wanted_policy
        if not wanted or wanted == obey.policy:
            return
        path = self.bundles / wanted
        if not path.exists():
            if not self.reached or not (now or self.story.chance(0.5)):
                return
            self.bundles.mkdir(exist_ok=True)
            path.touch()
        obey.policy_ready(wanted)

    # -- its word ----------------------------------------------------------------------------------------------------

    def ack(self, doors: Iterable[tuple[str, SeenReader]]) -> bytes:
        """The signed word on itself and its doors."""
        said = []
        for boot, reader in doors:
            epoch, policy, applied_ns = reader.read() or (0, b"", 0)
            said.append((boot, epoch, policy, applied_ns))
        ack = self.feed.obey.ack(boot=self.boot, doors=said, lag_records=0, said_ns=self.story.clock.time_ns())
        self.truth.acked(ack, [boot for boot, *_ in said])
        return ack.encode(self.signer.sign)

    def check(self) -> None:
        """What holds of a host at any time."""
        obey = self.feed.obey
        if obey.epoch > self.truth.epoch:
            raise Broken("states", f"{self.name} has epoch {obey.epoch}, the journal has {self.truth.epoch}")
