"""Refusals that have no call of their own, counted: under a flood the spool stays small and the sum stays exact.

    add     a request that nobody is known by, or that has no one meaning: one more of its kind
    due     the counts that are to be written now: a kind's first one at once, then what came since, once in EVERY_NS

A kind is (reason, code, status, name). The names are the attacker's to choose, so there are never more than `keys_max` kinds
at a time; what finds no room is counted for its reason, code and status under the name MORE. A kind that nothing came of for
EVERY_NS makes room for others. A door that is killed takes with it what it counted since the last writing: refusals, no call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from enforcers.core.call import TENANT, Record
from schemas.errors import SpoolFull
from schemas.limits import NAME_BYTES_MAX
from schemas.records import Kind, Mode, Outcome, Verdict
from schemas.vocabulary import shown

EVERY_NS: Final = 1_000_000_000
KEYS_MAX: Final = 256
"""Kinds at a time: with EVERY_NS it bounds the records that a flood makes to some 80 KB a second."""

MORE: Final = "(more)"
COUNT_MAX: Final = (1 << 32) - 1
"""What one record can say; the rest is in the next one."""

Key: TypeAlias = tuple[str, str, int, str]


@dataclass(slots=True)
class _Count:
    since_ns: int = 0
    """When the last record was written; 0 before the first."""
    count: int = 0


class Flood:
    """One door's counts; one thread at a time."""

    def __init__(self, door: str, keys_max: int = KEYS_MAX) -> None:
        self.counted = 0
        """All that were ever added."""
        self._door = door
        self._keys_max = keys_max
        self._counts: dict[Key, _Count] = {}
        self._more: dict[Key, _Count] = {}

    def add(self, reason: str, code: str, claimed: str = "", agent: str = "", status: int = 0) -> None:
        """One more. `reason` and `code` are ours, never the attacker's text; `claimed` is what the request says it is.

        `agent` is who it is, where that was proved: it goes before what is claimed.
        """
        self.counted += 1
        name = agent or claimed
        if len(name.encode(errors="replace")) > NAME_BYTES_MAX or not name.isprintable():
            name = shown(name)
        key = (reason, code, status, name)
        held = self._counts.get(key)
        if held is None:
            if len(self._counts) < self._keys_max:
                held = self._counts[key] = _Count()
            else:
                held = self._more.setdefault((reason, code, status, MORE), _Count())
        held.count += 1

    def due(self, now_ns: int, *, everything: bool = False) -> list[Record]:
        """The records to append now, which are no longer counted here; `everything`: whether their time has come or not.

        What cannot be appended goes `back`.
        """
        found: list[Record] = []
        for counts in (self._counts, self._more):
            idle: list[Key] = []
            for key, held in counts.items():
                if not everything and held.since_ns and now_ns - held.since_ns < EVERY_NS:
                    continue
                if not held.count:
                    idle.append(key)
                    continue
                count = min(held.count, COUNT_MAX)
                found.append(self._record(key, count, now_ns, now_ns - held.since_ns if held.since_ns else 0))
                held.count -= count
                held.since_ns = now_ns
            for key in idle:
                del counts[key]
        return found

    def back(self, records: list[Record]) -> None:
        """Count records again that `due` gave and that found no room."""
        for record in records:
            texts = record[20]
            key = (texts[17], texts[19], record[8], texts[3])
            counts = self._more if texts[3] == MORE else self._counts
            held = counts.setdefault(key, _Count())
            held.count += record[9]
            held.since_ns = held.since_ns or record[2]

    def write(self, append: Callable[[Record], int], now_ns: int, *, everything: bool = False) -> bool:
        """Append what is due. False where there was no room: it stays counted, and is written later."""
        records = self.due(now_ns, everything=everything)
        for number, record in enumerate(records):
            try:
                append(record)
            except SpoolFull:
                self.back(records[number:])
                return False
        return True

    def _record(self, key: Key, count: int, now_ns: int, took_ns: int) -> Record:
        """`duration_ns` is the time in which they were counted, 0 where the first one is written at once."""
        reason, code, status, name = key
        texts = (TENANT, self._door, "", name, "", "", "", "", "", "", "", "", "", "", "", "", "", reason, "", code)
        return (
            int(Kind.COUNT), 0, now_ns, now_ns, int(Verdict.DENY), int(Outcome.REFUSED), int(Mode.ENFORCE), 0, status, count,
            0, 0, took_ns, 0, 0, 0, 0, 0, bytes(16), bytes(8), texts, True,
        )  # fmt: skip
