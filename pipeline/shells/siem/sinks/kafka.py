"""The topic `alerts`: one message an event, its key the agent, so that one agent's events stay in their order.

After any error the producer is a new one, and the broker is looked for again: an embedded one has another port after a restart,
and has forgotten what it had. That is no loss: the rows are in the store, and the topic only carries them to whoever listens.
"""

import asyncio
import contextlib
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.core.ocsf import Alert, fitted
from pipeline.core.siem.feeder import Batch
from schemas.config import Config
from schemas.errors import PeerFault
from schemas.home import Home
from schemas.links import broker_now, first_line, kafka_security, stop_client
from schemas.topics import Topics

REQUEST_MS: Final = 10_000
START_S: Final = 15.0
STOP_S: Final = 2.0


class KafkaSink:
    """One topic."""

    def __init__(self, home: Home, config: Config) -> None:
        """Raises OperatorFault for a missing security file."""
        self._home = home
        self._config = config
        self._topic = Topics(config.kafka.prefix).alerts
        self.where = f"topic {self._topic}"
        self._security = kafka_security(config)
        self._producer: Any = None
        self._broker: object = None

    def pack(self, alert: Alert) -> bytes:
        """As large as any event may be."""
        return fitted(alert)

    async def take(self, batch: Batch) -> str:
        """Publish a batch; returns once every message is acknowledged. Raises PeerFault."""
        try:
            producer = await self._connected()
            waiting = [
                await producer.send(self._topic, event, key=alert.key.encode(errors="backslashreplace"))
                for alert, event in zip(batch.alerts, batch.events, strict=True)
            ]
            await asyncio.gather(*waiting)
        except (TimeoutError, KafkaError, OSError) as fault:
            await self.close()
            raise PeerFault(f"{self.where}: {first_line(fault)}") from fault
        return f"{len(waiting)} messages, acknowledged"

    async def _connected(self) -> Any:
        servers, broker = broker_now(self._home, self._config)
        if self._producer is not None and broker != self._broker:
            await self.close()
        if self._producer is None:
            made = AIOKafkaProducer(
                bootstrap_servers=servers, client_id="wardline-siem", acks="all", request_timeout_ms=REQUEST_MS,
                retry_backoff_ms=200, linger_ms=5, **self._security,
            )  # fmt: skip
            try:
                await asyncio.wait_for(made.start(), START_S)
            except BaseException:
                with contextlib.suppress(Exception):
                    await stop_client(made, STOP_S)
                raise
            self._producer, self._broker = made, broker
        return self._producer

    async def close(self) -> None:
        """Let the producer go."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):
                await stop_client(producer, STOP_S)
