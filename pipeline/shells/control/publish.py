"""Publishes the log: what the topic does not have yet, each change, and the heartbeat that vouches for it all.

    new broker or own start -> read the topic to its end -> send what is missing or older, then heartbeats
    change                  -> its entries (a policy set's chunks before its entry), in the order of their epochs
    error of the producer   -> a new one; everything that was not acknowledged is sent again
    embedded broker         -> the whole state again before it drops the oldest of it

An entry that is sent twice is known to its readers. A heartbeat is only sent behind all entries that it vouches for.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from prometheus_client import Counter, Gauge

from pipeline.shells.control.books import Books
from pipeline.shells.control.recover import Recovery, recover
from pipeline.shells.control.topic import START_S
from pipeline.shells.topics import ensure_topics
from schemas.chunks import split_bundle
from schemas.config import Config
from schemas.control import HEARTBEAT, POLICY
from schemas.errors import PeerFault
from schemas.home import Home
from schemas.limits import MIB
from schemas.links import broker_now, embedded_broker, first_line, kafka_security, stop_client
from schemas.topics import Topics

log = logging.getLogger(__name__)

PART: Final = 500
"""Entries that are sent before something else gets its turn."""

OUTSTANDING_MAX: Final = 5_000
RECONNECT_S: Final = 0.3
LOOK_S: Final = 0.1
AGAIN_S: Final = 10.0
"""The whole state is sent again for a host that lacks something at most this often."""

REREAD_S: Final = 60.0
"""A host that still lacks something so soon after that has read what is not live: the topic is read, and that is removed."""

WEDGED_S: Final = 20.0
"""A producer that has something in hand and hears nothing for so long is given up: one can be wedged without an error."""

AGAIN_BYTES_MAX: Final = 2 * MIB
"""Bytes behind the whole state until it is sent again, on the embedded broker."""

KEPT_BYTES: Final = 4 * MIB + MIB // 2
"""What the embedded broker surely keeps of a partition: it drops the oldest batches above 5 MiB."""

RECORD_BYTES: Final = 16
"""What a record costs beyond its key and value, and"""
BATCH_BYTES: Final = 70
"""what a batch of them does."""

TOMBSTONE_S: Final = 3_600.0
"""How long after its removal a key leaves the topic for good (Apache Kafka)."""

SENT = Counter("wardline_control_messages", "Messages given to Kafka", ["kind"])
RECREATED = Counter("wardline_control_producers_recreated", "Producers thrown away after an error")
EPOCH = Gauge("wardline_control_epoch", "The last epoch", ["stage"])
LIVE = Gauge("wardline_control_live", "Live entries")


class Publisher:
    """One producer at a time, for ever."""

    def __init__(self, home: Home, config: Config, books: Books) -> None:
        self._home = home
        self._config = config
        self._books = books
        self._embedded = embedded_broker(config)
        self._part = PART // 5 if self._embedded else PART
        self._topics = Topics(config.kafka.prefix)
        self._identity: object = None
        self._given = 0
        """Everything up to here was given to the producer."""
        self._again: deque[int] = deque()
        """Live epochs that are sent again, while changes and heartbeats go on."""
        self._again_at = 0.0
        self._again_open = False
        """Whether some of what was sent again may not be in the topic."""
        self._again_bundle = False
        """Whether the chunks of the policy set are sent again too."""
        self._reread = False
        """Whether the topic is to be read and repaired before anything else is sent."""
        self._since = 0
        """Bytes since the whole state was last begun."""
        self._tombs: deque[tuple[float, str]] = deque()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self.epoch = 0
        """Everything up to here is in the topic."""
        self.counter = 0
        """The last heartbeat that is in the topic."""
        self.problem = "no broker yet"
        self.ready = asyncio.Event()
        """Set once a heartbeat was accepted by the broker."""

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    def send_again(self, why: str) -> bool:
        """Send the whole state once more, at most every AGAIN_S; returns whether it is.

        Where that does not help, somebody has put an entry there whose removal the topic has forgotten: it is removed again.
        """
        now = time.monotonic()
        if self._again or self._reread or now - self._again_at < AGAIN_S:
            return False
        if self._again_at and now - self._again_at < REREAD_S:
            log.warning("%s, still: the topic is read, and what does not belong there is removed", why)
            self._reread, self._again_at = True, 0.0
            self._wake.set()
            return True
        log.warning("%s: all live entries are sent again", why)
        self._again_all(bundle=True)
        return True

    def _again_all(self, *, bundle: bool = False) -> None:
        self._again_bundle = bundle
        self._again_at = time.monotonic()
        self._again_open = True
        self._again = deque(epoch for epoch in self._books.log.epochs() if epoch <= self._given)
        self._since = 0
        self._wake.set()

    async def all_again(self) -> None:
        """Send the whole state once more, as it is signed now, and wait until the topic has it."""
        await self.published(self._books.log.epoch)
        self._again_all()
        while self._again_open:
            await self._move()

    async def published(self, epoch: int) -> None:
        """Wait until everything up to an epoch is in the topic."""
        while self.epoch < epoch:
            await self._move()

    async def _move(self) -> None:
        moved = self._moved
        await moved.wait()

    def _has_moved(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    # -- sessions ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish for ever; returns only by cancellation.

        Raises OperatorFault when a topic is not as it must be, or was written behind the end of our journal.
        """
        while True:
            try:
                servers, identity = broker_now(self._home, self._config)
                options = {"bootstrap_servers": servers, "client_id": "wardline-control", **kafka_security(self._config)}
                if identity != self._identity:
                    self.epoch = 0  # nothing is known of what is there
                    await ensure_topics(self._home, self._config)
                    found = await recover(self._books, options, self._topics, embedded=self._embedded)
                    await self._publish(options, identity, found)
                else:
                    await self._publish(options, identity, None)
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                problem = str(fault) if isinstance(fault, PeerFault) else f"kafka: {first_line(fault)}"
                if problem != self.problem:
                    log.warning("%s; a new producer sends what is not there", problem)
                self.problem = problem
                RECREATED.inc()
                await asyncio.sleep(RECONNECT_S)

    async def _publish(self, options: dict[str, Any], identity: object, found: Recovery | None) -> None:
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, request_timeout_ms=10_000 if self._embedded else 30_000,
            max_batch_size=256 << 10, retry_backoff_ms=100, **options,
        )  # fmt: skip
        session = _Session(self._wake)
        try:
            await asyncio.wait_for(producer.start(), START_S)
            if found is not None:
                await self._repair(producer, session, found)
                self._identity = identity
            else:
                self._given = self.epoch
                if self._again_open:
                    self._again_all()
            self.problem = ""
            await self._pump(producer, session, identity)
        finally:
            session.abandon()
            await stop_client(producer)

    async def _repair(self, producer: Any, session: "_Session", found: Recovery) -> None:
        """Send what the topic lacks, before anything else and without a heartbeat: what is read meanwhile is not whole."""
        self._again.clear()
        self._again_open = False
        self._since = found.bytes
        self._given = found.epoch
        if found.missing:
            log.info("the topic lacks %d of %d live entries", len(found.missing), self._books.log.live)
        for at in range(0, len(found.missing), PART):
            await self._send(producer, session, found.missing[at : at + PART], bundle=found.bundle)
        await session.room(1)
        self._tombs.extend((time.monotonic() + TOMBSTONE_S, key) for key in found.removed)
        self.epoch = self._given
        self._has_moved()

    async def _pump(self, producer: Any, session: "_Session", identity: object) -> None:
        beat_at = looked = 0.0
        every = self._config.control.heartbeat_ms / 1000
        while True:
            self._wake.clear()
            session.raise_failed()
            now = time.monotonic()
            if self._embedded and now - looked > LOOK_S:
                looked = now
                if broker_now(self._home, self._config)[1] != identity:
                    raise PeerFault("the broker is a new one")
            if self._reread:
                self._reread, self._identity = False, None
                raise PeerFault("the topic is read again for a host that lacks something")
            if self._embedded and not self._again and self._since > self._room():
                self._again_all()
            # on the embedded broker nothing may come in between: what is live must fit into what it keeps
            if self._books.log.epoch > self._given and not (self._embedded and self._again):
                last = min(self._books.log.epoch, self._given + self._part)
                await self._send(producer, session, list(range(self._given + 1, last + 1)), bundle=True)
                self._given = last
            elif self._again:
                part = [self._again.popleft() for _ in range(min(self._part, len(self._again)))]
                await self._send(producer, session, part, bundle=self._again_bundle)
            if now >= beat_at and self._given == self._books.log.epoch:
                beat_at = now + every
                await self._beat(producer, session)
            self._bury(producer, session, now)
            self._say(session)
            if self._given == self._books.log.epoch and not self._again:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(0.0, min(LOOK_S, beat_at - time.monotonic())))
            else:
                await session.room(OUTSTANDING_MAX)
                await asyncio.sleep(0)  # whoever asks or is heard has a turn too

    def _room(self) -> int:
        """Bytes from the beginning of the whole state until it is sent again: both must be kept until the second is there."""
        whole = self._books.log.live_bytes + RECORD_BYTES * self._books.log.live
        return min(whole + AGAIN_BYTES_MAX, KEPT_BYTES - whole)

    async def _send(self, producer: Any, session: "_Session", epochs: list[int], *, bundle: bool) -> None:
        self._since += BATCH_BYTES
        for epoch, key, message in await self._books.messages(epochs):
            if key == POLICY and bundle:
                await self._send_bundle(producer, session, epoch)
            self._since += len(message) + len(key) + RECORD_BYTES
            session.add(epoch, 0, await producer.send(self._topics.control, message, key=key.encode(), partition=0))
            if not self._embedded and self._books.log.epoch_of(key) == 0:
                self._tombs.append((time.monotonic() + TOMBSTONE_S, key))
        SENT.labels("entry").inc(len(epochs))

    async def _send_bundle(self, producer: Any, session: "_Session", epoch: int) -> None:
        """The chunks of a policy set, in the topic before the entry that names it."""
        state = next((one for one in self._books.log.policies if one.epoch == epoch), None)
        if state is None:
            return  # replaced so long ago that its bundle is gone; the entry behind it says what is in force
        packed = await self._books.bundle(state.digest)
        if packed is None:
            return
        chunks = split_bundle(state.digest, packed)
        for chunk in chunks:
            session.add(0, 0, await producer.send(self._topics.bundles, chunk.encode(), key=chunk.key, partition=0))
        SENT.labels("chunk").inc(len(chunks))
        await session.room(1)

    async def _beat(self, producer: Any, session: "_Session") -> None:
        counter = await self._books.counter()
        if self._given != self._books.log.epoch:
            return  # a change came in between: first its entries
        message = self._books.heartbeat(counter)
        self._since += len(message) + len(HEARTBEAT) + RECORD_BYTES + BATCH_BYTES
        future = await producer.send(self._topics.control, message, key=HEARTBEAT.encode(), partition=0)
        session.add(self._given, counter, future)
        SENT.labels("heartbeat").inc()

    def _bury(self, producer: Any, session: "_Session", now: float) -> None:
        """Kafka's own tombstones for keys that were removed long enough ago that every reader knows it."""
        if self._embedded or not self._tombs or self._tombs[0][0] > now:
            return
        due: list[str] = []
        while self._tombs and self._tombs[0][0] <= now and len(due) < PART:
            due.append(self._tombs.popleft()[1])
        for key in due:
            if self._books.log.epoch_of(key) == 0:
                session.spawn(_bury(producer, self._topics.control, key))
                SENT.labels("tombstone").inc()

    def _say(self, session: "_Session") -> None:
        epoch, counter = session.done()
        if epoch > self.epoch or counter > self.counter:
            self.epoch, self.counter = max(epoch, self.epoch), max(counter, self.counter)
            if counter:
                self.ready.set()
        self._again_open = self._again_open and (bool(self._again) or not session.is_empty)
        EPOCH.labels("made").set(self._books.log.epoch)
        EPOCH.labels("published").set(self.epoch)
        LIVE.set(self._books.log.live)
        self._has_moved()


async def _bury(producer: Any, topic: str, key: str) -> None:
    """A tombstone. One that is lost is sent again by the next start of control, which finds the key still there."""
    with contextlib.suppress(KafkaError):
        await producer.send_and_wait(topic, None, key=key.encode(), partition=0)


class _Session:
    """What one producer has in hand, in the order in which it was given."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._hand: deque[tuple[int, int, asyncio.Future[Any]]] = deque()
        self._failed: BaseException | None = None
        self._wake = wake
        self._freed = asyncio.Event()
        self._epoch = self._counter = 0
        self._answered = time.monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, epoch: int, counter: int, future: "asyncio.Future[Any]") -> None:
        if not self._hand:
            self._answered = time.monotonic()
        self._hand.append((epoch, counter, future))
        future.add_done_callback(self._done)

    def spawn(self, sending: Any) -> None:
        task = asyncio.ensure_future(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._answered = time.monotonic()
        if future.cancelled() or future.exception() is not None:
            self._failed = self._failed or (KafkaError("cancelled") if future.cancelled() else future.exception())
        while self._hand and self._hand[0][2].done() and self._failed is None:
            epoch, counter, _ = self._hand.popleft()
            self._epoch, self._counter = max(epoch, self._epoch), max(counter, self._counter)
        self._freed.set()
        if not self._hand or self._failed is not None:
            self._wake.set()

    def done(self) -> tuple[int, int]:
        """The highest epoch and counter up to which everything is in the topic."""
        return self._epoch, self._counter

    @property
    def is_empty(self) -> bool:
        """Whether the topic has everything."""
        return not self._hand

    def raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._hand and time.monotonic() - self._answered > WEDGED_S:
            raise PeerFault(f"the broker has not answered for {WEDGED_S:.0f} s")

    async def room(self, limit: int) -> None:
        """Wait until fewer than `limit` are in hand. Raises TimeoutError when nothing is answered for WEDGED_S."""
        while len(self._hand) >= limit and self._failed is None:
            self._freed.clear()
            await asyncio.wait_for(self._freed.wait(), WEDGED_S)
        self.raise_failed()

    def abandon(self) -> None:
        """What is in hand is unknown: it is sent again."""
        self._failed = self._failed or KafkaError("the producer is closed")
        self._freed.set()
        for task in self._tasks:
            task.cancel()
