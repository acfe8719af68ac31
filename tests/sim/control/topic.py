"""Stands in for Kafka: the topics `control` and `acks`, each of one partition.

The real one keeps everything and may be compacted; the embedded one is another, empty one after each start, and drops the
oldest above its limit. `Wire` is what somebody has sent and what has not arrived: in order, unless who sent it has gone.
"""

from collections import deque
from dataclasses import dataclass, field

from tests.sim.story import Story

EMBEDDED_BYTES_MAX = 20_000
"""Above this the embedded broker drops the oldest; control sends everything again before that may be something live."""

LIVE_BYTES_MAX = 7_000
"""What may be live on the embedded broker: in the same proportion as in the product."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a consumer gets."""

    offset: int
    key: bytes
    value: bytes | None


@dataclass(slots=True)
class Log:
    """One partition. Compaction leaves holes in its offsets."""

    messages: list[Message] = field(default_factory=list)
    end: int = 0
    size: int = 0

    def append(self, key: bytes, value: bytes | None, limit: int | None) -> int:
        """Take a message; returns how many old ones were dropped for it."""
        self.messages.append(Message(self.end, key, value))
        self.end += 1
        self.size += len(value or b"")
        dropped = 0
        while limit is not None and self.size > limit and len(self.messages) > 1:
            self.size -= len(self.messages.pop(0).value or b"")
            dropped += 1
        return dropped

    def after(self, offset: int, count: int) -> list[Message]:
        """Some messages from an offset on."""
        return [message for message in self.messages if message.offset >= offset][:count]


class Broker:
    """Both topics. `identity` is what changes when it is another one."""

    def __init__(self, story: Story, *, embedded: bool) -> None:
        self.embedded = embedded
        self.up = True
        self.identity = 0
        self.control = Log()
        self.acks = Log()
        self.past: list[Message] = []
        """Everything that ever stood in `control`, of earlier brokers too: what somebody may have kept."""
        self._story = story

    def write(self, identity: int, key: bytes, value: bytes | None) -> None:
        """A message for `control` arrives. One for an earlier embedded broker arrives nowhere."""
        if not self.up or identity != self.identity:
            self._story.fault("message to a broker that is gone")
            return
        if value is not None:
            self.past.append(Message(self.control.end, key, value))
        if dropped := self.control.append(key, value, EMBEDDED_BYTES_MAX if self.embedded else None):
            self._story.fault("broker drops the oldest", f"{dropped}")

    def stop(self) -> None:
        """Nobody can read or write."""
        self.up = False
        self._story.fault("broker down")

    def start(self) -> None:
        """The real one knows everything again; the embedded one is new."""
        self.up = True
        if self.embedded:
            self.identity += 1
            self.control, self.acks = Log(), Log()
            self._story.fault("new broker")
        else:
            self._story.tell("broker up")

    def compact(self) -> None:
        """The newest message of each key stays; a tombstone goes with what it removes."""
        log = self.control
        newest = {message.key: message.offset for message in log.messages}
        kept = [message for message in log.messages if newest[message.key] == message.offset and message.value is not None]
        if len(kept) < len(log.messages):
            self._story.fault("log compacted")
        log.messages = kept


@dataclass(slots=True)
class Wire:
    """What one producer has sent and nobody has answered for."""

    identity: int
    hand: deque[tuple[bytes, bytes | None, int]] = field(default_factory=deque)
    """Key, value, and the epoch up to which everything is sent with it."""
