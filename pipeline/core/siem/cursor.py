"""How far one sink is: everything that it must be sent is behind its cursor, or in the cursor's window and named as seen.

Rows carry the time of the store at which they were written (`stored`), and become visible when their insert ends: two writers'
rows in another order than their times say, and one that was slow perhaps a minute late. So a cursor is not a time alone:

    at      the latest `stored` that was taken
    window  OVERLAP before it: looked at again each time, and what is there and not `seen` is new
    seen    the keys that were taken in the window

An insert lasts `worker.insert_timeout_s` at most, and OVERLAP is longer. A cursor is written after its sink has taken what it
says; a crash in between, and the same events are sent again, with the same ids.

    told    the findings that were sent lately: what makes the next version an Update and not a Create, and what an update that
            changes neither severity nor state waits for
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.core.siem.frames import Frames
from schemas.errors import OperatorFault

FORMAT: Final = 1

MARGIN_US: Final = 60 * 10**6
"""What a cursor's window is longer than an insert may last: clocks that step back, a store that is slow to end it."""

BEGIN_US: Final = 3600 * 10**6
"""A sink without a cursor begins with what was stored in the hour before its first start."""

SEEN_MAX: Final = 50_000
"""Keys in one window. Beyond it the window ends at the oldest one that is kept, which is counted: rows that become visible
later than that would be missed."""

TOLD_MAX: Final = 4096
"""Findings that a sink remembers having sent. A later version of one that was forgotten is a Create again."""


@dataclass(slots=True)
class Mark:
    """How far one kind of row is. Times are microseconds since 1970, of the store's clock."""

    at_us: int
    floor_us: int
    """Nothing that was stored before it is looked at."""
    seen: dict[str, int] = field(default_factory=dict)
    """Key -> `stored` of what was taken in the window."""
    cut: int = 0
    """Keys that were dropped since the start although they were in the window."""

    def low_us(self, overlap_us: int) -> int:
        """Where the window begins."""
        return max(self.floor_us, self.at_us - overlap_us)

    def take(self, key: str, at_us: int, overlap_us: int, *, ahead: bool = False) -> None:
        """A row was taken. `ahead`: out of its turn, so that what was stored before it may still be to come."""
        self.seen[key] = at_us
        if not ahead and at_us > self.at_us:
            self.at_us = at_us
            low = self.low_us(overlap_us)
            self.seen = {one: at for one, at in self.seen.items() if at >= low}
        if len(self.seen) > SEEN_MAX:
            kept = sorted(self.seen.items(), key=lambda one: one[1])
            half = len(kept) // 2
            self.floor_us = max(self.floor_us, kept[half - 1][1] + 1)
            self.cut += half
            self.seen = {one: at for one, at in kept[half:] if at >= self.floor_us}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a sink was last sent of a finding."""

    version: int
    severity: str
    state: str
    sent_us: int
    agent: str = ""
    due_us: int = 0
    """When a version that is newer and not much different is sent at the latest; 0 while there is none."""
    waits_us: int = 0
    """When that version was stored."""


@dataclass(slots=True)
class Cursor:
    """How far a sink is. `overlap_us` is the length of the window."""

    overlap_us: int
    marks: dict[str, Mark] = field(default_factory=dict)
    told: "OrderedDict[str, Told]" = field(default_factory=OrderedDict)
    frames: Frames | None = None
    """Of a sink that gets refused calls."""

    def begin(self, sources: Iterable[str], *, refusals: bool, now_us: int) -> None:
        """Begin what has not begun: a sink that is new, or that gets what it did not get before."""
        for source in sources:
            if source not in self.marks:
                self.marks[source] = Mark(at_us=now_us - BEGIN_US, floor_us=now_us - BEGIN_US)
        if refusals and self.frames is None:
            self.frames = Frames(floor_s=(now_us - BEGIN_US) // 10**6, high_s=(now_us - BEGIN_US) // 10**6)

    def tell(self, finding: str, told: Told) -> None:
        """A finding was sent. The one that was sent longest ago is forgotten, one that waits last of all."""
        self.told[finding] = told
        self.told.move_to_end(finding)
        while len(self.told) > TOLD_MAX:
            oldest = next((one for one, known in self.told.items() if not known.due_us), next(iter(self.told)))
            del self.told[oldest]

    def encode(self) -> bytes:
        """The cursor's file."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "marks": {
                source: {"at_us": mark.at_us, "floor_us": mark.floor_us, "seen": mark.seen}
                for source, mark in self.marks.items()
            },
            "told": {
                one: [known.version, known.severity, known.state, known.sent_us, known.agent, known.due_us, known.waits_us]
                for one, known in self.told.items()
            },
        }
        if self.frames is not None:
            value["frames"] = self.frames.encode()
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes, *, overlap_us: int, where: str) -> Cursor:
    """A cursor from its file. Raises OperatorFault naming `where` when it is none: only somebody can say what is to be sent."""
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise OperatorFault(f"{where}: has format `{value['format']}`, this Wardline knows {FORMAT}")
        marks = {source: _mark(one) for source, one in value["marks"].items()}
        told = OrderedDict(
            (one, Told(version=int(version), severity=str(severity), state=str(state), sent_us=int(sent), agent=str(agent),
                       due_us=int(due), waits_us=int(waits)))
            for one, (version, severity, state, sent, agent, due, waits) in value["told"].items()
        )  # fmt: skip
        frames = Frames.decode(value["frames"]) if "frames" in value else None
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise OperatorFault(f"{where}: is no cursor of a sink; remove it, and the sink begins with the last hour") from fault
    return Cursor(overlap_us=overlap_us, marks=marks, told=told, frames=frames)


def _mark(value: Mapping[str, Any]) -> Mark:
    seen = {str(key): int(at) for key, at in value["seen"].items()}
    return Mark(at_us=int(value["at_us"]), floor_us=int(value["floor_us"]), seen=seen)
