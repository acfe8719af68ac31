"""What the host's Kafka clients have in common: where the broker is now, when it is another one, and how a client is closed."""

import asyncio
import time
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas.config import Config
from schemas.home import Home
from schemas.links import embedded_broker, kafka_security, kafka_servers
from schemas.process import read_run_file
from schemas.topics import Topics

START_S: Final = 15.0
STOP_S: Final = 5.0
RECONNECT_S: Final = 0.3


class Broker:
    """The broker of this home."""

    def __init__(self, home: Home, config: Config) -> None:
        self.embedded = embedded_broker(config)
        self.topics = Topics(config.kafka.prefix)
        self._home = home
        self._config = config

    def now(self) -> tuple[str, object]:
        """Servers, and what changes when an embedded broker is another one (it then knows nothing).

        Raises PeerFault while the embedded one is not up.
        """
        servers = kafka_servers(self._home, self._config)
        if not self.embedded:
            return servers, servers
        said = read_run_file(self._home.run_file("broker")) or {}
        return servers, (said.get("pid"), said.get("address"))

    def options(self, servers: str) -> dict[str, Any]:
        """Keyword arguments for any client."""
        return {"bootstrap_servers": servers, "client_id": "wardline-host", **kafka_security(self._config)}

    def consumer(self, servers: str, **more: Any) -> AIOKafkaConsumer:
        """A consumer without a group, which reads a topic from its beginning."""
        return AIOKafkaConsumer(
            enable_auto_commit=False, auto_offset_reset="earliest",
            **({"fetch_max_wait_ms": 20 if self.embedded else 500} | self.options(servers) | more),
        )  # fmt: skip


class Watch:
    """Whether the broker is still the one that a client was made for; looked at RECONNECT_S apart."""

    def __init__(self, broker: Broker, identity: object) -> None:
        self._broker = broker
        self._identity = identity
        self._looked = time.monotonic()

    def another(self) -> bool:
        """Whether an embedded broker has been replaced. Raises PeerFault while none is up."""
        now = time.monotonic()
        if not self._broker.embedded or now - self._looked < RECONNECT_S:
            return False
        self._looked = now
        return self._broker.now()[1] != self._identity


def first_line(fault: BaseException) -> str:
    """A fault of a Kafka client in one line."""
    return f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else 'no answer'}"


async def stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Close a client, STOP_S at most. What its own tasks raise, their cancellation too, ends with it and not with us."""
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait([stopping], timeout=STOP_S)
    finally:
        stopping.cancel()
    if stopping.done() and not stopping.cancelled():
        stopping.exception()
