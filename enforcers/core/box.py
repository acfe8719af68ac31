"""A box: one cut on disk. It commits three things at once: the frames, how far each door is sealed, which calls are open.

    0  magic `WLBOX001`   8 head_bytes u32   12 zero u32   16 SHA-256 of the head   48 head (JSON, UTF-8)   then the frames

The box is the commit: it is written beside, synced and renamed, so that after a crash a cut is either whole on disk or never
happened, and then its records are read from the spools again. State at start = checkpoint + the boxes behind it.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from enforcers.core.lanes import FrameRef
from schemas.errors import OperatorFault
from schemas.frame import Frame, Lane

MAGIC: Final = b"WLBOX001"
_PREFIX: Final = struct.Struct("<8sII32s")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorCut:
    """What one cut took from one door: records `first` to `last`, the calls it left open and those it closed."""

    boot: int
    first: int
    last: int
    last_ref: int = 0
    opened: tuple[tuple[int, bytes], ...] = ()
    closed: tuple[int, ...] = ()


@dataclass(slots=True)
class DoorState:
    """How far a door is sealed, and its calls that have a decision but no end: seq -> trace id."""

    last: int = 0
    last_ref: int = 0
    open: dict[int, bytes] = field(default_factory=dict)

    def apply(self, cut: DoorCut) -> None:
        """Move past a cut. A cut always begins right behind the one before."""
        assert self.last + 1 == cut.first <= cut.last, f"cut {cut.first}..{cut.last} after {self.last}"
        self.last = cut.last
        self.last_ref = max(self.last_ref, cut.last_ref)
        self.open.update(cut.opened)
        for seq in cut.closed:
            self.open.pop(seq, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxHead:
    """Everything in a box but the frames' bytes."""

    cut_no: int
    doors: tuple[DoorCut, ...]
    frames: tuple[FrameRef, ...]


def encode_box(cut_no: int, doors: Iterable[DoorCut], frames: Iterable[Frame]) -> tuple[bytes, list[FrameRef]]:
    """The bytes of a box, and where each frame lies in them."""
    wires = [(frame, frame.wire) for frame in frames]
    value = {
        "cut": cut_no,
        "doors": [
            [f"{d.boot:016x}", d.first, d.last, d.last_ref, [[seq, trace.hex()] for seq, trace in d.opened], list(d.closed)]
            for d in doors
        ],
        "frames": [
            [lane.host, f"{lane.host_boot:016x}", lane.partition, frame.head.frame_no, frame.head.records, len(wire)]
            for frame, wire in wires
            for lane in (frame.head.lane,)
        ],
    }
    head = json.dumps(value, separators=(",", ":")).encode()
    prefix = _PREFIX.pack(MAGIC, len(head), 0, hashlib.sha256(head).digest())
    return b"".join((prefix, head, *(wire for _, wire in wires))), list(_refs(value, len(prefix) + len(head)))


def parse_box(data: bytes, name: str) -> BoxHead:
    """Read a box's head. `data` may end behind the head. Raises OperatorFault naming the file when it is damaged."""
    try:
        magic, size, _, digest = _PREFIX.unpack_from(data)
        head = data[_PREFIX.size : _PREFIX.size + size]
        if magic != MAGIC or hashlib.sha256(head).digest() != digest:
            raise ValueError("head and digest differ")
        value = json.loads(head)
        doors = tuple(
            DoorCut(
                boot=int(boot, 16), first=first, last=last, last_ref=ref,
                opened=tuple((seq, bytes.fromhex(trace)) for seq, trace in opened), closed=tuple(closed),
            )
            for boot, first, last, ref, opened, closed in value["doors"]
        )  # fmt: skip
        return BoxHead(cut_no=value["cut"], doors=doors, frames=tuple(_refs(value, _PREFIX.size + size)))
    except (struct.error, ValueError, KeyError, TypeError) as fault:
        raise OperatorFault(f"{name}: is damaged ({fault}); restore it from a copy to go on") from fault


def head_bytes(prefix: bytes) -> int:
    """Bytes from the start of a box to its first frame, from its first 48 bytes (0 when they are no box)."""
    if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
        return 0
    return int(_PREFIX.size + _PREFIX.unpack_from(prefix)[1])


def _refs(value: dict[str, Any], offset: int) -> Iterable[FrameRef]:
    for host, boot, partition, frame_no, records, size in value["frames"]:
        lane = Lane(host=host, host_boot=int(boot, 16), partition=partition)
        yield FrameRef(lane=lane, frame_no=frame_no, records=records, cut_no=value["cut"], offset=offset, size=size)
        offset += size


def encode_checkpoint(cut_no: int, doors: dict[int, DoorState]) -> bytes:
    """What stays of boxes up to `cut_no`, which are stored and may go."""
    value = {
        "cut": cut_no,
        "doors": {
            f"{boot:016x}": [d.last, d.last_ref, [[seq, trace.hex()] for seq, trace in d.open.items()]]
            for boot, d in sorted(doors.items())
        },
    }
    return json.dumps(value, separators=(",", ":")).encode()


def parse_checkpoint(data: bytes, name: str) -> tuple[int, dict[int, DoorState]]:
    """Read a checkpoint back. Raises OperatorFault naming the file when it is damaged."""
    try:
        value = json.loads(data)
        doors = {
            int(boot, 16): DoorState(last=last, last_ref=ref, open={seq: bytes.fromhex(trace) for seq, trace in calls})
            for boot, (last, ref, calls) in value["doors"].items()
        }
        return int(value["cut"]), doors
    except (ValueError, KeyError, TypeError) as fault:
        raise OperatorFault(f"{name}: is damaged ({fault}); it says what was sealed: restore it from a copy") from fault
