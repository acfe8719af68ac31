"""What the host's Kafka clients have in common: where the broker is now, and when it is another one."""

import time
from typing import Any, Final

from aiokafka import AIOKafkaConsumer

from schemas.config import Config
from schemas.home import Home
from schemas.links import broker_now, embedded_broker, kafka_security
from schemas.topics import Topics

START_S: Final = 15.0
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
        return broker_now(self._home, self._config)

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
