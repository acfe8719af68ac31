"""The policy bundles of a host on disk: `bundle/DIGEST.json`, each verified before it has its name, mapped by the doors."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyarrow
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from enforcers.core.gather import Gather
from enforcers.core.obey import Obey
from enforcers.host.clients import RECONNECT_S, START_S, Broker, Watch
from schemas.bundle import parse_bundle
from schemas.errors import FrameFault, OperatorFault, PeerFault, WardlineError
from schemas.links import first_line, stop_client
from schemas.process import private_dir, write_atomic

log = logging.getLogger(__name__)

KEEP: Final = 4
"""Bundles that stay: a door may still be reading the one before, and a rollback finds its own at once."""

WINDOW: Final = 16
"""Messages before the end that are read first, beside twice the chunks of the bundle."""

POLL_MS: Final = 100
IDLE_S: Final = 1.0


def unpack(packed: bytes, digest: str, size: int) -> bytes:
    """The bundle in these bytes. Raises FrameFault `bundle` when it is not the one with this digest and size, or no bundle."""
    try:
        data = bytes(pyarrow.Codec("zstd").decompress(packed, size, asbytes=True))
    except (OSError, ValueError) as fault:
        raise FrameFault("bundle", f"the bundle {digest[:12]} cannot be unpacked") from fault
    return verified(data, digest)


def verified(data: bytes, digest: str) -> bytes:
    """The same bytes. Raises FrameFault `bundle` when they are not the bundle with this digest."""
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise FrameFault("bundle", f"a bundle has the digest {found[:12]}, {digest[:12]} is wanted")
    try:
        parse_bundle(data)
    except OperatorFault as fault:
        raise FrameFault("bundle", f"the bundle {digest[:12]} cannot be read: {fault}") from fault
    return data


class Shelf:
    """The folder. Its methods block for as long as a file takes to be read or written, and a bundle to be hashed."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_dir(folder)

    def path(self, digest: str) -> Path:
        """Where the bundle with this digest is, when it is here."""
        return self._folder / f"{digest}.json"

    def has(self, digest: str) -> bool:
        """Whether the bundle is here and whole; one that is not is removed."""
        path = self.path(digest)
        try:
            verified(path.read_bytes(), digest)
        except FileNotFoundError:
            return False
        except (OSError, FrameFault):
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        return True

    def put(self, packed: bytes, digest: str, size: int) -> None:
        """Keep a bundle. Raises FrameFault `bundle` when it is another one, OSError when the disk has no room."""
        data = unpack(packed, digest, size)
        write_atomic(self.path(digest), data)
        self._sweep(digest)

    def _sweep(self, digest: str) -> None:
        held = [path for path in self._folder.glob("*.json") if path.stem != digest]
        held.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in held[KEEP - 1 :]:
            path.unlink(missing_ok=True)


class Finder:
    """Brings the bundle that `policy/main` names onto the shelf, from the topic `bundles`, read from its end backwards.

    A chunk is in the topic before the entry that names its bundle, so the last few messages are mostly enough; a rollback's may
    be anywhere before. What comes at the end is read too: control may send it again.
    """

    def __init__(
        self, broker: Broker, shelf: Shelf, obey: Callable[[], Obey], *, wake: asyncio.Event,
        refused: Callable[[FrameFault], None],
    ) -> None:  # fmt: skip
        """`wake` is set when another bundle may be wanted; `refused` is told of each message that is no good."""
        self._wake = wake
        self._broker = broker
        self._shelf = shelf
        self._obey = obey
        self._refused = refused
        self._partition = TopicPartition(broker.topics.bundles, 0)

    async def run(self) -> None:
        """Find each bundle that is wanted, for ever."""
        while True:
            self._wake.clear()
            digest = self._obey().wanted_policy
            if not digest or digest == self._obey().policy:
                await self._wake.wait()
                continue
            if await asyncio.to_thread(self._shelf.has, digest):
                self._obey().policy_ready(digest)
                continue
            try:
                servers, identity = self._broker.now()
                await self._session(servers, identity)
            except (TimeoutError, KafkaError, OSError, PeerFault, FrameFault) as fault:
                log.warning("bundle %s: %s", digest[:12], str(fault) if isinstance(fault, WardlineError) else first_line(fault))
                await asyncio.sleep(RECONNECT_S)

    async def _session(self, servers: str, identity: object) -> None:
        """One consumer for as long as it works: between two bundles it reads nothing."""
        consumer = self._broker.consumer(servers)
        watch = Watch(self._broker, identity)
        try:
            await asyncio.wait_for(consumer.start(), START_S)
            consumer.assign([self._partition])
            consumer.pause(self._partition)
            while True:
                self._wake.clear()
                digest = self._obey().wanted_policy
                if digest and digest != self._obey().policy:
                    await self._find(consumer, Gather(self._obey().wanted), watch)
                    consumer.pause(self._partition)
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), IDLE_S)
                    if watch.another():
                        return
        finally:
            await stop_client(consumer)

    async def _find(self, consumer: AIOKafkaConsumer, wanted: Gather, watch: Watch) -> None:
        """Returns when the bundle is here, or another one is wanted."""
        if await asyncio.to_thread(self._shelf.has, wanted.digest):
            self._obey().policy_ready(wanted.digest)
            return
        begin = (await consumer.beginning_offsets([self._partition]))[self._partition]
        end = (await consumer.end_offsets([self._partition]))[self._partition]
        back = 2 * wanted.count + WINDOW
        at = max(begin, end - back)
        consumer.seek(self._partition, at)
        consumer.resume(self._partition)
        while self._obey().wanted_policy == wanted.digest:
            if watch.another():
                raise PeerFault("the broker is a new one")
            got = await consumer.getmany(timeout_ms=POLL_MS)
            for message in got.get(self._partition, ()):
                if await self._take(wanted, message.value):
                    return
            if await consumer.position(self._partition) >= end and at > begin:
                back *= 8
                at = max(begin, end - back)
                consumer.seek(self._partition, at)

    async def _take(self, wanted: Gather, data: bytes | None) -> bool:
        """Whether this message made the bundle whole."""
        try:
            packed = wanted.add(data)
            if packed is None:
                return False
            await asyncio.to_thread(self._shelf.put, packed, wanted.digest, wanted.bytes)
        except FrameFault as fault:
            self._refused(fault)
            return False
        self._obey().policy_ready(wanted.digest)
        return True
