"""The embedded broker and the topics on a real one."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.shells.topics import ensure_topics
from schemas.config import Config
from schemas.config import Kafka as KafkaConfig
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.process import read_run_file
from tests.support.broker import broker
from tests.support.home import Wardline
from tests.support.kafka import Kafka, free_port


async def _there_and_back(address: str, partition: int) -> bytes:
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        assert await producer.partitions_for("wardline.calls") == {0, 1, 2, 3, 4, 5}
        await producer.send_and_wait("wardline.calls", b"frame", partition=partition)
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_wait_ms=20)
    await consumer.start()
    try:
        consumer.assign([TopicPartition("wardline.calls", partition)])
        return bytes((await asyncio.wait_for(consumer.getone(), 10)).value)
    finally:
        await consumer.stop()


def test_the_embedded_broker_keeps_what_it_acknowledged_on_the_partition_it_was_sent_to() -> None:
    with broker(partitions=6) as address:
        assert asyncio.run(_there_and_back(address, 5)) == b"frame"


def test_the_broker_command_has_the_configured_partitions_and_leaves_no_run_file(wardline: Wardline) -> None:
    wardline.home.config.write_text("[kafka]\npartitions = 6\n")
    wardline.start("broker")
    said = read_run_file(wardline.home.run_file("broker"))
    assert said is not None
    assert asyncio.run(_there_and_back(said["address"], 3)) == b"frame"
    assert wardline.stop("broker") == 0
    assert not wardline.home.run_file("broker").exists()


def test_a_second_broker_of_a_home_says_who_is_the_first(wardline: Wardline) -> None:
    pid = wardline.start("broker")
    done = wardline.run("broker", check=False)
    assert done.returncode == 2
    assert f"broker is held by process {pid}" in done.stderr


def test_the_embedded_broker_refuses_to_run_beside_a_configured_one(wardline: Wardline) -> None:
    wardline.home.config.write_text('[kafka]\nservers = "127.0.0.1:9092"\n')
    done = wardline.run("broker", check=False)
    assert done.returncode == 2
    assert done.stderr == "wardline: kafka.servers is `127.0.0.1:9092`: the embedded broker is not used\n"


def _config(kafka: Kafka, **others: object) -> Config:
    return Config(kafka=dataclasses.replace(KafkaConfig(servers=kafka.address), **others))  # type: ignore[arg-type]


def test_topics_are_made_once_and_checked_ever_after(kafka: Kafka, tmp_path: Path) -> None:
    home = Home(tmp_path)
    for _ in range(2):
        asyncio.run(ensure_topics(home, _config(kafka, prefix="made.")))
    with pytest.raises(OperatorFault, match=r"topic `made\.calls` has 4 partitions, the configuration needs 8"):
        asyncio.run(ensure_topics(home, _config(kafka, prefix="made.", partitions=8)))


async def _make(kafka: Kafka, name: str, partitions: int, settings: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
    finally:
        await admin.close()


@pytest.mark.parametrize(
    ("topic", "partitions", "settings", "message"),
    [
        ("calls", 4, {"cleanup.policy": "compact"}, "has cleanup.policy `compact`, it must be `delete`"),
        ("calls", 4, {"cleanup.policy": "compact,delete"}, "is compacted, frames would vanish"),
        ("calls", 4, {"max.message.bytes": "100000"}, "has max.message.bytes 100000, needs 1048576"),
        ("stored", 1, {"cleanup.policy": "delete"}, "has cleanup.policy `delete`, it must be `compact`"),
        ("stored", 3, {"cleanup.policy": "compact"}, "has 3 partitions, the configuration needs 1"),
    ],
)
def test_a_topic_that_would_lose_frames_is_refused_by_name(
    kafka: Kafka, tmp_path: Path, topic: str, partitions: int, settings: dict[str, str], message: str
) -> None:
    prefix = f"bad-{topic}-{partitions}-{'-'.join(settings.values()).replace(',', '_')}."
    asyncio.run(_make(kafka, prefix + topic, partitions, settings))
    with pytest.raises(OperatorFault, match=message) as found:
        asyncio.run(ensure_topics(Home(tmp_path), _config(kafka, prefix=prefix)))
    assert f"topic `{prefix}{topic}`" in str(found.value)


def test_a_broker_that_is_not_there_is_a_peer_to_wait_for(tmp_path: Path) -> None:
    config = Config(kafka=KafkaConfig(servers=f"127.0.0.1:{free_port()}"))
    with pytest.raises(PeerFault, match=r"kafka at `127\.0\.0\.1:\d+` cannot be reached"):
        asyncio.run(ensure_topics(Home(tmp_path), config))
