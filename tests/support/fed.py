"""A broker, a control made of plain code, and one real host: what its board says, what it refuses, what it acknowledges."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ext.board import BoardReader, Selectors
from pipeline.shells.topics import ensure_topics
from schemas.ack import Ack, parse_ack
from schemas.config import Config
from schemas.config import Kafka as KafkaSection
from schemas.control import Verify
from schemas.keys import own_key, pinned
from schemas.process import read_run_file
from schemas.records import Standing
from tests.support.control import Control
from tests.support.home import Wardline, wait_until

HOST = "enforce-1"
STALE_S = 5.0


class Fed:
    """Use it as a context manager. The host is registered and ready."""

    def __init__(self, root: Path, *, kafka: str = "", config: str = "", every: float = 0.2) -> None:
        self.wardline = Wardline(root, kafka=kafka, config=config)
        self.home = self.wardline.home
        self.control = Control(self.home, kafka=kafka, every=every)
        self.board = BoardReader(str(self.home.board(HOST)))

    def __enter__(self) -> "Fed":
        try:
            if self.wardline.kafka:
                config = Config(kafka=KafkaSection(servers=self.wardline.kafka))
                asyncio.run(ensure_topics(self.home, config))
            else:
                self.wardline.start("broker")
            self.control.__enter__()
            self.control.enrol(HOST)
            self.wardline.start(HOST)
        except BaseException:
            self.wardline.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.control.__exit__(kind, fault, trace)
        self.wardline.close()

    # -- the board ---------------------------------------------------------------------------------------------------

    def standing(self, *texts: str) -> Standing:
        """What a door would find now for a call of whom these selectors are true."""
        return Standing(self.board.check(Selectors(texts or ("agent:nobody",)), Selectors(())))

    def wait_standing(self, wanted: Standing, *texts: str, seconds: float = 10.0) -> float:
        """Wait for it; returns how long it took."""
        begun = time.monotonic()
        wait_until(lambda: self.standing(*texts) is wanted, seconds, lambda: f"{wanted!r}: {self.said()}", every=0.002)
        return time.monotonic() - begun

    @contextlib.contextmanager
    def watched(self, *texts: str) -> Iterator[list[tuple[float, Standing]]]:
        """Look at the board all the time meanwhile, as a door that decides call after call: each change, with its time."""
        seen: list[tuple[float, Standing]] = []
        stop = threading.Event()
        board = BoardReader(str(self.home.board(HOST)))
        caller, target = Selectors(texts), Selectors(())

        def look() -> None:
            while not stop.wait(0.0005):
                found = Standing(board.check(caller, target))
                if not seen or seen[-1][1] is not found:
                    seen.append((time.monotonic(), found))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()

    # -- what the host says ------------------------------------------------------------------------------------------

    def said(self, name: str = HOST) -> dict[str, Any]:
        """Its run file."""
        return read_run_file(self.home.run_file(name)) or {}

    def refused(self) -> dict[str, int]:
        """Reason -> how many messages, as the host counts them."""
        return dict(self.said().get("refused", {}))

    def wait_ready(self, seconds: float = 15.0) -> None:
        """Wait until the host is fresh."""
        wait_until(lambda: self.said().get("control", {}).get("state") == "ready", seconds, lambda: str(self.said()))

    def wait_why(self, part: str, seconds: float = 10.0) -> None:
        """Wait until the host says why it is not ready."""
        wait_until(lambda: part in self.said().get("control", {}).get("why", ""), seconds, lambda: f"{part}: {self.said()}")

    def acks(self) -> list[Ack]:
        """Every acknowledgement so far, each signature checked with the key of its host."""

        def key_of(name: str) -> Verify | None:
            public = pinned(self.home.trusted("hosts")).get(name)
            return Ed25519PublicKey.from_public_bytes(public).verify if public else None

        return [parse_ack(data, key_of) for data in read_topic(self.address(), "wardline.acks")]

    def address(self) -> str:
        """HOST:PORT of the broker."""
        return self.wardline.kafka or str(self.said("broker")["address"])

    def key(self, name: str = HOST) -> str:
        """The public key of a host, hex."""
        return own_key(self.home, "hosts", name).public_key().public_bytes_raw().hex()


def read_topic(address: str, topic: str) -> list[bytes]:
    """Everything on partition 0 of a topic now."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test", "fetch.wait.max.ms": 20,
                         "enable.auto.commit": False})  # fmt: skip
    try:
        where = TopicPartition(topic, 0, OFFSET_BEGINNING)
        consumer.assign([where])
        _, end = consumer.get_watermark_offsets(where, timeout=10)
        found: list[bytes] = []
        at = 0
        while at < end and (message := consumer.poll(10)) is not None:
            at = message.offset() + 1
            found.append(message.value())
        return found
    finally:
        consumer.close()
