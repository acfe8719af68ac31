"""One host's records on their way: spools -> cut -> box on disk -> (link) -> stored -> trimmed.

`step` runs in a thread of its own and is the only one that touches spools and writes box files; `commit` and `stored` run on
the event loop. What both need of the ledger they take under its lock, which is never held during IO.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enforcers.core.box import DoorCut, DoorState, encode_box, encode_checkpoint
from enforcers.core.lanes import FrameRef, LaneBook
from enforcers.core.ledger import HostLedger
from enforcers.core.seal import build_frames
from enforcers.host.doors import DoorSpool, find_doors
from enforcers.host.outbox import Outbox, OutboxFull
from ext.columns import Columns
from schemas.config import Config
from schemas.errors import SpoolFull
from schemas.frame import Frame, Lane, Range
from schemas.home import Home
from schemas.keys import raw_public
from schemas.limits import FRAME_RANGES_MAX, MIB
from schemas.process import Lock, private_dir

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""How often new, closed and dead doors are looked for."""

TRIM_S: Final = 1.0
COUNT_S: Final = 1.0
"""How often the bytes of the spools are counted: they are looked up file by file."""

CUT_BYTES_MAX: Final = 24 * MIB
"""Spool bytes in one cut: bounds the memory of a host."""


@dataclass(slots=True)
class Cut:
    """A cut that is ready to be committed: on disk when `written`."""

    cut_no: int
    doors: tuple[DoorCut, ...]
    frames: list[Frame]
    refs: list[FrameRef]
    data: bytes
    records: int


class Engine:
    """Seals the spools under one host folder. Whoever makes one holds `hosts/NAME/lock`."""

    def __init__(self, home: Home, config: Config, name: str, host_boot: int, key: Ed25519PrivateKey, lock: Lock) -> None:
        self.name = name
        self.lock = lock
        self._config = config.enforcer
        self._partitions = config.kafka.partitions
        self.sign: Callable[[bytes], bytes] = key.sign
        self.public = raw_public(key.public_key()).hex()
        """The key that its frames are signed with, as control registers it."""
        folder = home.host(name)
        self._doors_folder = private_dir(folder / "doors")
        self.outbox = Outbox(folder / "outbox", bytes_max=self._config.outbox_bytes, sync=self._config.fsync)
        cut_no, states, boxes = self.outbox.load()
        self.lanes = LaneBook(name, host_boot, resend_ns=self._config.resend_ms * 1_000_000)
        self.ledger = HostLedger(self.lanes, cut_no, states)
        self.ledger.replay(boxes)
        self.full = ""
        """Why nothing is sealed now; empty when something could be."""
        self._guard = threading.Lock()
        self._columns = Columns(self._partitions)
        self._doors: dict[int, DoorSpool] = {}
        self._finished: set[int] = set()
        self._stored_doors: dict[int, int] = {}
        self._pending: Cut | None = None
        self._looked = self._trimmed_at = 0.0
        self._trimmed_cut = cut_no
        self._counted = -COUNT_S
        self._spooled_bytes = 0

    # -- in the sealing thread ---------------------------------------------------------------------------------------

    def rests(self) -> bool:
        """Whether a step would find nothing to do. Asked between two steps, in any thread."""
        return (
            self._pending is None and not self.full and time.monotonic() - self._looked < LOOK_S
            and self.ledger.trimmed_cut == self._trimmed_cut
            and all(door.reader.idle and not door.ended for door in self._doors.values())
        )  # fmt: skip

    def step(self) -> Cut | None:
        """Do what can be done on disk now; returns a cut that the caller must `commit` before the next step."""
        if self._pending is None:
            self._look()
            self._pending = self._cut() if self.outbox.has_room() else None
        self.full = "" if self._pending is not None or self.outbox.has_room() else "outbox at its limit"
        cut = self._pending
        if cut is not None:
            try:
                self.outbox.write(cut.cut_no, cut.data)
            except OutboxFull as fault:
                self._say_full(str(fault))
                cut = None
            else:
                self._pending = None
        self._trim()
        return cut

    def _say_full(self, why: str) -> None:
        if self.full != why:
            log.warning("%s: nothing is sealed until there is room", why)
        self.full = why

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        have = set(self._doors) | self._finished
        for door in find_doors(self._doors_folder, lambda boot: self._state(boot).last, have):
            self._doors[door.boot] = door
        for boot in have - set(self._doors) - self._finished:
            self._finished.add(boot)
            with self._guard:
                self.ledger.forget_door(boot)
        for boot, door in list(self._doors.items()):
            if not door.look():
                continue
            state = self._state(boot)
            if not door.exhausted or door.reader.last_seq != state.last:
                continue  # something that it wrote is not sealed yet
            try:
                if door.closed is None:
                    door.bury(state, self._config)
                elif self._stored_up_to(boot) >= state.last:
                    door.retire()
                    del self._doors[boot]
                    self._finished.add(boot)
                    self._stored_doors[boot] = state.last
                    with self._guard:
                        self.ledger.forget_door(boot)
            except (SpoolFull, OSError) as fault:
                self._say_full(f"door {boot:016x}: {fault}")

    def _state(self, boot: int) -> DoorState:
        return self.ledger.doors.get(boot) or DoorState()

    def _stored_up_to(self, boot: int) -> int:
        with self._guard:
            state = self.ledger.trimmed.get(boot)
            return state.last if state else 0

    def _cut(self) -> Cut | None:
        left, room = self._config.frame_records * self._partitions, CUT_BYTES_MAX
        doors: list[DoorCut] = []
        # the doors that had least sealed come first, so that a busy one cannot starve the others
        for boot, door in sorted(self._doors.items(), key=lambda item: self._state(item[0]).last):
            if left <= 0 or room <= 0 or len(doors) == FRAME_RANGES_MAX:
                break
            runs = door.read(left, room)
            if not runs:
                continue
            opened: dict[int, bytes] = {}
            closed: list[int] = []
            for run in runs:
                self._columns.add(run.view)
                left -= run.records
                room -= len(run.view)
                opened.update(run.opened)
                closed.extend(seq for seq in run.closed if opened.pop(seq, None) is None)
            doors.append(
                DoorCut(boot=boot, first=runs[0].first, last=runs[-1].last, last_ref=max(run.last_ref for run in runs),
                        opened=tuple(opened.items()), closed=tuple(closed))
            )  # fmt: skip
        if not doors:
            return None
        frames = build_frames(
            self._columns.parts(),
            lanes=self.lanes,
            ranges=[Range(boot=d.boot, first=d.first, last=d.last) for d in doors],
            frame_records=self._config.frame_records,
            created_ns=time.time_ns(),
            sign=self.sign,
        )
        cut_no = self.ledger.next_cut
        data, refs = encode_box(cut_no, doors, frames)
        return Cut(cut_no=cut_no, doors=tuple(doors), frames=frames, refs=refs, data=data, records=sum(r.records for r in refs))

    def _trim(self) -> None:
        if self._pending is None:  # else the segments that a cut was read from are its only copy on disk
            for door in self._doors.values():
                door.sweep()
        now = time.monotonic()
        with self._guard:
            cut_no = self.ledger.trimmed_cut
            if cut_no == self._trimmed_cut or (now - self._trimmed_at < TRIM_S and self.outbox.has_room()):
                return
            checkpoint = encode_checkpoint(cut_no, self.ledger.trimmed)
        self._trimmed_at = now
        try:
            self.outbox.trim(cut_no, checkpoint)
        except OSError as fault:
            self._say_full(f"{self.outbox.folder}: checkpoint cannot be written: {fault.strerror}")
            return
        self._trimmed_cut = cut_no

    # -- on the event loop -------------------------------------------------------------------------------------------

    def commit(self, cut: Cut) -> None:
        """A cut that `step` wrote is sealed from now on."""
        with self._guard:
            self.ledger.commit(cut.doors, cut.refs, cut.frames)

    def stored(self, lane: Lane, frame_no: int) -> int:
        """A verified frontier; returns how many frames it passed."""
        with self._guard:
            return self.ledger.stored(lane, frame_no, time.monotonic_ns())

    def drained(self) -> bool:
        """Whether every record that was ever in these spools is stored, and every door has ended."""
        return self.quiet() and not self._doors

    def quiet(self) -> bool:
        """Whether everything that was read is stored (living doors may go on)."""
        return self._pending is None and self.ledger.all_stored()

    def lag(self) -> int:
        """Records that were read and are not known to be stored."""
        pending = self._pending
        return self.ledger.sealed_records + (pending.records if pending else 0) - self.ledger.stored_records

    def ended(self, boot: int) -> bool:
        """Whether a door is known to have ended."""
        door = self._doors.get(boot)
        return boot in self._finished if door is None else door.ended

    def living(self) -> int:
        """Doors that have not ended."""
        return sum(door.closed is None for door in self._doors.values())

    def stored_seq(self) -> dict[str, int]:
        """For each door of this run: the seq up to which everything is stored."""
        with self._guard:
            both = {boot: state.last for boot, state in self.ledger.trimmed.items()} | self._stored_doors
        return {f"{boot:016x}": last for boot, last in both.items()}

    def figures(self) -> dict[str, int]:
        """Records since start (what an earlier start left counts as sealed), and bytes on disk."""
        pending = self._pending.records if self._pending else 0
        ledger = self.ledger
        return {
            "spooled": ledger.sealed_records + pending,
            "sealed": ledger.sealed_records,
            "sent": self.lanes.sent_records,
            "stored": ledger.stored_records,
            "outbox_bytes": self.outbox.bytes,
            "spool_bytes": self._spool_bytes(),
        }

    def _spool_bytes(self) -> int:
        now = time.monotonic()
        if now - self._counted < COUNT_S:
            return self._spooled_bytes
        self._counted, found = now, 0
        with contextlib.suppress(FileNotFoundError):  # a door's folder that was just removed: the next look counts the others
            for folder in os.scandir(self._doors_folder):
                if folder.is_dir():
                    found += sum(one.stat().st_size for one in os.scandir(folder) if one.name.endswith(".seg"))
        self._spooled_bytes = found
        return found

    def torn(self) -> list[str]:
        """What is damaged in the spools of doors that are not finished; records behind it cannot be read."""
        return [f"door {boot:016x}: {door.reader.torn}" for boot, door in list(self._doors.items()) if door.reader.torn]

    def close(self) -> None:
        """Let go of everything; the folder is as a crash would leave it, which is all that the next start needs."""
        for door in self._doors.values():
            door.reader.close()
            door.release()
        self.lock.release()
