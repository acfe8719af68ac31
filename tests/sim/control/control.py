"""Control as a process: it makes changes, publishes them in order with a heartbeat behind them, and hears who has applied them.

Its log, its recovery of a topic and its listener are the shipped ones; the producer and the journal are stand-ins. What is sent
comes into the log in order; a send may arrive late, or arrive and be reported as failed, or not arrive; after an error all that
was not answered for is sent again by another producer, and what the old one had on the wire may still come, behind newer ones.
"""

from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from typing import TypeVar

from pipeline.shells.control.heard import Heard
from pipeline.shells.control.recover import recover
from schemas.config import Config
from schemas.control import HEARTBEAT, parse_entry
from schemas.errors import FrameFault, OperatorFault
from schemas.home import Home
from schemas.topics import Topics
from tests.sim.control.journal import Books, Journal
from tests.sim.control.rules import Truth
from tests.sim.control.topic import EMBEDDED_BYTES_MAX, LIVE_BYTES_MAX, Broker, Wire
from tests.sim.story import Broken, Story

PART = 4
HAND_MAX = 12
AGAIN_NS = 10_000_000_000
REREAD_NS = 60_000_000_000
_T = TypeVar("_T")


def finished(coroutine: Awaitable[_T]) -> _T:
    """Run what waits for nothing to its end."""
    steps = coroutine.__await__()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class Control:
    """One process. It is thrown away when it dies; its journal, and what is on the wire, stay."""

    def __init__(
        self, story: Story, truth: Truth, home: Home, config: Config, journal: Journal, broker: Broker, loose: list[Wire]
    ) -> None:
        self.story = story
        self.truth = truth
        self.broker = broker
        self.books = Books(story, truth, journal, LIVE_BYTES_MAX if broker.embedded else 0)
        self.cut = False
        """Whether the network keeps it from the broker."""
        self.heard = Heard(home, config, self.books, self.complain)  # type: ignore[arg-type]
        self.heard_to = 0
        self.epoch = 0
        """Everything up to here is in the topic."""
        self.sends_badly = False
        self._loose = loose
        self._heartbeat_ns = config.control.heartbeat_ms * 1_000_000
        self._topics = Topics(config.kafka.prefix)
        self._wire: Wire | None = None
        self._identity: int | None = None
        self._heard_of: int | None = None
        self._repairs = False
        self._given = 0
        self._again: deque[int] = deque()
        self._again_ns = -REREAD_NS
        self._behind = 0
        """Bytes since the whole state was sent."""
        self._beat_ns = 0

    @property
    def ready(self) -> bool:
        """Whether everything that it knows is in the topic and nothing is on its way."""
        return not self.books.empty and self.epoch == self.books.log.epoch and not self._again and not self.in_hand

    @property
    def in_hand(self) -> int:
        """Messages that are sent and not answered for."""
        return len(self._wire.hand) if self._wire is not None else 0

    @property
    def reached(self) -> bool:
        """Whether it can talk to the broker."""
        return self.broker.up and not self.cut

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """One turn of the publisher."""
        if not self.reached:
            return
        if self._wire is None or self._wire.identity != self.broker.identity:
            self._connect()
        elif self._repairs:
            return  # nothing else before, and no heartbeat: what is read meanwhile is not whole
        elif self._given < self.books.log.epoch:
            last = min(self.books.log.epoch, self._given + PART)
            self._send(range(self._given + 1, last + 1))
            self._given = last
        elif self._again:
            self._send([self._again.popleft() for _ in range(min(PART, len(self._again)))])
        elif self.story.clock.monotonic_ns() >= self._beat_ns and self.in_hand < HAND_MAX:
            self._beat_ns = self.story.clock.monotonic_ns() + self._heartbeat_ns
            self._beat()
        if self.broker.embedded and not self._again and self._behind > self._room():
            self.story.tell("control sends everything again before it is dropped")
            self._all_again()

    def _room(self) -> int:
        return EMBEDDED_BYTES_MAX * 9 // 10 - 2 * self.books.log.live_bytes

    def _connect(self) -> None:
        self._abandon()
        self._wire = Wire(self.broker.identity)
        if self._identity == self.broker.identity:
            self._given = self.epoch
            return
        try:
            found = finished(recover(self.books, {}, self._topics, embedded=self.broker.embedded))  # type: ignore[arg-type]
        except OperatorFault as fault:
            raise Broken("starts", f"control: {fault}") from fault
        self._again.clear()
        self._behind = found.bytes
        self._given = found.epoch
        self._repairs = True
        self.story.tell(f"control finds {len(found.missing)} of {self.books.log.live} entries missing")
        self._send(found.missing)
        self._is_repaired()

    def _is_repaired(self) -> None:
        if self._repairs and self._wire is not None and not self._wire.hand:
            self._repairs = False
            self._identity, self.epoch = self._wire.identity, self._given

    def _send(self, epochs: Iterable[int]) -> None:
        assert self._wire is not None
        for epoch in epochs:
            if not epoch:
                continue  # of a key that only a forged removal names
            key, value = self.books.journal.message(epoch)
            upto = epoch if epoch > self._given else 0
            self._wire.hand.append((key.encode(), value, upto))
            self._behind += len(value)

    def _beat(self) -> None:
        assert self._wire is not None
        counter = self.books.next_counter()
        entry = self.books.log.heartbeat(counter, self.story.clock.time_ns())
        value = entry.encode(self.books.signer.key_id, self.books.signer.sign)
        self.truth.beat_made(counter, self.story.clock.monotonic_ns())
        self._behind += len(value)
        self._wire.hand.append((HEARTBEAT.encode(), value, self._given))

    def _all_again(self) -> None:
        self._again_ns = self.story.clock.monotonic_ns()
        self._again = deque(epoch for epoch in self.books.log.epochs() if epoch <= self._given)
        self._behind = 0

    def all_again(self) -> None:
        """Have everything on its way once more, at once."""
        self._send(self.books.log.epochs())

    def complain(self, why: str) -> None:
        """A host lacks something."""
        since_ns = self.story.clock.monotonic_ns() - self._again_ns
        if self._again or since_ns < AGAIN_NS:
            return
        if since_ns < REREAD_NS:
            self.story.fault("log read and repaired", why[:60])
            self._identity, self._again_ns = None, -REREAD_NS
            self._abandon()
        else:
            self.story.fault("whole state sent again", why[:60])
            self._all_again()

    def deliver(self) -> None:
        """What was sent first arrives, or seems not to."""
        wire = self._wire
        if wire is None or not wire.hand or not self.reached:
            return
        fate = self.story.pick(("arrives",) * 12 + ("lost", "twice", "kept but failed")) if self.sends_badly else "arrives"
        if fate != "arrives":
            self.story.fault(f"send: {fate}")
        key, value, epoch = wire.hand[0]
        if fate != "lost":
            for _ in range(2 if fate == "twice" else 1):
                arrive(self.broker, self.truth, self.story, wire.identity, key, value)
        if fate in ("lost", "kept but failed") or wire.identity != self.broker.identity:
            self._abandon()
            return
        wire.hand.popleft()
        self.epoch = max(self.epoch, epoch)
        self._is_repaired()

    def _abandon(self) -> None:
        """Throw the producer away. Some of what it had sent may come when nobody waits for it any more."""
        if self._wire is not None and self._wire.hand and self.sends_badly and self.story.chance(0.4):
            self._loose.append(self._wire)
        self._wire = None
        self._repairs = False

    def die(self) -> None:
        """kill -9."""
        self._abandon()

    # -- hearing -----------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Take what the hosts say."""
        if not self.reached:
            return
        if self._heard_of != self.broker.identity:
            self._heard_of, self.heard_to = self.broker.identity, 0
        for message in self.broker.acks.after(self.heard_to, 4):
            self.heard_to = message.offset + 1
            self.heard.take(message.value)

    def report(self, words: Mapping[str, list[int]]) -> None:
        """What `wardline revoke` would print now. `words` are the epochs of each host's living doors, by their own word."""
        epoch = self.books.log.epoch
        for said in self.heard.report(epoch):
            if said["applied"]:
                self.truth.reported(said["host"], epoch, words[said["host"]])

    def applied(self) -> bool:
        """Whether every registered host has applied everything."""
        policy = self.books.log.policy
        hosts = self.heard.report(self.books.log.epoch, policy.digest if policy else "")
        return bool(hosts) and all(host["applied"] and host["state"] == "ready" for host in hosts)


def arrive(broker: Broker, truth: Truth, story: Story, identity: int, key: bytes, value: bytes | None) -> None:
    """A message of control comes into the log."""
    if value is not None and broker.up and identity == broker.identity:
        try:
            entry = parse_entry(value).entry
        except FrameFault as fault:
            raise Broken("word", f"control has published what nobody can read: {fault}") from fault
        if entry.key == HEARTBEAT and entry.value is not None:
            truth.beat_written(entry.value["counter"], story.clock.monotonic_ns())
    broker.write(identity, key, value)
