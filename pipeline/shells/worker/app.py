"""Faust, set up as it was measured not to lose, double or stall: see docs/worker.md for each setting's reason."""

import logging
import uuid
from typing import Any, Final, Protocol

import faust
import faust.transport.drivers.aiokafka as driver
from faust.app.base import BootStrategy
from faust.types import TP

from pipeline.shells.worker.consumer import StrictConsumer
from schemas.config import Config
from schemas.home import Home
from schemas.limits import FRAME_BYTES_MAX
from schemas.links import embedded_broker, kafka_security
from schemas.process import private_dir
from schemas.topics import Topics

BUFFER_EVENTS: Final = 64
"""Messages between consumer and agent: at most 56 MiB of frames."""

FETCH_BYTES: Final = 4 << 20
MAX_POLL_S: Final = 86_400
"""A worker over Kafka's poll interval leaves its group and never comes back: out of the way; the watchdog acts instead."""

COMMIT_S: Final = 0.5
HEARTBEATS: Final = 10
"""Heartbeats in one session time-out."""


class Taker(Protocol):
    """What the app hands its events to."""

    async def take(self, event: Any) -> None:
        """Take one event; returns when the next may come."""

    async def drain(self) -> None:
        """Let go of everything that is not stored; returns when no insert runs."""

    def open(self, assigned: set[TP]) -> None:
        """Take events of these partitions from now on."""


class Transport(driver.Transport):  # type: ignore[misc]
    """Kafka with our consumer."""

    Consumer = StrictConsumer


class Boot(BootStrategy):  # type: ignore[misc]
    """Consumer and agents, nothing else: frontiers have a producer of their own, and there is no web server."""

    enable_kafka_producer = False
    enable_web = False


class WorkerApp(faust.App):  # type: ignore[misc]
    """The app of one worker. `pump` gets its events."""

    logger = logging.getLogger("faust.worker")  # else mode logs its every step under our name

    BootStrategy = Boot

    def __init__(self, *args: Any, pump: Taker, embedded: bool, **kwargs: Any) -> None:
        self.pump = pump
        self.embedded = embedded
        super().__init__(*args, **kwargs)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)


def make_app(home: Home, config: Config, *, slot: str, servers: str, pump: Taker) -> WorkerApp:
    """The app of `slot` on the broker at `servers`. Raises OperatorFault for a security file that cannot be read."""
    app = new_app(home, config, slot=slot, servers=servers, pump=pump)
    topics = Topics(config.kafka.prefix)
    calls = app.topic(topics.calls, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    @app.agent(calls, concurrency=1)  # type: ignore[untyped-decorator]
    async def intake(stream: Any) -> None:
        async for event in stream.noack().events():
            await app.pump.take(event)

    return app


def new_app(home: Home, config: Config, *, slot: str, servers: str, pump: Taker) -> WorkerApp:
    """An app with our settings that reads nothing yet."""
    embedded = embedded_broker(config)
    session = config.worker.session_timeout_ms / 1000
    return WorkerApp(
        # the embedded broker waits for dead members, and its offsets mean nothing: there each start is a group of its own
        f"{config.kafka.prefix}worker" + (f"-{uuid.uuid4()}" if embedded else ""),
        pump=pump,
        embedded=embedded,
        broker=[f"kafka://{server.strip()}" for server in servers.split(",")],
        broker_credentials=_credentials(config),
        broker_client_id=f"wardline-{slot}",
        datadir=str(private_dir(home.root / "faust" / slot)),
        store="memory://",
        processing_guarantee="at_least_once",
        key_serializer="raw",
        value_serializer="raw",
        stream_buffer_maxsize=BUFFER_EVENTS,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        consumer_max_fetch_size=max(FETCH_BYTES, 2 * FRAME_BYTES_MAX),
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=None if embedded else slot,
        broker_commit_interval=COMMIT_S,
        broker_session_timeout=session,
        broker_heartbeat_interval=session / HEARTBEATS,
        broker_request_timeout=max(15.0, 2 * session),
        broker_rebalance_timeout=max(30.0, config.worker.insert_timeout_s + 10.0),
        broker_max_poll_interval=MAX_POLL_S,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )


def _credentials(config: Config) -> Any:
    given = kafka_security(config)
    if config.kafka.security_protocol == "PLAINTEXT":
        return None
    if config.kafka.security_protocol == "SSL":
        return faust.SSLCredentials(given["ssl_context"])
    return faust.SASLCredentials(
        username=given["sasl_plain_username"],
        password=given["sasl_plain_password"],
        ssl_context=given.get("ssl_context"),
        mechanism=given["sasl_mechanism"],
    )

