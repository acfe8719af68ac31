"""What the host's Kafka clients have in common: where the broker is now, and when it is another one."""

import os
import time
from typing import Any, Final

from aiokafka import AIOKafkaConsumer

from schemas.config import Config
from schemas.home import Home
from schemas.links import broker_now, embedded_broker, kafka_security
from schemas.process import is_alive
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
        self._path = str(home.run_file("broker"))
        self._sign: tuple[int, int] | None = None
        """Of the run file when it was read last: inode and time."""
        self._found: tuple[str, object] = "", None
        self._pid = 0
        self._lived = 0.0
        """When it was seen to live."""

    def now(self) -> tuple[str, object]:
        """Servers, and what changes when an embedded broker is another one (it then knows nothing).

        Raises PeerFault while the embedded one is not up. What it has said is read again only where it has said something new:
        each client asks three times a second.
        """
        if not self.embedded:
            return broker_now(self._home, self._config)
        try:
            found = os.stat(self._path)
            sign = found.st_ino, found.st_mtime_ns
        except OSError:
            sign = None
        now = time.monotonic()
        if sign is None or sign != self._sign or (now - self._lived >= RECONNECT_S and not is_alive(self._pid)):
            self._sign = None
            self._found = broker_now(self._home, self._config)
            identity = self._found[1]
            # a file that was replaced since the look at it has another sign, so that it is read once more
            self._pid, self._sign = identity[0] if isinstance(identity, tuple) else 0, sign
            self._lived = now
        elif now - self._lived >= RECONNECT_S:
            self._lived = now
        return self._found

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
