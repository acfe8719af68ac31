"""Looks at what every agent, credential and domain does, over all partitions of `calls`: owns partitions of `egress`.

    a partition is ours       rebuilt: where its topic stands; which frames are stored; their records, through the same sums and
                              the same detectors; what was said meanwhile is filed if it is news
    a message                 verified; frames that are known are left out; detectors take the rest
    words of detectors        filed, while the next messages are taken (`filing`): rows first, then rules, risks, readers
    and then                  the offset is committed
    anything goes wrong       what the partition's detectors know is thrown away, and made again

Detectors, findings and risks have a thread each, and findings and risks a connection: none waits for what another asks.

A consumer of its own, and no agent of Faust's: Faust hands out the messages of all topics in one row, so that a full buffer of
frames would keep back the aggregates that the intake waits for. A crash behind any line costs a rebuild: findings have names
that follow from what they are about, and what is stored is not news.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError

from pipeline.core.detect import detectors
from pipeline.core.detect.interface import Detector
from pipeline.core.parcel import finding_parcels, parcel_worker
from pipeline.shells.worker import metrics
from pipeline.shells.worker.app import MAX_POLL_S
from pipeline.shells.worker.carrier import Flow
from pipeline.shells.worker.cases import Cases, CaseStore
from pipeline.shells.worker.desk import Desk
from pipeline.shells.worker.ear import Ear
from pipeline.shells.worker.filing import Filing, Heard
from pipeline.shells.worker.parts import Part, Rebuild
from pipeline.shells.worker.patience import Given
from pipeline.shells.worker.ports import Carries, LookoutStore, WorkerKeys
from pipeline.shells.worker.registry import STOP_S
from schemas.config import Config
from schemas.egress import subject_partition
from schemas.errors import WardlineError
from schemas.findings import Finding
from schemas.links import embedded_broker, first_line, kafka_security, stop_client
from schemas.topics import Topics

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
START_S: Final = 15.0
POLL_MS: Final = 500
MESSAGES_MAX: Final = 64
"""Messages that are taken at once: 56 MiB at most."""

FETCH_BYTES: Final = 4 << 20
EMBEDDED_FETCH_WAIT_MS: Final = 50

AGAIN_S: Final = 86_400
AGAIN_MAX: Final = 10_000
"""Findings that are handed on again after a rebuild, those stored since AGAIN_S: their finder may have died before that."""

WORDS_MAX: Final = 200_000
"""Words that wait for the end of a rebuild. More are filed before it, though a later record may take them back."""

DEFECT_S: Final = 30.0


class Lookout(ConsumerRebalanceListener):  # type: ignore[misc]
    """One for a worker. All methods run on the event loop; detectors in a thread of their own.

    `words` and `risks` are connections to the store for findings, `cases(words, risks)` files them through these desks.
    """

    def __init__(
        self, config: Config, *, slot: str, servers: str, keys: WorkerKeys, store: LookoutStore,
        words: CaseStore, risks: CaseStore, cases: Callable[[Desk[CaseStore], Desk[CaseStore]], Cases], flow: Flow,
        carrier: Carries, sign: Callable[[bytes], bytes],
        make: Callable[[], Sequence[Detector]] = detectors,
    ) -> None:  # fmt: skip
        self._config = config
        self._slot = slot
        self._servers = servers
        self._keys = keys
        refused_s = config.worker.insert_timeout_s
        self._past = Desk(store, "lookout", refused_s=refused_s)
        self._desks = (self._past, Desk(words, "findings", refused_s=refused_s), Desk(risks, "risks", refused_s=refused_s))
        self._cases = cases(self._desks[1], self._desks[2])
        self._filing: Filing | None = None
        self._following: Any = None
        self._flow = flow
        self._carrier = carrier
        self._sign = sign
        self._make = make
        self._embedded = embedded_broker(config)
        self._topic = Topics(config.kafka.prefix).egress
        self._parts: dict[int, Part] = {}
        self._rebuild: Rebuild | None = None
        self._turn = asyncio.Lock()
        self._ear = Ear(keys)
        self.lag = 0
        """Messages that have not been taken, as far as the last fetch knows."""
        self.defects = 0
        """Errors that nobody foresaw, those of detectors left out."""

    # -- what the process asks ---------------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """Calls that the detectors of agents have taken since the start, rebuilds left out."""
        return self._ear.calls

    @property
    def waits_for(self) -> str:
        """Why nothing is looked at; empty when it is."""
        return next((desk.patience.waits_for for desk in self._desks if desk.patience.waits_for), "")

    def say(self) -> dict[str, Any]:
        """As the run file has it."""
        kept, evicted = Counter[str](), Counter[str]()
        for part in list(self._parts.values()):
            for detector in list(part.detectors):
                kept[detector.name] += detector.entries
                evicted[detector.name] += detector.evicted
        for name in kept:
            metrics.KEPT.labels(name).set(kept[name])
            metrics.EVICTED.labels(name).set(evicted[name])
        rebuild = self._rebuild
        return {
            "partitions": sorted(q for q, part in self._parts.items() if part.ready),
            "rebuilding": sorted(rebuild.parts) if rebuild is not None else [], "lag": self.lag, "calls": self.calls,
            "findings": self._cases.filed, "evicted": evicted.total(), "kept": dict(kept), "told": self._ear.told,
            "defects": self.defects + sum(part.defects for part in list(self._parts.values())),
        }  # fmt: skip

    # -- following ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for ever; returns only by cancellation. Raises OperatorFault, StoreRefuses."""
        await self._keys.ready()
        while True:
            try:
                await self._run()
            except (WardlineError, asyncio.CancelledError):
                raise
            except Exception:
                # a defect that no detector stands for must not keep calls from being recorded
                self.defects += 1
                metrics.DEFECTS.labels("lookout").inc()
                self._flow.give_up()
                log.exception("a defect: nothing is looked at for %.0f s, then everything is rebuilt", DEFECT_S)
                await asyncio.sleep(DEFECT_S)

    async def _run(self) -> None:
        while True:
            consumer = self._following = None
            self._filing = Filing(
                self._cases, valid=lambda one: self._parts.get(one.partition) is one.part, owns=self._owns, hand=self._hand_on,
                done=self._taken, lost=lambda one: self._again([one.partition]),
            )  # fmt: skip
            try:
                consumer = self._following = self._consumer()
                await asyncio.wait_for(consumer.start(), START_S)
                if self._embedded:
                    partitions = range(self._config.kafka.partitions)
                    consumer.assign([TopicPartition(self._topic, partition) for partition in partitions])
                    self._gained(partitions)
                else:
                    consumer.subscribe([self._topic], listener=self)
                await self._follow(consumer)
            except (TimeoutError, KafkaError, OSError) as fault:
                log.warning("aggregates: %s; another consumer goes on", first_line(fault))
            finally:
                await self._filing.stop()
                self._lost(list(self._parts))
                if consumer is not None:
                    await stop_client(consumer, STOP_S)
            await asyncio.sleep(RECONNECT_S)

    def _consumer(self) -> Any:
        options: dict[str, Any] = {
            "bootstrap_servers": self._servers, "client_id": f"wardline-{self._slot}-egress", "enable_auto_commit": False,
            "auto_offset_reset": "earliest", "max_partition_fetch_bytes": FETCH_BYTES, **kafka_security(self._config),
        }  # fmt: skip
        if self._embedded:
            return AIOKafkaConsumer(fetch_max_wait_ms=EMBEDDED_FETCH_WAIT_MS, **options)
        session_ms = self._config.worker.session_timeout_ms
        return AIOKafkaConsumer(
            group_id=f"{self._config.kafka.prefix}worker-lookout", group_instance_id=self._slot,
            max_poll_interval_ms=MAX_POLL_S * 1000, session_timeout_ms=session_ms, heartbeat_interval_ms=session_ms // 10,
            request_timeout_ms=max(40_000, 2 * session_ms), partition_assignment_strategy=[StickyPartitionAssignor], **options,
        )  # fmt: skip

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let what runs end or give up. What may stay ours stays as it is; what has gone is forgotten once that is known."""
        for desk in self._desks:
            desk.patience.closing.set()
        try:
            async with self._turn:
                await self._arrived()
        finally:
            for desk in self._desks:
                desk.patience.closing.clear()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Forget what is not ours any more; what is new is rebuilt."""
        async with self._turn:
            await self._arrived()
            now = {tp.partition for tp in assigned}
            self._lost([partition for partition in self._parts if partition not in now])
            self._gained(partition for partition in sorted(now) if partition not in self._parts)

    async def _arrived(self) -> None:
        """Wait until nothing that was heard is on its way. A fault of that is raised where messages are followed."""
        with contextlib.suppress(Exception):
            if self._filing is not None:
                await self._filing.idle()

    def _gained(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._parts[partition] = Part(list(self._make()))

    def _lost(self, partitions: Iterable[int]) -> None:
        gone = set(partitions)
        for partition in gone:
            self._parts.pop(partition, None)
        if self._rebuild is not None and gone & self._rebuild.parts.keys():
            self._rebuild = None

    def _again(self, partitions: Iterable[int]) -> None:
        """What these partitions' detectors know may be more than was filed: it is made again."""
        wanted = [partition for partition in partitions if partition in self._parts]
        self._lost(wanted)
        self._gained(wanted)

    async def _follow(self, consumer: Any) -> None:
        assert self._filing is not None
        while True:
            async with self._turn:
                busy = await self._go_on(consumer)
            ready = [TopicPartition(self._topic, partition) for partition, part in self._parts.items() if part.ready]
            if not ready:
                await asyncio.sleep(0 if busy else 0.1)
                continue
            found = await consumer.getmany(*ready, timeout_ms=0 if busy else POLL_MS, max_records=MESSAGES_MAX)
            if found:
                async with self._turn:
                    await self._heard(found)
            self._filing.check()
            self._look_behind(consumer, ready)
            await asyncio.sleep(0)

    async def _heard(self, found: Mapping[TopicPartition, Sequence[Any]]) -> None:
        assert self._filing is not None
        left = {tp.partition: messages for tp, messages in found.items() if self._ready(tp.partition)}
        try:
            for partition, messages in list(left.items()):
                part = self._parts[partition]
                words, handed = await self._take(part, messages)
                size = sum(len(message.value or b"") for message in messages)
                await self._filing.put(Heard(partition=partition, part=part, end=messages[-1].offset + 1, size=size,
                                             words=words, handed=handed))  # fmt: skip
                del left[partition]
        except Given:
            self._again(left)
        except BaseException:
            self._again(left)
            raise

    async def _taken(self, one: Heard) -> None:
        """Everything about these messages is done."""
        if not self._embedded:
            # a crash before this: the messages come again, and their frames are known from the rebuild
            with contextlib.suppress(KafkaError):
                await self._following.commit({TopicPartition(self._topic, one.partition): one.end})
        self._flow.taken(one.partition, one.size)

    def _ready(self, partition: int) -> bool:
        part = self._parts.get(partition)
        return part is not None and part.ready

    def _look_behind(self, consumer: Any, ready: Iterable[TopicPartition]) -> None:
        lag = 0
        for tp in ready:
            with contextlib.suppress(Exception):  # an assignment that is over
                end, state = consumer.highwater(tp), consumer._subscription.subscription.assignment.state_value(tp)
                lag += max(0, (end or 0) - state.position)
        self.lag = lag

    # -- messages ----------------------------------------------------------------------------------------------------

    async def _take(self, part: Part, messages: Sequence[Any]) -> tuple[list[Finding], list[Finding]]:
        """Take messages of one partition in; returns what the detectors say of it, and what was handed on in it."""
        for worker in {parcel_worker(message.value or b"") for message in messages}:
            while self._keys.worker_key(worker) is None and not await self._keys.caught_up():
                patience = self._past.patience
                patience.stands("control cannot be heard, and a worker is not known")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(patience.closing.wait(), RECONNECT_S)
                if patience.closing.is_set():
                    raise Given
        self._past.patience.waits_for = ""
        every = list(self._parts.values())
        return await self._past.run(lambda: self._ear.hear(part, [message.value or b"" for message in messages], every))

    # -- rebuilding --------------------------------------------------------------------------------------------------

    async def _go_on(self, consumer: Any) -> bool:
        """A step of the rebuild; returns whether there is another."""
        try:
            if self._rebuild is None:
                fresh = {partition: part for partition, part in self._parts.items() if not part.ready}
                if not fresh:
                    return False
                self._rebuild = await self._begin(consumer, fresh)
            else:
                await self._read(self._rebuild)
        except Given:
            self._again(list(self._rebuild.parts) if self._rebuild is not None else [])
        return self._rebuild is not None

    async def _begin(self, consumer: Any, fresh: dict[int, Part]) -> Rebuild:
        """Note where the topic stands, then which frames are stored: what comes behind the first is in the second, or new."""
        for partition in fresh:
            tp = TopicPartition(self._topic, partition)
            if self._embedded:
                await consumer.seek_to_end(tp)
                await consumer.position(tp)
                self._flow.skipped(partition)
            else:
                await consumer.seek_to_committed(tp)
        since_s = int(time.time()) - self._config.detect.lookback_days * 86_400
        frames = await self._past.persist("stored frames", self._past.store.frames, since_s)
        log.info("partitions %s of aggregates are ours: %d lanes are read again", sorted(fresh), len(frames))
        partitions = self._config.kafka.partitions
        return Rebuild(parts=fresh, partitions=partitions, since_s=since_s, frames=frames, began=time.monotonic())

    async def _read(self, rebuild: Rebuild) -> None:
        page = await self._past.persist("records", self._past.store.page, rebuild.since_s, rebuild.after)
        if page.num_rows:
            every = list(self._parts.values())
            await self._past.run(lambda: rebuild.sum(page, every))
            if len(rebuild.words) > WORDS_MAX:
                words, rebuild.words = list(rebuild.words.values()), {}
                rebuild.spilt = True
                await self._file([], part=words)
            return
        again = await self._past.persist("findings", self._past.store.lately, int(time.time()) - AGAIN_S, AGAIN_MAX)
        whole, part_words = rebuild.words_of(again)
        # those of agents of ours, and those that we hand to whoever has theirs
        mine = [one for one in again if rebuild.owns(one.agent) or rebuild.said(one)]
        await self._file(whole, mine, part_words)
        for part in rebuild.parts.values():
            part.seen.begin(rebuild.frames)
            part.ready = True
        every = list(self._parts.values())
        await self._past.run(lambda: self._ear.sum_up(every))
        log.info("partitions %s of aggregates: rebuilt from %d records in %.1f s", sorted(rebuild.parts), rebuild.records,
                 time.monotonic() - rebuild.began)  # fmt: skip
        self._rebuild = None

    async def _file(self, words: Sequence[Finding], again: Sequence[Finding] = (), part: Sequence[Finding] = ()) -> None:
        await self._hand_on(await self._cases.file(words, again, part, owns=self._owns))

    def _owns(self, agent: str) -> bool:
        """Whether an agent's risk is made here."""
        return subject_partition(agent, self._config.kafka.partitions) in self._parts

    async def _hand_on(self, others: Sequence[Finding]) -> None:
        """Give findings to those who make the risks of their agents."""
        if others:
            # a crash before this: they are handed on by the rebuild, which finds them stored lately
            partitions = self._config.kafka.partitions
            messages = await self._past.run(lambda: finding_parcels(others, partitions, self._slot, self._sign))
            await self._carrier.carry(messages, self._past.patience.closing)
