"""Beacon: an agent speaks to a host as a program that waits for orders does.

Regular is what `ext.beacon` says: RITA's score (version 5) of the calls of one UTC day. Taken alone, two of three regular
things are updates, tiles and certificate lists. What a poll for news and a wait for orders do not share is the answer: news
differ, that is what they are asked for, while who waits for orders hears the same "nothing to do" again and again. So the
score counts by how sure it is that a call was such an idle one:

    answers = lower end of Wilson's 95 % interval for the share of the commonest size of an answer
    score   = RITA x answers + prevalence

n equal answers of n are an `answers` of n / (n + 3.84): the few calls of a short list prove less than the many of a day, which
is what the connection threshold of earlier versions of RITA was for. Where no call of the day has a size, since nobody recorded
them, RITA is the mean of its other three parts. `prevalence` is RITA's: +0.15 where at most 2 % of the agents of that day speak
to the host, -0.15 where at least half of them do; of fewer than ten agents it says nothing. It is a weight and no gate, since
an infected package speaks from everywhere.

There is a finding at 0.8, and only where the agent first spoke to the host within the seven days before. It has 60 points for
1.0 and so never more than 69, below what rules act on: that something is regular proves nothing. TA0011.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from ext.beacon import PairDay, fill
from pipeline.core.detect.columns import codes, groups, numbers
from pipeline.core.detect.interface import Room, make_room
from pipeline.core.detect.words import JUDGED_DAYS, differs
from schemas.findings import BEACON, Finding, Term
from schemas.limits import BEACON_DAYS_MAX, BEACON_PAIRS_MAX

SCORE_MIN: Final = 0.8
POINTS: Final = 60.0
NEW_S: Final = 7 * 86_400
"""How long a host is new to an agent."""

PREVALENCE: Final = 0.15
RARE_SHARE: Final = 0.02
COMMON_SHARE: Final = 0.5
AGENTS_MIN: Final = 10
"""Agents of a day of which a share says something."""

CALLS_MIN: Final = 8
"""Seconds with calls below which no score can be reached: even equal answers are then an `answers` below 0.65."""

DAY_S: Final = 86_400
_SECOND_US: Final = 1_000_000

Pair: TypeAlias = tuple[str, str]
"""Agent and host."""

Judged: TypeAlias = tuple[float, float, float, float, float, float, int, int, int]
"""What `PairDay.judge` says."""


@dataclass(slots=True)
class _Pair:
    first_s: int
    domain: str
    rows: int = 0
    """While there is something to say, all of them lie within a week: whoever reads the lookback anew counts as many."""
    days: dict[int, PairDay] = field(default_factory=dict)
    said: dict[int, Finding] = field(default_factory=dict)


@dataclass(slots=True)
class _Day:
    """Who spoke to whom on a day, in numbers."""

    agents: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    """Pairs that there are of each."""

    candidates: dict[Pair, float] = field(default_factory=dict)
    """Those whom prevalence may decide on -> the weight that they were judged with."""


def prevalence_of(here: int, agents: int) -> float:
    """The weight of a host that `here` of a day's `agents` speak to."""
    if agents < AGENTS_MIN:
        return 0.0
    return PREVALENCE if here <= RARE_SHARE * agents else -PREVALENCE if here >= COMMON_SHARE * agents else 0.0


class Beacons:
    """The detector `beacon`, by agent. How common a host is, it knows of the agents of its partition: a sample of them all."""

    name: Final = BEACON
    subject: Final = "agent"

    def __init__(self, pairs: int = BEACON_PAIRS_MAX, days: int = BEACON_DAYS_MAX) -> None:
        self._pairs_max = pairs
        self._kept_max = days
        self._pairs: OrderedDict[Pair, _Pair] = OrderedDict()
        self._days: dict[int, _Day] = {}
        self._agents: dict[str, list[int]] = {}
        """Agent -> its pairs, and the day of its latest call."""
        self._kept = 0
        self._evicted = 0

    @property
    def entries(self) -> int:
        """Pairs of agent and host that it knows."""
        return len(self._pairs)

    @property
    def evicted(self) -> int:
        """Pairs that had to make room."""
        return self._evicted

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        return (Room(len(self._pairs), self._pairs_max), Room(self._kept, self._kept_max))

    def forget_oldest(self, which: int) -> bool:
        """Let go of the pair that was heard of longest ago, with its days."""
        if len(self._pairs) < 2:
            return False
        pair, gone = self._pairs.popitem(last=False)
        self._kept -= len(gone.days)
        self._evicted += 1
        self._agents[pair[0]][0] -= 1
        if not self._agents[pair[0]][0]:
            del self._agents[pair[0]]
        for number in gone.days:
            day = self._days[number]
            day.candidates.pop(pair, None)
            for counter, name in ((day.agents, pair[0]), (day.hosts, pair[1])):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]
            if not day.agents:
                del self._days[number]
        return True

    def clear(self) -> None:
        """Forget every pair."""
        self._pairs.clear()
        self._days.clear()
        self._agents.clear()
        self._kept = 0

    def take(self, rows: pa.Table) -> list[Finding]:
        """Add calls to their pairs' days, and judge what that changes."""
        host, hosts = codes(rows, "host")
        agent, agents = codes(rows, "agent")
        if not rows.num_rows:
            return []
        wanted = np.flatnonzero(np.array([*map(bool, hosts)])[host] & np.array([*map(bool, agents)])[agent])
        if not len(wanted):
            return []
        domain, domains = codes(rows, "domain")
        host, agent, domain, second = host[wanted], agent[wanted], domain[wanted], numbers(rows, "second")[wanted]
        day, at = second // DAY_S, second % DAY_S
        order, starts = groups((agent, host, day))
        heads = order[starts[:-1]]
        which = np.empty(len(order), np.int64)
        which[order] = np.repeat(np.arange(len(heads)), np.diff(starts))
        first = np.minimum.reduceat(second[order], starts[:-1])
        touched: dict[tuple[int, Pair], None] = {}
        days: list[PairDay] = []
        for one, first_s, size in zip(heads.tolist(), first.tolist(), np.diff(starts).tolist(), strict=True):
            pair, number = (agents[agent[one]], hosts[host[one]]), int(day[one])
            state = self._pair(pair, first_s, domains[domain[one]])
            state.rows += size
            self._agents[pair[0]][1] = max(self._agents[pair[0]][1], number)
            if first_s < state.first_s:
                state.first_s = first_s
                touched |= {(other, pair): None for other in state.days}
            touched[number, pair] = None
            days.append(self._day(pair, state, number))
        calls, sent, got = (numbers(rows, name)[wanted] for name in ("calls", "bytes_out", "bytes_in"))
        fill(days, which, at, calls, sent, got)
        touched |= {
            (number, pair): None
            for number in {number for number, _ in touched}
            for pair, weight in self._days[number].candidates.items()
            if weight != self._weight(number, pair)
        }
        said = [one for number, pair in touched for one in self._judge(number, pair)]
        make_room([[self]])
        return said

    def _pair(self, pair: Pair, first_s: int, domain: str) -> _Pair:
        state = self._pairs.get(pair)
        if state is None:
            state = self._pairs[pair] = _Pair(first_s, domain)
            self._agents.setdefault(pair[0], [0, 0])[0] += 1
        self._pairs.move_to_end(pair)
        return state

    def _day(self, pair: Pair, state: _Pair, number: int) -> PairDay:
        kept = state.days.get(number)
        if kept is None:
            kept = state.days[number] = PairDay()
            self._kept += 1
            day = self._days.setdefault(number, _Day())
            day.agents[pair[0]] += 1
            day.hosts[pair[1]] += 1
        return kept

    def _weight(self, number: int, pair: Pair) -> float:
        day = self._days[number]
        return prevalence_of(day.hosts[pair[1]], len(day.agents))

    def _judge(self, number: int, pair: Pair) -> list[Finding]:
        state, day = self._pairs[pair], self._days[number]
        kept, said = state.days[number], state.said.get(number)
        if (kept.kept < CALLS_MIN and said is None) or number < self._agents[pair[0]][1] - JUDGED_DAYS:
            return []
        weight = self._weight(number, pair)
        judged = kept.judge(SCORE_MIN - weight)
        if judged is None or judged[0] * judged[5] < SCORE_MIN - PREVALENCE:
            day.candidates.pop(pair, None)  # whatever its prevalence
        else:
            day.candidates[pair] = weight
        new = number * DAY_S - state.first_s <= NEW_S
        version = state.rows + len(day.agents) + day.hosts[pair[1]]
        if judged is None or judged[8] < 0 or not new:
            if said is None:
                return []
            del state.said[number]
            return [replace(said, version=version, withdrawn=True)]
        now = _finding(pair, state, number, judged, weight, (day.hosts[pair[1]], len(day.agents)), version)
        state.said[number] = now
        return [now] if said is None or differs(said, now) else []


def _finding(
    pair: Pair, state: _Pair, number: int, judged: Judged, weight: float, agents: tuple[int, int], version: int
) -> Finding:
    score, intervals, sizes, lasting, even, answers, same, count, crossed = judged
    agent, host = pair
    kept = state.days[number]
    day_us = number * DAY_S * _SECOND_US
    parts = (
        ("intervals", intervals, "how regular the intervals are"),
        ("sizes", sizes, "how alike what is sent is in size"),
        ("lasting", lasting, "how much of the day it lasts"),
        ("even", even, "how evenly the hours of the day are filled"),
    )
    known = [part for part in parts if part[1] >= 0]
    terms = [
        Term(name=name, value=round(value, 6), points=round(POINTS * value / len(known), 3), why=why)
        for name, value, why in known
    ]  # fmt: skip
    terms.append(
        Term(name="answers", value=round(answers, 6), points=round(-POINTS * score * (1 - answers), 3),
             why=f"{same} of {count} answers have one size: a share of at least {answers:.3f}, by which the rest counts")
    )  # fmt: skip
    if weight:
        why = f"{agents[0]} of {agents[1]} agents speak to this host on this day"
        terms.append(Term(name="prevalence", value=round(agents[0] / agents[1], 6), points=round(POINTS * weight, 3), why=why))
    return Finding(
        detector=BEACON, subject=f"agent={agent} host={host}", window_us=day_us, version=version, agent=agent, host=host,
        domain=state.domain, started_us=day_us + kept.first * _SECOND_US,
        ended_us=day_us + (kept.last + 1) * _SECOND_US - 1, time_us=day_us + crossed * _SECOND_US, terms=tuple(terms),
        title=f"agent {agent} calls {host} as regularly as a program that waits for orders: {kept.calls} calls in a day",
        calls_count=kept.calls,
        evidence={
            "rita": score, "same_answers": same, "answers": count, "agents_here": agents[0], "agents": agents[1],
            "first_seen_us": state.first_s * _SECOND_US, "first": kept.first, "last": kept.last, "hours": kept.hours,
            "seconds": [[at, calls, sent] for at, calls, sent, _ in kept.seconds()],
        },
    )  # fmt: skip
