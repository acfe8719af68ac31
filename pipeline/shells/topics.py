"""The topics on a real Kafka: made when they are missing, checked when they are there.

The embedded broker makes its own at start, so for it there is nothing to do here.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code

from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.limits import FRAME_BYTES_MAX
from schemas.links import embedded_broker, kafka_security, kafka_servers
from schemas.topics import Topics

log = logging.getLogger(__name__)

WAIT_S: Final = 10.0
"""How long the broker may take for one answer, its first included."""

SETTLE_S: Final = 10.0
"""How long a topic that was just made may take to appear."""

OVERHEAD_BYTES: Final = 16 << 10
"""What Kafka's batch and record heads may add to a frame."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One topic as it must be."""

    name: str
    partitions: int
    cleanup: str
    settings: dict[str, str]


def wanted_topics(config: Config) -> list[Wanted]:
    """The topics that this configuration needs."""
    topics = Topics(config.kafka.prefix)
    kept = {"retention.ms": str(config.kafka.retention_hours * 3_600_000)}
    size = {"max.message.bytes": str(max(1 << 20, FRAME_BYTES_MAX + OVERHEAD_BYTES))}
    return [
        Wanted(topics.calls, config.kafka.partitions, "delete", kept | size),
        Wanted(topics.stored, 1, "compact", {}),
        Wanted(topics.deadletter, 1, "delete", kept),
        Wanted(topics.control, 1, "compact", {}),
        # an enforcer that joins reads the bundle in force here, however old it is
        Wanted(topics.bundles, 1, "delete", {"retention.ms": "-1"}),
        Wanted(topics.acks, 1, "delete", kept),
        Wanted(topics.egress, config.kafka.partitions, "delete", kept | size),
        Wanted(topics.findings, 1, "delete", kept),
        Wanted(topics.alerts, config.kafka.partitions, "delete", kept),
    ]


async def ensure_topics(home: Home, config: Config) -> None:
    """Make what is missing and check what is there; does nothing for the embedded broker.

    Raises PeerFault while the broker cannot be reached, OperatorFault naming the topic and the setting that is not as it must
    be: a topic that somebody made for something else is never changed.
    """
    if embedded_broker(config):
        return
    servers = kafka_servers(home, config)
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, client_id="wardline-topics", request_timeout_ms=int(WAIT_S * 1000),
                                **kafka_security(config))  # fmt: skip
    try:
        await asyncio.wait_for(admin.start(), WAIT_S)
        await _ensure(admin, wanted_topics(config), config.kafka.replication)
    except (TimeoutError, KafkaConnectionError, OSError) as fault:
        raise PeerFault(f"kafka at `{servers}` cannot be reached") from fault
    except KafkaError as fault:
        raise PeerFault(f"kafka at `{servers}` refuses: {str(fault).partition(chr(10))[0]}") from fault
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(admin.close(), WAIT_S)


async def _ensure(admin: AIOKafkaAdminClient, topics: list[Wanted], replication: int) -> None:
    there = set(await admin.list_topics())
    missing = [topic for topic in topics if topic.name not in there]
    if missing:
        new = [
            NewTopic(t.name, t.partitions, replication, topic_configs={"cleanup.policy": t.cleanup, **t.settings})
            for t in missing
        ]
        answer = await admin.create_topics(new)
        for name, code, *rest in answer.topic_errors:
            kind = for_code(code)
            # another process of ours made it between our two requests: then it is checked like any other
            if code and kind is not TopicAlreadyExistsError:
                raise OperatorFault(f"topic `{name}` cannot be made: {(rest[0] if rest and rest[0] else kind.__name__)}")
        log.info("made topics %s", ", ".join(t.name for t in missing))
    counts = await _counts(admin, [t.name for t in topics])
    for topic in topics:
        if counts[topic.name] != topic.partitions:
            raise OperatorFault(
                f"topic `{topic.name}` has {counts[topic.name]} partitions, the configuration needs {topic.partitions}"
                f"{' (kafka.partitions)' if topic.partitions > 1 else ''}"
            )
    settings = await _settings(admin, [t.name for t in topics])
    for topic in topics:
        said = settings[topic.name]
        if topic.cleanup not in said.get("cleanup.policy", "").split(","):
            raise OperatorFault(
                f"topic `{topic.name}` has cleanup.policy `{said.get('cleanup.policy', '')}`, it must be `{topic.cleanup}`"
            )
        if topic.cleanup == "delete" and "compact" in said["cleanup.policy"]:
            raise OperatorFault(f"topic `{topic.name}` is compacted, frames would vanish; it must be `delete`")
        need = int(topic.settings.get("max.message.bytes", 0))
        if need and int(said.get("max.message.bytes", need)) < need:
            raise OperatorFault(f"topic `{topic.name}` has max.message.bytes {said['max.message.bytes']}, needs {need}")


async def _counts(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Partition counts; a topic that was made a moment ago may not be known on every node yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while True:
        described: list[dict[str, Any]] = await admin.describe_topics(names)
        found = {d["topic"]: len(d["partitions"]) for d in described if not d["error_code"]}
        if all(found.get(name) for name in names):
            return found
        if loop.time() > deadline:
            raise PeerFault(f"topic `{next(n for n in names if not found.get(n))}` does not appear in {SETTLE_S:.0f} s")
        await asyncio.sleep(0.1)


async def _settings(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs(resources):
        for code, message, _, name, entries in answer.resources:
            if code:
                raise OperatorFault(f"topic `{name}` cannot be described: {message or for_code(code).__name__}")
            found[name] = {entry[0]: entry[1] or "" for entry in entries}
    return found
