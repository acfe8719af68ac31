"""Reading a topic of one partition: whole, to its end, or on from there for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.errors import PeerFault
from schemas.links import stop_client

START_S: Final = 15.0
QUIET_S: Final = 30.0
"""How long a broker may give nothing of what it says it has."""


@contextlib.asynccontextmanager
async def reader(options: Mapping[str, Any], topic: str, *, wait_ms: int) -> AsyncIterator[tuple[Any, TopicPartition]]:
    """A consumer of partition 0 that belongs to no group. `wait_ms` is how long the broker may keep an empty answer."""
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=wait_ms, **options)
    place = TopicPartition(topic, 0)
    try:
        await asyncio.wait_for(consumer.start(), START_S)
        consumer.assign([place])
        yield consumer, place
    finally:
        await stop_client(consumer)


async def to_end(consumer: Any, place: TopicPartition, *, begin: int | None = None) -> AsyncIterator[Any]:
    """Every message from `begin` (default: the oldest) to what is the end now. Raises PeerFault when they do not come."""
    end = (await consumer.end_offsets([place]))[place]
    oldest = (await consumer.beginning_offsets([place]))[place]
    first = max(oldest, begin or 0)
    if first >= end:
        consumer.seek(place, end)
        return
    consumer.seek(place, first)
    loop = asyncio.get_running_loop()
    heard = loop.time()
    while await consumer.position(place) < end:
        for messages in (await consumer.getmany(place, timeout_ms=500)).values():
            heard = loop.time()
            for message in messages:
                yield message
        if loop.time() - heard > QUIET_S:
            raise PeerFault(f"topic `{place.topic}` gives nothing before offset {end}")
