"""First seen: a registrable domain that an agent has never called, or not for two weeks.

Of each domain (host where there is none, MCP server of a tool) and agent, each UTC day (of the calls) with a call is kept. A
domain is new for an agent on day d where

    the agent called it on d and on none of the 14 days before, and
    its first call there on d is 24 h or more after the agent's first call of all: what an agent does at first teaches

All agents that it is new for on one day make one finding, with

    novelty     it is new for one of them                                                            25
    rarity      weight of the fleet, never a gate: 1 - 2 * users / fleet, not below 0,          times 25
    outflow     something may have gone out: a write, or 4 kB and more                               25
    refused     policy refused one of their calls                                                    10

users = agents that called it on d or in the 14 days before; fleet = agents whose first call of all was on d or before, cut to a
power of two, so that a new agent does not change every finding. Sums in the evidence are cut to powers of two as well: a
finding is said again when one doubles, not with each call.
"""

import ipaddress
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.core.detect.columns import Ints, codes, numbers
from pipeline.core.detect.interface import Room
from pipeline.core.detect.words import news
from schemas.detectors import FIRST_SEEN
from schemas.findings import Finding, Term, some_calls
from schemas.limits import AGENTS_MAX, FIRST_SEEN_PAIRS_MAX
from schemas.records import call_id
from schemas.vocabulary import registrable_domain

DAY_US: Final = 86_400_000_000
UNSEEN_DAYS: Final = 14
LEARNING_US: Final = DAY_US
KEPT_DAYS: Final = 45
"""How far back from a pair's latest day its days are kept."""

NOVELTY_POINTS: Final = 25.0
RARITY_POINTS: Final = 25.0
OUTFLOW_POINTS: Final = 25.0
REFUSED_POINTS: Final = 10.0
OUTFLOW_BYTES: Final = 4096
NAMED_MAX: Final = 32
"""Agents that the evidence names, the first."""


@dataclass(slots=True)
class _Day:
    """One agent's calls to one domain on one day."""

    first: tuple[int, int, int]
    """Time in us, boot and seq of the first."""
    calls: int = 0
    writes: int = 0
    denied: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class _Domain:
    version: int = 0
    latest: int = 0
    """The latest day with a call."""
    agents: dict[str, dict[int, _Day]] = field(default_factory=dict)
    said: dict[int, Finding] = field(default_factory=dict)


class FirstSeen:
    """Which domains are new. Its detector's name and whose rows it takes are `name` and `subject`."""

    name: Final = FIRST_SEEN
    subject: Final = "domain"

    def __init__(self, pairs: int = FIRST_SEEN_PAIRS_MAX, agents: int = AGENTS_MAX) -> None:
        self._pairs_max, self._agents_max = pairs, agents
        self._pairs = 0
        self._domains: OrderedDict[str, _Domain] = OrderedDict()
        """The domain used last is the last."""
        self._of_agent: dict[str, set[str]] = {}
        """Agent -> its domains."""
        self._since: OrderedDict[str, int] = OrderedDict()
        """Agent -> its first call of all."""
        self._begun: list[int] = []
        """The day of each of those, in order."""
        self._said_on: dict[int, set[str]] = {}
        """Day -> domains that something was said of, and how large the fleet was then."""
        self._fleet_on: dict[int, int] = {}
        self._evicted = 0

    @property
    def entries(self) -> int:
        """Pairs of domain and agent that are kept."""
        return self._pairs

    @property
    def evicted(self) -> int:
        """Domains and agents that had to make room, and pairs for which there was none."""
        return self._evicted

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        return (Room(self._pairs, self._pairs_max),)

    def forget_oldest(self, which: int) -> bool:
        """Let go of the domain used least lately, with its agents. Since when an agent is known, every partition knows."""
        if len(self._domains) < 2:
            return False
        self._evicted += 1
        self._drop(next(iter(self._domains)))
        return True

    def clear(self) -> None:
        """Forget everything that is kept."""
        for kept in (self._domains, self._of_agent, self._since, self._said_on, self._fleet_on):
            kept.clear()
        self._begun.clear()
        self._pairs = 0

    def take(self, rows: pa.Table) -> list[Finding]:
        """Take rows of `DOMAIN_ROWS`, and say what is to be said now."""
        domain, domains = codes(rows, "domain")
        agent, agents = codes(rows, "agent")
        first = numbers(rows, "first")
        touched: dict[str, set[int] | None] = {}
        """Domain -> days to judge; None: all of them."""
        for name in self._learn(agents, agent, first):
            touched |= dict.fromkeys(self._of_agent.get(name, ()))
        for where, who, on, begun, totals in _groups(rows, domain, agent, first):
            if not domains[where] or not agents[who]:
                continue
            days = self._add(domains[where], agents[who], on, begun, totals)
            known = touched.setdefault(domains[where], set()) if days else None
            if known is not None:
                known |= days
        for on, names in self._said_on.items():
            if self._fleet(on) != self._fleet_on[on]:
                for name in names:
                    known = touched.setdefault(name, set())
                    if known is not None:
                        known.add(on)
        found: list[Finding] = []
        for name in sorted(touched.keys() & self._domains.keys()):
            found += self._judge(name, touched[name])
        return found

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _learn(self, agents: Sequence[str], agent: Any, first: Any) -> set[str]:
        """Since when each agent is known. Gives those whose domains must be judged again: they were known later."""
        used, at = np.unique(agent, return_inverse=True)
        firsts = np.full(len(used), np.iinfo(np.int64).max)
        np.minimum.at(firsts, at, first)
        earlier: set[str] = set()
        for code, first_us in zip(used.tolist(), firsts.tolist(), strict=True):
            name = agents[code]
            known = self._since.pop(name, None)
            if name and known is None:
                while len(self._since) >= self._agents_max:
                    self._forget_day(self._since.popitem(last=False)[1])
                    self._evicted += 1
                insort(self._begun, first_us // DAY_US)
            elif known is not None and first_us < known:
                self._forget_day(known)
                insort(self._begun, first_us // DAY_US)
                earlier.add(name)
            if name:
                self._since[name] = first_us if known is None else min(first_us, known)
        return earlier

    def _forget_day(self, time_us: int) -> None:
        del self._begun[bisect_right(self._begun, time_us // DAY_US) - 1]

    def _add(
        self, domain: str, agent: str, on: int, first: tuple[int, int, int], totals: Sequence[int]
    ) -> set[int]:  # fmt: skip
        """Take an agent's calls to a domain on one day; the days that must be judged for it."""
        state = self._domains.pop(domain, None) or _Domain()
        self._domains[domain] = state
        if agent not in state.agents:
            while self._pairs >= self._pairs_max:
                self._evicted += 1
                oldest = next(iter(self._domains))
                if oldest == domain:  # every pair is of this domain
                    return set()
                self._drop(oldest)
            self._pairs += 1
            self._of_agent.setdefault(agent, set()).add(domain)
        calls, writes, denied, bytes_out, ends = totals
        state.version += calls + ends
        days = state.agents.setdefault(agent, {})
        known = days.get(on)
        came = known is None
        if known is None:
            known = days[on] = _Day(first)
            state.latest = max(state.latest, on)
            for old in [one for one in days if one < max(days) - KEPT_DAYS]:
                del days[old]
        known.first = min(known.first, first)
        known.calls += calls
        known.writes += writes
        known.denied += denied
        known.bytes_out += bytes_out
        # an agent that calls where it always calls changes nothing; a day that is new may, for the 14 days behind it
        judged = {at // DAY_US for at in state.said if on <= at // DAY_US <= on + UNSEEN_DAYS} if came else set()
        return judged | {on} if self._is_new(agent, days, on) else judged

    def _is_new(self, agent: str, days: Mapping[int, _Day], on: int) -> bool:
        if on not in days or days[on].first[0] < self._since.get(agent, 0) + LEARNING_US:
            return False
        return not any(on - UNSEEN_DAYS <= one < on for one in days)

    def _drop(self, domain: str) -> None:
        state = self._domains.pop(domain)
        self._pairs -= len(state.agents)
        for agent in state.agents:
            self._of_agent[agent].discard(domain)
            if not self._of_agent[agent]:
                del self._of_agent[agent]
        self._unsay(domain, state.said)

    def _unsay(self, domain: str, windows: Iterable[int]) -> None:
        for window_us in windows:
            on = window_us // DAY_US
            names = self._said_on.get(on, set())
            names.discard(domain)
            if not names:
                self._said_on.pop(on, None)
                self._fleet_on.pop(on, None)

    def _fleet(self, on: int) -> int:
        """Agents whose first call of all was on this day or before, cut to a power of two."""
        return floor2(bisect_right(self._begun, on))

    # -- what is said ------------------------------------------------------------------------------------------------

    def _judge(self, name: str, wanted: set[int] | None) -> list[Finding]:
        state = self._domains[name]
        oldest = state.latest - KEPT_DAYS
        # too old to be judged is no reason to take it back
        said = {at: one for at, one in state.said.items() if at // DAY_US >= oldest}
        judged = {at: one for at, one in said.items() if wanted is None or at // DAY_US in wanted}
        holds: dict[int, Finding] = {}
        for on in sorted({on for days in state.agents.values() for on in days} if wanted is None else wanted):
            finding = self._finding(name, state, on)
            if finding is not None:
                holds[on * DAY_US] = finding
        found = news(judged, holds, state.version)
        self._unsay(name, state.said)
        state.said = {at: one for at, one in said.items() if at not in judged} | holds
        for at in state.said:
            self._said_on.setdefault(at // DAY_US, set()).add(name)
            self._fleet_on.setdefault(at // DAY_US, self._fleet(at // DAY_US))
        for at in holds:
            self._fleet_on[at // DAY_US] = self._fleet(at // DAY_US)
        return found

    def _finding(self, name: str, state: _Domain, on: int) -> Finding | None:
        new: list[tuple[tuple[int, int, int], str]] = []
        users = 0
        for agent, days in state.agents.items():
            users += any(on - UNSEEN_DAYS <= one <= on for one in days)
            if self._is_new(agent, days, on):
                new.append((days[on].first, agent))
        if not new:
            return None
        new.sort()
        their = [state.agents[agent][on] for _, agent in new]
        evidence: dict[str, Any] = {
            "agents": [agent for _, agent in new[:NAMED_MAX]], "agents_new": len(new), "users": users, "fleet": self._fleet(on),
            "calls_at_least": floor2(sum(day.calls for day in their)),
            "writes_at_least": floor2(sum(day.writes for day in their)),
            "denied_at_least": floor2(sum(day.denied for day in their)),
            "bytes_out_at_least": floor2(sum(day.bytes_out for day in their)),
        }  # fmt: skip
        calls = [call_id(boot, seq) for (_, boot, seq), _ in new]
        first_us, agent = new[0][0][0], new[0][1]
        others = f" and {len(new) - 1} more" if len(new) > 1 else ""
        return Finding(
            detector=FIRST_SEEN, subject=f"domain={name}", window_us=on * DAY_US, version=state.version, started_us=first_us,
            ended_us=(on + 1) * DAY_US - 1, time_us=first_us, terms=terms_of(evidence), evidence=evidence,
            title=f"{agent}{others} called {name} for the first time in {UNSEEN_DAYS} days", calls=some_calls(calls),
            calls_count=len(calls), agent=agent, domain=name if registrable_domain(name) == name else "",
            host=name if _is_address(name) else "",
        )  # fmt: skip


def _groups(
    rows: pa.Table, domain: Ints, agent: Ints, first: Ints
) -> Iterator[tuple[int, int, int, tuple[int, int, int], tuple[int, ...]]]:  # fmt: skip
    """(domain, agent, day, first call, sums) of rows that have the first three in common."""
    boot, seq = (rows[name].combine_chunks().to_numpy(zero_copy_only=False) for name in ("call_boot", "call_seq"))
    day = first // DAY_US
    order = np.lexsort((seq, boot, first, day, agent, domain))
    if not len(order):
        return
    keys = [column[order] for column in (domain, agent, day)]
    starts = np.flatnonzero(np.concatenate(([True], np.logical_or.reduce([key[1:] != key[:-1] for key in keys]))))
    at = order[starts]
    calls = numbers(rows, "calls")
    sums = [calls, *(numbers(rows, name) for name in ("writes", "denied", "bytes_out")), (calls == 0).astype(np.int64)]
    totals = zip(*(np.add.reduceat(column[order], starts).tolist() for column in sums), strict=True)
    begun = zip(first[at].tolist(), boot[at].tolist(), seq[at].tolist(), strict=True)
    yield from zip(*(key[starts].tolist() for key in keys), begun, totals, strict=True)


def terms_of(evidence: Mapping[str, Any]) -> tuple[Term, ...]:
    """The parts of the score."""
    rarity = round(max(0.0, 1 - 2 * evidence["users"] / max(1, evidence["fleet"])), 3)
    out = evidence["writes_at_least"] > 0 or evidence["bytes_out_at_least"] >= OUTFLOW_BYTES
    terms = [
        Term(name="novelty", value=float(evidence["agents_new"]), points=NOVELTY_POINTS, why="agents that it is new for"),
        Term(name="rarity", value=rarity, points=round(RARITY_POINTS * rarity, 3), why="1 - 2 * users / fleet"),
        Term(name="outflow", value=float(out), points=OUTFLOW_POINTS * out, why="a write, or 4 kB and more sent"),
        Term(name="refused", value=float(evidence["denied_at_least"] > 0),
             points=REFUSED_POINTS * (evidence["denied_at_least"] > 0), why="policy refused some of it"),
    ]  # fmt: skip
    return tuple(term for term in terms if term.points)


def floor2(number: int) -> int:
    """The power of two at or below a number; 0 of 0."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
