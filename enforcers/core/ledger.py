"""What a host knows: how far each door is sealed and stored, and which cuts the outbox still holds. No IO, no clock.

Cuts leave the outbox from the front only, when every frame of theirs is stored, so that a checkpoint and the boxes behind it
always make the whole state.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from enforcers.core.box import BoxHead, DoorCut, DoorState
from enforcers.core.lanes import FrameRef, LaneBook
from schemas.frame import Frame, Lane


@dataclass(slots=True)
class _Cut:
    doors: tuple[DoorCut, ...]
    records: int
    left: int
    """Frames that are not stored."""


class HostLedger:
    """The state of one host over all its doors and lanes."""

    def __init__(self, lanes: LaneBook, cut_no: int = 0, doors: dict[int, DoorState] | None = None) -> None:
        self.lanes = lanes
        self.doors: dict[int, DoorState] = doors or {}
        """Sealed so far, the boxes in the outbox included."""
        self.trimmed: dict[int, DoorState] = copy.deepcopy(self.doors)
        """Stored so far: what the checkpoint says."""
        self.trimmed_cut = cut_no
        self.next_cut = cut_no + 1
        self.sealed_records = 0
        self.stored_records = 0
        self._cuts: OrderedDict[int, _Cut] = OrderedDict()

    def replay(self, boxes: Iterable[BoxHead]) -> None:
        """Take up the boxes that were found behind the checkpoint, in order."""
        for box in boxes:
            if box.cut_no <= self.trimmed_cut:
                continue
            assert box.cut_no == self.next_cut, f"box {box.cut_no} after {self.next_cut - 1}"
            for ref in box.frames:
                self.lanes.restore(ref)
            self._book(box.cut_no, box.doors, box.frames)

    def commit(self, doors: tuple[DoorCut, ...], refs: list[FrameRef], frames: list[Frame]) -> None:
        """A box is on disk: its records are sealed."""
        cut_no = self.next_cut
        for ref, frame in zip(refs, frames, strict=True):
            assert ref.cut_no == cut_no
            self.lanes.commit(ref, frame.digest)
        self._book(cut_no, doors, refs)

    def _book(self, cut_no: int, doors: tuple[DoorCut, ...], frames: Iterable[FrameRef]) -> None:
        for cut in doors:
            self.doors.setdefault(cut.boot, DoorState()).apply(cut)
        refs = tuple(frames)
        records = sum(ref.records for ref in refs)
        self.next_cut = cut_no + 1
        self.sealed_records += records
        self._cuts[cut_no] = _Cut(doors=doors, records=records, left=len(refs))

    def stored(self, lane: Lane, frame_no: int, now_ns: int) -> int:
        """A frontier has arrived: returns how many frames it passed. `trimmed_cut` moves when whole cuts are stored."""
        passed = self.lanes.stored(lane, frame_no, now_ns)
        for ref in passed:
            self._cuts[ref.cut_no].left -= 1
            self.stored_records += ref.records
        while self._cuts:
            number, cut = next(iter(self._cuts.items()))
            if cut.left:
                break
            del self._cuts[number]
            for door in cut.doors:
                self.trimmed.setdefault(door.boot, DoorState()).apply(door)
            self.trimmed_cut = number
        return len(passed)

    def forget_door(self, boot: int) -> None:
        """A door is closed, stored and its folder gone: nothing of it is needed any more."""
        if boot in self.trimmed and boot in self.doors and self.trimmed[boot].last == self.doors[boot].last:
            del self.doors[boot], self.trimmed[boot]

    def all_stored(self) -> bool:
        """Whether the outbox holds nothing."""
        return not self._cuts
