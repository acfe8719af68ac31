"""Volume: an hour, or a day, in which an agent sent far more than in its own past.

The bytes that an agent sends are summed by the hour and the day (UTC) of the call that carries them. An hour is compared with
the hours of the seven days before it in which the agent sent anything, a day with such days:

    spread = max(MAD, median / 10, 1 KiB)       MAD: the median of |past - median|
    z      = 0.6745 (x - median) / spread       the robust z-score (Iglewicz and Hoaglin, 1993)

There is a finding at z >= 6 and x >= 1 MB in an hour (ten thousand records of a hundred bytes, where other products begin to
call an export one), or 10 MB in a day; and not before the agent has a past of 24 such hours, or 5 such days. The floors of the
spread are for agents that send the same every hour, whose MAD is 0. A median takes no notice of less than half of its past,
so that one attack does not make the next one normal. TA0010.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.detect.columns import Ints, codes, each_group, numbers
from pipeline.core.detect.interface import Room, make_room
from pipeline.core.detect.words import JUDGED_DAYS, KEPT_DAYS, PAST_DAYS, Rows, news
from schemas.findings import VOLUME, Finding, Term
from schemas.limits import VOLUME_AGENTS_MAX, VOLUME_DAYS_MAX

Z_MIN: Final = 6.0
Z_FACTOR: Final = 0.6745
"""The 0.75 quantile of the normal distribution: MAD / 0.6745 estimates its standard deviation."""

SPREAD_SHARE: Final = 0.1
SPREAD_BYTES_MIN: Final = 1024
SLOTS: Final = 288
"""Parts of a day that are kept, of five minutes: they say when a threshold was crossed."""

SLOT_US: Final = 300_000_000
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One length of time that is looked at."""

    name: str
    slots: int
    bytes_min: int
    past_min: int
    points: float
    """What z >= 6 is worth; as much again comes with what is above it."""


SPANS: Final = (
    Span(name="hour", slots=12, bytes_min=1_000_000, past_min=24, points=30.0),
    Span(name="day", slots=SLOTS, bytes_min=10_000_000, past_min=5, points=40.0),
)


@dataclass(slots=True)
class _Agent:
    rows: Rows = field(default_factory=Rows)
    days: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    """Day since 1970 -> the bytes of each slot, and behind them the calls of each."""
    said: dict[str, dict[int, Finding]] = field(default_factory=dict)


def spread_of(past: Sequence[int]) -> tuple[float, float]:
    """Median and spread of what was sent before."""
    values = np.asarray(past, np.float64)
    median = float(np.median(values))
    deviation = float(np.median(np.abs(values - median)))
    return median, max(deviation, SPREAD_SHARE * median, SPREAD_BYTES_MIN)


def z_of(sent: int, past: Sequence[int]) -> float:
    """The robust z-score of `sent` bytes beside what was sent before, to three decimals."""
    median, spread = spread_of(past)
    return round(Z_FACTOR * (sent - median) / spread, 3)


class Volumes:
    """The detector `volume`, by agent."""

    name: Final = VOLUME
    subject: Final = "agent"

    def __init__(self, agents: int = VOLUME_AGENTS_MAX, days: int = VOLUME_DAYS_MAX) -> None:
        self._agents_max = agents
        self._days_max = days
        self._agents: OrderedDict[str, _Agent] = OrderedDict()
        self._days = 0
        self._evicted = 0

    @property
    def entries(self) -> int:
        """Agents that it knows."""
        return len(self._agents)

    @property
    def evicted(self) -> int:
        """Agents that had to make room."""
        return self._evicted

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        return (Room(len(self._agents), self._agents_max), Room(self._days, self._days_max))

    def forget_oldest(self, which: int) -> bool:
        """Let go of the agent that was heard of longest ago, with its days."""
        if len(self._agents) < 2:
            return False
        _, gone = self._agents.popitem(last=False)
        self._days -= len(gone.days)
        self._evicted += 1
        return True

    def clear(self) -> None:
        """Forget every agent."""
        self._agents.clear()
        self._days = 0

    def take(self, rows: pa.Table) -> list[Finding]:
        """Sum up, and judge every hour and day from the first on that has changed."""
        if not rows.num_rows:
            return []
        agent, names = codes(rows, "agent")
        second, sent, calls = numbers(rows, "second"), numbers(rows, "bytes_out"), numbers(rows, "calls")
        day = second // DAY_S
        slot = (second % DAY_S) // (SLOT_US // 1_000_000)
        touched: dict[str, tuple[_Agent, int]] = {}
        for (one, number), at in each_group((agent, day)):
            name = names[one]
            if not name:
                continue
            state = self._of(name)
            state.rows.add(number, len(at))
            kept = state.days.get(number)
            if kept is None:
                kept = state.days[number] = np.zeros(2 * SLOTS, np.uint64)
                self._days += 1
            _add(kept, slot[at], sent[at])
            _add(kept, SLOTS + slot[at], calls[at])
            first = number * SLOTS + int(slot[at].min())
            touched[name] = state, min(first, touched.get(name, (state, first))[1])
        said = [finding for name, (state, first) in touched.items() for finding in self._judge(name, state, first)]
        make_room([[self]])
        return said

    def _of(self, name: str) -> _Agent:
        state = self._agents.get(name)
        if state is None:
            state = self._agents[name] = _Agent(said={span.name: {} for span in SPANS})
        self._agents.move_to_end(name)
        return state

    def _judge(self, name: str, state: _Agent, first: int) -> list[Finding]:
        latest = max(state.days)
        for day in [day for day in state.days if day < latest - KEPT_DAYS]:
            del state.days[day]
            self._days -= 1
        first = max(first, (latest - JUDGED_DAYS) * SLOTS)
        days = sorted(state.days)
        table = np.stack([state.days[day] for day in days])
        changed: list[Finding] = []
        for span in SPANS:
            said = state.said[span.name]
            since = first // span.slots
            holds = _holding(name, state.rows, span, days, table, since)
            later = {number: one for number, one in said.items() if number >= since}
            changed += news(later, holds, lambda one: state.rows.version(one.window_us // (SLOT_US * SLOTS)))
            state.said[span.name] = {
                number: one for number, one in (said | holds).items()
                if (number < since or number in holds) and number * span.slots >= (latest - JUDGED_DAYS) * SLOTS
            }  # fmt: skip
        return changed


def _add(to: NDArray[np.uint64], at: Ints, values: Ints) -> None:
    np.add.at(to, at, values.astype(np.uint64))


def _holding(name: str, rows: Rows, span: Span, days: list[int], table: NDArray[np.uint64], since: int) -> dict[int, Finding]:
    """The findings of each span from number `since` on: what was sent in it is far above what was sent in those before it."""
    per_day = SLOTS // span.slots
    sums = table[:, :SLOTS].reshape(len(days), per_day, span.slots).sum(axis=2).reshape(-1)
    named = (np.asarray(days, np.int64)[:, None] * per_day + np.arange(per_day)).reshape(-1)
    used = np.flatnonzero(sums)  # an hour without a byte is no hour of work
    sums, named = sums[used].astype(np.int64), named[used]
    found: dict[int, Finding] = {}
    for at in np.flatnonzero((named >= since) & (sums >= span.bytes_min)).tolist():
        number, sent = int(named[at]), int(sums[at])
        past = sums[bisect_left(named, number - PAST_DAYS * per_day) : at].tolist()
        if len(past) >= span.past_min and z_of(sent, past) >= Z_MIN:
            day, part = divmod(number, per_day)
            row = table[bisect_left(days, day)]
            slots = slice(part * span.slots, (part + 1) * span.slots)
            found[number] = _finding(name, rows.version(day), span, number, row[:SLOTS][slots], row[SLOTS:][slots], past)
    return found


def _finding(
    name: str, version: int, span: Span, number: int, sent: NDArray[np.uint64], calls: NDArray[np.uint64], past: list[int]
) -> Finding:
    total = int(sent.sum())
    median, spread = spread_of(past)
    z = z_of(total, past)
    least = max(float(span.bytes_min), median + Z_MIN * spread / Z_FACTOR)
    begin_us = number * span.slots * SLOT_US
    crossed = min(int(np.searchsorted(np.cumsum(sent), least)), span.slots - 1)
    used = np.flatnonzero(sent)
    above = round(min(span.points, span.points * (z - Z_MIN) / (10 * Z_MIN)), 3)
    return Finding(
        detector=VOLUME, subject=f"agent={name} span={span.name}", window_us=begin_us, version=version, agent=name,
        started_us=begin_us + int(used[0]) * SLOT_US, ended_us=begin_us + (int(used[-1]) + 1) * SLOT_US - 1,
        time_us=begin_us + (crossed + 1) * SLOT_US - 1,
        terms=(
            Term(name="above", value=z, points=span.points,
                 why=f"{total} bytes in one {span.name}, where the median is {median:.0f} and the spread {spread:.0f}"),
            Term(name="far above", value=z, points=above, why=f"z is {z:.1f}; {11 * Z_MIN:g} counts in full"),
        ),
        title=f"agent {name} sent {total} bytes in one {span.name}, {total / max(median, 1.0):.1f} times its median",
        calls_count=int(calls.sum()),
        evidence={"span": span.name, "bytes_out": total, "past": past, "median": median, "spread": spread, "z": z},
    )  # fmt: skip
