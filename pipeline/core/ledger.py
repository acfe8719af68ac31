"""Which frames of each lane are stored, which wait in a batch: all that dedupe and the stored frontier need.

    1 2 3 4 5 . 7 8 . . 11        frontier 5, beyond {7, 8, 11}; 6 is missing, so 7 .. 11 keep their frames in the host's outbox

A lane's state comes from the store when its partition is taken over, never from Kafka offsets: those start again at 0 with the
embedded broker, and a producer that retries may double a frame under a new offset.

A dead-lettered frame counts as stored, but its number stays open for just these bytes: a worker that has learned to read them
stores them when they are sent again.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from schemas.frame import NO_FRAME, Lane
from schemas.limits import LANE_AHEAD_MAX

RECENT_MAX: Final = 1024
"""Digests kept per lane, to tell a copy of a frame from another frame of the same number. Older numbers count as copies."""


class Standing(enum.Enum):
    """What a lane knows of a frame number."""

    NEW = enum.auto()
    KNOWN = enum.auto()
    TWIN = enum.auto()
    AHEAD = enum.auto()


@dataclass(slots=True)
class _Lane:
    frontier: int = 0
    """Everything up to here is stored."""
    reach: int = 0
    """Everything up to here is stored or waits in a batch."""
    beyond: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    recent: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """frame_no -> (digest, previous) of the frames that this worker has seen lately."""
    dead: dict[int, bytes] = field(default_factory=dict)
    """frame_no -> digest of the frames that were passed as dead letters."""
    inherited: int = 0
    """Everything up to here was stored when the partition was taken over, and what is in `inherited_beyond`."""
    inherited_beyond: frozenset[int] = frozenset()
    told: set[int] = field(default_factory=set)
    """Those of them that were read again since."""


class Ledger:
    """Every lane of the partitions that this worker holds."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[Lane, _Lane]] = {}

    def take(
        self,
        partition: int,
        lanes: Mapping[Lane, tuple[int, Iterable[int]]],
        dead: Mapping[tuple[Lane, int], bytes] = MappingProxyType({}),
    ) -> None:
        """Take a partition over, with (frontier, stored beyond it) of each lane that the store knows.

        `dead` has the digests of the frames among them that are dead letters.
        """
        taken = self._lanes[partition] = {}
        for lane, (frontier, beyond) in lanes.items():
            assert lane.partition == partition
            state = taken[lane] = _Lane(frontier=frontier, reach=frontier, beyond={n for n in beyond if n > frontier})
            _settle(state)
            state.inherited, state.inherited_beyond = state.frontier, frozenset(state.beyond)
        for (lane, frame_no), digest in dead.items():
            taken[lane].dead[frame_no] = digest

    def clear(self) -> None:
        """Forget everything: the partitions may be another worker's from now on."""
        self._lanes.clear()

    def holds(self, partition: int) -> bool:
        """Whether `take` was called for this partition since the last `clear`."""
        return partition in self._lanes

    def lanes(self, partition: int) -> list[Lane]:
        """The lanes of a partition, in no order."""
        return list(self._lanes.get(partition, ()))

    def frontier(self, lane: Lane) -> int:
        """The frame up to which everything of a lane is stored; 0 for a lane that is not known."""
        state = self._lanes.get(lane.partition, {}).get(lane)
        return state.frontier if state else 0

    def standing(self, lane: Lane, frame_no: int, digest: bytes) -> Standing:
        """What is known of a frame, changing nothing. The lane's partition must be held."""
        state = self._lanes[lane.partition].get(lane)
        if state is None:
            return Standing.AHEAD if frame_no > LANE_AHEAD_MAX else Standing.NEW
        if frame_no in state.dead and frame_no not in state.pending:
            return Standing.NEW if state.dead[frame_no] == digest else Standing.TWIN
        if frame_no <= state.reach or frame_no in state.beyond or frame_no in state.pending:
            known = state.recent.get(frame_no)
            return Standing.TWIN if known is not None and known[0] != digest else Standing.KNOWN
        return Standing.AHEAD if frame_no > state.reach + LANE_AHEAD_MAX else Standing.NEW

    def tell_again(self, lane: Lane, frame_no: int) -> bool:
        """Whether a KNOWN frame was stored before the partition was taken over and is read again for the first time since.

        Whoever stored it may have died before he said what is in it.
        """
        state = self._lanes[lane.partition].get(lane)
        if state is None or frame_no in state.told or frame_no in state.dead:
            return False
        if frame_no > state.inherited and frame_no not in state.inherited_beyond:
            return False
        state.told.add(frame_no)
        return True

    def is_dead(self, lane: Lane, frame_no: int) -> bool:
        """Whether a frame was passed as a dead letter."""
        state = self._lanes[lane.partition].get(lane)
        return state is not None and frame_no in state.dead

    def continues(self, lane: Lane, frame_no: int, previous: bytes, digest: bytes) -> bool:
        """Whether a new frame fits its neighbours, as far as they are known here."""
        if frame_no == 1:
            return previous == NO_FRAME
        state = self._lanes[lane.partition].get(lane)
        if state is None:
            return True
        before, after = state.recent.get(frame_no - 1), state.recent.get(frame_no + 1)
        return (before is None or before[0] == previous) and (after is None or after[1] == digest)

    def begin(self, lane: Lane, frame_no: int, digest: bytes, previous: bytes) -> None:
        """A frame that was NEW waits in a batch from now on."""
        state = self._lanes[lane.partition].setdefault(lane, _Lane())
        assert frame_no in state.dead or (frame_no > state.reach and frame_no not in state.beyond)
        assert frame_no not in state.pending
        state.pending.add(frame_no)
        state.recent[frame_no] = (digest, previous)
        while len(state.recent) > RECENT_MAX:
            del state.recent[next(iter(state.recent))]
        _stretch(state)

    def stored(self, lane: Lane, frame_no: int, *, dead: bytes | None = None) -> bool:
        """A frame that waited is in the store; returns whether the frontier has moved.

        `dead` is the frame's digest when only its own row is stored, as that of a dead letter.
        """
        state = self._lanes[lane.partition][lane]
        state.pending.remove(frame_no)
        if dead is not None:
            state.dead[frame_no] = dead
        else:
            state.dead.pop(frame_no, None)
        if frame_no > state.frontier:
            state.beyond.add(frame_no)
        return _settle(state)


def _settle(state: _Lane) -> bool:
    before = state.frontier
    while state.frontier + 1 in state.beyond:
        state.frontier += 1
        state.beyond.remove(state.frontier)
    state.reach = max(state.reach, state.frontier)
    _stretch(state)
    return state.frontier > before


def _stretch(state: _Lane) -> None:
    while state.reach + 1 in state.pending or state.reach + 1 in state.beyond:
        state.reach += 1
