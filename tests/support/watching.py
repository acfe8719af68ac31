"""Workers with everything around them in one process: Kafka, the store and time stand still when the test says so.

    world = World(partitions=2)
    worker = await world.start("work-1")          pump, tap and lookout as shipped; each has what it needs of `world`
    await world.feed(worker, frames)
    worker.die("insert")                          it dies behind its next insert: what it did until then stays, nothing after

`World` holds what outlives a worker: rows, the messages of `egress` and what is committed of them.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faust.types import TP

from pipeline.core.detect import detectors
from pipeline.core.detect.interface import Detector
from pipeline.core.intake import Check
from pipeline.core.parcel import Parcel, parse_parcel
from pipeline.core.seen import Numbers
from pipeline.shells.worker.carrier import Flow
from pipeline.shells.worker.cases import Cases
from pipeline.shells.worker.lookout import Lookout
from pipeline.shells.worker.past import Word, word_of
from pipeline.shells.worker.pump import Pump
from pipeline.shells.worker.sink import Fenced, StoreAway, Taken
from pipeline.shells.worker.tap import Tap
from schemas.config import Config, Detect, Kafka
from schemas.config import Worker as Settings
from schemas.findings import FINDING_SCHEMA, Finding, finding_row, parse_finding
from schemas.frame import Frame, Lane
from schemas.past import LOOKED_AT
from schemas.records import Kind
from schemas.store import INSERT_SCHEMA
from tests.support.frames import Host

CALLS, EGRESS = "wardline.calls", "wardline.egress"
OF_CALLS = (Kind.DECISION, Kind.PROGRESS, Kind.EFFECT, Kind.LOST)


class World:
    """What outlives a worker."""

    def __init__(
        self, *, partitions: int = 2, hosts: Sequence[Host] = (), make: Callable[[], Sequence[Detector]] = detectors
    ) -> None:
        self.partitions = partitions
        self.host = Host()
        self.hosts = [self.host, *hosts]
        self.make = make
        self.records: list[pa.Table] = []
        self.traces: list[pa.Table] = []
        self.edges: list[pa.Table] = []
        self.words: list[Finding] = []
        """Rows of findings, in the order of their inserts."""
        self.tokens: set[str] = set()
        self.fence: dict[int, int] = {}
        self.egress: dict[int, list[bytes]] = defaultdict(list)
        self.committed: dict[int, int] = {}
        self.woken: list[tuple[str, str]] = []
        self.acted: list[Finding] = []
        self.keys: dict[str, Ed25519PrivateKey] = {}
        self.workers: list[Worker] = []
        self.log: list[str] = []
        self.offsets: Counter[int] = Counter()

    # -- rows --------------------------------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        return pa.concat_tables(self.records).unify_dictionaries().combine_chunks()

    def of_calls(self, columns: Sequence[str], keep: Callable[[pa.Table], "np.ndarray[Any, Any]"]) -> pa.Table:
        if not self.records:
            return INSERT_SCHEMA.empty_table().select(list(columns))
        table = self.table()
        mask = np.isin(table["kind"].to_numpy(), [int(kind) for kind in OF_CALLS]) & keep(table)
        rows = table.filter(pa.array(mask)).sort_by([("boot", "ascending"), ("call_seq", "ascending"), ("seq", "ascending")])
        return rows.select(list(columns))

    def frames(self) -> dict[Lane, list[int]]:
        found: dict[Lane, list[int]] = defaultdict(list)
        for table in self.records:
            for row in table.filter(pa.compute.equal(table["kind"], 0)).to_pylist():
                found[Lane(host=row["enforcer"], host_boot=row["call_seq"], partition=row["partition"])].append(row["seq"])
        return found

    def findings(self) -> dict[str, Finding]:
        """The last word on each finding."""
        last: dict[str, Finding] = {}
        for one in self.words:
            if one.id not in last or one.version >= last[one.id].version:
                last[one.id] = one
        return last

    def said(self) -> dict[str, tuple[Any, ...]]:
        """What holds at the end: of each finding that does, all that it says. A version counts how often that changed."""
        return {
            one: tuple(sorted((name, str(value)) for name, value in finding_row(f, "").items() if name != "version"))
            for one, f in self.findings().items() if not f.withdrawn
        }  # fmt: skip

    def parcels(self) -> list[Parcel]:
        """The messages of `egress`."""
        check = next(iter(self.keys.values())).public_key().verify
        return [parse_parcel(data, check) for messages in self.egress.values() for data in messages]

    def forget(self) -> None:
        """Let go of what a test that goes on for long does not ask for: rows and messages that were taken."""
        self.records.clear()
        self.traces.clear()
        self.edges.clear()
        self.tokens.clear()
        self.woken.clear()
        self.acted.clear()
        self.log.clear()
        for messages in self.egress.values():
            messages[:] = [b""] * len(messages)

    # -- workers -----------------------------------------------------------------------------------------------------

    async def start(self, slot: str = "work-1", partitions: Sequence[int] | None = None, **changes: Any) -> "Worker":
        """A worker that owns these partitions of both topics (all of them)."""
        key = self.keys.setdefault(slot, Ed25519PrivateKey.generate())
        worker = Worker(self, slot, key, list(range(self.partitions)) if partitions is None else list(partitions), changes)
        self.workers.append(worker)
        return worker

    async def feed(self, worker: "Worker", frames: Sequence[tuple[int, Frame]]) -> list[tuple[int, Frame]]:
        """Give (partition, frame) to a worker's pump, as Faust would, and wait until it has acknowledged them, or is dead.

        Returns those that it has not acknowledged.
        """
        done: set[int] = set()
        for number, (partition, frame) in enumerate(frames):
            offset = self.offsets[partition]
            self.offsets[partition] += 1
            message = SimpleNamespace(tp=TP(CALLS, partition), offset=offset, generation_id=1, value=frame.wire)
            event = SimpleNamespace(message=message, ack=partial(done.add, number))
            taking = asyncio.ensure_future(worker.pump.take(event))
            await worker.until(taking.done)
            if worker.dead:
                taking.cancel()
                break
        await worker.until(lambda: len(done) == len(frames))
        return [one for number, one in enumerate(frames) if number not in done]

    async def quiet(self, *workers: "Worker") -> None:
        """Wait until everything that was published is taken, and committed."""
        for worker in workers:
            await worker.until(worker.caught_up)

    async def end(self) -> None:
        for worker in self.workers:
            await worker.end()


@dataclass
class Worker:
    """One life of a worker. `dies` names the step behind which it is dead."""

    world: World
    slot: str
    key: Ed25519PrivateKey
    partitions: list[int]
    changes: Mapping[str, Any]
    dead: bool = False
    dies: str = ""
    steps: set[str] = field(default_factory=set)
    """What it has done."""
    recalls_late: bool = False
    """Whether the past is read only behind the next insert: then what is being stored is there already."""
    jobs: list["asyncio.Task[Any]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = {"quiet_ms": 5} | {name: value for name, value in self.changes.items() if hasattr(Settings(), name)}
        config = Config(kafka=Kafka(servers="h:1", partitions=self.world.partitions), worker=replace(Settings(), **settings),
                        detect=Detect(lookback_days=400))  # fmt: skip
        reach = Reach(self)
        self.tap = Tap(config, store=reach, pen=reach, cases=lambda stored: self._cases(reach, stored, None), carrier=reach,
                       sign=self.key.sign, slot=self.slot)  # fmt: skip
        self.pump = Pump(config, store=reach, voice=reach, keys=reach, generation=lambda: 1, slot=self.slot, tap=self.tap)
        self.consumer = Consumer(self)
        self.lookout = Lookout(config, slot=self.slot, servers="h:1", keys=reach, store=reach, words=reach, risks=reach,
                               flow=Flow(config), carrier=reach, sign=self.key.sign, make=self.world.make,
                               cases=lambda words, risks: self._cases(reach, words.persist, reach, (reach, risks.persist)),
                               )  # fmt: skip
        self.lookout._consumer = lambda: self.consumer  # type: ignore[method-assign]
        self.pump.open({TP(CALLS, partition) for partition in self.partitions})
        for partition in self.partitions:
            self.world.offsets[partition] = 0  # read again from the start, as after a lost commit
        self.jobs = [asyncio.create_task(job) for job in (self.pump.clock(), self.tap.clock(), self.lookout.run())]

    def _cases(self, reach: "Reach", stored: Any, responder: Any, fusing: Any = None) -> Cases:
        return Cases(reach, stored=stored, wake=lambda agent, one: self.world.woken.append((agent, one)), slot=self.slot,
                     responder=responder, fusing=fusing)  # fmt: skip

    def die(self, step: str) -> None:
        """Be dead behind the next `step`."""
        self.dies = step

    def at(self, step: str) -> None:
        """A step is over."""
        self.world.log.append(f"{self.slot} {step}")
        self.steps.add(step)
        if self.dies == step:
            self.dead = True
            self.gone()

    def alive(self) -> None:
        if self.dead:
            self.gone()

    def gone(self) -> NoReturn:
        raise StoreAway("this worker is dead")

    def caught_up(self) -> bool:
        """Whether everything that was published is taken, and committed."""
        parts, taken = self.lookout._parts, self.world.committed
        ready = len(parts) == len(self.partitions) and all(part.ready for part in parts.values())
        return ready and all(len(self.world.egress[q]) == taken.get(q, 0) for q in self.partitions)

    async def until(self, what: Callable[[], object]) -> None:
        """Wait, unless the worker is dead before; one that ends is a failure."""
        async with asyncio.timeout(30):
            while not what() and not self.dead:
                for job in self.jobs:
                    if job.done() and not job.cancelled() and job.exception() is not None:
                        raise AssertionError("a job of the worker ended") from job.exception()
                await asyncio.sleep(0.002)

    async def end(self) -> None:
        """Whatever it was doing, nothing of it runs any more."""
        self.dead = True
        for job in self.jobs:
            job.cancel()
        await asyncio.gather(*self.jobs, return_exceptions=True)
        for flight in (self.pump._flight, self.pump._telling):
            if flight is not None:
                flight.cancel()
                await asyncio.gather(flight, return_exceptions=True)
        self.pump._thread.shutdown()
        for desk in (self.tap._desk, self.tap._pen, *self.lookout._desks):
            desk.close()


class Reach:
    """The world as one worker reaches it: store, broker, control. Nothing answers to the dead."""

    waits_for = ""
    why = ""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._world = worker.world

    # the pump's store

    def take_over(self, partition: int) -> Taken:
        self._worker.alive()
        world = self._world
        world.fence[partition] = epoch = world.fence.get(partition, 0) + 1
        lanes = {lane: _frontier(numbers) for lane, numbers in world.frames().items() if lane.partition == partition}
        return Taken(epoch=epoch, lanes=lanes, dead={})

    def insert(self, stream: memoryview, token: str, owned: Mapping[int, int]) -> None:
        self._worker.alive()
        if any(self._world.fence[partition] != epoch for partition, epoch in owned.items()):
            raise Fenced("another worker has taken a partition of this one")
        if token not in self._world.tokens:
            self._world.tokens.add(token)
            self._world.records.append(pa.ipc.open_stream(bytes(stream)).read_all())
        self._worker.at("insert")

    def keep(self, letters: Sequence[Mapping[str, Any]]) -> None:
        raise AssertionError(f"no dead letters here: {letters}")

    def note(self, frontiers: Sequence[Mapping[str, Any]]) -> None:
        self._worker.alive()

    # voice, control

    def say(self, lane: Lane, frame_no: int) -> None:
        pass

    def wake(self, digest: str) -> None:
        pass

    async def ready(self) -> None:
        pass

    async def caught_up(self) -> bool:
        return True

    def key_of(self, host: str) -> Check | None:
        return next((one.key.public_key().verify for one in self._world.hosts if one.name == host), None)

    def former_of(self, host: str) -> Check | None:
        return None

    def worker_key(self, worker: str) -> Check | None:
        key = self._world.keys.get(worker)
        return key.public_key().verify if key is not None else None

    async def act(self, findings: Sequence[Finding]) -> None:
        self._worker.alive()
        self._world.acted += findings
        self._worker.at("act")

    # the broker

    async def carry(self, messages: Sequence[tuple[int, bytes]], closing: asyncio.Event) -> None:
        for partition, message in messages:
            self._worker.alive()
            self._world.egress[partition].append(message)
            self._worker.at("publish")

    # past

    def recent(self, columns: Sequence[str], partitions: Sequence[int], since_s: int, most: int) -> tuple[pa.Table, int]:
        self._worker.alive()
        while self._worker.recalls_late and "insert" not in self._worker.steps:
            time.sleep(0.002)
        return self._world.of_calls(columns, lambda t: np.isin(t["partition"].to_numpy(), partitions)), 0

    def open_calls(self, partitions: Sequence[int], since_s: int, before_s: int) -> pa.Table:
        return self._world.of_calls(LOOKED_AT, lambda t: np.zeros(t.num_rows, bool))

    def boots(self, since_s: int) -> list[int]:
        return sorted({boot for table in self._world.records for boot in table["boot"].to_pylist()} - {0})

    def traces_of(self, columns: Sequence[str], traces: Sequence[bytes], since_s: int) -> pa.Table:
        return self._world.of_calls(columns, lambda t: np.array([one in traces for one in t["trace_id"].to_pylist()], bool))

    traces = traces_of

    def earlier(self, calls: Sequence[tuple[int, int]]) -> pa.Table:
        self._worker.alive()
        wanted = set(calls)

        def named(table: pa.Table) -> "np.ndarray[Any, Any]":
            pairs = zip(table["boot"].to_pylist(), table["call_seq"].to_pylist(), strict=True)
            return np.array([pair in wanted for pair in pairs], bool)

        return self._world.of_calls(LOOKED_AT, named)

    def frames(self, since_s: int) -> dict[Lane, Numbers]:
        self._worker.alive()
        return {lane: Numbers(numbers) for lane, numbers in self._world.frames().items()}

    def page(self, since_s: int, after: tuple[int, int, int]) -> pa.Table:
        self._worker.alive()
        rows = self._world.of_calls(LOOKED_AT, lambda t: np.ones(t.num_rows, bool))
        keys = list(zip(*(rows[name].to_pylist() for name in ("boot", "call_seq", "seq")), strict=True))
        later = [at for at, key in enumerate(keys) if key > after][:PAGE]
        return rows.take(pa.array(later, pa.int64()))

    def keep_traces(self, traces: pa.Table, edges: pa.Table) -> None:
        self._worker.alive()
        self._world.traces.append(traces)
        self._world.edges.append(edges)
        self._worker.at("traces")

    def keep_findings(self, findings: Sequence[Finding]) -> None:
        self._worker.alive()
        rows = pa.Table.from_pylist([finding_row(one, self._worker.slot) for one in findings], schema=FINDING_SCHEMA)
        self._world.words += [parse_finding(row) for row in rows.to_pylist()]
        self._worker.at("findings")

    def known(self, ids: Sequence[str]) -> dict[str, Word]:
        self._worker.alive()
        return {one: word_of(finding_row(f, "")) for one, f in self._world.findings().items() if one in set(ids)}

    def of_agents(self, agents: Sequence[str], first_us: int, last_us: int) -> list[Finding]:
        self._worker.alive()
        return [f for f in self._world.findings().values() if f.agent in agents and first_us <= f.time_us <= last_us]

    def lately(self, since_s: int, most: int) -> list[Finding]:
        self._worker.alive()
        return list(self._world.findings().values())[:most]


PAGE = 97
"""Records of a page: no divisor of anything."""


class Consumer:
    """What the lookout needs of Kafka: it reads what the world has, from what is committed."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._world = worker.world
        self._at: dict[int, int] = {}

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        told = listener.on_partitions_assigned([TP(EGRESS, q) for q in self._worker.partitions])
        self._worker.jobs.append(asyncio.ensure_future(told))

    async def seek_to_committed(self, tp: Any) -> None:
        self._at[tp.partition] = self._world.committed.get(tp.partition, 0)

    async def getmany(self, *tps: Any, timeout_ms: int, max_records: int) -> dict[Any, list[Any]]:
        found = {}
        for tp in tps:
            at = self._at[tp.partition]
            data = self._world.egress[tp.partition][at : at + 3]
            if data and not self._worker.dead:
                self._at[tp.partition] += len(data)
                found[tp] = [SimpleNamespace(offset=at + n, value=one) for n, one in enumerate(data)]
        if not found:
            await asyncio.sleep(0.002)
        return found

    async def commit(self, ends: Mapping[Any, int]) -> None:
        if self._worker.dead:
            await asyncio.Event().wait()
        self._world.committed |= {tp.partition: end for tp, end in ends.items()}
        with contextlib.suppress(StoreAway):
            self._worker.at("commit")

    def highwater(self, tp: Any) -> int:
        return len(self._world.egress[tp.partition])


def _frontier(numbers: Sequence[int]) -> tuple[int, list[int]]:
    frontier, there = 0, set(numbers)
    while frontier + 1 in there:
        frontier += 1
    return frontier, sorted(number for number in there if number > frontier)
