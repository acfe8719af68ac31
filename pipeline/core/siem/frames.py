"""Which frames' refused calls a sink was sent, by their numbers: a record's time says nothing of when it became visible.

`ingested` is the time of an insert's first try, which may be hours before the one that the store took. So new is what has a
number that is not known. Most frames come in soon: those of the last RECENT_S are looked at each time, all of the last LATE_S
once in DEEP_S.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

RECENT_S: Final = 600
DEEP_S: Final = 300.0
LATE_S: Final = 8 * 86_400
"""How late a frame may come in, from the first try to insert it. Of one that is later no refusal is sent; the store has it."""

Lane: TypeAlias = tuple[str, int, int]
"""Enforcer, its boot, partition."""

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A frame: its place, when its insert was first tried, its records, and the door boots that it has records of."""

    lane: Lane
    number: int
    ingested_s: int
    records: int
    boots: tuple[int, ...]

    @property
    def key(self) -> str:
        """For people: a frame's name."""
        return f"{self.lane[0]}/{self.lane[1]}/{self.lane[2]}/{self.number}"


@dataclass(slots=True)
class Frames:
    """The numbers that are known, lane by lane."""

    floor_s: int
    """Frames that were ingested before are none of this sink's."""
    high_s: int
    """The latest that was taken."""
    lanes: dict[Lane, tuple[int, list[Span]]] = field(default_factory=dict)
    """Lane -> the latest `ingested` of it, and the numbers, spans that do not touch."""

    def low_s(self) -> int:
        """Where a look at what is recent begins."""
        return max(self.floor_s, self.high_s - RECENT_S)

    def knows(self, lane: Lane, number: int) -> bool:
        """Whether a frame was taken."""
        _, spans = self.lanes.get(lane, (0, []))
        return any(low <= number <= high for low, high in spans)

    def spans(self, lane: Lane) -> list[Span]:
        """The numbers of a lane that were taken."""
        return list(self.lanes.get(lane, (0, []))[1])

    def take(self, frame: Arrived) -> None:
        """Everything of a frame was sent."""
        latest, spans = self.lanes.get(frame.lane, (0, []))
        self.lanes[frame.lane] = max(latest, frame.ingested_s), with_number(spans, frame.number)
        if frame.ingested_s > self.high_s:
            self.high_s = frame.ingested_s
            self.floor_s = max(self.floor_s, self.high_s - LATE_S)
            gone = [lane for lane, (seen_s, _) in self.lanes.items() if seen_s < self.floor_s]
            for lane in gone:
                del self.lanes[lane]

    def encode(self) -> dict[str, Any]:
        """As JSON takes it."""
        lanes = [[*lane, latest, *(list(span) for span in spans)] for lane, (latest, spans) in self.lanes.items()]
        return {"floor_s": self.floor_s, "high_s": self.high_s, "lanes": lanes}

    @classmethod
    def decode(cls, value: Mapping[str, Any]) -> "Frames":
        """Back from JSON. Raises ValueError, KeyError or TypeError."""
        lanes = {
            (str(host), int(boot), int(part)): (int(latest), [(int(low), int(high)) for low, high in spans])
            for host, boot, part, latest, *spans in value["lanes"]
        }
        return cls(floor_s=int(value["floor_s"]), high_s=int(value["high_s"]), lanes=lanes)


def with_number(known: Iterable[Span], number: int) -> list[Span]:
    """Spans with one more number in them: sorted, and none touches the next."""
    kept: list[Span] = []
    low = high = number
    for first, last in known:
        if first <= high + 1 and last >= low - 1:
            low, high = min(low, first), max(high, last)
        else:
            kept.append((first, last))
    return sorted([*kept, (low, high)])
