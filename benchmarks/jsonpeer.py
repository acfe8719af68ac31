"""The pipeline that most would write: one JSON message per record, through the same consumer, store and batches.

It has what makes ours trustworthy: idempotent sends, an Ed25519 signature that is verified (of each message, as there is no
frame to sign), dedupe by (boot, seq), the fence, the insert's token, acknowledgement after the insert. Reads are batched, and
orjson decodes. The producer sends ready messages, as the host sends ready frames; the embedded broker's room per partition is
shared the same way.
"""

import asyncio
import dataclasses
import hashlib
import multiprocessing
import multiprocessing.synchronize
import os
import time
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ext.columns import partition_of
from pipeline.shells.worker.app import new_app
from pipeline.shells.worker.sink import Sink
from schemas.config import Config
from schemas.frame import ARROW_SCHEMA
from schemas.home import Home
from schemas.limits import INFLIGHT_BYTES_MAX
from schemas.links import kafka_servers
from schemas.store import INSERT_SCHEMA
from schemas.topics import Topics

READ: Final = 5000
"""Messages of one batched read."""

READ_S: Final = 0.2
SIGNATURE: Final = 64
_BINARY: Final = tuple(field.name for field in ARROW_SCHEMA if pa.types.is_fixed_size_binary(field.type))


def rows_per_second(home: Home, config: Config, table: pa.Table, *, signed: bool) -> float:
    """Send each row of `table` (in INSERT_SCHEMA) as a message of its own; returns rows stored per second."""
    key = Ed25519PrivateKey.generate()
    kafka = dataclasses.replace(config.kafka, prefix=f"json-{os.urandom(4).hex()}.")
    ours = dataclasses.replace(config, kafka=kafka)
    messages = _messages(table, kafka.partitions, key if signed else None)
    context = multiprocessing.get_context("spawn")
    stored = context.Array("q", kafka.partitions)
    ready = context.Event()
    proof = key.public_key().public_bytes_raw() if signed else b""
    worker = context.Process(target=_work, args=(home.root, ours, proof, stored, ready), daemon=True)
    worker.start()
    try:
        assert ready.wait(60), "the JSON worker does not start"
        began = time.perf_counter()
        asyncio.run(_send(kafka_servers(home, ours), Topics(kafka.prefix).calls, messages, stored))
        wanted = sum(len(message) for _, message in messages)
        while sum(stored[:]) < wanted:
            assert worker.is_alive(), "the JSON worker has died"
            time.sleep(0.01)
        return float(table.num_rows / (time.perf_counter() - began))
    finally:
        worker.kill()
        worker.join()


def _messages(table: pa.Table, partitions: int, key: Ed25519PrivateKey | None) -> list[tuple[int, bytes]]:
    plain = table.select(ARROW_SCHEMA.names)
    for at, field in enumerate(ARROW_SCHEMA):
        if pa.types.is_timestamp(field.type):
            plain = plain.set_column(at, field.name, plain.column(at).cast(pa.int64()))
    made = []
    for row in plain.to_pylist():
        partition = partition_of(row["trace_id"], partitions)
        for name in _BINARY:
            row[name] = row[name].hex()
        body = orjson.dumps(row)
        made.append((partition, (key.sign(body) if key else b"") + body))
    return made


async def _send(servers: str, topic: str, messages: list[tuple[int, bytes]], stored: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=5,
                                max_batch_size=256 << 10)  # fmt: skip
    await producer.start()
    sent = [0] * len(stored)
    last = None
    try:
        for partition, message in messages:
            while sent[partition] - stored[partition] > INFLIGHT_BYTES_MAX - len(message):
                await asyncio.sleep(0.005)
            last = await producer.send(topic, message, partition=partition)
            sent[partition] += len(message)
        if last is not None:
            await last
        await producer.flush()
    finally:
        await producer.stop()


class _Pump:
    """Stands where the worker's pump stands: opened at an assignment, drained before a revoke."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def take(self, event: Any) -> None:
        raise AssertionError("this app reads in batches")

    async def drain(self) -> None:
        self.opened.clear()

    def open(self, assigned: Any) -> None:
        self.opened.set()


def _work(root: Path, config: Config, proof: bytes, stored: Any, ready: multiprocessing.synchronize.Event) -> None:
    asyncio.run(_run(Home(root), config, proof, stored, ready))


async def _run(home: Home, config: Config, proof: bytes, stored: Any, ready: multiprocessing.synchronize.Event) -> None:
    pump = _Pump()
    app = new_app(home, config, slot="work-json", servers=kafka_servers(home, config), pump=pump)
    calls = app.topic(Topics(config.kafka.prefix).calls, key_type=bytes, value_type=bytes, key_serializer="raw",
                      value_serializer="raw")  # fmt: skip
    sink = Sink(home, config, slot="work-json")
    owned = {partition: sink.take_over(partition).epoch for partition in range(config.kafka.partitions)}
    known: set[tuple[int, int]] = set()
    check = Ed25519PublicKey.from_public_bytes(proof) if proof else None
    waiting: list[Any] = []
    rows: list[dict[str, Any]] = []
    flying: list[asyncio.Task[None]] = []

    async def fly(events: list[Any], batch: list[dict[str, Any]]) -> None:
        await asyncio.to_thread(_insert, sink, batch, owned)
        for event in events:
            event.ack()
            stored[event.message.partition] += len(event.value)

    async def flush() -> None:
        if flying:
            await flying.pop()
        if waiting:
            flying.append(asyncio.create_task(fly(waiting[:], rows[:])))
            waiting.clear()
            rows.clear()

    @app.agent(calls, concurrency=1)  # type: ignore[untyped-decorator]
    async def intake(stream: Any) -> None:
        async for events in stream.noack().noack_take(READ, within=READ_S):
            for event in events:
                body = event.value
                if check is not None:
                    body = body[SIGNATURE:]
                    check.verify(event.value[:SIGNATURE], body)
                row = orjson.loads(body)
                waiting.append(event)
                if (row["boot"], row["seq"]) not in known:
                    known.add((row["boot"], row["seq"]))
                    rows.append(row)
            if len(rows) >= config.worker.batch_records or len(events) < READ:
                await flush()

    started = asyncio.create_task(app.start())
    await pump.opened.wait()
    ready.set()
    await started
    await asyncio.Event().wait()


def _insert(sink: Sink, rows: list[dict[str, Any]], owned: dict[int, int]) -> None:
    for row in rows:
        for name in _BINARY:
            row[name] = bytes.fromhex(row[name])
        row.update(_OWN)
        row["ingested"] = int(time.time())
    table = pa.Table.from_arrays([_column(rows, field) for field in INSERT_SCHEMA], schema=INSERT_SCHEMA)
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table, max_chunksize=table.num_rows)
    data = out.getvalue().to_pybytes()
    sink.insert(data, hashlib.sha256(data).hexdigest(), owned)


_OWN: Final[dict[str, Any]] = {
    "enforcer": "json", "enforcer_boot": 1, "partition": 0, "frame_no": 0, "frame_digest": bytes(32),
    "frame_previous": bytes(32), "frame_records": 0, "frame_bytes": 0, "frame_created": 0, "frame_ranges": [],
    "frame_flag": "", "frame_offset": 0,
    "frame_head": b"",
}  # fmt: skip


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    values = [row[field.name] for row in rows]
    if pa.types.is_dictionary(field.type):
        return pa.array(values, field.type.value_type).dictionary_encode()
    return pa.array(values, field.type)
