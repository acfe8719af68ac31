"""Stores who has applied what: the hosts' signed acknowledgements, each word once.

A host repeats itself every second, so only what is new becomes a row, and what is refused now comes again. On the embedded
broker the topic is read from its beginning at each start; on a Kafka the workers are one group, and an offset is committed
after the rows are stored. Rows that are written twice are one row.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.shells.worker import metrics
from pipeline.shells.worker.app import MAX_POLL_S
from pipeline.shells.worker.ports import AckStore, Keys
from pipeline.shells.worker.registry import stop_client
from pipeline.shells.worker.scribe import Scribe
from schemas.ack import Ack, parse_ack
from schemas.config import Config
from schemas.errors import FrameFault
from schemas.links import embedded_broker, kafka_security
from schemas.store import ACK_GONE
from schemas.topics import Topics

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
POLL_MS: Final = 500
MESSAGES_MAX: Final = 1000
QUIET_S: Final = 5.0
READY: Final = "ready"


@dataclass(slots=True)
class _Host:
    """The last word of a host."""

    boot: str
    said: tuple[object, ...] = ()
    doors: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    """Door -> epoch, policies, when it applied them (ns)."""


class Book:
    """What each registered host has said last: of what it says again only the news are rows."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    def news(self, ack: Ack, journal: int) -> list[dict[str, Any]]:
        """The rows of `ACK_SCHEMA` that an acknowledgement adds."""
        known = self._hosts.get(ack.host)
        if known is None or known.boot != ack.boot:
            known = self._hosts[ack.host] = _Host(ack.boot)
        rows = []
        doors = {} if ack.state == "stopped" else {
            door.boot: (door.epoch, door.policy_digest, door.applied_ns) for door in ack.doors
        }  # fmt: skip
        said = (ack.state, ack.epoch, ack.policy_digest, ack.applied_ns, len(doors))
        if said != known.said:
            rows.append(_row(ack, journal, "", (ack.epoch, ack.policy_digest, ack.applied_ns), ack.state, len(doors)))
        for boot, word in doors.items():
            if known.doors.get(boot) != word:
                rows.append(_row(ack, journal, boot, word, READY, len(doors)))
        for boot, word in known.doors.items():
            if boot not in doors:
                rows.append(_row(ack, journal, boot, word, ACK_GONE, len(doors)))
        known.said, known.doors = said, doors
        return rows


def _row(ack: Ack, journal: int, door: str, word: tuple[int, str, int], state: str, doors: int) -> dict[str, Any]:
    epoch, digest, applied_ns = word
    return {
        "journal": journal, "host": ack.host, "host_boot": ack.boot, "door": door, "epoch": epoch, "policy_digest": digest,
        "applied": applied_ns // 1000, "state": state, "doors": doors, "tenant": ack.tenant, "said": ack.said_ns // 1000,
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
        self._warned: dict[str, float] = {}
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
                    await stop_client(consumer)
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
                    rows += self._heard(message.value, journal)
                    ends[partition] = message.offset + 1
            if rows:
                # a crash behind this: they are read again, and their rows replace themselves
                await self._scribe.stored("acknowledgements", self._store.keep_acks, rows)
                self.stored += len(rows)
            if ends and not embedded_broker(self._config):
                await consumer.commit(ends)

    def _heard(self, data: bytes | None, journal: int) -> list[dict[str, Any]]:
        if data is None:
            return []
        try:
            ack = parse_ack(data, self._keys.key_of)
        except FrameFault as fault:
            metrics.ACKS.labels(fault.reason).inc()
            now = time.monotonic()
            if now - self._warned.get(fault.reason, -QUIET_S) >= QUIET_S:
                self._warned[fault.reason] = now
                log.warning("an acknowledgement is refused: %s", fault)
            return []
        metrics.ACKS.labels("good").inc()
        return self._book.news(ack, journal)
