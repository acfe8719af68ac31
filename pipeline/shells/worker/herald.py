"""Tells the hosts what is stored: signed frontiers on `stored`, throttled, the latest of each lane.

A frontier that is lost is no harm: the host sends a frame again, the worker knows it and says its frontier again. So nothing
here holds up the pump, and after any error the producer is a new one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.shells.worker import metrics
from schemas.config import Config
from schemas.frame import Lane
from schemas.frontier import Frontier
from schemas.links import kafka_security
from schemas.topics import Topics

log = logging.getLogger(__name__)

THROTTLE_S: Final = 0.05
"""A lane's frontier is published at most once in this time."""

RECONNECT_S: Final = 0.5
REQUEST_MS: Final = 10_000
STOP_S: Final = 2.0
WAKES_MAX: Final = 1000
"""Dead letters and findings that wait to be announced. Beyond it the oldest are not; their rows are stored all the same."""


class Herald:
    """One producer, for frontiers and for the words that wake readers of dead letters and findings."""

    def __init__(self, config: Config, *, servers: str, slot: str, sign: Callable[[bytes], bytes]) -> None:
        self._config = config
        self._servers = servers
        self._slot = slot
        self._sign = sign
        self._topics = Topics(config.kafka.prefix)
        self._frontiers: dict[Lane, int] = {}
        self._wakes: list[tuple[str, bytes, bytes | None]] = []
        self._something = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()

    def say(self, lane: Lane, frame_no: int) -> None:
        """Everything of a lane up to `frame_no` is stored."""
        self._frontiers[lane] = max(frame_no, self._frontiers.get(lane, 0))
        self._wake_up()

    def wake(self, digest: str) -> None:
        """A dead letter is in the store."""
        self._wake(self._topics.deadletter, digest.encode(), None)

    def wake_finding(self, agent: str, finding: str) -> None:
        """A word on a finding is in the store."""
        self._wake(self._topics.findings, finding.encode(), agent.encode())

    def _wake(self, topic: str, what: bytes, key: bytes | None) -> None:
        self._wakes = [*self._wakes[-WAKES_MAX + 1 :], (topic, what, key)]
        self._wake_up()

    def _wake_up(self) -> None:
        self._something.set()
        self._quiet.clear()

    async def quiet(self) -> None:
        """Wait until everything that was said is published."""
        await self._quiet.wait()

    async def run(self) -> None:
        """Publish for ever; returns only by cancellation."""
        while True:
            await self._something.wait()
            producer = None
            try:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._servers, client_id=f"wardline-{self._slot}-frontiers", acks="all",
                    request_timeout_ms=REQUEST_MS, retry_backoff_ms=200, **kafka_security(self._config),
                )  # fmt: skip
                await asyncio.wait_for(producer.start(), 15)
                await self._publish(producer)
            except (TimeoutError, KafkaError, OSError) as fault:
                metrics.RECREATED.inc()
                log.warning("frontiers: %s; a new producer says them", type(fault).__name__)
                await asyncio.sleep(RECONNECT_S)
            finally:
                if producer is not None:
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(producer.stop(), STOP_S)

    async def _publish(self, producer: Any) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            frontiers, wakes = self._frontiers, self._wakes
            self._frontiers, self._wakes = {}, []
            try:
                waiting = [await self._send(producer, lane, frame_no) for lane, frame_no in frontiers.items()]
                waiting += [await producer.send(topic, what, key=key, partition=0) for topic, what, key in wakes]
                await asyncio.gather(*waiting)
            except BaseException:
                for lane, frame_no in frontiers.items():
                    self.say(lane, frame_no)
                self._wakes = [*wakes, *self._wakes][-WAKES_MAX:]
                self._something.set()
                raise
            metrics.FRONTIERS.inc(len(frontiers))
            if not self._something.is_set():
                self._quiet.set()
            await asyncio.sleep(THROTTLE_S)

    async def _send(self, producer: Any, lane: Lane, frame_no: int) -> Any:
        said = Frontier(lane=lane, frame_no=frame_no, stored_ns=time.time_ns(), worker=self._slot)
        return await producer.send(self._topics.stored, said.encode(self._sign), key=lane.text.encode(), partition=0)
