"""What must hold, and the one who knows whether it does: `Truth` is told what doors wrote and what the store took.

    once        each record and each frame is in the table once                     (at each insert)
    as written  a stored record says what its door wrote                            (at each insert)
    same bytes  a frame's number stands for the same bytes for ever                 (at each cut and send)
    trim        a record leaves spool and outbox only when it is in the table       (after each step)
    frontier    nobody is told of more than the table has                           (after each step)
    offsets     an offset is committed only when its frame is in the table          (at each commit)
    drain       who holds its place is fenced by no other that holds its own        (at each refusal)
    starts      a host starts on whatever a crash left                              (at each start)
    runs        the shipped code meets no error that it does not foresee            (at each step)
    ends        healed, everything is stored within a bounded time                  (at the end)
    whole       every record that was written is in the table                       (at the end)
    lost        each call that a dead door left open ends `lost`, once; no other    (at the end)
    lanes       frames 1 to the last of each lane, without a gap                    (at the end)
    chain       each frame names the digest of the one before it                    (at the end)
"""

import os
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from enforcers.core.box import BoxHead, head_bytes, parse_box
from schemas.errors import OperatorFault
from schemas.frame import NO_FRAME, Lane
from schemas.layout import SEGMENT_HEADER_BYTES, SEGMENT_MAGIC
from schemas.records import Kind
from tests.sim.story import Broken

_FIRST_SEQ = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Written:
    """The fields of a record that tell it from every other."""

    kind: int
    call_seq: int
    outcome: int
    trace_id: bytes


@dataclass(slots=True)
class DoorTruth:
    """Everything that one door, and whoever buried it, wrote."""

    written: dict[int, Written] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    """In the table, or in a dead letter that is."""
    kept_to: int = 0
    """1 .. this are all kept."""
    open: dict[int, bytes] = field(default_factory=dict)
    """Calls that have no end yet, while it lives; what it left open, once it is dead."""
    dead: bool = False
    lost: list[int] = field(default_factory=list)

    def keep(self, seq: int) -> None:
        """The store has this record from now on."""
        self.kept.add(seq)
        while self.kept_to + 1 in self.kept:
            self.kept_to += 1


class Truth:
    """Everything that was written and stored in one history."""

    def __init__(self) -> None:
        self.doors: dict[int, DoorTruth] = {}
        self.frontier: dict[Lane, int] = {}
        self.broken: Broken | None = None
        """What was seen to be broken where raising would end a worker only: the world raises it."""
        self._sealed: dict[tuple[Lane, int], bytes] = {}
        self._sent: dict[tuple[Lane, int], bytes] = {}
        self.put_off: set[tuple[Lane, int]] = set()
        """Frames that intake has put off: their hosts send them again."""
        self.letters: dict[bytes, list[tuple[int, int]]] = {}
        """SHA-256 of a frame of ours that a worker could not read -> (boot, seq) of its records."""
        self._frames: set[tuple[Lane, int, bool]] = set()
        self._boxes: dict[tuple[str, int], BoxHead | None] = {}
        self._segments: dict[int, list[str]] = {}

    def record_written(self, boot: int, seq: int, record: Written) -> None:
        """`append` has returned `seq`."""
        door = self.doors[boot]
        if seq != len(door.written) + 1:
            raise Broken("once", f"door {boot:016x} wrote seq {seq} after {len(door.written)}")
        door.written[seq] = record
        if record.kind == Kind.LOST:
            door.lost.append(record.call_seq)

    def record_ended(self, boot: int, seq: int, outcome: int) -> None:
        """`complete` has written a call's end into its decision."""
        written = self.doors[boot].written
        written[seq] = replace(written[seq], outcome=outcome)

    def record_stored(self, row: Mapping[str, Any]) -> None:
        """A row of a record is in the table."""
        boot, seq = row["boot"], row["seq"]
        door = self.doors.get(boot)
        if door is None or seq not in door.written:
            raise Broken("as written", f"record {boot:016x}/{seq} was never written")
        if seq in door.stored:
            raise Broken("once", f"record {boot:016x}/{seq} is in the table twice")
        found = Written(row["kind"], row["call_seq"], row["outcome"], row["trace_id"])
        if found != door.written[seq]:
            raise Broken("as written", f"record {boot:016x}/{seq} is {found}, was {door.written[seq]}")
        door.stored.add(seq)
        door.keep(seq)

    def frame_sealed(self, lane: Lane, frame_no: int, digest: bytes) -> None:
        """A box with this frame is on the disk."""
        if self._sealed.setdefault((lane, frame_no), digest) != digest:
            raise Broken("same bytes", f"frame {frame_no} of lane {lane.text} is sealed with other records than before")

    def frame_sent(self, lane: Lane, frame_no: int, data: bytes) -> None:
        """The host gives a frame to Kafka."""
        if self._sent.setdefault((lane, frame_no), data) != data:
            raise Broken("same bytes", f"frame {frame_no} of lane {lane.text} was sent with other bytes before")

    def is_ours(self, lane: Lane, frame_no: int, data: bytes) -> bool:
        """Whether the host has sent just these bytes under this number."""
        return self._sent.get((lane, frame_no)) == data

    def frame_stored(self, lane: Lane, frame_no: int, *, dead: bool) -> None:
        """A row of a frame is in the table. A frame that was dead at first may be read later."""
        if {(lane, frame_no, dead), (lane, frame_no, False)} & self._frames:
            raise Broken("once", f"frame {frame_no} of lane {lane.text} is in the table twice")
        self._frames.add((lane, frame_no, dead))

    def letter_kept(self, digest: bytes) -> None:
        """A dead letter is in its table, with all its bytes."""
        for boot, seq in self.letters.get(digest, ()):
            self.doors[boot].keep(seq)

    # -- after each step ---------------------------------------------------------------------------------------------

    def look(self, host: Path) -> None:
        """Rule `trim`: look at the folder of a host, if it has changed, for records that are nowhere."""
        boxes: dict[tuple[str, int], BoxHead | None] = {}
        with os.scandir(host / "outbox") as entries:
            for entry in entries:
                if entry.name.endswith(".box") and not entry.name.startswith("."):
                    key = (entry.name, entry.inode())
                    boxes[key] = self._boxes[key] if key in self._boxes else _head(Path(entry.path))
        segments = {}
        for boot in self.doors:
            segments[boot] = sorted(name for name in os.listdir(host / "doors" / f"{boot:016x}") if name.endswith(".seg"))
        if boxes.keys() == self._boxes.keys() and segments == self._segments:
            return
        self._boxes, self._segments = boxes, segments
        sealed: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for head in boxes.values():
            for cut in head.doors if head is not None else ():
                sealed[cut.boot].append((cut.first, cut.last))
        for boot, door in self.doors.items():
            in_spool = _first_seq(host / "doors" / f"{boot:016x}", segments[boot])
            for seq in range(door.kept_to + 1, len(door.written) + 1):
                if in_spool is not None and seq >= in_spool:
                    break
                if seq not in door.kept and not any(first <= seq <= last for first, last in sealed[boot]):
                    raise Broken("trim", f"record {boot:016x}/{seq} is in no spool, no box and not in the table")

    def frontier_told(self, lane: Lane, frame_no: int, stored: int, who: str) -> None:
        """Rule `frontier`: `who` says or believes that a lane is stored up to `frame_no`; the table has it up to `stored`."""
        if frame_no > stored:
            raise Broken("frontier", f"{who}: lane {lane.text} is stored up to {frame_no}, the table has {stored}")

    def worker_told(self, lane: Lane, frame_no: int, stored: int, who: str) -> None:
        """Rule `frontier`, for what a worker says: its pump would take our word for a defect of its own, and end."""
        try:
            self.frontier_told(lane, frame_no, stored, who)
        except Broken as fault:
            self.broken = self.broken or fault

    def door_told(self, boot: int, seq: int) -> None:
        """Rule `frontier`, for a door: the host says that its records up to `seq` are stored."""
        have = self.doors[boot].kept_to
        if seq > have:
            raise Broken("frontier", f"the host: door {boot:016x} is stored up to {seq}, the table has {have}")

    # -- at the end --------------------------------------------------------------------------------------------------

    def missing(self) -> int:
        """Records that are not in the table."""
        return sum(len(door.written) - len(door.stored) for door in self.doors.values())

    def judge(self, table: Mapping[Lane, Mapping[int, tuple[bytes, bytes]]]) -> None:
        """The rules of the end. `table`: for each lane its frames, number -> (digest, previous)."""
        for boot, door in self.doors.items():
            if len(door.stored) != len(door.written):
                gone = sorted(door.written.keys() - door.stored)
                raise Broken("whole", f"door {boot:016x}: records {gone[:5]} of {len(door.written)} are not in the table")
            expected = sorted(door.open) if door.dead else []
            if sorted(door.lost) != expected:
                raise Broken("lost", f"door {boot:016x} left {expected} open, {sorted(door.lost)} are recorded as lost")
        for lane, frames in table.items():
            if sorted(frames) != list(range(1, len(frames) + 1)):
                raise Broken("lanes", f"lane {lane.text} has frames {sorted(frames)}")
            before = NO_FRAME
            for frame_no in range(1, len(frames) + 1):
                digest, named = frames[frame_no]
                if named != before:
                    raise Broken("chain", f"frame {frame_no} of lane {lane.text} does not name the frame before it")
                before = digest


def _head(path: Path) -> BoxHead | None:
    data = path.read_bytes()
    try:
        head = parse_box(data[: head_bytes(data[:48])], path.name)
    except OperatorFault:
        return None
    end = head.frames[-1].offset + head.frames[-1].size if head.frames else 0
    return head if len(data) >= end else None


def _first_seq(folder: Path, names: list[str]) -> int | None:
    """The seq from which a spool still has everything; None when it has nothing."""
    for name in names:
        if not name[0].isdigit():
            continue
        with (folder / name).open("rb") as file:
            head = file.read(SEGMENT_HEADER_BYTES)
        if head[:8] == SEGMENT_MAGIC:
            return int(_FIRST_SEQ.unpack_from(head, 24)[0])
    return None
