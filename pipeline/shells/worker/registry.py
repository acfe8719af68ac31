"""Whose frames count: the enforcers' keys, as control's log says.

    the last registry, on disk     counts until the log is whole again: control being away does not stop the record
    the log, read to a heartbeat   takes its place; what it does not name is removed
    an entry that came later       counts at once; that a key is gone is on the disk before the next message is read
    a frame of an unknown host     waits until everything that was in the log when it came was read

A host sends no frame before it has read its own entry, so the entry of an honest host is in the log when its frame is here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.core.intake import Check
from pipeline.core.respond import Standing
from pipeline.shells.worker import metrics
from pipeline.shells.worker.kept import Kept, read_kept, write_kept
from pipeline.shells.worker.refusals import Refusals
from pipeline.shells.worker.scribe import Scribe, Whole
from schemas.config import Config
from schemas.control import Entry
from schemas.errors import FrameFault
from schemas.follower import Beat, Follower
from schemas.home import Home
from schemas.keys import control_pins
from schemas.links import embedded_broker, first_line, kafka_security, stop_client
from schemas.process import private_dir
from schemas.topics import Topics

log = logging.getLogger(__name__)

WAIT_S: Final = 3.0
"""How long a frame of an unknown host may hold up the others. Where the log is not whole, once until it is again."""

RECONNECT_S: Final = 0.5
AGAIN_MAX_S: Final = 8.0
"""The longest pause between two readings of the whole log that lead to nothing."""

STOP_S: Final = 2.0
POLL_MS: Final = 500
MESSAGES_MAX: Final = 500
"""Messages that are read at a time; between them others get their turn."""

SAVE_S: Final = 5.0
"""How old the heartbeat on the disk may be. What it could hide from the next start is older than no key."""

PAST_MAX: Final = 100_000
"""Entries remembered while the log is read, to be stored although they are not live any more. More than that are not."""

FORMER_MAX: Final = 10_000
"""Removed hosts whose key is remembered, to know their stored frames when they are read again."""

SILENT_S: Final = 10.0
"""A consumer that brings nothing for so long is replaced: its broker may have forgotten it. What was read stays read."""


class Registry:
    """Follows control. All methods run on the event loop."""

    def __init__(self, home: Home, config: Config, *, slot: str, servers: str) -> None:
        """Raises OperatorFault when the registry on the disk cannot be read."""
        self._home = home
        self._config = config
        self._slot = slot
        self._servers = servers
        self._partition = TopicPartition(Topics(config.kafka.prefix).control, 0)
        self._path = registry_file(home, slot)
        self._scribe: Scribe | None = None
        self._hosts: dict[str, bytes] = {}
        self._former: dict[str, bytes] = {}
        self._checks: dict[bytes, Check | None] = {}
        self._exceptions: dict[str, tuple[str, str]] | None = None
        self._own: Check | None = None
        self._follower: Follower | None = None
        self._floor = (0, 0)
        self._keys: dict[bytes, bytes] = {}
        self._past: list[tuple[Entry, bytes]] = []
        self._beat: Beat | None = None
        self._joined = False
        self._gave_up = False
        self._position = 0
        self._again_s = RECONNECT_S
        self._consumer: Any = None
        self._moved = asyncio.Condition()
        self._ready = asyncio.Event()
        self._saved_at = -SAVE_S
        self._refusals = Refusals(log, "a control entry")
        self.trouble = "the log has not been whole yet"
        """Why the log is not followed; empty while it is."""
        self._load()

    # -- what the pump asks ------------------------------------------------------------------------------------------

    @property
    def why(self) -> str:
        """Why no frame can be judged yet; empty when one can."""
        return "" if self._ready.is_set() else f"control: {self.trouble}"

    async def ready(self) -> None:
        """Returns once frames can be judged: by the log, or by the last registry."""
        await self._ready.wait()

    def key_of(self, host: str) -> Check | None:
        """`verify(signature, message)` of a registered host."""
        return self._check(self._hosts.get(host, b""))

    def former_of(self, host: str) -> Check | None:
        """The same of a host that was removed."""
        return self._check(self._former.get(host, b""))

    def _check(self, public: bytes) -> Check | None:
        if public not in self._checks:
            self._checks[public] = Ed25519PublicKey.from_public_bytes(public).verify if public else None
        return self._checks[public]

    async def caught_up(self) -> bool:
        """Wait until everything that was in the log when this was asked has been read, for WAIT_S at most.

        False when that could not be had. While the log is not whole, only the first to ask waits for it.
        """
        if not self._whole_now:
            if not self._gave_up:
                self._gave_up = not await self._until(lambda: self._whole_now)
            if not self._whole_now:
                return False
        consumer = self._consumer
        if consumer is None:
            return False
        try:
            async with asyncio.timeout(WAIT_S):
                end = (await consumer.end_offsets([self._partition]))[self._partition]
        except (TimeoutError, KafkaError, OSError) as fault:
            log.warning("the end of the control log cannot be seen: %s", type(fault).__name__)
            return False
        def read() -> bool:
            return self._consumer is not consumer or (self._position >= end and self._whole_now)

        return await self._until(read) and self._consumer is consumer

    @property
    def _whole_now(self) -> bool:
        """Whether what was read is what control says is live; not so behind a gap of epochs, until a heartbeat explains it."""
        return self._joined and self._follower is not None and self._follower.synced

    async def _until(self, what: Callable[[], bool]) -> bool:
        try:
            async with asyncio.timeout(WAIT_S), self._moved:
                await self._moved.wait_for(what)
        except TimeoutError:
            return False
        return True

    # -- what the lookout asks ---------------------------------------------------------------------------------------

    def know_self(self, check: Check) -> None:
        """How what this worker has signed is verified, whether or not control has heard of it."""
        self._own = check

    def worker_key(self, worker: str) -> Check | None:
        """`verify(signature, message)` of a registered worker, this one among them."""
        if worker == self._slot:
            return self._own
        entry = self._follower.get(f"worker/{worker}") if self._follower is not None else None
        return self._check(entry.registered) if entry is not None else None

    # -- what the responder asks -------------------------------------------------------------------------------------

    def excepted(self) -> "frozenset[tuple[str, str]] | None":
        """(detector, subject) of findings that are said to be false, by the last registry at least; None without one."""
        return frozenset(self._exceptions.values()) if self._exceptions is not None else None

    def standing(self, selector: str) -> Standing | None:
        """A revocation that is live."""
        entry = self._follower.get(f"revocation/{selector}") if self._follower is not None else None
        if entry is None or entry.value is None:
            return None
        return Standing(entry.epoch, int(entry.value["expires"]), str(entry.value["reason"]))

    # -- what the scribe and the process ask -------------------------------------------------------------------------

    def tell(self, scribe: Scribe) -> None:
        """Tell this one what is read."""
        self._scribe = scribe

    def whole(self) -> Whole | None:
        """What is live; None while the log is not whole."""
        follower, beat = self._follower, self._beat
        if follower is None or beat is None or not self._whole_now:
            return None
        return Whole(entries=follower.entries(), epoch=follower.epoch, time_ns=beat.time_ns, keys=self._keys)

    def say(self) -> dict[str, Any]:
        """As the run file has it."""
        follower = self._follower
        return {
            "epoch": follower.epoch if follower is not None and self._whole_now else self._floor[0], "hosts": len(self._hosts),
            "synced": self._whole_now, "why": self.trouble, "refused": dict(follower.refused) if follower is not None else {},
        }  # fmt: skip

    # -- following ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow for ever; returns only by cancellation. Raises OperatorFault."""
        while True:
            consumer = None
            try:
                self._follower = self._follower or self._new_follower()
                if self._follower is None:
                    self.trouble = f"no control key is pinned in {self._home.trusted('control')}"
                else:
                    embedded = embedded_broker(self._config)
                    consumer = AIOKafkaConsumer(
                        bootstrap_servers=self._servers, client_id=f"wardline-{self._slot}-control", enable_auto_commit=False,
                        auto_offset_reset="earliest", fetch_max_wait_ms=20 if embedded else 500,
                        **kafka_security(self._config),
                    )  # fmt: skip
                    await asyncio.wait_for(consumer.start(), 15)
                    consumer.assign([self._partition])
                    await self._follow(consumer, self._follower)
            except (TimeoutError, KafkaError, OSError) as fault:
                self.trouble = first_line(fault)
                log.warning("control: %s; another consumer goes on", self.trouble)
            finally:
                self._consumer = None
                if consumer is not None:
                    await stop_client(consumer, STOP_S)
            await asyncio.sleep(RECONNECT_S)

    def _new_follower(self) -> Follower | None:
        pins = control_pins(self._home)
        keys = self._keys or pins
        epoch, counter = self._floor
        return Follower(keys, epoch=epoch, counter=counter) if keys else None

    async def _follow(self, consumer: Any, follower: Follower) -> None:
        """Read from the beginning, or on from where the consumer before stopped; returns when another is needed."""
        if self._position:
            consumer.seek(self._partition, self._position)
        else:
            await self._begin(consumer, follower)
        self._consumer = consumer
        heard_at = time.monotonic()
        while time.monotonic() - heard_at < SILENT_S:
            found = await consumer.getmany(self._partition, timeout_ms=POLL_MS, max_records=MESSAGES_MAX)
            end = consumer.highwater(self._partition) or 0
            if found:
                heard_at = time.monotonic()
            for message in found.get(self._partition, ()):
                # an end that is newer than the fetch is further: the message then counts as not the last, which is safe
                if not self._heard(follower, message.value, at_end=message.offset + 1 >= end):
                    await asyncio.sleep(self._again_s)
                    self._again_s = min(2 * self._again_s, AGAIN_MAX_S)
                    await self._begin(consumer, follower)
                    break
                self._position = message.offset + 1
            if self._joined and self._beat is not None and follower.counter > self._floor[1]:
                self._save(follower)
            async with self._moved:
                self._moved.notify_all()
            await asyncio.sleep(0)

    async def _begin(self, consumer: Any, follower: Follower) -> None:
        """Read the log from its beginning."""
        follower.begin()
        self._joined = False
        self._past = []
        self._position = 0
        await consumer.seek_to_beginning(self._partition)

    def _heard(self, follower: Follower, data: bytes | None, *, at_end: bool) -> bool:
        """Take one message; False when the log must be read again from its beginning."""
        try:
            said = follower.take(data, at_end=at_end)
        except FrameFault as fault:
            self._refused(fault)
            return True
        if isinstance(said, Beat):
            if not said.whole:
                metrics.CONTROL_REFUSED.labels("digest").inc()
                self.trouble = f"heartbeat {said.counter} names another state than the log has"
                log.warning("control: %s; the log is read again", self.trouble)
                return False
            self._beat = said
            self.trouble = ""
            if not self._joined or self._past:  # what came behind a gap was put off until now
                self._join(follower)
        elif said is not None:
            assert data is not None
            self._take(follower, said, data)
        return True

    def _refused(self, fault: FrameFault) -> None:
        metrics.CONTROL_REFUSED.labels(fault.reason).inc()
        self._refusals.say(fault)

    def _take(self, follower: Follower, entry: Entry, data: bytes) -> None:
        if not follower.synced:
            if len(self._past) < PAST_MAX:
                self._past.append((entry, data))
            return
        if entry.kind == "key":
            self._keys = follower.keys
        if entry.kind == "enforcer":
            before = self._hosts.get(entry.name)
            now = _public(entry)
            if before is not None and before != now:
                self._bury(entry.name, before)
            if now:
                self._hosts[entry.name] = now
            else:
                self._hosts.pop(entry.name, None)
            log.info("host `%s` is %s, epoch %d", entry.name, "registered" if now else "removed", entry.epoch)
            # a crash before this is on the disk: the next start believes the last registry until it has read the log
            self._save(follower, sync=True)
        elif entry.kind == "exception" and self._exceptions is not None:
            others = {name: one for name, one in self._exceptions.items() if name != entry.name}
            self._exceptions = others | _exceptions([entry])
            self._save(follower, sync=True)
        if self._scribe is not None:
            self._scribe.add(entry)

    def _join(self, follower: Follower) -> None:
        """A heartbeat vouches for everything that was read."""
        hosts = {entry.name: public for entry in follower.entries("enforcer") if (public := _public(entry))}
        for name, public in self._hosts.items():
            if hosts.get(name) != public:
                self._bury(name, public)
        self._hosts = hosts
        self._keys = follower.keys
        self._exceptions = _exceptions(follower.entries("exception"))
        self._joined = True
        self._again_s = RECONNECT_S
        self._gave_up = False
        self._save(follower, sync=True)
        self._ready.set()
        log.info("the control log is whole: epoch %d, %d entries, %d hosts", follower.epoch, follower.live, len(hosts))
        if self._scribe is not None:
            live = ((entry, data) for entry, data in self._past if follower.get(entry.key) is not entry)
            self._scribe.catch_up(live)
        self._past = []

    def _bury(self, name: str, public: bytes) -> None:
        self._former.pop(name, None)
        self._former[name] = public
        while len(self._former) > FORMER_MAX:
            del self._former[next(iter(self._former))]

    # -- on the disk -------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        kept = read_kept(self._path)
        if kept is None:
            return
        self._floor = (kept.epoch, kept.counter)
        self._keys, self._hosts, self._former = dict(kept.keys), dict(kept.hosts), dict(kept.former)
        self._exceptions = dict(kept.exceptions)
        self._ready.set()

    def _save(self, follower: Follower, *, sync: bool = False) -> None:
        now = time.monotonic()
        if not sync and now - self._saved_at < SAVE_S:
            return
        self._saved_at = now
        self._floor = (follower.epoch, follower.counter)
        kept = Kept(epoch=follower.epoch, counter=follower.counter, keys=self._keys, hosts=self._hosts, former=self._former,
                    exceptions=self._exceptions or {})  # fmt: skip
        write_kept(self._path, kept, sync=sync)


def registry_file(home: Home, slot: str) -> Path:
    """Where a worker keeps the last registry: whose frames count, and how far control was heard."""
    return private_dir(home.root / "faust" / slot) / "registry.json"


def _exceptions(entries: Iterable[Entry]) -> dict[str, tuple[str, str]]:
    """Name -> (detector, subject) of those that are live."""
    return {entry.name: (str(one["detector"]), str(one["subject"])) for entry in entries if (one := entry.value) is not None}


def _public(entry: Entry) -> bytes:
    """The key that an entry registers; empty when it removes one, or has none that can be used."""
    if entry.value is not None and not entry.registered:
        log.error("entry `%s` of epoch %d has no Ed25519 key: its host counts as removed", entry.key, entry.epoch)
    return entry.registered
