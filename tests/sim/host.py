"""One start of the host process: the shipped `Engine` (seal, lanes, box, ledger, outbox, doors) and the shipped `Link._heard`.

What the link does with asyncio (send, take answers, listen) is done here in single steps, in the order that the seed says. The
process may die before any operation on the disk, and between any two steps.
"""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enforcers.host import clients
from enforcers.host.engine import Engine
from enforcers.host.link import Link
from schemas.config import Config
from schemas.home import Home
from schemas.keys import Trust
from schemas.process import Lock
from schemas.records import make_boot
from tests.sim.kafka import BUDGET_BYTES, Broker, Producer
from tests.sim.rules import Truth
from tests.sim.story import Died, Story

NAME = "enforce-1"
SENT_AT_ONCE = 64
"""Frames that a producer has in hand at most, as in the shipped link."""


class _Pinned:
    """What control has registered in this story: whoever has a key in the home."""

    def __init__(self, home: Home) -> None:
        self.verifier = Trust(home.trusted("workers")).verifier

    def registered(self, host: str, key: str) -> bool:
        """Every host is."""
        return True


class Host:
    """Everything that is in the memory of one host process."""

    def __init__(
        self, story: Story, truth: Truth, home: Home, config: Config, key: Ed25519PrivateKey, broker: Broker,
        wire: list[tuple[int, int, bytes]],
    ) -> None:  # fmt: skip
        self._story = story
        self._truth = truth
        self._broker = broker
        self._wire = wire
        self.sends_badly = self.may_die = False
        self.heard = 0
        boot = make_boot(int(story.clock.time()), story.random.getrandbits(32))
        lock = Lock(home.host(NAME) / "lock")
        assert lock.take(), "one host at a time"
        try:
            self.engine = Engine(home, config, NAME, boot, key, lock)
        except BaseException:
            lock.release()
            raise
        self._link = Link(home, config, clients.Broker(home, config), _Pinned(home), lambda: [self.engine])
        self._producer: Producer | None = None
        self._known_broker: int | None = None
        story.tell(f"host {boot:016x} starts with {self.engine.lanes.unstored()} frames in the outbox")

    def seal(self) -> None:
        """One round of the sealing thread; a crash between `step` and `commit` leaves a box that only the next start knows."""
        cut = self.engine.step()
        if self.engine.full:
            kind = "outbox at its limit" if "at its limit" in self.engine.full else "box cannot be written"
            self._story.fault(kind, self.engine.full.rpartition(": ")[2])
        if cut is None:
            return
        for frame in cut.frames:
            self._truth.frame_sealed(frame.head.lane, frame.head.frame_no, frame.digest)
        if self.may_die and self._story.chance(0.05):
            self._story.fault("died between box and commit")
            raise Died
        self.engine.commit(cut)
        self._story.tell(f"cut {cut.cut_no}: {cut.records} records in {len(cut.frames)} frames, doors "
                         + ", ".join(f"{d.boot:016x} {d.first}..{d.last}" for d in cut.doors))  # fmt: skip

    def send(self) -> None:
        """What `Link._pump` does in a round: give what is due to a producer, as far as it gets."""
        broker = self._broker
        if not broker.up:
            return
        if self._known_broker not in (None, broker.identity):
            self._throw_away()
            self.engine.lanes.broker_is_new()
        self._known_broker = broker.identity
        if self._producer is None:
            self._producer = Producer(self._story, broker, self._wire, faulty=self.sends_badly)
        budget = BUDGET_BYTES if broker.embedded else None
        left = self._story.random.randint(1, 12) if self.sends_badly else SENT_AT_ONCE
        for ref in self.engine.lanes.due(self._story.clock.monotonic_ns(), budget):
            self.engine.lanes.sent(ref)
            data = self.engine.outbox.frame(ref)
            self._truth.frame_sent(ref.lane, ref.frame_no, data)
            if ref.reached or ref.lane.host_boot != self.engine.lanes.lane(0).host_boot:
                self._story.seen["frame sent again"] += 1
            self._story.tell(f"sends {ref.lane.text} frame {ref.frame_no}")
            self._producer.send(ref, ref.lane.partition, data)
            left -= 1
            if not left:
                break

    def answer(self) -> None:
        """One answer of the producer comes in; after a failed one the producer is thrown away, as in `Link.send`."""
        if self._producer is None:
            return
        news = self._producer.answer()
        if news is None:
            return
        ref, good = news
        if good:
            self.engine.lanes.acked(ref, self._story.clock.monotonic_ns())
        else:
            self.engine.lanes.failed(ref)
            self._throw_away()

    def waits_for_answers(self) -> bool:
        """Whether the producer has something in hand."""
        return self._producer is not None and bool(self._producer.hand)

    def _throw_away(self) -> None:
        if self._producer is not None:
            for ref in self._producer.abandon():
                self.engine.lanes.failed(ref)
            self._producer = None

    def hear(self, data: bytes) -> None:
        """One message of the topic `stored`."""
        self._link._heard(data)

    def check(self, frontier_of: Any) -> None:
        """Rule `frontier`, for everything that this host believes to be stored."""
        for lane, state in self.engine.lanes._lanes.items():
            self._truth.frontier_told(lane, state.frontier, frontier_of(lane), "the host")
        for boot, seq in self.engine.stored_seq().items():
            self._truth.door_told(int(boot, 16), seq)

    def die(self) -> None:
        """Kill -9: what the kernel takes back are locks and mappings; what is on the wire may still arrive."""
        if self._producer is not None:
            self._producer.abandon()
        self.engine.close()


def folder(home: Home) -> Path:
    """The folder of the one simulated host."""
    return home.host(NAME)


