"""Stands in for Kafka: two topics, a consumer group, and a producer whose sends arrive, get lost, double, come late or lie.

`Broker` is either a real one (keeps everything, commits included) or the embedded one (drops the oldest above its limit, and is
another, empty one after each start). `Producer` stands in for aiokafka's: it is thrown away after any failed send, and what it
had on the wire then may still arrive, in any order.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.sim.story import Story

EMBEDDED_BYTES_MAX = 16_000
"""Above this the embedded broker drops the oldest of a partition; the host's budget stays below it, as in the product."""

BUDGET_BYTES = 9_000


@dataclass(slots=True)
class Log:
    """One partition: the offset of its first message, and the messages from there."""

    first: int = 0
    messages: deque[bytes] = field(default_factory=deque)
    size: int = 0

    @property
    def end(self) -> int:
        """The offset that the next message gets."""
        return self.first + len(self.messages)

    def append(self, data: bytes, limit: int | None) -> int:
        """Take a message; returns how many old ones were dropped for it."""
        self.messages.append(data)
        self.size += len(data)
        dropped = 0
        while limit is not None and self.size > limit and len(self.messages) > 1:
            self.size -= len(self.messages.popleft())
            self.first += 1
            dropped += 1
        return dropped


class Broker:
    """The topics `calls` (n partitions) and `stored` (one), and what the worker group has committed."""

    def __init__(self, story: Story, partitions: int, *, embedded: bool) -> None:
        self.embedded = embedded
        self.up = True
        self.identity = 0
        self.sent: dict[tuple[str, int], bytes] = {}
        self._story = story
        self._partitions = partitions
        self._empty()

    def _empty(self) -> None:
        self.calls = [Log() for _ in range(self._partitions)]
        self.stored: list[tuple[bytes, bytes]] = []
        self.committed: dict[int, int] = {}

    def produce(self, identity: int, partition: int, data: bytes) -> None:
        """A message arrives. One that was on its way to an earlier embedded broker arrives nowhere."""
        if not self.up or identity != self.identity:
            self._story.fault("message to a broker that is gone")
            return
        dropped = self.calls[partition].append(data, EMBEDDED_BYTES_MAX if self.embedded else None)
        if dropped:
            self._story.fault("broker drops the oldest", f"{dropped} of partition {partition}")

    def stop(self) -> None:
        """The broker is down: nobody can send, fetch or commit."""
        self.up = False
        self._story.fault("broker down")

    def start(self) -> None:
        """The real one knows everything again; the embedded one is new, and its offsets begin at 0."""
        self.up = True
        if self.embedded:
            self.identity += 1
            self._empty()
            self._story.fault("new broker")
        else:
            self._story.tell("broker up")

    def compact(self) -> None:
        """The topic `stored` keeps the newest value of each key."""
        newest = {key: at for at, (key, _) in enumerate(self.stored)}
        kept = [pair for at, pair in enumerate(self.stored) if newest[pair[0]] == at]
        if len(kept) < len(self.stored):
            self._story.fault("frontiers compacted")
        self.stored = kept


@dataclass(slots=True)
class _Sent:
    ref: Any
    partition: int
    data: bytes
    arrives: str
    good: bool


class Producer:
    """What one producer of the host has in hand. `news(ref, good)` gets its answers, in any order."""

    def __init__(self, story: Story, broker: Broker, wire: list[tuple[int, int, bytes]], *, faulty: bool) -> None:
        self.identity = broker.identity
        self.hand: list[_Sent] = []
        self.broken = False
        self._story = story
        self._broker = broker
        self._wire = wire
        self._faulty = faulty

    def send(self, ref: Any, partition: int, data: bytes) -> None:
        """Give a message to Kafka; its fate is drawn now."""
        fate = self._story.pick(("now",) * 6 + ("late", "late", "lost", "twice", "kept but failed")) if self._faulty else "now"
        sent = _Sent(ref, partition, data, fate, fate not in {"lost", "kept but failed"} and self._broker.up)
        if fate in {"now", "twice", "kept but failed"}:
            for _ in range(2 if fate == "twice" else 1):
                self._broker.produce(self.identity, partition, data)
        if fate != "now":
            self._story.fault(f"send: {fate}")
        self.hand.append(sent)

    def answer(self) -> tuple[Any, bool] | None:
        """One answer, not always the oldest. A failed one breaks the producer."""
        if not self.hand:
            return None
        at = self._story.random.randrange(len(self.hand)) if self._faulty else 0
        if at:
            self._story.seen["acks reordered"] += 1
        sent = self.hand.pop(at)
        if sent.arrives == "late":
            self._broker.produce(self.identity, sent.partition, sent.data)
        good = sent.good and self._broker.up and self.identity == self._broker.identity
        self.broken = self.broken or not good
        return sent.ref, good

    def abandon(self) -> list[Any]:
        """Throw the producer away: returns what it had in hand. What was on the wire may still arrive."""
        refs = [sent.ref for sent in self.hand]
        self._wire.extend((self.identity, sent.partition, sent.data) for sent in self.hand if sent.arrives == "late")
        self.hand.clear()
        return refs
