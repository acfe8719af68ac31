"""A control log for the worker's tests: a journal without a disk, and the topic that it is written to."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from schemas.home import Home
from schemas.keys import public_pem
from schemas.process import private_dir
from tests.support.entries import CONTROL, Journal, Signer
from tests.support.frames import Host


def pin(home: Home, signer: Signer = CONTROL) -> None:
    """Trust a control key by file."""
    path = private_dir(home.trusted("control")) / f"{signer.key_id.hex()}.pub"
    path.write_bytes(public_pem(signer.public))


def key_value(host: Host) -> dict[str, str]:
    """The value of `enforcer/NAME`."""
    return {"key": host.key.public_key().public_bytes_raw().hex()}


class Log:
    """The topic `control` as an aiokafka consumer shows it. Messages that are appended are there at once."""

    def __init__(self, *messages: bytes | None) -> None:
        self.messages: list[bytes | None] = list(messages)
        self.reads = 0
        """How often it was read from its beginning."""
        self.hidden = 0
        """Messages at the end that are in the log and that no fetch has brought yet."""
        self.away = False
        self._at = 0

    def append(self, *messages: bytes | None) -> None:
        self.messages += messages

    async def seek_to_beginning(self, *_: TopicPartition) -> None:
        self.reads += 1
        self._at = 0

    def seek(self, _: TopicPartition, offset: int) -> None:
        self._at = offset

    async def getmany(self, partition: TopicPartition, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        while self._at >= len(self.messages) - self.hidden:
            if asyncio.get_running_loop().time() > deadline:
                return {}
            await asyncio.sleep(0.002)
        stop = min(len(self.messages) - self.hidden, self._at + max_records)
        found = [SimpleNamespace(offset=n, value=self.messages[n]) for n in range(self._at, stop)]
        self._at = stop
        return {partition: found}

    def highwater(self, _: TopicPartition) -> int:
        return len(self.messages) - self.hidden

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if self.away:
            raise TimeoutError
        return dict.fromkeys(partitions, len(self.messages))


async def until(what: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.002)


def registered(journal: Journal, host: Host) -> bytes:
    """Register a host; returns the message."""
    return journal.put(f"enforcer/{host.name}", key_value(host))
