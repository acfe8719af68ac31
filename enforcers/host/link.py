"""The host's two Kafka clients: a producer that sends what is due, a consumer that hears what is stored.

The producer is thrown away on any send error, after each change of the broker, and when none of what it has in hand is
acknowledged for a while: an idempotent one can stay wedged for ever after an outage, without an error. What it had in hand is
sent again, byte for byte, and the worker knows a frame that it has seen.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from enforcers.core.lanes import FrameRef
from enforcers.host.clients import RECONNECT_S, START_S, Broker, Watch
from enforcers.host.engine import Engine
from schemas.config import Config
from schemas.errors import FrameFault, PeerFault
from schemas.frontier import parse_frontier
from schemas.home import Home
from schemas.keys import Verify
from schemas.limits import FRAME_BYTES_MAX, INFLIGHT_BYTES_MAX
from schemas.links import first_line, stop_client
from schemas.process import read_run_file

log = logging.getLogger(__name__)

OUTSTANDING_MAX: Final = 64
"""Frames that one producer has in hand; bounds what an outage sends again."""

TICK_S: Final = 0.1
SHARE_S: Final = 1.0
HOSTS: Final = ("enforce-", "replay-")
HEAR_MS: Final = 100
"""How long the embedded broker may keep a fetch of frontiers: each costs as much as the sending of a frame, and nobody waits
for them but the outbox."""

REQUEST_MS: Final = 120_000
"""Longer than an outage that shall not cost a new producer."""

WEDGED_S: Final = 20.0
"""A producer that has something in hand and hears nothing for so long is given up. In an outage that costs a few copies."""

DEAF_S: Final = 30.0
"""A consumer that hears nothing for so long, while frames are not stored, is made anew."""

SENT = Counter("wardline_host_frames_sent", "Frames given to Kafka, copies included")
RECREATED = Counter("wardline_host_producers_recreated", "Producers thrown away after an error")
FRONTIERS = Counter("wardline_host_frontiers", "Frontiers heard", ["verdict"])


class Registry(Protocol):
    """Whom control has registered."""

    def registered(self, host: str, key: str) -> bool:
        """Whether a host's frames will be accepted under this key (hex)."""

    def verifier(self, worker: str) -> Verify | None:
        """`verify(signature, message)` of a worker, or None when control has none of that name."""


class Link:
    """Sends for every engine of this process. `engines` is asked anew each round, so that adopted hosts may come and go."""

    def __init__(
        self, home: Home, config: Config, broker: Broker, registry: Registry, engines: Callable[[], Iterable[Engine]]
    ) -> None:
        self._home = home
        self._config = config
        self._broker = broker
        self._registry = registry
        self._engines = engines
        self._identity: object = None
        self._shared: int | None = None
        self._listed_at = self._shared_at = -SHARE_S
        self._hosts: set[str] = set()
        self.wake = asyncio.Event()
        self.state = "no broker yet"

    async def send(self) -> None:
        """Send for ever; returns only by cancellation."""
        while True:
            try:
                servers, identity = self._broker.now()
            except PeerFault as fault:
                self.state = str(fault)
                await asyncio.sleep(RECONNECT_S)
                continue
            if self._identity not in (None, identity):
                for engine in self._engines():
                    engine.lanes.broker_is_new()
            self._identity = identity
            try:
                await self._session(servers)
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                self.state = first_line(fault)
                log.warning("kafka at %s: %s; a new producer sends what is not stored", servers, self.state)
                RECREATED.inc()
                await asyncio.sleep(RECONNECT_S)

    async def _session(self, servers: str) -> None:
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, request_timeout_ms=10_000 if self._broker.embedded else REQUEST_MS,
            max_request_size=FRAME_BYTES_MAX + (64 << 10), retry_backoff_ms=200, **self._broker.options(servers),
        )  # fmt: skip
        session = _Session(self.wake)
        try:
            await asyncio.wait_for(producer.start(), START_S)
            self.state = "connected"
            tasks = [asyncio.create_task(job) for job in (self._pump(producer, session), session.watch())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                done.pop().result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        finally:
            # whoever is in hand now is unknown to us: sent again, and known to the worker if it did arrive
            session.abandon()
            await stop_client(producer)

    async def _pump(self, producer: AIOKafkaProducer, session: "_Session") -> None:
        watch = Watch(self._broker, self._identity)
        while True:
            self.wake.clear()
            if watch.another():
                raise PeerFault("the broker is a new one")
            busy = [engine for engine in self._engines() if engine.lanes.unstored()]
            budget = self._budget(time.monotonic()) if busy else None
            for engine in busy:
                if not self._registry.registered(engine.name, engine.public):
                    continue  # its frames would be dead letters: they wait in the outbox until control knows its key
                for ref in engine.lanes.due(time.monotonic_ns(), budget):
                    session.raise_failed()
                    engine.lanes.sent(ref)
                    try:
                        data = engine.outbox.frame(ref)
                        future = await producer.send(self._broker.topics.calls, data, partition=ref.lane.partition)
                    except BaseException:
                        # no session has it in hand, so none would give it back: it would stay where it is for ever
                        engine.lanes.failed(ref)
                        raise
                    session.add(engine, ref, future)
                    SENT.inc()
                    await session.room(OUTSTANDING_MAX)
            session.raise_failed()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wake.wait(), TICK_S)

    def _budget(self, now: float) -> int | None:
        """Bytes in flight for a partition: the embedded broker drops the oldest above 5 MiB, so hosts share what is safe.

        Who has come is looked at TICK_S apart, who has gone SHARE_S apart; and not at all while nothing is to be sent.
        """
        if not self._broker.embedded:
            return None
        if now - self._listed_at >= TICK_S:
            files = (name for name in os.listdir(self._home.run) if name.startswith(HOSTS) and name.endswith(".json"))
            hosts = {name.removesuffix(".json") for name in files}
            if hosts != self._hosts or now - self._shared_at >= SHARE_S:
                self._shared, self._shared_at, self._hosts = self._share(hosts), now, hosts
            self._listed_at = now
        return self._shared

    def _share(self, hosts: set[str]) -> int:
        running = {name for name in hosts if (read_run_file(self._home.run_file(name)) or {}).get("alive")}
        sharers = running | {engine.name for engine in self._engines()}
        return min(self._config.enforcer.inflight_bytes, INFLIGHT_BYTES_MAX) // max(1, len(sharers))

    async def hear(self) -> None:
        """Listen for stored frontiers for ever."""
        while True:
            consumer = None
            try:
                servers, identity = self._broker.now()
                watch = Watch(self._broker, identity)
                consumer = self._broker.consumer(servers, **({"fetch_max_wait_ms": HEAR_MS} if self._broker.embedded else {}))
                await asyncio.wait_for(consumer.start(), START_S)
                consumer.assign([TopicPartition(self._broker.topics.stored, 0)])
                heard = time.monotonic()
                while not watch.another():
                    for messages in (await consumer.getmany(timeout_ms=500)).values():
                        for message in messages:
                            self._heard(message.value)
                        heard = time.monotonic()
                    if all(engine.quiet() for engine in self._engines()):
                        heard = time.monotonic()
                    elif time.monotonic() - heard > DEAF_S:
                        raise PeerFault(f"nothing was heard for {DEAF_S:.0f} s")
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                log.debug("frontiers: %s", fault)
            finally:
                if consumer is not None:
                    await stop_client(consumer)
            await asyncio.sleep(RECONNECT_S)

    def _heard(self, data: bytes | None) -> None:
        if data is None:
            return
        try:
            said = parse_frontier(data, self._registry.verifier)
        except FrameFault as fault:
            FRONTIERS.labels(fault.reason).inc()
            log.warning("a frontier is refused: %s", fault)
            return
        for engine in self._engines():
            if engine.name != said.lane.host:
                continue
            if not engine.lanes.plausible(said.lane, said.frame_no):
                FRONTIERS.labels("implausible").inc()
                log.warning("a frontier is refused: lane %s has no frame %d yet", said.lane.text, said.frame_no)
            elif engine.stored(said.lane, said.frame_no):
                self.wake.set()
        FRONTIERS.labels("good").inc()


class _Session:
    """What one producer has in hand."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._hand: dict[asyncio.Future[Any], tuple[Engine, FrameRef]] = {}
        self._failed: BaseException | None = None
        self._wake = wake
        self._freed = asyncio.Event()
        self._moved = time.monotonic()

    def add(self, engine: Engine, ref: FrameRef, future: "asyncio.Future[Any]") -> None:
        if not self._hand:
            self._moved = time.monotonic()
        self._hand[future] = (engine, ref)
        future.add_done_callback(self._done)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._moved = time.monotonic()
        held = self._hand.pop(future, None)
        fault = None if future.cancelled() else future.exception()
        if held is not None:
            engine, ref = held
            if future.cancelled() or fault is not None:
                engine.lanes.failed(ref)
                self._failed = fault or KafkaError("cancelled")
            else:
                engine.lanes.acked(ref, time.monotonic_ns())
        self._freed.set()
        if self._failed is not None:
            self._wake.set()

    async def watch(self) -> None:
        """Raises PeerFault when nothing of what is in hand is answered for WEDGED_S."""
        while True:
            await asyncio.sleep(1.0)
            if self._hand and time.monotonic() - self._moved > WEDGED_S:
                raise PeerFault(f"the broker has not answered for {WEDGED_S:.0f} s")

    def raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    async def room(self, limit: int) -> None:
        while len(self._hand) >= limit:
            self._freed.clear()
            await self._freed.wait()
        self.raise_failed()

    def abandon(self) -> None:
        for engine, ref in self._hand.values():
            engine.lanes.failed(ref)
        self._hand.clear()
