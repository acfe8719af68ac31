"""Deny burst: more refusals in five minutes than the agent's own past makes likely.

Of each agent, refusals are counted in windows of five minutes (UTC). With W windows in the seven days before in which the agent
made a call at all, and D refusals in them,

    rate    = max(0.1, (D + 1) / (W + 1))                    refusals per window
    p       = P(X >= k | Poisson(rate)) for the k refusals of this window

A window fires at p < 1e-6: ten refusals of an agent without a past, five of one that is never refused. Windows that fire do not
teach: neither they nor their refusals are counted in W and D, so that an attack does not make itself normal. The floor of the
rate is for retries: refusals of one call come in threes.

Windows that fire within an hour of each other are one burst and one finding, named by the first of them; its score is that of
the window with the smallest p. TA0007: something looks for what it may reach.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final

import pyarrow as pa

from pipeline.core.detect.columns import codes, each_group, numbers
from pipeline.core.detect.interface import Room, make_room
from pipeline.core.detect.words import JUDGED_DAYS, KEPT_DAYS, PAST_DAYS, Rows, examples, news
from schemas.findings import DENY_BURST, Finding, Term, some_calls
from schemas.limits import DENY_AGENTS_MAX, DENY_WINDOWS_MAX
from schemas.records import call_id

WINDOW_US: Final = 300_000_000
DAY_WINDOWS: Final = 288
PAST_WINDOWS: Final = PAST_DAYS * DAY_WINDOWS

RATE_MIN: Final = 0.1
SURPRISE_MIN: Final = 6.0
"""-log10 of the probability from which a window fires."""

SURPRISE_MAX: Final = 300.0
GAP_WINDOWS: Final = 12
"""Windows that fire no further apart than this, an hour, are one burst."""

TARGETS_MAX: Final = 32
EXAMPLES_MAX: Final = 8
CALLS_KEPT: Final = 32
"""The first and the last refusals of a window, of each so many, that are named."""


@dataclass(slots=True)
class _Window:
    """The refusals of one agent in five minutes. Everything in it is a sum, a smallest or a largest."""

    denied: int = 0
    firsts: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(time in us, boot, seq, refusals), the earliest."""
    lasts: list[tuple[int, int, int, int]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """What was refused: the first by the alphabet, so that which are kept does not depend on their order."""


@dataclass(slots=True)
class _Agent:
    rows: Rows = field(default_factory=Rows)
    active: dict[int, int] = field(default_factory=dict)
    """Day -> one bit for each window in which there was a call."""
    windows: dict[int, _Window] = field(default_factory=dict)
    said: dict[int, Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A window with refusals, beside the past that it is judged by."""

    number: int
    denied: int
    past_denied: int
    past_windows: int
    surprise: float


@lru_cache(1 << 12)
def surprise_of(denied: int, rate: float) -> float:
    """-log10 P(X >= denied) of a Poisson variable, 300 at most: `SURPRISE_MIN` and above is a burst."""
    if denied <= rate:
        return 0.0
    log_first = denied * math.log(rate) - rate - math.lgamma(denied + 1)
    total = part = 1.0
    at = denied
    while part > 1e-12 * total:
        at += 1
        part *= rate / at
        total += part
    return round(max(0.0, min(SURPRISE_MAX, -(log_first + math.log(total)) / math.log(10))), 3)


def rate_of(past_denied: int, past_windows: int) -> float:
    """Refusals per window that an agent's past lets expect."""
    return max(RATE_MIN, (past_denied + 1) / (past_windows + 1))


def points_of(surprise: float) -> float:
    """What a window's surprise is worth: 20 where it fires, 40 from 10^-16."""
    return round(min(40.0, 20.0 + 2.0 * (surprise - SURPRISE_MIN)), 3)


class DenyBursts:
    """The detector `deny-burst`, by agent."""

    name: Final = DENY_BURST
    subject: Final = "agent"

    def __init__(self, agents: int = DENY_AGENTS_MAX, windows: int = DENY_WINDOWS_MAX) -> None:
        self._agents_max = agents
        self._windows_max = windows
        self._agents: OrderedDict[str, _Agent] = OrderedDict()
        self._windows = 0
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
        return (Room(len(self._agents), self._agents_max), Room(self._windows, self._windows_max))

    def forget_oldest(self, which: int) -> bool:
        """Let go of the agent that was heard of longest ago, with its windows."""
        if len(self._agents) < 2:
            return False
        _, gone = self._agents.popitem(last=False)
        self._windows -= len(gone.windows)
        self._evicted += 1
        return True

    def clear(self) -> None:
        """Forget every agent."""
        self._agents.clear()
        self._windows = 0

    def take(self, rows: pa.Table) -> list[Finding]:
        """Count, and judge the agents that have ever been refused."""
        if not rows.num_rows:
            return []
        agent, names = codes(rows, "agent")
        resource, targets = codes(rows, "resource")
        time, denied = numbers(rows, "time"), numbers(rows, "denied")
        boot, seq = rows["call_boot"].to_pylist(), rows["call_seq"].to_pylist()
        window = numbers(rows, "second") * 1_000_000 // WINDOW_US
        touched: dict[str, _Agent] = {}
        for (one, number), at in each_group((agent, window)):
            name = names[one]
            if not name:
                continue
            state = touched[name] = self._of(name)
            day, bit = divmod(number, DAY_WINDOWS)
            state.rows.add(day, len(at))
            state.active[day] = state.active.get(day, 0) | (1 << bit)
            refused = at[denied[at] > 0]
            if not len(refused):
                continue
            found = [(int(time[i]), int(boot[i]), int(seq[i]), int(denied[i])) for i in refused]
            kept = state.windows.get(number)
            if kept is None:
                kept = state.windows[number] = _Window()
                self._windows += 1
            kept.denied += sum(one[3] for one in found)
            kept.firsts = sorted(kept.firsts + found)[:CALLS_KEPT]
            kept.lasts = sorted(kept.lasts + found)[-CALLS_KEPT:]
            kept.targets = sorted({*kept.targets, *(targets[code] for code in set(resource[refused].tolist()))})[:TARGETS_MAX]
        said = [finding for name, state in touched.items() for finding in self._judge(name, state)]
        make_room([[self]])
        return said

    def _of(self, name: str) -> _Agent:
        state = self._agents.get(name)
        if state is None:
            state = self._agents[name] = _Agent()
        self._agents.move_to_end(name)
        return state

    def _judge(self, name: str, state: _Agent) -> list[Finding]:
        latest = max(state.active)
        self._forget(state, latest - KEPT_DAYS)
        if not state.windows:
            return []
        oldest = (latest - JUDGED_DAYS) * DAY_WINDOWS
        bursts = [burst for burst in _bursts(_judged(state)) if burst[0].number >= oldest]
        holds = {burst[0].number: _finding(name, state, burst) for burst in bursts}
        said = {number: one for number, one in state.said.items() if number >= oldest}
        state.said = holds
        return news(said, holds, lambda one: state.rows.version(one.window_us // WINDOW_US // DAY_WINDOWS))

    def _forget(self, state: _Agent, oldest: int) -> None:
        """What lies before a day. The latest call is a maximum, so that this depends on no order."""
        for day in [day for day in state.active if day < oldest]:
            del state.active[day]
        for number in [number for number in state.windows if number < oldest * DAY_WINDOWS]:
            del state.windows[number]
            self._windows -= 1


def _judged(state: _Agent) -> list[_Judged]:
    """Each window with refusals, in their order, by the windows before it that did not fire."""
    before = _Active(state.active)
    found: list[_Judged] = []
    oldest = fired = past = 0
    for number in sorted(state.windows):
        while oldest < len(found) and found[oldest].number < number - PAST_WINDOWS:
            gone = found[oldest].surprise >= SURPRISE_MIN
            fired -= gone
            past -= 0 if gone else found[oldest].denied
            oldest += 1
        windows = before(number) - before(number - PAST_WINDOWS) - fired
        denied = state.windows[number].denied
        surprise = surprise_of(denied, rate_of(past, windows))
        found.append(_Judged(number, denied, past, windows, surprise))
        fired += surprise >= SURPRISE_MIN
        past += denied if surprise < SURPRISE_MIN else 0
    return found


class _Active:
    """How many windows before a window had a call."""

    def __init__(self, active: Mapping[int, int]) -> None:
        self._active = active
        self._days = sorted(active)
        counts = (active[day].bit_count() for day in self._days)
        self._before = [0, *accumulate(counts)]

    def __call__(self, number: int) -> int:
        day, bit = divmod(number, DAY_WINDOWS)
        return self._before[bisect_left(self._days, day)] + (self._active.get(day, 0) & ((1 << bit) - 1)).bit_count()


def _bursts(judged: Sequence[_Judged]) -> list[list[_Judged]]:
    fired = [one for one in judged if one.surprise >= SURPRISE_MIN]
    if not fired:
        return []
    bursts = [[fired[0]]]
    for last, one in pairwise(fired):
        if one.number - last.number > GAP_WINDOWS:
            bursts.append([])
        bursts[-1].append(one)
    return bursts


def _finding(name: str, state: _Agent, burst: Sequence[_Judged]) -> Finding:
    worst = max(burst, key=lambda one: (one.surprise, -one.number))
    targets = sorted({target for one in burst for target in state.windows[one.number].targets})[:TARGETS_MAX]
    first, last = state.windows[burst[0].number], state.windows[burst[-1].number]
    calls = sorted({call[:3] for one in burst for call in _calls(state.windows[one.number])})
    named = [call_id(boot, seq) for _, boot, seq in calls]
    rate = rate_of(worst.past_denied, worst.past_windows)
    denied = sum(one.denied for one in burst)
    return Finding(
        detector=DENY_BURST, subject=f"agent={name}", window_us=burst[0].number * WINDOW_US, agent=name,
        version=state.rows.version(burst[0].number // DAY_WINDOWS),
        started_us=first.firsts[0][0], ended_us=last.lasts[-1][0], time_us=_crossed(first, burst[0]),
        terms=(
            Term(name="surprise", value=worst.surprise, points=points_of(worst.surprise),
                 why=f"{worst.denied} refusals in five minutes where {rate:.3g} are expected: one in 10^{worst.surprise:.0f}"),
            Term(name="breadth", value=float(len(targets)), points=min(30.0, 5.0 * (len(targets) - 1)),
                 why=f"{len(targets)} different resources were refused"),
        ),
        title=f"agent {name} was refused {denied} times, {worst.denied} of them within five minutes",
        calls=some_calls(named), calls_count=denied,
        evidence={
            "denied": worst.denied, "window_us": worst.number * WINDOW_US, "past_denied": worst.past_denied,
            "past_windows": worst.past_windows, "rate": round(rate, 6), "targets": len(targets),
            "examples": examples(targets, EXAMPLES_MAX),
            "windows": [[one.number * WINDOW_US, one.denied] for one in burst[:50]],
        },
    )  # fmt: skip


def _calls(window: _Window) -> list[tuple[int, int, int, int]]:
    return window.firsts + window.lasts


def _crossed(window: _Window, judged: _Judged) -> int:
    """When the refusal came that made the window fire; its last one's time where that is not among those kept."""
    rate = rate_of(judged.past_denied, judged.past_windows)
    count = 0
    for time_us, _, _, denied in window.firsts:
        count += denied
        if surprise_of(count, rate) >= SURPRISE_MIN:
            return time_us
    return window.lasts[-1][0]

