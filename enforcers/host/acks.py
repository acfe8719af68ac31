"""What this host and each of its doors have applied, signed, on the topic `acks`: on every change, and every second.

A door writes `seen` into its folder; a door lives while it holds the lock there. So a door that stands still goes on being
named with the epoch that it has, and a host without doors speaks for itself.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from enforcers.host.clients import RECONNECT_S, START_S, Broker, Watch
from enforcers.host.feed import Feed
from ext.board import SeenReader
from schemas.ack import Ack
from schemas.errors import PeerFault
from schemas.links import first_line, stop_client

log = logging.getLogger(__name__)

BEHIND_S: Final = 0.005
"""How often the doors are looked at while one has not applied everything."""

IDLE_S: Final = 0.1
"""The same while all have, and nothing is heard."""

EVERY_S: Final = 1.0
SEND_S: Final = 4.0
"""How long one may take before another producer is made: one that is wedged never ends."""

LAST_S: Final = 2.0
LIST_S: Final = 0.5
"""How often the folder of doors is read even when it seems not to have changed."""

SENT = Counter("wardline_host_acks_sent", "Acknowledgements given to Kafka")


class Doors:
    """The living doors under one folder, and what each has said."""

    def __init__(self, folder: Path, ended: Callable[[int], bool]) -> None:
        """`ended` says of a boot that this process itself has adopted what that door left, and so holds its lock."""
        self._folder = folder
        self._text = str(folder)
        self._ended = ended
        self._readers: dict[str, SeenReader] = {}
        self._dead: set[str] = set()
        """A door holds its lock before its folder has its name, so one that nobody holds is dead for ever."""
        self._changed = -1
        self._listed = 0.0

    def look(self) -> list[tuple[str, int, bytes, int]]:
        """Boot, epoch, policy digest, since when: of each living door, one that has said nothing yet with epoch 0."""
        self._list()
        found = []
        for boot, reader in list(self._readers.items()):
            if not self._lives(boot):
                del self._readers[boot]
                continue
            epoch, policy, applied_ns = reader.read() or (0, b"", 0)
            found.append((boot, epoch, policy, applied_ns))
        return found

    def _list(self) -> None:
        now = time.monotonic()
        try:
            changed = os.stat(self._text).st_mtime_ns
            if changed == self._changed and now - self._listed < LIST_S:
                return
            names = {entry.name for entry in os.scandir(self._folder) if len(entry.name) == 16}
        except FileNotFoundError:
            return
        self._changed, self._listed = changed, now
        self._dead &= names
        for name in names - self._dead - set(self._readers):
            if self._lives(name):
                self._readers[name] = SeenReader(str(self._folder / name))

    def _lives(self, boot: str) -> bool:
        if not self._ended(int(boot, 16)) and _held(f"{self._text}/{boot}/lock"):
            return True
        self._dead.add(boot)
        return False


def _held(path: str) -> bool:
    """Whether a process holds the door's lock."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # shared: two that look do not see each other, and whoever wants the lock for good tries again
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


class Acks:
    """Looks, and publishes."""

    def __init__(
        self, broker: Broker, feed: Feed, doors: Doors, *, boot: int, sign: Callable[[bytes], bytes], lag: Callable[[], int]
    ) -> None:
        """`boot` is the host's, `sign` is with its frame key, `lag` counts its records that are not known to be stored."""
        self._broker = broker
        self._feed = feed
        self._doors = doors
        self._boot = f"{boot:016x}"
        self._sign = sign
        self._lag = lag
        self._due = asyncio.Event()
        self._last: object = None
        """What was to be said when it was looked last."""
        self._producer: AIOKafkaProducer | None = None
        self._stopped = False

    def _now(self) -> Ack:
        self._feed.obey.tick(time.monotonic_ns())
        return self._feed.obey.ack(
            boot=self._boot, doors=self._doors.look(), lag_records=self._lag(), said_ns=time.time_ns(), stopped=self._stopped
        )  # fmt: skip

    async def look(self) -> None:
        """Notice every change, for ever."""
        while True:
            obey = self._feed.obey
            obey.tick(time.monotonic_ns())
            doors = self._doors.look()
            meaning = (obey.state, obey.why, obey.epoch, obey.kept_epoch, obey.policy, obey.applied_ns, doors)
            if meaning != self._last:
                self._last = meaning
                self._due.set()
            epoch, policy = obey.epoch, bytes.fromhex(obey.policy)
            behind = obey.kept_epoch < epoch or any(said[1] < epoch or said[2] != policy for said in doors)
            if behind:
                await asyncio.sleep(BEHIND_S)
                continue
            self._feed.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._feed.news.wait(), IDLE_S)

    async def publish(self) -> None:
        """Publish for ever."""
        while True:
            try:
                servers, identity = self._broker.now()
                await self._session(servers, Watch(self._broker, identity))
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                log.debug("acknowledgements: %s", first_line(fault))
            await asyncio.sleep(RECONNECT_S)

    async def _session(self, servers: str, watch: Watch) -> None:
        producer = AIOKafkaProducer(acks="all", request_timeout_ms=int(SEND_S * 1000), **self._broker.options(servers))
        try:
            await asyncio.wait_for(producer.start(), START_S)
            self._producer = producer
            while not watch.another():
                self._due.clear()
                await self._send_while(producer, watch)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), EVERY_S)
        finally:
            self._producer = None
            await stop_client(producer)

    async def _send_while(self, producer: AIOKafkaProducer, watch: Watch) -> None:
        """Send, and give up when the broker is another one or says nothing."""
        deadline = time.monotonic() + SEND_S
        sending = asyncio.ensure_future(self._send(producer, self._now()))
        try:
            while not sending.done():
                await asyncio.wait([sending], timeout=RECONNECT_S)
                if not sending.done() and (watch.another() or time.monotonic() > deadline):
                    raise PeerFault("the broker has not taken an acknowledgement")
            sending.result()
        finally:
            sending.cancel()

    async def _send(self, producer: AIOKafkaProducer, ack: Ack) -> None:
        data = ack.encode(self._sign)
        await producer.send_and_wait(self._broker.topics.acks, data, key=ack.host.encode(), partition=0)
        SENT.inc()

    async def last_word(self) -> None:
        """Say that nothing more comes from this boot, if that is possible now; nothing else is said from here on."""
        self._stopped = True
        if self._producer is None:
            return
        try:
            await asyncio.wait_for(self._send(self._producer, self._now()), LAST_S)
        except (TimeoutError, KafkaError, OSError) as fault:
            log.debug("the last acknowledgement: %s", first_line(fault))
