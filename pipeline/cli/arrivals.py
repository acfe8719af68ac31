"""What has come into the store since one looked last, whatever its times say and in whatever order it came.

Rows become visible late and out of order: doors and workers have clocks of their own, a host that was cut off sends what it
kept, and an insert that waits for the store carries the time of its first try. So nothing here goes by a time. Every record
comes in a frame, a frame has a number in its lane, and frame and records are one insert. What has a number that is not known
yet is new:

    look    -> frames whose numbers are not known, FRAMES_MAX at a time
    calls   -> of which calls they say something
    done    -> they are known from now on. What fails before that is looked at again
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pipeline.cli.asking import Asker
from schemas.records import Kind
from schemas.store import FLAG_DEAD, FRAME_KIND, quote_text

FRAMES_MAX: Final = 20
"""Frames of one look: 80,000 records at most."""

LANES_MAX: Final = 100
"""Lanes that one question names."""

Lane: TypeAlias = tuple[str, int, int]
"""Enforcer, its boot, partition."""

Span: TypeAlias = tuple[int, int]
"""Frame numbers, first to last."""

Key: TypeAlias = tuple[int, int]
"""A call: the boot of its door, and the seq of its decision."""

_OF_FRAMES: Final = f"FROM records WHERE boot = 0 AND kind = {FRAME_KIND} AND frame_flag != '{FLAG_DEAD}'"
"""A dead letter passes without its records: they come, under the same number, when it is retried."""

_LANE: Final = "toString(enforcer) AS lane_host, call_seq AS lane_boot, partition AS lane_part"
_TELLING: Final = f"{Kind.DECISION:d}, {Kind.EFFECT:d}, {Kind.LOST:d}"
"""Kinds of record that change the last word on a call. Progress does not."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame that is new: its place, when it came in (seconds since 1970), and the doors that it has records of."""

    lane: Lane
    number: int
    ingested_s: int
    boots: tuple[int, ...]


@dataclass(slots=True)
class Arrivals:
    """The frame numbers that are known, lane by lane."""

    _known: dict[Lane, list[Span]] = field(default_factory=dict)
    _seen: dict[Lane, Span] = field(default_factory=dict)
    """How many frames a lane had at the last look that found all of its new ones, and its highest number."""
    _pending: dict[Lane, Span] = field(default_factory=dict)

    def begin(self, asker: Asker) -> None:
        """Everything that is there now is known."""
        rows = asker.rows(
            "SELECT lane_host, lane_boot, lane_part, min(seq) AS low, max(seq) AS high FROM ("
            f"SELECT DISTINCT {_LANE}, seq, seq - dense_rank() OVER (PARTITION BY lane_host, lane_boot, lane_part ORDER BY seq)"
            f" AS island {_OF_FRAMES}) GROUP BY lane_host, lane_boot, lane_part, island"
        )
        for row in sorted(rows, key=lambda row: int(row["low"])):
            self._known.setdefault(_lane(row), []).append((row["low"], row["high"]))

    def look(self, asker: Asker) -> list[Arrived]:
        """Frames that are not known yet; FRAMES_MAX of them where there are more."""
        rows = asker.rows(f"SELECT {_LANE}, count() AS frames, max(seq) AS top {_OF_FRAMES} GROUP BY ALL")
        self._pending = {_lane(row): (row["frames"], row["top"]) for row in rows}
        changed = [lane for lane, there in self._pending.items() if self._seen.get(lane) != there]
        found: list[Arrived] = []
        for at in range(0, len(changed), LANES_MAX):
            some = changed[at : at + LANES_MAX]
            wanted = " OR ".join(f"({self._unknown(lane)})" for lane in some)
            rows = asker.rows(
                f"SELECT {_LANE}, seq, toUnixTimestamp(ingested) AS came, arrayFilter((one, n) -> n % 3 = 1, frame_ranges,"
                f" arrayEnumerate(frame_ranges)) AS boots {_OF_FRAMES} AND ({wanted})"
                f" ORDER BY ingested, lane_host, lane_boot, lane_part, seq LIMIT {FRAMES_MAX - len(found)}"
            )
            found += [Arrived(_lane(row), row["seq"], row["came"], tuple(set(row["boots"]))) for row in rows]
            if len(found) >= FRAMES_MAX:
                for lane in changed[at:]:
                    del self._pending[lane]  # not all of it was looked at
                break
        return found

    def _unknown(self, lane: Lane) -> str:
        host, boot, partition = lane
        known = self._known.get(lane, ())
        gaps = "".join(f" AND NOT seq BETWEEN {low} AND {high}" for low, high in known)
        return f"enforcer = {quote_text(host)} AND call_seq = {boot} AND partition = {partition}{gaps}"

    def done(self, frames: Iterable[Arrived]) -> None:
        """What the last look found has been told."""
        for frame in frames:
            self._known[frame.lane] = with_number(self._known.get(frame.lane, []), frame.number)
        self._seen.update(self._pending)


def calls_in(asker: Asker, frames: Sequence[Arrived]) -> set[Key]:
    """The calls on which these frames have a word."""
    if not frames:
        return set()
    boots = ", ".join(map(str, sorted({boot for frame in frames for boot in frame.boots})))
    if not boots:
        return set()
    places = ", ".join(f"({quote_text(f.lane[0])}, {f.lane[1]}, {f.lane[2]}, {f.number})" for f in frames)
    low, high = min(f.ingested_s for f in frames), max(f.ingested_s for f in frames)
    rows = asker.rows(
        f"SELECT DISTINCT boot, call_seq FROM records WHERE boot IN ({boots}) AND kind IN ({_TELLING})"
        f" AND ingested BETWEEN toDateTime({low}, 'UTC') AND toDateTime({high}, 'UTC')"
        f" AND (toString(enforcer), enforcer_boot, partition, frame_no) IN ({places})"
    )
    return {(row["boot"], row["call_seq"]) for row in rows}


def with_number(known: list[Span], number: int) -> list[Span]:
    """Spans with one more number in them: sorted, and none touches the next."""
    kept: list[Span] = []
    low = high = number
    for first, last in known:
        if first <= high + 1 and last >= low - 1:
            low, high = min(low, first), max(high, last)
        else:
            kept.append((first, last))
    return sorted([*kept, (low, high)])


def _lane(row: dict[str, Any]) -> Lane:
    return row["lane_host"], row["lane_boot"], row["lane_part"]
