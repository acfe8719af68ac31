"""The lanes of one host: how frames are numbered, which are due to be sent, which are in flight, which are stored.

    sealed -> WAITING -> (due) SENT -> acked IN_KAFKA -> frontier passes: gone
                 ^           |               |
                 +-- broker refused, died ---+-- new broker (it forgets), or the frontier stands still

A frame leaves only when the frontier of its lane passes it. While a frontier stands still the head of its lane is sent again:
one frame after `resend_ns`, then twice as many after twice the time, and so on, so that one lost frame is made good at once
and a store that is away for an hour is not buried under copies. When the frontier then stops exactly behind what was sent
again, the frames that follow are lost too: twice as many go at once. Time comes in as an argument (monotonic nanoseconds).
"""

import enum
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from schemas.frame import NO_FRAME, Lane

RESEND_FRAMES_MAX: Final = 256
RESEND_BACKOFF_MAX: Final = 64
"""The longest wait between two probes, in units of `resend_ns`."""


class Where(enum.IntEnum):
    """Where a frame stands."""

    WAITING = 0
    SENT = 1
    IN_KAFKA = 2
    STORED = 3


@dataclass(slots=True, eq=False)
class FrameRef:
    """A frame on disk: `size` bytes from `offset` of box `cut_no`."""

    lane: Lane
    frame_no: int
    records: int
    cut_no: int
    offset: int
    size: int
    where: Where = Where.WAITING
    counted: bool = False
    """Whether its bytes are in the partition's in-flight sum."""
    reached: bool = False
    """Whether a broker has ever acknowledged it."""


@dataclass(slots=True)
class _LaneState:
    lane: Lane
    frontier: int = 0
    highest: int = 0
    moved_ns: int | None = None
    """When the frontier last moved, or the lane's first frame reached Kafka; None while nothing is in Kafka."""
    probes: int = 0
    probed: int = 0
    """The highest frame that the last probe sent again."""
    suspect: int = 0
    """The highest frame that was in Kafka when the frontier first stood still: up to here, more may be lost."""
    frames: "OrderedDict[int, FrameRef]" = field(default_factory=OrderedDict)


class LaneBook:
    """Every lane of one host: this boot's, which still grow, and those of earlier boots that are not stored yet."""

    def __init__(self, host: str, host_boot: int, *, resend_ns: int) -> None:
        self._host = host
        self._boot = host_boot
        self._resend_ns = resend_ns
        self._tips: dict[int, tuple[int, bytes]] = {}
        self._lanes: dict[Lane, _LaneState] = {}
        self._flight: dict[int, int] = {}
        self.sent_records = 0
        """Records that a broker has acknowledged at least once."""

    def lane(self, partition: int) -> Lane:
        """This boot's lane of a partition."""
        return Lane(host=self._host, host_boot=self._boot, partition=partition)

    def next(self, partition: int) -> tuple[int, bytes]:
        """The number that the next frame of this boot's lane has, and the digest that it names as `previous`."""
        return self._tips.get(partition, (1, NO_FRAME))

    def commit(self, ref: FrameRef, digest: bytes) -> None:
        """A frame is on disk: its number is used, and it waits to be sent."""
        expected, _ = self.next(ref.lane.partition)
        assert (ref.lane, ref.frame_no) == (self.lane(ref.lane.partition), expected)
        self._tips[ref.lane.partition] = (ref.frame_no + 1, digest)
        self.restore(ref)

    def restore(self, ref: FrameRef) -> None:
        """A frame was found on disk, of this boot or an earlier one: it waits to be sent."""
        state = self._lanes.setdefault(ref.lane, _LaneState(ref.lane))
        assert ref.frame_no > state.highest, f"{ref.lane.text}: frame {ref.frame_no} after {state.highest}"
        state.highest = ref.frame_no
        state.frames[ref.frame_no] = ref

    def unstored(self) -> int:
        """Frames that no frontier has passed."""
        return sum(len(state.frames) for state in self._lanes.values())

    def in_flight(self, partition: int) -> int:
        """Bytes of a partition that were given to Kafka and are not stored."""
        return self._flight.get(partition, 0)

    def due(self, now_ns: int, inflight_bytes: int | None) -> Iterator[FrameRef]:
        """Frames to send now, each lane in its order. `inflight_bytes` bounds what a partition holds; None: no bound.

        One frame may always go where nothing is in flight, however large.
        """
        for state in list(self._lanes.values()):
            self._probe(state, now_ns)
            for ref in list(state.frames.values()):
                if ref.where is not Where.WAITING:
                    continue
                used = self.in_flight(ref.lane.partition)
                if inflight_bytes is not None and used and not ref.counted and used + ref.size > inflight_bytes:
                    break
                yield ref

    def _probe(self, state: _LaneState, now_ns: int) -> None:
        if state.moved_ns is None or not state.frames:
            return
        lost_more = state.probes > 0 and state.frontier == state.probed
        if not lost_more and now_ns - state.moved_ns < self._resend_ns * min(2**state.probes, RESEND_BACKOFF_MAX):
            return
        if not state.probes:
            state.suspect = max((n for n, ref in state.frames.items() if ref.where is Where.IN_KAFKA), default=0)
        many = min(2**state.probes, RESEND_FRAMES_MAX)
        for ref in list(state.frames.values())[:many]:
            state.probed = ref.frame_no
            if ref.where is Where.IN_KAFKA:
                ref.where = Where.WAITING
        state.probes += 1
        state.moved_ns = now_ns

    def sent(self, ref: FrameRef) -> None:
        """A frame was handed to the producer."""
        ref.where = Where.SENT
        if not ref.counted:
            ref.counted = True
            self._flight[ref.lane.partition] = self.in_flight(ref.lane.partition) + ref.size

    def acked(self, ref: FrameRef, now_ns: int) -> None:
        """The broker has a frame (it may be stored already: then this says nothing new)."""
        if ref.where is Where.SENT:
            ref.where = Where.IN_KAFKA
        if not ref.reached:
            ref.reached = True
            self.sent_records += ref.records
        state = self._lanes.get(ref.lane)
        if state is not None and state.moved_ns is None:
            state.moved_ns = now_ns

    def failed(self, ref: FrameRef) -> None:
        """Nobody knows whether the broker has it: it is sent again, and the worker knows a frame it has seen."""
        if ref.where is Where.SENT:
            ref.where = Where.WAITING

    def broker_is_new(self) -> None:
        """The broker started empty: everything that is not stored waits again."""
        self._flight.clear()
        for state in self._lanes.values():
            state.moved_ns, state.probes = None, 0
            for ref in state.frames.values():
                ref.where, ref.counted = Where.WAITING, False

    def stored(self, lane: Lane, frame_no: int, now_ns: int) -> list[FrameRef]:
        """The frontier of a lane is at least `frame_no`: returns the frames that it passed just now.

        A frontier that is not ahead of the known one, of a lane that has nothing unstored here, or beyond the highest frame
        that the lane has, passes nothing (the last is a lie, and the caller counts it: see `plausible`).
        """
        state = self._lanes.get(lane)
        if state is None or not self.plausible(lane, frame_no) or frame_no <= state.frontier:
            return []
        state.frontier, state.moved_ns = frame_no, now_ns
        if frame_no != state.probed or frame_no >= state.suspect:
            state.probes = 0
        passed = []
        while state.frames:
            first = next(iter(state.frames))
            if first > frame_no:
                break
            ref = state.frames.pop(first)
            ref.where = Where.STORED
            if not ref.reached:
                ref.reached = True
                self.sent_records += ref.records
            if ref.counted:
                self._flight[lane.partition] -= ref.size
            passed.append(ref)
        if not state.frames:
            state.moved_ns, state.probes = None, 0
            if lane.host_boot != self._boot:
                del self._lanes[lane]
        return passed

    def plausible(self, lane: Lane, frame_no: int) -> bool:
        """Whether the lane has that many frames at all."""
        state = self._lanes.get(lane)
        return state is None or frame_no <= state.highest
