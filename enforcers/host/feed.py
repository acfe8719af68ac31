"""The host's ear: reads the topic `control`, has `Obey` tell the board and the doors who the agents are, and keeps on the disk
what must not be forgotten.

    read   from the beginning, or where the last consumer stopped; a few hundred messages, then the others of this loop
    ask    again and again: where does the log end? What comes behind the answer was written after the question. So nobody
           takes a heartbeat for new that lay in a buffer while this process, or the network, stood still
    keep   what must be on the disk is written in a thread; only then is it acknowledged, and the board fresh

A consumer that hears nothing for QUIET_S is replaced: it may have been forgotten by its broker. What was read stays read, since
the next heartbeat's digest says whether it is whole.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from prometheus_client import Counter, Gauge

from enforcers.core.obey import Floors, Obey, parse_floors
from enforcers.host.clients import RECONNECT_S, START_S, Broker, Watch
from ext.board import BoardWriter
from schemas.config import Config
from schemas.errors import FrameFault, PeerFault, WardlineError
from schemas.follower import Follower
from schemas.home import Home
from schemas.keys import Verify, control_pins
from schemas.links import first_line, stop_client
from schemas.process import private_dir, write_atomic

log = logging.getLogger(__name__)

AT_ONCE: Final = 256
"""Messages that are read before the other parts of the host have their turn: some ten milliseconds of work."""

POLL_MS: Final = 100
FETCH_WAIT_MS: Final = 100
"""How long the broker may keep a fetch, on a real Kafka: a question about the log's end waits behind it."""

EMBEDDED_WAIT_MS: Final = 40
"""The same for the embedded one, which answers early for nothing that comes meanwhile: a revocation waits half of it. A fetch
costs some 0.3 ms of a processor, so at half of this an idle host spent most of its time on these."""

QUIET_S: Final = 3.0
"""Less than what is fresh lasts, so that a consumer that was forgotten costs nothing."""

AGAIN_S: Final = 0.5
AGAIN_SHARE: Final = 2
"""Between two readings of the whole log: AGAIN_S, and this many times as long as the last one took, where that is longer."""

TICK_S: Final = 0.1
SAY_S: Final = 5.0
"""One log line for each reason of refusal in this time."""

REFUSED = Counter("wardline_feed_refused", "Messages of control and bundles that were refused", ["reason"])
EPOCH = Gauge("wardline_feed_epoch", "Control epoch that the board has")
COUNTER = Gauge("wardline_feed_counter", "Counter of the last heartbeat that agreed")
AGE = Gauge("wardline_feed_heartbeat_age_seconds", "Age of the last heartbeat that agreed, between control's clock and ours")
LEFT = Gauge("wardline_feed_fresh_seconds", "How much longer the board may be believed; 0 when it is stale")
ENTRIES = Gauge("wardline_board_entries", "Selectors that are revoked")
BYTES = Gauge("wardline_board_bytes", "Bytes of the board")


class Feed:
    """One host's. `obey` has what it believes; `wake` is set when another bundle is wanted."""

    def __init__(
        self, home: Home, config: Config, broker: Broker, *, name: str, key: str, board: BoardWriter,
        hosts: Callable[[], Iterable[str]],
    ) -> None:  # fmt: skip
        """`key` is the host's public key, hex; `hosts` are all that this process seals for.

        Raises OperatorFault when `feed.json` or a pinned key is damaged.
        """
        self.wake = asyncio.Event()
        self.news = asyncio.Event()
        """Set when something was heard, or is on the disk: whoever acknowledges clears it."""
        self._home = home
        self._broker = broker
        self._name = name
        self._key = key
        self._board = board
        self._hosts = hosts
        self._stale_ns = config.control.stale_ms * 1_000_000
        self._ask_s = config.control.stale_ms / 1000 / 25
        self._sync = config.enforcer.fsync
        self._path = private_dir(home.host(name)) / "feed.json"
        self._log = TopicPartition(broker.topics.control, 0)
        self._news = asyncio.Event()
        self._identity: object = None
        self._next = 0
        self._heard = 0.0
        self._took = 0.0
        """Seconds that the reading up to the last `synced` has taken."""
        self._asked: deque[tuple[int, int]] = deque()
        self._spoken: dict[str, float] = {}
        self._differed = 0
        self._logged = "joining"
        self._bundles_refused: dict[str, int] = {}
        self._verifiers: dict[bytes, Verify] = {}
        self._floors = parse_floors(self._path.read_bytes(), str(self._path)) if self._path.exists() else None
        self.obey = self._make()

    def _make(self) -> Obey:
        kept = self._floors or Floors()
        keys = {bytes.fromhex(key_id): bytes.fromhex(public) for key_id, public in kept.keys.items()}
        keys = keys or control_pins(self._home)
        self._may_believe = bool(keys)
        follower = Follower(keys, epoch=kept.epoch, counter=kept.counter)
        return Obey(
            follower, self._board, host=self._name, key=self._key, stale_ns=self._stale_ns, floors=self._floors,
            write_agents=self._write_agents,
        )  # fmt: skip

    def _write_agents(self, data: bytes) -> None:
        """For the doors. Not synced: after a loss of power it is written again before any board is fresh.

        A crash inside: the file from before stays, and so does the board.
        """
        path = self._home.agents(self._name)
        try:
            write_atomic(path, data, sync=False)
        except OSError as fault:
            raise PeerFault(f"{path}: cannot be written: {(fault.strerror or str(fault)).lower()}") from fault

    # -- what others ask ---------------------------------------------------------------------------------------------

    def registered(self, host: str, key: str) -> bool:
        """Whether control has registered a host under this key."""
        return self.obey.registered(host, key)

    def verifier(self, worker: str) -> Verify | None:
        """How to verify what a worker has signed; None when control has not registered it."""
        public = self.obey.worker(worker)
        if public is None:
            return None
        if public not in self._verifiers:
            self._verifiers[public] = Ed25519PublicKey.from_public_bytes(public).verify
        return self._verifiers[public]

    @property
    def refused(self) -> dict[str, int]:
        """Reason -> how many messages."""
        found = dict(self.obey.follower.refused)
        for reason, count in self._bundles_refused.items():
            found[reason] = found.get(reason, 0) + count
        return found

    # -- reading -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read for ever. Raises OperatorFault for a pinned key that is damaged."""
        while not self._may_believe:
            self.obey.trouble = f"{self._home.trusted('control')}: no control key is pinned"
            await asyncio.sleep(RECONNECT_S)
            self.obey = self._make()
        while True:
            try:
                servers, identity = self._broker.now()
                if identity != self._identity:
                    self._identity = identity
                    self._begin()
                await self._session(servers)
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                self.obey.trouble = str(fault) if isinstance(fault, WardlineError) else first_line(fault)
                log.debug("control log: %s", self.obey.trouble)
            await asyncio.sleep(RECONNECT_S)

    def _begin(self) -> None:
        self.obey.begin()
        self._next, self._took = 0, 0.0

    async def _session(self, servers: str) -> None:
        """One consumer; returns when another is needed."""
        wait_ms = EMBEDDED_WAIT_MS if self._broker.embedded else FETCH_WAIT_MS
        consumer = self._broker.consumer(servers, fetch_max_wait_ms=wait_ms)
        watch = Watch(self._broker, self._identity)
        asker: asyncio.Task[None] | None = None
        self._asked.clear()
        try:
            await asyncio.wait_for(consumer.start(), START_S)
            consumer.assign([self._log])
            consumer.seek(self._log, self._next)
            asker = asyncio.create_task(self._ask(consumer))
            self._heard = time.monotonic()
            self.obey.trouble = ""
            while not watch.another() and time.monotonic() - self._heard < QUIET_S:
                got = await consumer.getmany(timeout_ms=POLL_MS)
                # as of the fetch that brought them: the next one is not sent before these are taken
                end = consumer.highwater(self._log) or 0
                messages = got.get(self._log, [])
                if messages:
                    await self._read(messages, end)
                if self.obey.broken:
                    await self._again(consumer)
        finally:
            if asker is not None:
                asker.cancel()
            await stop_client(consumer)

    async def _read(self, messages: Sequence[Any], end: int) -> None:
        self._heard = begun = time.monotonic()
        joining = not self.obey.follower.synced
        for number, message in enumerate(messages, 1):
            self._next = message.offset + 1
            try:
                self.obey.message(
                    message.value, at_end=self._next >= end, written_ns=self._written(message.offset), wall_ns=time.time_ns()
                )  # fmt: skip
            except FrameFault as fault:
                self._refuse(fault)
            if self.obey.broken:
                break
            if number % AT_ONCE == 0:
                self._news.set()
                await asyncio.sleep(0)
        self._took += time.monotonic() - begun if joining else 0.0
        self._news.set()
        self.news.set()
        if self.obey.wanted_policy != self.obey.policy:
            self.wake.set()

    async def _again(self, consumer: AIOKafkaConsumer) -> None:
        """What was read is not what control has signed: read it all again."""
        if self.obey.follower.refused.get("digest", 0) > self._differed:
            self._differed = self.obey.follower.refused["digest"]
            REFUSED.labels("digest").inc()
        log.warning("control log: %s; it is read again", self.obey.why or "its digest differs")
        await asyncio.sleep(max(AGAIN_S, AGAIN_SHARE * self._took))
        self._begin()
        self._heard = time.monotonic()
        consumer.seek(self._log, 0)

    def _refuse(self, fault: FrameFault) -> None:
        REFUSED.labels(fault.reason).inc()
        now = time.monotonic()
        if now - self._spoken.get(fault.reason, -SAY_S) >= SAY_S:
            self._spoken[fault.reason] = now
            log.warning("refused (%s): %s", fault.reason, fault)

    def refuse_bundle(self, fault: FrameFault) -> None:
        """A message of the topic `bundles` is no good."""
        self._bundles_refused[fault.reason] = self._bundles_refused.get(fault.reason, 0) + 1
        self._refuse(fault)

    # -- how old can it be -------------------------------------------------------------------------------------------

    async def _ask(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            asked = time.monotonic_ns()
            try:
                end = (await consumer.end_offsets([self._log]))[self._log]
            except (TimeoutError, KafkaError, OSError) as fault:
                log.debug("control log: its end is not known: %s", fault)
            else:
                while self._asked and self._asked[-1][1] >= end:
                    self._asked.pop()  # a later question with the same answer says more
                self._asked.append((asked, end))
            await asyncio.sleep(self._ask_s)

    def _written(self, offset: int) -> int:
        """When it was asked, for the last time, where the log ends and this message was not in it; 0 when it never was."""
        while len(self._asked) > 1 and self._asked[1][1] <= offset:
            self._asked.popleft()
        return self._asked[0][0] if self._asked and self._asked[0][1] <= offset else 0

    # -- keeping -----------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Have on the disk what must be there, and look at the clock, for ever."""
        while True:
            try:
                await asyncio.wait_for(self._news.wait(), TICK_S)
                self._news.clear()
            except TimeoutError:
                pass
            floors = self.obey.floors(self._hosts())
            if floors is not None:
                await self._write(floors)
            self._look()

    async def _write(self, floors: Floors) -> None:
        obey = self.obey
        try:
            # a crash before the rename inside: what was heard since is heard again, and nothing of it was acknowledged
            await asyncio.to_thread(write_atomic, self._path, floors.encode(), sync=self._sync)
        except OSError as fault:
            obey.unkept = f"{self._path}: cannot be written: {fault.strerror}"
            log.warning("%s; nothing is acknowledged, and what is not fresh becomes stale", obey.unkept)
            await asyncio.sleep(RECONNECT_S)
            return
        obey.unkept = ""
        obey.kept(floors)
        self.news.set()

    def _look(self) -> None:
        now = time.monotonic_ns()
        self.obey.tick(now)
        if self.obey.state != self._logged:
            self._logged = self.obey.state
            log.info("control: %s at epoch %d%s", self.obey.state, self.obey.epoch, f": {w}" if (w := self.obey.why) else "")
        EPOCH.set(self.obey.epoch)
        COUNTER.set(self.obey.follower.counter)
        if self.obey.beat_ns:
            AGE.set((time.time_ns() - self.obey.beat_ns) / 1e9)
        LEFT.set(max(0, self.obey.until_ns - now) / 1e9)
        ENTRIES.set(self._board.entries)
        BYTES.set(self._board.bytes)

    def said(self) -> dict[str, Any]:
        """For the run file."""
        obey = self.obey
        return {"epoch": obey.epoch, "control": {"state": obey.state, "why": obey.why}, "refused": self.refused}
