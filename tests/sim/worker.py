"""One worker process: the shipped `Pump` (and in it intake, ledger, batch and rows) on an event loop without time of its own.

The loop belongs to this worker alone, so that a worker that is stopped stands still and one that is killed leaves nothing
behind; it runs only while the world lets it, until nothing is ready. What stands in for Faust delivers in offset order, commits
as `StrictConsumer` does, and drains before a revoke.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faust.types import TP

from pipeline.shells.worker.pump import Pump
from pipeline.shells.worker.sink import Fenced, Taken
from schemas.config import Config
from schemas.errors import FrameFault
from schemas.frame import Lane, parse_frame
from schemas.frontier import Frontier
from schemas.home import Home
from schemas.keys import Trust
from tests.sim.kafka import Broker
from tests.sim.rules import Truth
from tests.sim.store import Request, Store
from tests.sim.story import Broken, Clock, Story

T = TypeVar("T")

TOPIC = "wardline.calls"
BUFFER_EVENTS = 8
TURNS_MAX = 1_000
MEMBER, GHOST = "member", "ghost"


class Loop(asyncio.SelectorEventLoop):
    """An event loop in the story's time, which goes on only in `settle`."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        """Simulated seconds."""
        return self._clock.monotonic()

    def settle(self) -> None:
        """Run until nothing is ready."""
        for _ in range(TURNS_MAX):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:  # type: ignore[attr-defined]
                return
        raise Broken("ends", "a worker spins without the clock moving")


@dataclass(slots=True)
class Message:
    """As Kafka delivered it."""

    tp: TP
    offset: int
    value: bytes
    generation_id: int


@dataclass(slots=True)
class Event:
    """As Faust hands it to the agent."""

    message: Message
    done: Callable[[Message], None]

    def ack(self) -> None:
        """The pump has finished with it."""
        self.done(self.message)


class SteppedPump(Pump):
    """The shipped pump; only its thread for the store is exchanged, for the store's inbox."""

    ask: Callable[[Callable[[], Any]], "asyncio.Future[Any]"]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        result: T = await self.ask(work)
        return result


class Worker:
    """Everything that is in the memory of one worker process."""

    def __init__(
        self, name: str, story: Story, truth: Truth, broker: Broker, store: Store, home: Home, config: Config,
        key: Ed25519PrivateKey,
    ) -> None:  # fmt: skip
        self.name = name
        self.stopped = False
        self.lost_place = False
        """Whether the group has given its partitions away without its knowing."""
        self.why = ""
        """Why it has ended; empty while it lives."""
        self._identity = broker.identity
        self._story = story
        self._truth = truth
        self._broker = broker
        self._store = store
        self._sign = key.sign
        self._generation = 0
        self._last: dict[TP, int] = {}
        self._window: dict[TP, deque[int]] = {}
        self._done: dict[TP, set[int]] = {}
        self._saying: dict[Lane, int] = {}
        self._requests: list[Request] = []
        self._events: deque[Event] = deque()
        self._loop = Loop(story.clock)
        self._loop.set_exception_handler(lambda *_: None)  # what a task dies of shows in the rules, not on the screen
        self._tasks: list[asyncio.Task[Any]] = []
        self._trust = Trust(home.trusted("hosts"))
        self._spawn(self._main(config))
        self._loop.settle()

    def _spawn(self, job: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(job)
        self._tasks.append(task)
        return task

    async def _main(self, config: Config) -> None:
        self.pump = SteppedPump(
            config, store=_Watched(self, self._store), voice=self, keys=_Pinned(self._trust),
            generation=lambda: self._generation, slot=self.name,
        )  # fmt: skip
        self.pump.ask = self._ask
        self._more = asyncio.Event()
        self._spawn(self.pump.clock())
        self._spawn(self._agent())
        self._leave(f"exit code {await self.pump.ended()}")

    async def _agent(self) -> None:
        """What the Faust agent does: one event after the other."""
        while True:
            while not self._events:
                self._more.clear()
                await self._more.wait()
            await self.pump.take(self._events.popleft())

    def _ask(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        future = self._loop.create_future()

        def answer(result: Any, fault: BaseException | None) -> None:
            self._requests.remove(request)
            if self.why or future.done():
                return
            if fault is None:
                future.set_result(result)
            else:
                future.set_exception(fault)

        request = Request(work, answer)
        self._requests.append(request)
        self._store.inbox.append(request)
        return future

    # -- the pump's voice --------------------------------------------------------------------------------------------

    def say(self, lane: Lane, frame_no: int) -> None:
        """A frontier, to be published soon."""
        self._truth.worker_told(lane, frame_no, self._store.frontier(lane), self.name)
        self._saying[lane] = max(frame_no, self._saying.get(lane, 0))

    def wake(self, digest: str) -> None:
        """A dead letter is in the store."""
        if bytes.fromhex(digest) not in self._store.letters:
            self._truth.broken = Broken("offsets", f"{self.name} acknowledges a dead letter that is not kept")

    def publish(self) -> None:
        """What the herald does: the latest frontier of each lane, signed."""
        if not self._broker.up or self._broker.identity != self._identity:
            return
        saying, self._saying = self._saying, {}
        for lane, frame_no in saying.items():
            said = Frontier(lane=lane, frame_no=frame_no, stored_ns=self._story.clock.time_ns(), worker=self.name)
            self._broker.stored.append((lane.text.encode(), said.encode(self._sign)))
            self._story.tell(f"{self.name} says {lane.text} is stored up to {frame_no}")

    # -- what Faust does ---------------------------------------------------------------------------------------------

    def revoke(self) -> None:
        """Drain, commit what that acknowledged, forget: when this returns the next owner may go on."""
        task = self._spawn(self.pump.drain())
        self._loop.settle()
        for _ in range(TURNS_MAX):
            if task.done() or self.why:
                break
            for request in list(self._requests):
                self._store.execute(request)
            self._loop.settle()
        else:
            raise Broken("ends", f"{self.name} does not finish draining")
        self.commit()
        for kept in (self._last, self._window, self._done):
            kept.clear()

    def assign(self, generation: int, partitions: list[int]) -> None:
        """Delivery of these partitions starts again at the commit."""
        self._generation = generation
        for partition in partitions:
            tp = TP(TOPIC, partition)
            first, committed = self._broker.calls[partition].first, self._broker.committed.get(partition, 0)
            if committed < first:
                self._story.fault("offsets gone before they were read")
            self._last[tp] = max(committed, first) - 1
            self._window[tp], self._done[tp] = deque(), set()
        self.pump.open(set(self._last))
        self._loop.settle()

    def work(self) -> None:
        """Some messages come, time passes, frontiers are published: one of them, or all."""
        if self.lost_place and self._story.chance(0.1):
            self._leave("the group does not know it any more")
        elif self._broker.up and self._broker.identity != self._identity:
            self._leave("the broker is another one")
        if self.why:
            return
        for _ in range(self._story.random.randint(0, 4)):
            self._fetch()
        self._loop.settle()
        if self._story.chance(0.5):
            self.publish()
        if self._story.chance(0.5):
            self.commit()

    def _fetch(self) -> None:
        if not self._broker.up or not self._last or len(self._events) >= BUFFER_EVENTS:
            return
        tp = self._story.pick(sorted(self._last))
        log, offset = self._broker.calls[tp.partition], self._last[tp] + 1
        if offset < log.first:
            self._story.fault("gap in the offsets")
            self._leave(f"offsets {offset}..{log.first - 1} of partition {tp.partition} are gone")
            return
        if offset == log.end:
            return
        self._last[tp] = offset
        self._window[tp].append(offset)
        self._events.append(Event(Message(tp, offset, log.messages[offset - log.first], self._generation), self._acked))
        self._more.set()

    def _acked(self, message: Message) -> None:
        if message.generation_id == self._generation and message.tp in self._done:
            self._done[message.tp].add(message.offset)

    def commit(self) -> None:
        """Commit the head run of what was delivered and acknowledged; a member that lost its place is refused."""
        if self.why or self.lost_place or not self._broker.up or self._broker.identity != self._identity:
            return
        for tp, window in self._window.items():
            done = self._done[tp]
            while window and window[0] in done:
                offset = window.popleft()
                done.discard(offset)
                self._check(tp.partition, offset)
                self._broker.committed[tp.partition] = offset + 1

    def _check(self, partition: int, offset: int) -> None:
        """Rule `offsets`: a frame of ours is in the table, or was put off; anything else is a dead letter."""
        log = self._broker.calls[partition]
        if offset < log.first:
            return
        data = log.messages[offset - log.first]
        try:
            head = parse_frame(data).head
        except FrameFault:
            head = None
        if head is None or head.lane.partition != partition or not self._truth.is_ours(head.lane, head.frame_no, data):
            return  # `wake` has asked for its dead letter
        stored = head.frame_no in self._store.frames[head.lane]
        if not stored and (head.lane, head.frame_no) not in self._truth.put_off:
            raise Broken("offsets", f"{partition}/{offset} is committed, {head.lane.text} frame {head.frame_no} is not stored")

    # -- its end -----------------------------------------------------------------------------------------------------

    def _leave(self, why: str) -> None:
        if not self.why:
            self.why = why

    def end(self, why: str) -> None:
        """Nothing of it runs any more; what it has asked of the store may still arrive there."""
        self._leave(why)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.settle()
        self._loop.close()

    def fenced(self, partitions: Iterable[int]) -> None:
        """Rule `drain`. A zombie that goes on, or the late word of a dead worker, may take a partition from who has it."""
        if not self.why and not self.lost_place and all(self._store.taker[partition] == MEMBER for partition in partitions):
            raise Broken("drain", f"{self.name} holds its place and is fenced")
        self._story.fault("fenced", self.name)


class _Pinned:
    """A registry that has heard everything before this story begins, and in which nothing changes."""

    why = ""

    def __init__(self, trust: Trust) -> None:
        self.key_of = trust.verifier

    async def ready(self) -> None:
        """It is."""

    def former_of(self, host: str) -> None:
        """Nobody was removed."""

    async def caught_up(self) -> bool:
        """It is."""
        return True


class _Watched:
    """The store as one worker sees it."""

    def __init__(self, worker: Worker, store: Store) -> None:
        self._worker = worker
        self._store = store
        self.keep = store.keep
        self.note = store.note

    def take_over(self, partition: int) -> Taken:
        return self._store.take_over(partition, GHOST if self._worker.lost_place or self._worker.why else MEMBER)

    def insert(self, stream: memoryview, token: str, owned: Mapping[int, int]) -> None:
        try:
            self._store.insert(stream, token, owned)
        except Fenced:
            self._worker.fenced(owned)
            raise
