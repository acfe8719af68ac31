"""The pump against a store with moods: nothing is acknowledged before it is stored, whatever the store does."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from faust.types import TP

from pipeline.core.intake import Check
from pipeline.shells.worker import patience
from pipeline.shells.worker.pump import Pump
from pipeline.shells.worker.sink import Fenced, StoreAway, StoreRefuses, Taken
from pipeline.shells.worker.watchdog import Signs, Watchdog, verdict
from schemas.config import Config, Worker
from schemas.errors import OperatorFault
from schemas.frame import Frame, Lane
from schemas.limits import LANE_AHEAD_MAX
from tests.support.frames import Host, forged, record

GENERATION = 4


def tp(partition: int) -> TP:
    return TP("wardline.calls", partition)


class Store:
    """Remembers what it is given. `moods` are what its next calls do first: an exception to raise, or a function to call."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.tries: list[tuple[str, bytes]] = []
        self.moods: list[Exception | Callable[[], None]] = []
        self.lanes: dict[Lane, tuple[int, Sequence[int]]] = {}
        self.epoch = 0

    def _mood(self) -> None:
        if self.moods:
            mood = self.moods.pop(0)
            if isinstance(mood, Exception):
                raise mood
            mood()

    def take_over(self, partition: int) -> Taken:
        self._mood()
        self.epoch += 1
        self.log.append(("take", partition))
        lanes = {lane: state for lane, state in self.lanes.items() if lane.partition == partition}
        return Taken(epoch=self.epoch, lanes=lanes, dead={})

    def insert(self, stream: memoryview, token: str, owned: Mapping[int, int]) -> None:
        self.tries.append((token, bytes(stream)))
        self._mood()
        rows = pa.ipc.open_stream(stream).read_all()
        frames = [row["seq"] for row in rows.to_pylist() if row["kind"] == 0]
        self.log.append(("insert", frames, rows.num_rows, dict(owned)))

    def keep(self, letters: Sequence[Mapping[str, Any]]) -> None:
        self._mood()
        self.log.append(("keep", [letter["reason"] for letter in letters]))

    def note(self, frontiers: Sequence[Mapping[str, Any]]) -> None:
        self._mood()
        self.log.append(("note", [row["frame_no"] for row in frontiers]))


class Keys:
    """A registry that knows one host. `late` are hosts that it hears of while somebody waits for it to catch up."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = {host.name: host.key.public_key().verify for host in hosts}
        self.former: dict[str, Check] = {}
        self.late: list[Host] = []
        self.sure = True
        self.why = ""
        self.asked = 0
        self.heard = asyncio.Event()

    async def ready(self) -> None:
        await self.heard.wait()

    def key_of(self, host: str) -> Check | None:
        return self.hosts.get(host)

    def former_of(self, host: str) -> Check | None:
        return self.former.get(host)

    async def caught_up(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        self.hosts |= {host.name: host.key.public_key().verify for host in self.late}
        return self.sure


class Bench:
    """A pump with a store, a host, and a word list of everything that is said and acknowledged."""

    def __init__(self, **settings: int) -> None:
        self.store = Store()
        self.host = Host()
        self.keys = Keys(self.host)
        self.said: list[tuple[Lane, int]] = []
        self.woken: list[str] = []
        self.acked: list[int] = []
        self.offsets: dict[int, int] = {}
        self.generation = GENERATION
        config = Config(worker=replace(Worker(), **{"quiet_ms": 20, **settings}))
        self.pump = Pump(
            config, store=self.store, voice=self, keys=self.keys, generation=lambda: self.generation, slot="work-1"
        )
        self.clock = asyncio.create_task(self.pump.clock())

    def say(self, lane: Lane, frame_no: int) -> None:
        self.said.append((lane, frame_no))

    def wake(self, digest: str) -> None:
        self.woken.append(digest)

    def event(self, data: Frame | bytes | None, partition: int = 0, *, generation: int = GENERATION) -> Any:
        offset = self.offsets.get(partition, 0)
        self.offsets[partition] = offset + 1
        value = data.wire if isinstance(data, Frame) else data
        message = SimpleNamespace(tp=tp(partition), offset=offset, generation_id=generation, value=value)
        return SimpleNamespace(message=message, ack=lambda: self.acked.append(offset))

    async def take(self, *data: Frame | bytes | None, partition: int = 0) -> None:
        for one in data:
            await self.pump.take(self.event(one, partition))

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not what():
                await asyncio.sleep(0.005)


def script(**settings: int) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], Callable[[], None]]:
    def decorate(play: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        def test() -> None:
            async def main() -> None:
                bench = Bench(**settings)
                bench.pump.open({tp(n) for n in range(4)})
                try:
                    async with asyncio.timeout(20):
                        await play(bench)
                finally:
                    bench.clock.cancel()
                    bench.pump._thread.shutdown()

            asyncio.run(main())

        test.__doc__ = play.__doc__
        return test

    return decorate


def wait_for(go: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        assert go.wait(10)

    return wait


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S", 0.01)
    monkeypatch.setattr(patience, "RETRY_MAX_S", 0.02)


@script()
async def test_frames_are_acknowledged_in_order_after_their_insert_and_their_host_hears_of_it(bench: Bench) -> None:
    await bench.take(*(bench.host.frame(3) for _ in range(3)))
    assert bench.acked == []
    await bench.until(lambda: bench.acked)
    assert bench.acked == [0, 1, 2]
    assert bench.store.log == [("take", 0), ("insert", [1, 2, 3], 12, {0: 1})]
    assert bench.said[-1] == (bench.host.lane(0), 3)
    assert (bench.pump.figures.records, bench.pump.figures.frames, bench.pump.figures.inserts) == (9, 3, 1)


@script()
async def test_a_partition_is_taken_over_at_its_first_event_and_not_before(bench: Bench) -> None:
    assert bench.store.log == []
    await bench.take(bench.host.frame(1, 2), partition=2)
    await bench.take(bench.host.frame(1, 1), partition=1)
    await bench.until(lambda: len(bench.acked) == 2)
    assert bench.store.log[:2] == [("take", 2), ("take", 1)]
    assert bench.store.log[-1] == ("insert", [1, 1], 4, {2: 1, 1: 2})


@script()
async def test_a_store_that_is_away_gets_the_same_insert_again_until_it_is_back(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.store.moods += [StoreAway("the store is away: refused")] * 5
    await bench.until(lambda: bench.pump.waits_for)
    assert bench.acked == []
    assert "the store is away" in bench.pump.waits_for
    await bench.until(lambda: bench.acked)
    assert len(bench.store.tries) == 6
    assert len(set(bench.store.tries)) == 1, "an insert that may have been stored is only safe under its own token"
    assert bench.pump.waits_for == ""


@script(insert_timeout_s=1)
async def test_a_store_that_is_away_is_waited_for_longer_than_one_that_refuses(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.store.moods += [StoreAway("away")] * 70
    await bench.until(lambda: bench.acked)
    assert len(bench.store.tries) == 71


@script(insert_timeout_s=1)
async def test_a_store_that_keeps_refusing_ends_the_worker_and_nothing_is_acknowledged(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.store.moods += [StoreRefuses("the store refuses: too many parts")] * 1000
    assert await bench.pump.ended() == 1
    assert bench.acked == []


@script()
async def test_a_fenced_worker_ends_to_be_started_again_and_acknowledges_nothing(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.store.moods.append(Fenced("another worker has taken a partition of this one"))
    assert await bench.pump.ended() == 75
    await asyncio.sleep(0.05)
    assert (bench.acked, len(bench.store.tries)) == ([], 1)


@script()
async def test_what_an_operator_must_put_right_ends_the_worker_with_2(bench: Bench) -> None:
    bench.store.moods.append(OperatorFault("secrets/writer.password: mode is 0644, must be 0600"))
    taking = asyncio.create_task(bench.take(bench.host.frame(2)))
    assert await bench.pump.ended() == 2
    taking.cancel()


@script()
async def test_a_defect_ends_the_worker_and_nothing_is_acknowledged(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.store.moods.append(ZeroDivisionError("a defect"))
    assert await bench.pump.ended() == 1
    assert bench.acked == []


@script()
async def test_a_dead_letter_is_kept_before_anything_of_its_batch_is_acknowledged(bench: Bench) -> None:
    good, bad = bench.host.frame(2), bench.host.frame([record(9, kind=6)])
    await bench.take(forged(good), good, bad)
    await bench.until(lambda: bench.acked)
    assert bench.store.log == [("take", 0), ("keep", ["signature", "value"]), ("insert", [1, 2], 4, {0: 1})]
    assert bench.acked == [0, 1, 2]
    assert bench.said[-1] == (bench.host.lane(0), 2), "what the host has signed and is wrong does not hold up its lane"
    assert len(bench.woken) == 2
    assert bench.pump.figures.dead_letters == 2


@script()
async def test_a_dead_letter_that_cannot_be_kept_is_not_acknowledged(bench: Bench) -> None:
    await bench.take(b"noise")
    bench.store.moods += [StoreAway("away")] * 3
    await bench.until(lambda: bench.pump.waits_for)
    assert bench.acked == []
    await bench.until(lambda: bench.acked)
    assert bench.store.log == [("take", 0), ("keep", ["form"])]


@script()
async def test_a_duplicate_is_stored_once_and_its_frontier_is_said_again(bench: Bench) -> None:
    frame = bench.host.frame(2)
    await bench.take(frame, frame)
    await bench.until(lambda: len(bench.acked) == 2)
    assert [entry for entry in bench.store.log if entry[0] == "insert"] == [("insert", [1], 3, {0: 1})]
    before = len(bench.said)
    await bench.take(frame)
    assert bench.said[before:] == [(bench.host.lane(0), 1)]
    await bench.until(lambda: bench.acked == [0, 1, 2])
    assert bench.pump.figures.duplicates == 2


@script()
async def test_a_take_over_says_what_is_stored_already(bench: Bench) -> None:
    """The host may have lost the frontier that the worker before said."""
    bench.store.lanes = {bench.host.lane(0): (7, [9]), bench.host.lane(1): (3, [])}
    await bench.take(bench.host.frame(2, frame_no=8))
    await bench.until(lambda: bench.acked)
    assert bench.said == [(bench.host.lane(0), 7), (bench.host.lane(0), 9)]


@script()
async def test_a_frame_of_a_host_that_registers_just_now_is_stored_and_the_others_wait_for_nobody(bench: Bench) -> None:
    late = Host("late")
    bench.keys.late.append(late)
    await bench.take(bench.host.frame(2), late.frame(2), bench.host.frame(2))
    await bench.until(lambda: len(bench.acked) == 3)
    assert ("insert", [1, 1, 2], 9, {0: 1}) in bench.store.log
    assert (bench.keys.asked, bench.pump.figures.dead_letters) == (1, 0)


@script()
async def test_a_frame_of_a_host_that_is_not_registered_is_a_dead_letter_once_everything_was_heard(bench: Bench) -> None:
    await bench.take(Host("stranger").frame(2))
    await bench.until(lambda: bench.acked)
    assert bench.store.log == [("take", 0), ("keep", ["key"])]
    assert bench.keys.asked == 1


@script()
async def test_while_control_cannot_be_heard_a_stranger_is_left_to_send_again(bench: Bench) -> None:
    """It may be registered in what could not be read: neither a dead letter nor a reason to stand still."""
    bench.keys.sure = False
    await bench.take(Host("stranger").frame(2), bench.host.frame(2))
    await bench.until(lambda: len(bench.acked) == 2)
    assert bench.store.log == [("take", 0), ("insert", [1], 3, {0: 1})]
    assert (bench.pump.figures.put_off, bench.pump.figures.dead_letters) == (1, 0)


@script()
async def test_what_a_removed_host_had_stored_is_known_when_it_is_read_again_and_nothing_else_counts(bench: Bench) -> None:
    first, second = bench.host.frame(2), bench.host.frame(2)
    await bench.take(first)
    await bench.until(lambda: bench.acked)
    bench.keys.former = {bench.host.name: bench.keys.hosts.pop(bench.host.name)}
    await bench.take(first, second, forged(first))
    await bench.until(lambda: len(bench.acked) == 4)
    assert [entry for entry in bench.store.log if entry[0] in ("keep", "insert")] == [
        ("insert", [1], 3, {0: 1}), ("keep", ["key", "key"]),
    ]  # fmt: skip
    assert bench.pump.figures.duplicates == 1


@script()
async def test_no_frame_is_judged_before_there_is_a_registry_and_a_drain_does_not_wait_for_one(bench: Bench) -> None:
    bench.keys.why = "control: it has not been heard yet"
    taking = asyncio.create_task(bench.take(bench.host.frame(2)))
    await bench.until(lambda: bench.pump.waits_for)
    assert bench.pump.waits_for == bench.keys.why
    before = bench.pump.progress_at
    await bench.until(lambda: bench.pump.progress_at > before)  # the watchdog must not end a worker that waits for control
    assert bench.store.log == []
    async with asyncio.timeout(1):
        await bench.pump.drain()
    bench.pump.open({tp(0)})
    bench.keys.why = ""
    bench.keys.heard.set()
    await taking
    await bench.until(lambda: bench.acked)
    assert bench.pump.waits_for == ""


@script()
async def test_a_frame_that_is_put_off_is_acknowledged_and_not_stored(bench: Bench) -> None:
    await bench.take(bench.host.frame(2, frame_no=LANE_AHEAD_MAX + 1))
    await bench.until(lambda: bench.acked)
    assert bench.store.log == [("take", 0)]
    assert bench.pump.figures.put_off == 1


@script()
async def test_an_event_of_an_assignment_that_is_over_is_dropped_and_not_acknowledged(bench: Bench) -> None:
    await bench.pump.take(bench.event(bench.host.frame(2), generation=GENERATION - 1))
    await bench.pump.take(bench.event(bench.host.frame(2, 7), 7))
    await asyncio.sleep(0.1)
    assert (bench.store.log, bench.acked) == ([], [])


@script()
async def test_an_event_that_comes_before_the_assignment_is_known_waits_for_it(bench: Bench) -> None:
    await bench.pump.drain()
    taking = asyncio.create_task(bench.take(bench.host.frame(2)))
    await asyncio.sleep(0.05)
    assert not taking.done()
    bench.pump.open({tp(0)})
    await bench.until(lambda: bench.acked)


@script()
async def test_a_hole_in_the_offsets_ends_the_worker(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    bench.offsets[0] = 2
    taking = asyncio.create_task(bench.take(bench.host.frame(2)))
    assert await bench.pump.ended() == 1
    taking.cancel()


@script()
async def test_a_drain_lets_the_running_insert_end_and_forgets_the_rest(bench: Bench) -> None:
    go = threading.Event()
    bench.store.moods += [lambda: None, wait_for(go)]
    await bench.take(bench.host.frame(2))
    await bench.until(lambda: bench.store.tries)
    await bench.take(bench.host.frame(2))
    draining = asyncio.create_task(bench.pump.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    go.set()
    await draining
    assert bench.acked == [0]
    assert not bench.pump.is_open
    await asyncio.sleep(0.1)
    assert bench.acked == [0]


@script()
async def test_a_drain_does_not_wait_for_a_store_that_is_away(bench: Bench) -> None:
    bench.store.moods += [lambda: None, *[StoreAway("away")] * 100_000]
    await bench.take(bench.host.frame(2))
    await bench.until(lambda: bench.pump.waits_for)
    async with asyncio.timeout(1):
        await bench.pump.drain()
    assert bench.acked == []
    bench.store.moods.clear()
    bench.generation += 1
    bench.pump.open({tp(0)})
    again = bench.event(Host("other", key=bench.host.key).frame(1), generation=bench.generation)
    again.message.offset = 0
    await bench.pump.take(again)
    await bench.until(lambda: ("keep", ["key"]) in bench.store.log)
    assert [entry for entry in bench.store.log if entry[0] == "take"] == [("take", 0)] * 2, "taken over anew"


@script(batch_records=4, quiet_ms=60_000)
async def test_one_batch_fills_while_the_one_before_is_inserted(bench: Bench) -> None:
    go = threading.Event()
    bench.store.moods += [lambda: None, wait_for(go)]
    await bench.take(*(bench.host.frame(2) for _ in range(3)))
    await bench.until(lambda: bench.store.tries)
    blocked = asyncio.create_task(bench.take(bench.host.frame(2), bench.host.frame(2)))
    await asyncio.sleep(0.05)
    assert (blocked.done(), bench.acked) == (False, []), "a full batch holds up the reader"
    go.set()
    await blocked
    await bench.until(lambda: len(bench.acked) == 4)
    assert [entry[1] for entry in bench.store.log if entry[0] == "insert"] == [[1, 2], [3, 4]]


@script(quiet_ms=60_000)
async def test_a_worker_that_is_stopped_stores_what_it_has_taken_in(bench: Bench) -> None:
    await bench.take(bench.host.frame(2))
    await bench.pump.finish()
    assert bench.acked == [0]
    assert not bench.pump.busy()


@script()
async def test_frontiers_become_rows_now_and_then_and_may_fail(bench: Bench) -> None:
    bench.pump._notes._noted_at = -1e9
    bench.store.moods += [lambda: None, lambda: None, StoreAway("away")]
    await bench.take(bench.host.frame(2))
    await bench.until(lambda: bench.acked)
    bench.pump._notes._noted_at = -1e9
    await bench.take(bench.host.frame(2))
    await bench.until(lambda: ("note", [2]) in bench.store.log)


# -- watchdog -----------------------------------------------------------------------------------------------------------

LIVELY = Signs(beat_at=99, progress_at=99, heartbeat_at=99, behind=0)


@pytest.mark.parametrize(
    ("signs", "why"),
    [
        (LIVELY, ""),
        (replace(LIVELY, progress_at=1), ""),
        (replace(LIVELY, progress_at=1, behind=3), "3 messages wait and nothing was finished for 99 s"),
        (replace(LIVELY, behind=3), ""),
        (replace(LIVELY, beat_at=60), "the event loop has not run for 40 s"),
        (replace(LIVELY, beat_at=0, heartbeat_at=0), ""),
        (replace(LIVELY, heartbeat_at=60), "the broker has not answered a heartbeat for 40 s"),
    ],
)
def test_the_watchdog_ends_what_lives_and_does_not_move(signs: Signs, why: str) -> None:
    assert verdict(signs, 100.0, 30.0) == why


def test_another_embedded_broker_ends_the_worker_and_one_that_is_away_does_not() -> None:
    found: list[object] = [("pid", 1)]
    dog = Watchdog(limit_s=1e9, signs=lambda: LIVELY, broker=lambda: found[0])
    assert dog.look(100.0) == ""
    found[0] = None
    assert dog.look(100.0) == ""
    found[0] = ("pid", 2)
    assert dog.look(100.0) == "the embedded broker is a new one"


def test_after_a_pause_of_the_whole_process_the_others_get_a_turn_first() -> None:
    dog = Watchdog(limit_s=30.0, signs=lambda: replace(LIVELY, beat_at=99), broker=lambda: None)
    dog._looked = 100.0
    assert dog.look(200.0) == ""
    assert dog.look(200.2) == "the event loop has not run for 101 s"
