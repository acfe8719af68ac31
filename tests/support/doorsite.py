"""One door on a board that a test writes, in the test's own process, with a spool whose appends can be watched."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enforcers.core.call import Record
from enforcers.doors.obeyed import Obeyed
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import Spooler
from ext.board import BoardWriter, SeenReader
from ext.spool import Run, SpoolReader
from schemas.bundle import Bundle, Rule
from schemas.calls import RecordedCall
from schemas.config import Enforcer
from schemas.records import Kind
from tests.support.oracles import parse_records

BOOT = 0x65432100_00000007
LIMITS = Enforcer(segment_bytes=1 << 16, spool_bytes=1 << 18, spool_reserved_bytes=1 << 16)
RULES = (
    Rule(id="tools", forbid=False, action=("==", 'Action::"mcp:tools/call"')),
    Rule(id="no-pay", forbid=True, resource=("==", 'Tool::"bank/pay"')),
)
BUNDLE = Bundle(rules=RULES)
FRESH_NS = 5_000_000_000


def said(ref: int, resource: str = 'Tool::"s/t"', **fields: object) -> RecordedCall:
    least = {"time_ns": 10, "agent": "a", "chain": ('User::"u"', 'Agent::"a"'), "action": "mcp:tools/call"}
    return RecordedCall(**{**least, "trace_id": b"t" * 16, "ref": ref, "resource": resource, **fields})  # type: ignore[arg-type]


class Site:
    """A host's board, and one door on it. `rest` is what the door does while it waits."""

    def __init__(self, folder: Path) -> None:
        (folder / "bundle").mkdir()
        self.bundles = folder / "bundle"
        self.board = BoardWriter(str(folder / "board"), 1)
        self.spooler = Spooler(folder, BOOT, LIMITS)
        self.obeyed = Obeyed(folder / "board", self.bundles, self.spooler.folder)
        self.seen = SeenReader(str(self.spooler.folder))
        self.epoch = 0
        self.policy = self.put(BUNDLE)
        self.change()
        self.fresh()
        self.obeyed.look(wait=True)
        self.rest: Callable[[str, bool], None] = never
        self.door = ReplayDoor(self.spooler, self.obeyed, lambda why, *, may_stop: self.rest(why, may_stop))

    def put(self, bundle: Bundle) -> bytes:
        (self.bundles / f"{bundle.digest}.json").write_bytes(bundle.encode())
        return bytes.fromhex(bundle.digest)

    def change(self, *revoke: str, lift: Sequence[str] = (), paused: bool = False) -> None:
        self.epoch += 1
        self.board.change([(text, 0) for text in revoke], lift, epoch=self.epoch, paused=paused, policy=self.policy)

    def fresh(self, ns: int = FRESH_NS) -> None:
        self.board.fresh(time.monotonic_ns() + ns if ns else 0)


def never(why: str, may_stop: bool) -> None:
    raise AssertionError(f"waits: {why}, may_stop={may_stop}")


def records(runs: list[Run]) -> list[dict[str, int]]:
    """A few fields of each record; of a decision with the call's end, that one's outcome."""
    return [
        {"seq": seq, "call": rec.call_seq, "ref": rec.ref, "kind": rec.kind, "verdict": rec.verdict,
         "outcome": (rec.end or rec).outcome, "epoch": rec.epoch}
        for run in runs for seq, rec in parse_records(bytes(run.view))
    ]  # fmt: skip


def read(spooler: Spooler) -> list[dict[str, int]]:
    reader = SpoolReader(str(spooler.folder), spooler.boot)
    return records(reader.read(1 << 20, 1 << 30))


class Between:
    """A spool in which something happens just when a record of some kind is to be written, before or behind it."""

    def __init__(self, spooler: Spooler, kind: Kind, happens: Callable[[], None], *, before: bool) -> None:
        self._spooler = spooler
        self._kind = kind
        self._happens = happens
        self._before = before
        self.complete = spooler.complete

    def append(self, record: Record) -> int:
        if record[0] == self._kind and self._before:
            self._happens()
        seq = self._spooler.append(record)
        if record[0] == self._kind and not self._before:
            self._happens()
        return seq


def between(site: Site, kind: Kind, happens: Callable[[], None], *, before: bool = False) -> ReplayDoor:
    spooler: Any = Between(site.spooler, kind, happens, before=before)
    return ReplayDoor(spooler, site.obeyed, lambda why, *, may_stop: site.rest(why, may_stop))
