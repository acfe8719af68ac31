"""Planted bugs: each breaks one shipped part in the way that its docstring says, while it is entered.

They stand for what somebody might write one day. A simulation that did not notice them would prove nothing.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from enforcers.core import lanes
from enforcers.host import doors, engine, link, outbox
from pipeline.core import intake, ledger
from pipeline.shells.worker import pump
from schemas.frame import Frame, parse_frame
from schemas.frontier import Frontier, parse_frontier
from schemas.records import make_boot
from tests.sim import host as hosts
from tests.sim import shipped

Planted = Callable[[], Any]


@contextmanager
def frontier_counts_beyond_a_hole() -> Iterator[None]:
    """The worker tells the highest frame that is stored, not the highest without a hole before it."""
    settle = ledger._settle

    def wrong(state: Any) -> bool:
        if state.beyond:
            state.frontier = max(state.beyond)
            state.beyond.clear()
        settle(state)
        return True

    with patch.object(ledger, "_settle", wrong):
        yield


@contextmanager
def acknowledged_before_inserted() -> Iterator[None]:
    """Offsets are acknowledged when the insert begins."""
    fly = pump.Pump._fly

    async def wrong(self: Any, entries: Sequence[Any], owned: Any) -> None:
        for entry in entries:
            entry.event.ack()
        await fly(self, entries, owned)

    with patch.object(pump.Pump, "_fly", wrong):
        yield


@contextmanager
def trimmed_when_kafka_has_it() -> Iterator[None]:
    """The host forgets a frame when the broker has acknowledged it."""
    acked = lanes.LaneBook.acked

    def wrong(self: lanes.LaneBook, ref: lanes.FrameRef, now_ns: int) -> None:
        acked(self, ref, now_ns)
        for running in Hosts.engines:
            if running.lanes is self:
                running.stored(ref.lane, ref.frame_no)

    with patch.object(lanes.LaneBook, "acked", wrong), Hosts():
        yield


class Hosts:
    """Knows each engine that is made while it is entered."""

    engines: ClassVar[list[engine.Engine]] = []

    def __enter__(self) -> None:
        made = engine.Engine.__init__

        def init(self: engine.Engine, *args: Any) -> None:
            made(self, *args)
            Hosts.engines.append(self)

        self._patch = patch.object(engine.Engine, "__init__", init)
        self._patch.start()

    def __exit__(self, *_: object) -> None:
        self._patch.stop()
        Hosts.engines.clear()


@contextmanager
def deduped_by_kafka_offset() -> Iterator[None]:
    """A frame is known by the offset that it came under: a second copy has another one."""
    with (
        patch.object(ledger.Ledger, "standing", lambda *_: ledger.Standing.NEW),
        patch.object(ledger.Ledger, "begin", _begin_anyway),
        patch.object(ledger.Ledger, "stored", _stored_anyway(ledger.Ledger.stored)),
    ):
        yield


def _begin_anyway(self: ledger.Ledger, lane: Any, frame_no: int, digest: bytes, previous: bytes) -> None:
    self._lanes[lane.partition].setdefault(lane, ledger._Lane()).pending.add(frame_no)


def _stored_anyway(stored: Callable[..., bool]) -> Callable[..., bool]:
    def wrong(self: ledger.Ledger, lane: Any, frame_no: int, **more: Any) -> bool:
        self._lanes[lane.partition][lane].pending.add(frame_no)
        return stored(self, lane, frame_no, **more)

    return wrong


@contextmanager
def fence_not_checked() -> Iterator[None]:
    """Inserts go without the condition that their epochs are still the highest."""
    fly = pump.Pump._fly

    async def wrong(self: Any, entries: Sequence[Any], owned: Any) -> None:
        await fly(self, entries, {})

    with patch.object(pump.Pump, "_fly", wrong):
        yield


@contextmanager
def frame_numbers_used_again_after_a_crash() -> Iterator[None]:
    """Each start of the host has the same boot, so its lanes begin at 1 again."""
    with patch.object(hosts, "make_boot", lambda *_: make_boot(1, 1)):
        yield


@contextmanager
def renamed_before_written() -> Iterator[None]:
    """A box gets its name before its bytes are on the disk."""

    def wrong(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
        beside = path.with_name(f".{path.name}.new")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    with patch.object(outbox, "write_atomic", wrong):
        yield


@contextmanager
def frontier_believed_unverified() -> Iterator[None]:
    """The host takes any well-formed frontier."""

    def wrong(data: bytes, key_of: Any) -> Frontier:
        return parse_frontier(data, lambda _: lambda *_: None)

    with patch.object(link, "parse_frontier", wrong):
        yield


@contextmanager
def revoked_without_draining() -> Iterator[None]:
    """On a revoke the worker closes at once: the running insert goes on while the next owner begins."""

    async def wrong(self: Any) -> None:
        self._open.clear()
        self._batch.cut()
        self._next.clear()

    with patch.object(pump.Pump, "drain", wrong):
        yield


@contextmanager
def last_box_ignored_at_start() -> Iterator[None]:
    """A start takes the newest box for one that was not finished."""
    load = outbox.Outbox.load

    def wrong(self: outbox.Outbox) -> Any:
        cut_no, states, heads = load(self)
        return cut_no, states, heads[:-1]

    with patch.object(outbox.Outbox, "load", wrong):
        yield


@contextmanager
def forged_number_shadows_the_real_frame() -> Iterator[None]:
    """A frame that is refused passes its lane like a dead letter of the host's own, whoever has made it."""
    judge = intake.judge

    def wrong(data: Any, partition: int, key_of: Any, known: ledger.Ledger) -> Any:
        judged = judge(data, partition, key_of, known)
        if not isinstance(judged, intake.Dead) or judged.reason not in {"signature", "digest"}:
            return judged
        frame: Frame = parse_frame(data)
        if known.standing(frame.head.lane, frame.head.frame_no, frame.digest) is not ledger.Standing.NEW:
            return judged
        return intake.Dead(
            reason=judged.reason, message=judged.message, head=frame.head, digest=frame.digest,
            signed=frame.signed + frame.signature, passes=True, wire_bytes=judged.wire_bytes,
        )  # fmt: skip

    with patch.object(shipped, "judge", wrong):
        yield


@contextmanager
def spool_swept_before_the_box_is_written() -> Iterator[None]:
    """Segments go as soon as a cut has been read from them, also when the box cannot be written."""
    trim = engine.Engine._trim

    def wrong(self: engine.Engine) -> None:
        for door in self._doors.values():
            door.sweep()
        trim(self)

    with patch.object(engine.Engine, "_trim", wrong):
        yield


@contextmanager
def dead_door_buried_twice() -> Iterator[None]:
    """Whoever buries a dead door does not wait until what was written for it is sealed."""
    bury = doors.DoorSpool.bury

    def wrong(self: doors.DoorSpool, state: Any, limits: Any) -> None:
        bury(self, state, limits)
        if state.open:
            bury(self, state, limits)

    with patch.object(doors.DoorSpool, "bury", wrong):
        yield


@contextmanager
def closed_door_read_again() -> Iterator[None]:
    """A door's reader is closed before the word is on disk that it is finished: a full disk, and it is read again."""
    retire = doors.DoorSpool.retire

    def wrong(self: doors.DoorSpool) -> None:
        self.reader.close()
        retire(self)

    with patch.object(doors.DoorSpool, "retire", wrong):
        yield


@contextmanager
def worker_spins_when_it_must_end() -> Iterator[None]:
    """The worker's clock looks again at a batch that is due and that nobody will cut any more."""

    def now_ns() -> int:
        return int(asyncio.get_running_loop().time() * 1e9)

    async def wrong(self: Any) -> None:
        while True:
            if (due := self._batch.due_ns()) is None:
                self._filled.clear()
                await self._filled.wait()
                continue
            wait_s = (due - now_ns()) / 1e9
            if wait_s > 0 and not self._batch.full:
                await asyncio.sleep(wait_s)
                continue
            await self._landed()
            async with self._turn:
                if self._may_start() and self._batch.due(now_ns()):
                    self._start()

    with patch.object(pump.Pump, "clock", wrong):
        yield


PLANTED: dict[str, tuple[Planted, str]] = {
    "a frontier that counts beyond a hole": (frontier_counts_beyond_a_hole, "frontier"),
    "an offset that is acknowledged before its insert": (acknowledged_before_inserted, "offsets"),
    "a frame that is trimmed before it is stored": (trimmed_when_kafka_has_it, "frontier"),
    "a dedupe by Kafka offset": (deduped_by_kafka_offset, "once"),
    "a fence that is not checked": (fence_not_checked, "once"),
    "a frame number that is used again after a crash": (frame_numbers_used_again_after_a_crash, "same bytes"),
    "a box that is renamed before it is written": (renamed_before_written, "starts"),
    "a frontier that is believed unverified": (frontier_believed_unverified, "frontier"),
    "a revoke that does not drain": (revoked_without_draining, "drain"),
    "a start that ignores the last box": (last_box_ignored_at_start, "once"),
    "a forged number that shadows the real frame": (forged_number_shadows_the_real_frame, "ends"),
    "a spool that is swept before its box is written": (spool_swept_before_the_box_is_written, "trim"),
    "a dead door that is buried twice": (dead_door_buried_twice, "lost"),
    "a finished door that is read again": (closed_door_read_again, "runs"),
    "a worker that spins when it must end": (worker_spins_when_it_must_end, "ends"),
}
"""What it is -> the bug, and the rule that catches it."""
