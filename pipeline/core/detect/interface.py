"""What a detector is. It is pure: aggregates in, findings out; no clock, the calls' own times are all it knows.

What it says is a function of the set of rows that it has taken, not of their order: its state is made of sums, minima, maxima
and sets, by subject and window. After each take it judges again what the rows have touched. What holds is a finding, said
again when it has changed; what held and does not hold any more, since an older call came late, is the same finding, withdrawn.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from schemas.findings import Finding


class Room(NamedTuple):
    """What is kept of something, and the most that may be: by one set of detectors, and by all sets of a worker."""

    kept: int
    most: int


class Detector(Protocol):
    """One way to notice something. Memory is bounded: what was not used for longest makes room, and is counted."""

    @property
    def name(self) -> str:
        """As in `schemas.findings.DETECTORS`."""

    @property
    def subject(self) -> str:
        """Whose rows it takes: `agent`, `credential` or `domain`, as in `schemas.egress.SUBJECTS`."""

    def take(self, rows: pa.Table) -> list[Finding]:
        """Take rows of its subject's schema, each once (`dedupe`), and say what is to be said now."""

    @property
    def entries(self) -> int:
        """What it keeps, in units of its limit."""

    @property
    def evicted(self) -> int:
        """What had to make room so far."""

    @property
    def room(self) -> tuple[Room, ...]:
        """What it keeps of each thing that has a limit."""

    def forget_oldest(self, which: int) -> bool:
        """Let go of what was not used for longest, to make room for the thing `room[which]`; False when no more can go."""

    def clear(self) -> None:
        """Forget everything but the count of evictions: the partition is another's now."""


def make_room(sets: Iterable[Sequence[Detector]]) -> None:
    """Hold several sets of detectors to the limits of one: the set that keeps most of a thing lets go of its oldest.

    Each set alone keeps its limits, so nothing happens with one; and none of them notices the others before they are full.
    """
    kinds: dict[str, list[Detector]] = {}
    for detector in (one for several in sets for one in several):
        kinds.setdefault(detector.name, []).append(detector)
    for several in kinds.values():
        for which, room in enumerate(several[0].room):
            kept = [one.room[which].kept for one in several]
            over = sum(kept) - room.most
            while over > 0:  # in a flood once for each that is new: only the set that lets go is asked again
                fullest = max(range(len(kept)), key=kept.__getitem__)
                if not several[fullest].forget_oldest(which):
                    break
                now = several[fullest].room[which].kept
                over -= kept[fullest] - now
                kept[fullest] = now
