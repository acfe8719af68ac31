"""Carries aggregates to `egress`: each message until the broker has acknowledged it.

What is sent a second time after an error may be there twice; whoever takes it knows which frames it has taken. The embedded
broker drops the oldest above 5 MiB of a partition without a word, so there no more than EGRESS_BYTES_MAX of a partition are
sent and not taken: whoever publishes waits, and so does the intake behind him.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.shells.worker import metrics
from pipeline.shells.worker.patience import Given
from schemas.config import Config
from schemas.limits import EGRESS_BYTES_MAX, FRAME_BYTES_MAX
from schemas.links import embedded_broker, first_line, kafka_security, stop_client
from schemas.topics import Topics

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
START_S: Final = 15.0
REQUEST_MS: Final = 10_000
STOP_S: Final = 1.0
OVERHEAD_BYTES: Final = 16 << 10


class Flow:
    """Bytes of each partition that are sent and not taken. On a Kafka, which forgets nothing so soon, it never holds up."""

    def __init__(self, config: Config) -> None:
        self._bounded = embedded_broker(config)
        self._waiting: defaultdict[int, int] = defaultdict(int)
        self._moved = asyncio.Event()

    def fits(self, partition: int, size: int) -> bool:
        """Whether a message may be sent. One alone always may."""
        waiting = self._waiting[partition]
        return not self._bounded or waiting == 0 or waiting + size <= EGRESS_BYTES_MAX

    def sent(self, partition: int, size: int) -> None:
        """A message is on its way."""
        if self._bounded:
            self._waiting[partition] += size

    def taken(self, partition: int, size: int) -> None:
        """A message was taken."""
        self._waiting[partition] = max(0, self._waiting[partition] - size)
        self._moved.set()

    def skipped(self, partition: int) -> None:
        """Everything that was sent so far is known from the store."""
        self._waiting[partition] = 0
        self._moved.set()

    def give_up(self) -> None:
        """Nobody takes anything: what is sent is lost, and made again of its records by the next rebuild."""
        self._bounded = False
        self._moved.set()

    async def moved(self) -> None:
        """Wait until something was taken."""
        self._moved.clear()
        await self._moved.wait()


class Carrier:
    """One producer, made anew after any error."""

    def __init__(self, config: Config, *, servers: str, slot: str, flow: Flow) -> None:
        self._config = config
        self._servers = servers
        self._slot = slot
        self._flow = flow
        self._topic = Topics(config.kafka.prefix).egress
        self._producer: Any = None
        self.waits_for = ""
        """Why something is sent again, or not yet; empty when nothing is."""

    async def carry(self, messages: Sequence[tuple[int, bytes]], closing: asyncio.Event) -> None:
        """Send (partition, message), all of them. Raises Given when `closing` is set meanwhile; some may have been sent."""
        left = list(messages)
        while left:
            # what fits goes out before the rest waits: nobody could take it else
            some = self._admitted(left)
            if some:
                await self._send(some, closing)
                del left[: len(some)]
            else:
                self.waits_for = "the lookout has not taken what was sent"
                await _either(self._flow.moved(), closing)
        self.waits_for = ""

    def _admitted(self, messages: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """The first of them, as many as may be sent now; they count as sent."""
        found = []
        for partition, message in messages:
            if not self._flow.fits(partition, len(message)):
                break
            self._flow.sent(partition, len(message))
            found.append((partition, message))
        return found

    async def _send(self, messages: Sequence[tuple[int, bytes]], closing: asyncio.Event) -> None:
        """Send them until the broker has all. Raises Given when `closing` is set meanwhile."""
        while True:
            try:
                producer = await self._connected()
                sent = [await producer.send(self._topic, message, partition=partition) for partition, message in messages]
                await _either(asyncio.gather(*sent), closing)
            except (TimeoutError, KafkaError, OSError) as fault:
                metrics.RECREATED.inc()
                log.warning("aggregates: %s; a new producer sends them", first_line(fault))
                self.waits_for = f"aggregates: {first_line(fault)}"
                await self.stop()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(closing.wait(), RECONNECT_S)
                if closing.is_set():
                    raise Given from fault
            else:
                return

    async def _connected(self) -> Any:
        if self._producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._servers, client_id=f"wardline-{self._slot}-egress", acks="all",
                request_timeout_ms=REQUEST_MS, retry_backoff_ms=200, max_request_size=FRAME_BYTES_MAX + OVERHEAD_BYTES,
                **kafka_security(self._config),
            )  # fmt: skip
            try:
                await asyncio.wait_for(producer.start(), START_S)
            except BaseException:
                await stop_client(producer, STOP_S)
                raise
            self._producer = producer
        return self._producer

    async def stop(self) -> None:
        """Let the producer go."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer, STOP_S)


async def _either(what: Any, closing: asyncio.Event) -> None:
    """Wait for `what`. Raises Given when `closing` is set first."""
    work, closed = asyncio.ensure_future(what), asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait([work, closed], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Given
        await work
    finally:
        for task in (work, closed):
            task.cancel()
        with contextlib.suppress(BaseException):
            await work
