"""Stores who has applied what: the hosts' signed acknowledgements, each word once.

A host repeats itself every second, so only what is new becomes a row, and what is refused now comes again. On the embedded
broker the topic is read from its beginning at each start; on a Kafka the workers are one group, and an offset is committed
after the rows are stored. Rows that are written twice are one row.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.shells.worker import metrics
from pipeline.shells.worker.app import MAX_POLL_S
from pipeline.shells.worker.ports import AckStore, Keys
from pipeline.shells.worker.refusals import Refusals
from pipeline.shells.worker.registry import STOP_S
from pipeline.shells.worker.scribe import Scribe
from schemas.ack import Ack, parse_ack
from schemas.config import Config
from schemas.errors import FrameFault
from schemas.links import embedded_broker, kafka_security, stop_client
from schemas.store import ACK_GONE
from schemas.topics import Topics

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
POLL_MS: Final = 500
MESSAGES_MAX: Final = 1000
READY: Final = "ready"


STARTS_MAX: Final = 10_000
"""Starts of hosts whose last word is remembered. Of one that speaks again behind that many others the store is asked."""

Word: TypeAlias = tuple[int, str, int]
"""Epoch, policies, and when it applied them (us since 1970)."""


@dataclass(slots=True)
class _Start:
    """The last word of one start of a host."""

    said_us: int = 0
    word: Word = (0, "", 0)
    state: str = ""
    many: int = 0
    """How many doors it had."""
    doors: dict[str, Word] = field(default_factory=dict)


class Book:
    """What each registered host has said last: of what it says again only the news are rows."""

    def __init__(self) -> None:
        self._starts: dict[tuple[str, str], _Start] = {}

    def knows(self, ack: Ack) -> bool:
        """Whether this start of a host is in the book."""
        return (ack.host, ack.boot) in self._starts

    def open(self, ack: Ack, stored: Sequence[tuple[Any, ...]]) -> None:
        """Begin a page with what the store has of a start, rows of `ack_state`: a door that left meanwhile is missed then."""
        start = self._starts[ack.host, ack.boot] = _Start()
        while len(self._starts) > STARTS_MAX:
            del self._starts[next(iter(self._starts))]
        for door, epoch, digest, applied_us, state, many, said_us in stored:
            start.said_us = max(start.said_us, said_us)
            if not door:
                start.word, start.state, start.many = (epoch, digest, applied_us), state, many
            elif state != ACK_GONE:
                start.doors[door] = (epoch, digest, applied_us)

    def news(self, ack: Ack, journal: int) -> list[dict[str, Any]]:
        """The rows of `ACK_SCHEMA` that an acknowledgement adds. An older word than the last one adds none.

        By its epoch first, which only grows within a start of a host: its clock may be set back.
        """
        start, said_us = self._starts[ack.host, ack.boot], ack.said_ns // 1000
        if (ack.epoch, said_us) < (start.word[0], start.said_us):
            return []
        doors: dict[str, Word] = {}
        if ack.state != "stopped":
            doors = {door.boot: (door.epoch, door.policy_digest, door.applied_ns // 1000) for door in ack.doors}
        word: Word = (ack.epoch, ack.policy_digest, ack.applied_ns // 1000)
        rows = []
        if (word, ack.state, len(doors)) != (start.word, start.state, start.many):
            rows.append(_row(ack, journal, "", word, ack.state, len(doors)))
        new = {door: one for door, one in doors.items() if start.doors.get(door) != one}
        gone = {door: one for door, one in start.doors.items() if door not in doors}
        rows += [_row(ack, journal, door, one, READY, len(doors)) for door, one in new.items()]
        rows += [_row(ack, journal, door, one, ACK_GONE, len(doors)) for door, one in gone.items()]
        start.said_us, start.word, start.state, start.many, start.doors = said_us, word, ack.state, len(doors), doors
        return rows


def _row(ack: Ack, journal: int, door: str, word: Word, state: str, many: int) -> dict[str, Any]:
    epoch, digest, applied_us = word
    return {
        "journal": journal, "host": ack.host, "host_boot": ack.boot, "door": door, "epoch": epoch, "policy_digest": digest,
        "applied": applied_us, "state": state, "doors": many, "tenant": ack.tenant, "said": ack.said_ns // 1000,
    }  # fmt: skip


class Acks:
    """Reads the topic for ever."""

    def __init__(self, config: Config, *, slot: str, servers: str, keys: Keys, scribe: Scribe, store: AckStore) -> None:
        self._config = config
        self._slot = slot
        self._servers = servers
        self._keys = keys
        self._scribe = scribe
        self._store = store
        self._topic = Topics(config.kafka.prefix).acks
        self._book = Book()
        self._refusals = Refusals(log, "an acknowledgement")
        self.stored = 0
        """Rows that were written since the start."""

    async def run(self) -> None:
        """Read and store for ever; returns only by cancellation. Raises OperatorFault."""
        await self._keys.ready()
        journal = await self._scribe.journal()
        while True:
            consumer = None
            try:
                consumer = self._consumer()
                await asyncio.wait_for(consumer.start(), 15)
                if embedded_broker(self._config):
                    consumer.assign([TopicPartition(self._topic, 0)])
                await self._read(consumer, journal)
            except (TimeoutError, KafkaError, OSError) as fault:
                log.warning("acknowledgements: %s; they are read again", type(fault).__name__)
            finally:
                if consumer is not None:
                    await stop_client(consumer, STOP_S)
            await asyncio.sleep(RECONNECT_S)

    def _consumer(self) -> Any:
        options: dict[str, Any] = {
            "bootstrap_servers": self._servers, "client_id": f"wardline-{self._slot}-acks", "enable_auto_commit": False,
            "auto_offset_reset": "earliest", **kafka_security(self._config),
        }  # fmt: skip
        if embedded_broker(self._config):
            return AIOKafkaConsumer(fetch_max_wait_ms=20, **options)
        return AIOKafkaConsumer(
            self._topic, group_id=f"{self._config.kafka.prefix}worker-acks", max_poll_interval_ms=MAX_POLL_S * 1000,
            session_timeout_ms=self._config.worker.session_timeout_ms, **options,
        )  # fmt: skip

    async def _read(self, consumer: Any, journal: int) -> None:
        while True:
            found = await consumer.getmany(timeout_ms=POLL_MS, max_records=MESSAGES_MAX)
            rows, ends = [], {}
            for partition, messages in found.items():
                for message in messages:
                    if (ack := self._heard(message.value)) is not None:
                        rows += await self._news(ack, journal)
                    ends[partition] = message.offset + 1
            if rows:
                # a crash behind this: they are read again, and their rows replace themselves
                await self._scribe.stored("acknowledgements", self._store.keep_acks, rows)
                self.stored += len(rows)
            if ends and not embedded_broker(self._config):
                await consumer.commit(ends)

    def _heard(self, data: bytes | None) -> Ack | None:
        """Verify a message; None for one that is refused."""
        try:
            ack = parse_ack(data or b"", self._keys.key_of)
        except FrameFault as fault:
            metrics.ACKS.labels(fault.reason).inc()
            self._refusals.say(fault)
            return None
        metrics.ACKS.labels("good").inc()
        return ack

    async def _news(self, ack: Ack, journal: int) -> list[dict[str, Any]]:
        if not self._book.knows(ack):
            what = "acknowledgements"
            self._book.open(ack, await self._scribe.stored(what, self._store.ack_state, journal, ack.host, ack.boot))
        return self._book.news(ack, journal)
