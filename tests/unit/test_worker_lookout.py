"""Tap and lookout, with the pump before them: whatever dies, whoever has which partition, in whatever order frames come, the
same is found, once."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pytest

from pipeline.core.detect import Detector, detectors
from pipeline.core.detect.interface import Room
from pipeline.shells.worker import lookout, patience, tap
from schemas.findings import DENY_BURST, FIRST_SEEN, LEAK, RISK, SECOND_HOLDER
from schemas.frame import Frame
from schemas.records import SEPARATOR, Kind, Verdict
from tests.support.frames import BOOT, Host, Record, effect, record
from tests.support.stitching import span_of
from tests.support.watching import Worker, World

DAY_US = 86_400_000_000
START_US = 1_700_006_400_000_000
"""A midnight, UTC."""

HOSTS = ("enforce-1", "enforce-2")


def calls() -> list[Record]:
    """What a few agents do in three days; on the last, one looks where it must not, tells secrets, and has another's token."""
    made: list[Record] = []

    def call(agent: str, time_us: int, **fields: Any) -> None:
        seq = len(made) + 1
        domain = fields.pop("domain", "example.com")
        texts = {"agent": agent, "session": "", "action": "http:GET", "resource": f'Host::"{domain}:443"', "host": domain,
                 "domain": domain, "trace_id": f"{agent}-{seq // 5:012d}".encode()[:16].ljust(16, b".")}  # fmt: skip
        made.append(record(seq, time=time_us, **texts | fields))
        if fields.get("verdict", Verdict.ALLOW) == Verdict.ALLOW:
            made.append(effect(seq + 1, seq, bytes_out=500, trace_id=made[-1]["trace_id"]))

    for day in range(3):
        for hour in range(0, 24, 3):
            for number, agent in enumerate(("planner", "researcher", "clerk")):
                at = START_US + day * DAY_US + hour * 3_600_000_000 + number * 1_000_000
                call(agent, at, credential=f"secret-of-{agent}", proof="secret", address=f"10.0.{number}.7:4711")
    evil = START_US + 2 * DAY_US + 12 * 3_600_000_000
    for n in range(24):
        call("clerk", evil + n * 2_000_000, verdict=Verdict.DENY, reason="forbid", domain=f"internal-{n}.example")
    for n in range(24):
        sub = "".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz234567", k=40))
        call("clerk", evil + 600_000_000 + n * 1_000_000, domain="drop.example", host=f"{sub}.drop.example",
             resource=f'Host::"{sub}.drop.example:443"')  # fmt: skip
    call("clerk", evil + 700_000_000, credential="secret-of-planner", proof="secret", address="192.0.2.9:1")
    return made


def whole(records: Sequence[Record]) -> list[Record]:
    """The same calls, each that has ended as one record: every other one, and all of the last third."""
    made: list[Record] = []
    for at, one in enumerate(records):
        if one["kind"] != Kind.EFFECT or (at < len(records) * 2 // 3 and at % 4 == 1):
            made.append(one)
            continue
        ended = {name: one[name] for name in ("outcome", "status", "bytes_out", "bytes_in", "duration_us")}
        decision = made[-1]
        made[-1] = {**decision, **ended, "address": f"{decision['address']}{SEPARATOR}192.0.2.1:443"}
    return made


Fed: TypeAlias = list[tuple[int, Frame]]
"""Frames, and the partitions that they come in."""


def frames(world: World, size: int, seed: int = 0, told: Callable[[list[Record]], list[Record]] = list) -> Fed:
    """The calls in frames of two hosts over two partitions, a trace's in one; in the order in which Kafka has them."""
    lanes: dict[tuple[int, int], list[Record]] = {}
    for one in told(calls()):
        digest = sum(one["trace_id"])
        lanes.setdefault((digest % 2, digest // 2 % len(world.hosts)), []).append(one)
    rows = {
        (partition, host): [lane[at : at + size] for at in range(0, len(lane), size)]
        for (partition, host), lane in sorted(lanes.items())
    }
    turns = [lane for lane, parts in rows.items() for _ in parts]
    random.Random(seed).shuffle(turns)
    left = {lane: iter(parts) for lane, parts in rows.items()}
    return [(partition, world.hosts[host].frame(next(left[partition, host]), partition)) for partition, host in turns]


def world() -> World:
    return World(partitions=2, hosts=[Host("enforce-2")])


async def second_half(there: World, everything: Fed, step: str) -> tuple[Worker, Fed]:
    """One worker takes the first half and ends; another dies at `step` of the rest: that one, and what it has not taken."""
    half = len(everything) // 2
    one = await there.start()
    await there.feed(one, everything[:half])
    await there.quiet(one)
    await one.end()
    two = await there.start()
    two.die(step)
    return two, await there.feed(two, everything[half:])


def script(play: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        async def main() -> None:
            async with asyncio.timeout(120):
                await play()

        asyncio.run(main())

    test.__doc__ = play.__doc__
    return test


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S", 0.005)
    monkeypatch.setattr(patience, "RETRY_MAX_S", 0.01)
    monkeypatch.setattr(lookout, "RECONNECT_S", 0.01)
    monkeypatch.setattr(tap, "SETTLE_S", 0.01)


async def plainly(size: int = 40, seed: int = 0, **changes: Any) -> World:
    """One worker, which nothing happens to."""
    there = world()
    worker = await there.start(**changes)
    await there.feed(worker, frames(there, size, seed))
    await there.quiet(worker)
    await there.end()
    return there


def none_twice(there: World) -> None:
    assert [one for one, times in Counter((f.id, f.version) for f in there.words).items() if times > 1] == []


@script
async def test_what_is_wrong_is_found_and_is_stored_before_anybody_hears_of_it() -> None:
    there = await plainly()
    kinds = Counter(f.detector for f in there.findings().values() if not f.withdrawn)
    assert {DENY_BURST, FIRST_SEEN, LEAK, RISK, SECOND_HOLDER} <= kinds.keys(), kinds
    none_twice(there)
    assert {one for _, one in there.woken} == {f.id for f in there.words}
    assert {(f.id, f.version) for f in there.acted} == {(f.id, f.version) for f in there.words}
    first = there.log.index("work-1 findings")
    assert there.log.index("work-1 act") > first
    assert there.log.index("work-1 insert") < there.log.index("work-1 publish"), "rows first, then what is in them"


@script
async def test_the_same_is_found_whatever_the_order_and_size_of_frames_and_batches() -> None:
    said = (await plainly()).said()
    for size, seed, records in ((40, 1, 10), (7, 2, 100), (1000, 3, 100_000), (13, 4, 1)):
        assert (await plainly(size, seed, batch_records=records)).said() == said


@script
async def test_the_same_is_found_of_calls_that_come_whole_and_by_who_reads_them_back() -> None:
    said = (await plainly()).said()
    there = world()
    two, left = await second_half(there, frames(there, 40, told=whole), "publish")
    await two.end()
    three = await there.start()
    await there.feed(three, left)
    await there.quiet(three)
    await there.end()
    assert there.said() == said
    assert {row["outcome"] for row in there.table().to_pylist() if row["kind"] == Kind.DECISION} == {0, 1}
    none_twice(there)


@script
async def test_a_replay_of_everything_makes_no_finding_twice() -> None:
    there = await plainly()
    before = list(there.words)
    for _ in range(2):
        again = await there.start()
        await there.feed(again, frames_again(there))
        await there.quiet(again)
        await there.end()
    assert there.words == before


@script
async def test_a_new_worker_says_who_has_told_most_before_it_hears_anything() -> None:
    there = await plainly()
    again = await there.start()
    await again.until(lambda: again.lookout.say()["told"])
    told = again.lookout.say()["told"]
    assert told == sorted(told, key=lambda one: -one[2])
    leaks = {(f.agent, f.domain) for f in there.findings().values() if f.detector == LEAK}
    assert leaks & {(agent, destination) for agent, destination, _ in told}
    await there.end()


def frames_again(there: World) -> list[tuple[int, Frame]]:
    """The same frames, byte for byte, from hosts that begin to seal anew with the keys they have."""
    there.hosts = [Host(host.name, key=host.key) for host in there.hosts]
    return frames(there, 40)


STEPS = ("insert", "publish", "findings", "act", "commit")


@pytest.mark.parametrize("step", STEPS)
def test_nothing_is_lost_or_found_twice_when_a_worker_is_killed_behind(step: str) -> None:
    """Each life gets a bit further, and is read again from the start: what was acknowledged may not have been committed."""

    async def play() -> None:
        said = (await plainly()).said()
        there = world()
        deaths = 0
        for life in range(6):
            worker = await there.start()
            if life < 5:
                worker.die(step)
            await there.feed(worker, frames_again(there)[: 6 * (life + 1)] if life < 5 else frames_again(there))
            await there.quiet(worker)
            deaths += worker.dead
            await worker.end()
        assert there.said() == said
        none_twice(there)
        assert deaths >= 2
        acted = {(f.id, f.version) for f in there.acted}
        assert {(f.id, f.version) for f in there.findings().values()} <= acted, "a rule has heard of each, whoever died"

    script(play)()


@pytest.mark.parametrize("step", ["insert", "publish", "findings", "act"])
def test_a_broker_that_forgets_everything_costs_nothing(step: str) -> None:
    """The rows of records are there; what was published of them, or was not, is gone. A host sends again what it has heard
    nothing of, and nothing else."""

    async def play() -> None:
        said = (await plainly()).said()
        there = world()
        two, left = await second_half(there, frames(there, 40), step)
        await there.quiet(two)
        assert two.dead
        await two.end()
        there.egress.clear()
        there.committed.clear()
        three = await there.start()
        await there.feed(three, left)
        await there.quiet(three)
        await there.end()
        assert there.said() == said
        none_twice(there)

    script(play)()


@script
async def test_two_workers_that_share_and_exchange_partitions_find_what_one_finds() -> None:
    said = (await plainly()).said()
    there = world()
    one, two = await there.start("work-1", [0]), await there.start("work-2", [1])
    everything = frames(there, 20)
    half = len(everything) // 2
    for partition, frame in everything[:half]:
        await there.feed((one, two)[partition], [(partition, frame)])
    await there.quiet(one, two)
    await one.end()
    await two.end()
    one, two = await there.start("work-1", [1]), await there.start("work-2", [0])
    there.offsets.clear()
    for partition, frame in everything:
        await there.feed((two, one)[partition], [(partition, frame)])
    await there.quiet(one, two)
    await there.end()
    assert there.said() == said
    none_twice(there)


@script
async def test_a_frame_that_was_stored_and_not_said_is_said_with_the_bytes_of_the_calls_it_ends() -> None:
    there = world()
    host = there.host
    worker = await there.start()
    began = host.frame([record(1, agent="planner", host="a.example", domain="a.example")])
    ended = host.frame([effect(2, 1, bytes_out=5_000, trace_id=began_trace())])
    await there.feed(worker, [(0, began)])
    worker.die("insert")
    await there.feed(worker, [(0, began), (0, ended)][1:])
    await worker.end()
    assert sum(table.num_rows for table in there.records) == 4
    before = [len(messages) for messages in there.egress.values()]
    again = await there.start()
    await there.feed(again, [(0, began), (0, ended)])
    await there.quiet(again)
    rows = pa.concat_tables([parcel.rows["agent"] for parcel in there.parcels()]).to_pylist()
    assert sum(map(len, there.egress.values())) > sum(before)
    assert {(row["agent"], row["calls"], row["bytes_out"]) for row in rows} == {("planner", 1, 10), ("planner", 0, 4_990)}
    # a third reading, by the same worker: it has said it
    count = sum(map(len, there.egress.values()))
    there.offsets[0] = 2
    await there.feed(again, [(0, ended)])
    assert sum(map(len, there.egress.values())) == count
    await there.end()


@script
async def test_a_frame_that_is_stored_while_the_past_is_read_back_is_no_past() -> None:
    """Else its call would be known to have ended before its end is looked at, and no byte of it would count."""
    there = world()
    one = await there.start()
    await there.feed(one, [(0, there.host.frame([record(1, agent="planner")]))])
    await one.end()
    before = sum(map(len, there.egress.values()))
    two = await there.start()
    two.recalls_late = True
    there.offsets[0] = 1
    await there.feed(two, [(0, there.host.frame([effect(2, 1, bytes_out=5_000, trace_id=began_trace())]))])
    assert sum(map(len, there.egress.values())) > before
    rows = pa.concat_tables([parcel.rows["agent"] for parcel in there.parcels()]).to_pylist()
    assert {(row["agent"], row["calls"], row["bytes_out"]) for row in rows} == {("planner", 1, 10), ("planner", 0, 4_990)}
    await there.end()


def began_trace() -> bytes:
    return bytes(record(1)["trace_id"])


@script
async def test_traces_that_a_worker_died_with_are_written_by_the_next_one() -> None:
    there = world()
    trace, parent = b"t" * 16, span_of(BOOT, 1)
    first = there.host.frame([record(1, trace_id=trace)])
    second = there.host.frame([record(2, trace_id=trace, parent_span=parent, time=START_US)])
    worker = await there.start()
    worker.jobs[1].cancel()  # the tap's clock, which would write them
    await there.feed(worker, [(0, first), (0, second)])
    await worker.end()
    assert there.edges == []
    again = await there.start()
    await there.feed(again, [(0, there.host.frame(1))])
    await again.until(lambda: there.edges)
    rows = pa.concat_tables(there.edges).to_pylist()
    assert {(row["seq"], row["parent_seq"], row["assurance"]) for row in rows} >= {(2, 1, "observed")}
    await there.end()


class Broken:
    """A detector that fails."""

    name, subject, entries, evicted = "broken", "agent", 0, 0
    room: tuple[Room, ...] = ()

    def forget_oldest(self, which: int) -> bool:
        return False

    def take(self, rows: pa.Table) -> list[Any]:
        raise ZeroDivisionError("a defect")

    def clear(self) -> None:
        pass


@script
async def test_a_detector_that_fails_stops_neither_the_others_nor_the_record() -> None:
    def make() -> Sequence[Detector]:
        return [Broken(), *detectors()]

    there = World(partitions=2, hosts=[Host("enforce-2")], make=make)
    worker = await there.start()
    await there.feed(worker, frames(there, 40))
    await there.quiet(worker)
    assert worker.lookout.say()["defects"] == 2
    assert DENY_BURST in {f.detector for f in there.words}
    await there.end()


@script
async def test_aggregates_that_no_worker_of_ours_has_signed_are_refused() -> None:
    there = await plainly()
    strange = await plainly()
    del strange.keys["work-1"]
    for partition, messages in strange.egress.items():
        there.egress[partition] += [messages[0], messages[0][:-1], b"noise"]
    before = list(there.words)
    worker = await there.start()
    await there.quiet(worker)
    assert (there.words, worker.lookout.calls) == (before, 0)
    await there.end()


def test_the_calls_of_these_tests_are_of_every_kind() -> None:
    kinds = Counter(one["kind"] for one in calls())
    assert kinds[Kind.DECISION] > 100
    assert kinds[Kind.EFFECT] > 50
