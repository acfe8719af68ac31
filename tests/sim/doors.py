"""The doors of the simulated machine: the shipped `SpoolWriter`, driven at random, and a pen for whoever buries a dead door."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ext.spool import SpoolWriter
from schemas.config import Enforcer
from schemas.errors import SpoolFull
from schemas.layout import SEGMENT_HEADER_BYTES, VERDICT_UNSAID
from schemas.process import write_atomic
from schemas.records import STRING_FIELDS, Kind, Outcome, Verdict, make_boot
from tests.sim.disk import Disk
from tests.sim.rules import DoorTruth, Truth, Written
from tests.sim.story import Died, Story

TEXT_BYTES_MAX = 4_000
CALL, OUTCOME, TRACE = 1, 5, 18
"""Positions of `call_seq`, `outcome` and `trace_id` among the arguments of `append`."""


class Door:
    """One door process: it decides calls, records them, and dies when it is told to."""

    def __init__(self, story: Story, truth: Truth, folder: Path, limits: Enforcer) -> None:
        self.boot = make_boot(int(story.clock.time()), story.random.getrandbits(32))
        self.folder = folder / f"{self.boot:016x}"
        self._story = story
        self._truth = truth
        self._ref = 0
        self._told: set[int] = set()
        """Calls of which more was recorded than their decision, or was to be."""
        making = folder / f".tmp-{self.boot:x}"
        making.mkdir(mode=0o700)
        self._lock = os.open(making / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(making).rename(self.folder)
        self._said = truth.doors[self.boot] = DoorTruth()
        try:
            self.spool = SpoolWriter(
                str(self.folder), self.boot, limits.segment_bytes, limits.spool_bytes, limits.spool_reserved_bytes
            )
        except BaseException:
            self._said.dead = True
            os.close(self._lock)
            raise
        story.tell(f"door {self.boot:016x} starts")

    def work(self) -> None:
        """A few calls begin, go on or end."""
        for _ in range(self._story.random.randint(1, 8)):
            opened = self._said.open
            if opened and self._story.chance(0.55):
                call = self._story.pick(sorted(opened))
                kind = Kind.PROGRESS if self._story.chance(0.2) else Kind.EFFECT
                if kind == Kind.EFFECT and self._complete(call):
                    continue
                self._told.add(call)
                if self._append(kind, call, opened[call], Outcome.OPEN if kind == Kind.PROGRESS else Outcome.OK):
                    if kind == Kind.EFFECT:
                        del opened[call]
                    continue
                return
            trace = self._story.random.randbytes(16)
            allowed = self._story.chance(0.7)
            seq = self._append(Kind.DECISION, 0, trace, Outcome.OPEN if allowed else Outcome.REFUSED, allowed=allowed)
            if not seq:
                return
            if allowed:
                opened[seq] = trace

    def _complete(self, call: int) -> bool:
        """Write a call's end into its decision, where its host has not read that and nothing else is said of it."""
        if call in self._told or not self.spool.complete(call, int(Outcome.OK), 0, 0, 0, 0, ""):
            return False
        self._truth.record_ended(self.boot, call, int(Outcome.OK))
        del self._said.open[call]
        return True

    def _append(self, kind: Kind, call: int, trace: bytes, outcome: Outcome, *, allowed: bool = False) -> int:
        now = self._story.clock.time_ns()
        if kind == Kind.DECISION:
            self._ref += 1
        texts = tuple(
            {"tenant": "default", "door": "sim", "path": "/" + "x" * self._story.random.randrange(TEXT_BYTES_MAX)}.get(name, "")
            for name in STRING_FIELDS
        )
        verdict = (Verdict.ALLOW if allowed else Verdict.DENY) if kind == Kind.DECISION else VERDICT_UNSAID
        try:
            seq: int = self.spool.append(
                int(kind), call, now, now, int(verdict), int(outcome), 0, 1, 0, 1, 0, 0, 0, 0, self._ref, 0, 0, 0,
                trace, bytes(8), texts, not allowed,
            )  # fmt: skip
        except SpoolFull:
            self._story.fault("spool full", f"{self.boot:016x}")
            return 0
        self._truth.record_written(self.boot, seq, Written(int(kind), call or seq, int(outcome), trace))
        return seq

    def close(self) -> None:
        """End in good order: every call has its end, and `door.json` says so."""
        for call, trace in sorted(self._said.open.items()):
            if self._complete(call):
                continue
            if not self._append(Kind.EFFECT, call, trace, Outcome.OK):
                return  # no room: it cannot leave yet
            del self._said.open[call]
        said = {"boot": f"{self.boot:016x}", "last_seq": self.spool.last_seq, "last_ref": self.spool.last_ref, "closed": True}
        self.spool.close()
        self._said.dead = True
        try:
            write_atomic(self.folder / "door.json", json.dumps(said).encode())
            self._story.tell(f"door {self.boot:016x} closes")
        except OSError:
            self._story.tell(f"door {self.boot:016x} closes without a word")
        self._let_go()

    def _let_go(self) -> None:
        os.close(self._lock)

    def die(self) -> None:
        """Kill -9: its lock goes, its calls stay open, and what it was writing has bytes but no size yet."""
        self._said.dead = True
        if self._story.chance(0.4):
            self._torn()
        self._let_go()
        self._story.fault("door died", f"{self.boot:016x} with {len(self._said.open)} calls open")

    def _torn(self) -> None:
        """Leave half a record behind the last one: everything but its size, which is stored last."""
        path = max(self.folder.glob("[0-9]*.seg"))
        data = path.read_bytes()
        at = SEGMENT_HEADER_BYTES
        while at + 4 <= len(data) and (size := int.from_bytes(data[at : at + 4], "little")):
            at += size
        if at + 200 <= len(data):
            with path.open("r+b") as file:
                file.seek(at + 4)
                file.write(self._story.random.randbytes(min(1_500, len(data) - at - 4)))
            self._story.fault("half a record behind the last")


class Pen:
    """Stands between whoever buries a dead door and the shipped `SpoolWriter`: one may die before each record."""

    def __init__(self, disk: Disk, truth: Truth, boot: int, writer: Any) -> None:
        self._disk = disk
        self._truth = truth
        self._boot = boot
        self._writer = writer
        self._died = False

    def append(self, *record: Any) -> int:
        """Write one `lost` record."""
        try:
            self._disk.step("a lost record")
        except Died:
            self._died = True
            raise
        seq = int(self._writer.append(*record))
        self._truth.record_written(self._boot, seq, Written(record[0], record[CALL], record[OUTCOME], record[TRACE]))
        return seq

    def close(self) -> None:
        """Nobody closes what he died over."""
        if not self._died:
            self._writer.close()
