"""Leak meter: how much an agent can have told a destination by the names and queries that it asked for.

After ibHH (arXiv 2307.02614): what counts is information that is new. Of each agent and registrable domain (host, where there
is none) the distinct sub-names and queries are kept with the time of their first call, refused calls like others:

    name     the labels before the domain, joined without dots, u:  bits = len(u) * H(u), H = entropy of its bytes
    query    by its keyed hash:                                     bits = the record's `query_bits`

    slow, fast     meters that each name, and each query that was refused, raises by its bits; they halve in 24 h and in 1 h
    excess         bits of today's queries that were let out, less twice what is usual: those of the fullest of the 14 days
                   before, or the most that the agent told any one place so in its first 24 hours
    total          bits of every name and refused query that is kept, which no time takes away

    names     slow >= 1,024 bits (two items or more): 70 points; >= 4,096: 95            `burst`: fast >= 1,024: 5 more
    queries   excess >= 1,024 bits (two or more): 40 points; >= 4,096: 60
    drip      total >= 4,096 bits and no names: 40 points

Queries that were let out are what web services are made of, so they are held against what the agent is used to tell, and none
counts in its first 24 hours: they are what it learns from. A refused one is told to a place where policy lets it not: it counts
like a name.

There is one finding for a pair and UTC day (of the calls). It says what the meters showed at the call at which they passed a
mark (1,024; 4,096, 8,192, 16,384 ...) last, so it changes a few times and not with each call.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ext.meter import Units, decayed, name_bits
from pipeline.core.detect.columns import codes, numbers
from pipeline.core.detect.interface import Room
from pipeline.core.detect.words import news
from schemas.detectors import LEAK
from schemas.findings import Finding, Term, some_calls
from schemas.limits import (
    AGENTS_MAX,
    LEAK_ITEMS_MAX,
    LEAK_NAMES_MAX,
    LEAK_PAIRS_MAX,
    LEAK_QUERIES_MAX,
    LEAK_SAID_MAX,
)
from schemas.records import call_id

TRIP_BITS: Final = 1024.0
HARD_BITS: Final = 4096.0
ITEMS_MIN: Final = 2
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
LEARNING_US: Final = DAY_US
BASELINE_DAYS: Final = 14
BASELINE_FACTOR: Final = 2.0
NAMES_POINTS: Final = (70.0, 95.0)
BURST_POINTS: Final = 5.0
QUERIES_POINTS: Final = (40.0, 60.0)
DRIP_POINTS: Final = 40.0
CARRIED_US: Final = 2 * DAY_US
"""Items of so long before a mark are among the calls of its finding; what is older is a quarter of its bits or less."""

_NAME, _QUERY = 0, 1
_ROWS_MAX: Final = 16_384
"""Rows that are taken at once: far fewer than LEAK_PAIRS_MAX, so that no pair makes room for another of the same rows."""


class _Pair(NamedTuple):
    """Who told whom: `host` only where it has no registrable domain."""

    agent: str
    domain: str
    host: str


class Leaks:
    """The leak meter. Its detector's name and whose rows it takes are `name` and `subject`."""

    name: Final = LEAK
    subject: Final = "agent"

    def __init__(self, pairs: int = LEAK_PAIRS_MAX, items: int = LEAK_ITEMS_MAX, agents: int = AGENTS_MAX) -> None:
        self._units = Units(pairs, items, LEAK_NAMES_MAX, LEAK_QUERIES_MAX)
        self._pairs_max, self._items_max = pairs, items
        self._pairs: dict[int, _Pair] = {}
        """By slot."""
        self._since: OrderedDict[str, int] = OrderedDict()
        self._learnt: dict[str, float] = {}
        """Bits of queries that an agent told one place in its first 24 hours, the most."""
        self._agents_max = agents
        self._forgotten = 0
        self._said: OrderedDict[_Pair, dict[int, Finding]] = OrderedDict()

    @property
    def entries(self) -> int:
        """Pairs that are kept."""
        return self._units.pairs

    @property
    def evicted(self) -> int:
        """Pairs and agents that had to make room."""
        return self._units.evicted + self._forgotten

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        pairs, items = Room(self._units.pairs, self._pairs_max), Room(self._units.units, self._items_max)
        return pairs, items, Room(len(self._since), self._agents_max)

    def forget_oldest(self, which: int) -> bool:
        """Let go of the pair used least lately, with its items; or of since when the agent heard of longest ago is known."""
        if which == 2:
            self._forget_agent()
            return bool(self._since)
        return self._units.drop_oldest()

    def clear(self) -> None:
        """Forget every pair."""
        self._units.clear()
        self._pairs.clear()
        self._since.clear()
        self._learnt.clear()
        self._said.clear()

    def take(self, rows: pa.Table) -> list[Finding]:
        """Take rows of `AGENT_ROWS`, and say what is to be said now."""
        found: list[Finding] = []
        for start in range(0, rows.num_rows, _ROWS_MAX):
            found += self._take(rows.slice(start, _ROWS_MAX))
        return found

    def totals(self, most: int) -> list[tuple[str, str, float]]:
        """(agent, destination, bits) of the pairs with the highest totals, of names and of queries that were refused."""
        slots = np.array(list(self._pairs), np.int32)
        bits = self._units.bits_of(slots)[0]
        least = np.sort(bits)[-most:][0] if len(bits) else 0.0
        at = np.flatnonzero((bits > 0) & (bits >= least)).tolist()
        pairs = [self._pairs[slot] for slot in slots[at].tolist()]
        found = [(one.agent, one.domain or one.host, round(float(bits[i]), 3)) for one, i in zip(pairs, at, strict=True)]
        return sorted(found, key=lambda one: (-one[2], one))[:most]

    # -- rows to items -----------------------------------------------------------------------------------------------

    def _take(self, rows: pa.Table) -> list[Finding]:
        calls, time = numbers(rows, "calls"), numbers(rows, "time")
        made = np.flatnonzero(calls > 0)  # an end says nothing new of names and queries
        if not len(made):
            return []
        agent, agents = codes(rows, "agent")
        host, hosts = codes(rows, "host")
        domain, domains = codes(rows, "domain")
        again = self._learn(agents, agent[made], time[made])
        query_bits = numbers(rows, "query_bits")
        # one code for each (agent, host, domain); what follows is done once for each
        told = made[_are_said(agents)[agent[made]] & _are_said(hosts)[host[made]]]
        if not len(told):
            return self._judge(again)
        place = host[told] * max(1, len(domains)) + domain[told]
        places, at_place = np.unique(place, return_inverse=True)
        named = [(hosts[p // len(domains)], domains[p % len(domains)]) for p in places.tolist()]
        names = [_sub_name(*one) for one in named]
        pair = agent[told] * len(places) + at_place
        pairs, first, at_pair = np.unique(pair, return_index=True, return_inverse=True)
        who = [_Pair(agents[agent[told[f]]], *_where(*named[at_place[f]])) for f in first.tolist()]
        hashes = np.array([_pair_hash(one) for one in who], np.uint64)
        counts = np.bincount(at_pair, calls[told], len(pairs)).astype(np.uint64)
        slots, new = self._units.find(hashes, counts)
        for slot, one, is_new in zip(slots.tolist(), who, new.tolist(), strict=True):
            self._pairs[slot] = one
            if is_new:  # it may have made room before: what was said then is not taken back
                self._said.pop(one, None)
        of_row = slots[at_pair]
        changed = np.zeros(len(told), np.uint8)
        refused = (numbers(rows, "denied")[told] > 0).astype(np.uint8)
        boot, seq = _unsigned(rows, "call_boot")[told], _unsigned(rows, "call_seq")[told]
        name_hash = np.array([one[0] for one in names], np.uint64)[at_place]
        bits_of_name = np.array([one[1] for one in names])[at_place]
        query = query_bits[told].astype(np.float64)
        for kind, item, bits in ((_NAME, name_hash, bits_of_name), (_QUERY, _unsigned(rows, "query_hash")[told], query)):
            at = np.flatnonzero(bits > 0)
            marked = np.zeros(len(at), np.uint8)
            self._units.add(of_row[at], kind, item[at], bits[at], time[told][at], refused[at], boot[at], seq[at], marked)
            changed[at] |= marked
        touched, at = np.unique(of_row[changed > 0], return_inverse=True)
        latest = np.full(len(touched), np.iinfo(np.int64).min)
        np.maximum.at(latest, at, time[told][changed > 0])
        earliest = np.full(len(touched), np.iinfo(np.int64).max)
        np.minimum.at(earliest, at, time[told][changed > 0])
        again |= self._taught(touched.tolist(), earliest.tolist())
        return self._judge({*self._worth(touched.astype(np.int32), latest), *again})

    def _taught(self, slots: Sequence[int], earliest_us: Sequence[int]) -> set[int]:
        """Learn from what was told in agents' first hours; the slots of those that have something to take back for it."""
        more = set()
        for slot, first_us in zip(slots, earliest_us, strict=True):
            agent = self._pairs[slot].agent
            until_us = self._since.get(agent, 0) + LEARNING_US
            if first_us < until_us:
                bits = self._units.asked_before(slot, until_us)
                if bits > self._learnt.get(agent, 0.0):
                    self._learnt[agent] = bits
                    more.add(agent)
        said = {pair for pair in self._said if pair.agent in more} if more else set()
        return {slot for slot, pair in self._pairs.items() if pair in said} if said else set()

    def _learn(self, agents: Sequence[str], agent: NDArray[np.int64], time: NDArray[np.int64]) -> set[int]:
        """Since when each agent is known; the slots of those that were known later, and must be judged again."""
        used, at = np.unique(agent, return_inverse=True)
        firsts = np.full(len(used), np.iinfo(np.int64).max)
        np.minimum.at(firsts, at, time)
        earlier = set()
        for code, first in zip(used.tolist(), firsts.tolist(), strict=True):
            name = agents[code]
            known = self._since.pop(name, None)  # and put behind all others, as used last
            if known is None:
                while len(self._since) >= self._agents_max:
                    self._forget_agent()
            elif first < known:
                earlier.add(name)
            self._since[name] = first if known is None else min(first, known)
        if not earlier:
            return set()
        slots = np.array([slot for slot, pair in self._pairs.items() if pair.agent in earlier], np.int32)
        for name in earlier:
            self._learnt.pop(name, None)
        for slot in slots.tolist():
            name = self._pairs[slot].agent
            bits = self._units.asked_before(slot, self._since[name] + LEARNING_US)
            self._learnt[name] = max(bits, self._learnt.get(name, 0.0))
        return self._worth(slots, np.full(len(slots), np.iinfo(np.int64).max))

    def _forget_agent(self) -> None:
        self._learnt.pop(self._since.popitem(last=False)[0], None)
        self._forgotten += 1

    def _worth(self, slots: NDArray[np.int32], latest_us: NDArray[np.int64]) -> set[int]:
        """The slots of pairs that can have something to say, when all that is new of them is `latest_us` or older."""
        told, asked = (bits >= TRIP_BITS for bits in self._units.bits_of(slots))
        found = set(slots[told].tolist())
        for slot, last_us in zip(slots[asked & ~told].tolist(), latest_us[asked & ~told].tolist(), strict=True):
            pair = self._pairs[slot]
            # an agent that only learns yet asks much and says nothing; what was said may have to be taken back
            if last_us >= self._since.get(pair.agent, 0) + LEARNING_US or pair in self._said:
                found.add(slot)
        return found

    def _known(self, agent: str) -> tuple[int, float]:
        """Since when, and what it learnt."""
        return self._since.get(agent, 0), self._learnt.get(agent, 0.0)

    # -- items to findings -------------------------------------------------------------------------------------------

    def _judge(self, slots: set[int]) -> list[Finding]:
        found: list[Finding] = []
        for slot in sorted(slots):
            pair = self._pairs[slot]
            meters = _Meters.of(self._units, slot)
            holds = {one.window_us: one for one in _findings(pair, meters, *self._known(pair.agent))}
            said = self._said.pop(pair, {})
            if meters.full:  # what made room for larger ones took no word back
                holds = said | holds
            found += news(said, holds, meters.calls)
            if holds:
                self._said[pair] = holds
                while len(self._said) > LEAK_SAID_MAX:
                    self._said.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Meters:
    """The items of a pair in the order of their first calls, and what the meters show after each."""

    calls: int
    time: NDArray[np.int64]
    bits: NDArray[np.float64]
    counted: NDArray[np.bool_]
    """Names, and queries that were refused."""
    refused_query: NDArray[np.bool_]
    boot: NDArray[np.uint64]
    seq: NDArray[np.uint64]
    slow: NDArray[np.float64]
    fast: NDArray[np.float64]
    sums: NDArray[np.float64]
    full: bool
    """Whether smaller names or queries may have made room."""

    @classmethod
    def of(cls, units: Units, slot: int) -> "_Meters":
        calls, kind, hashes, time, bits, refused, boot, seq = units.of(slot)
        order = np.lexsort((hashes, kind, time))
        time, bits, kind = time[order], bits[order], kind[order]
        refused_query = (kind == _QUERY) & (refused[order] > 0)
        counted = (kind == _NAME) | refused_query
        raised = np.where(counted, bits, 0.0)
        names = int((kind == _NAME).sum())
        return cls(
            calls=calls, time=time, bits=bits, counted=counted, refused_query=refused_query, boot=boot[order], seq=seq[order],
            slow=decayed(time, raised, DAY_US), fast=decayed(time, raised, HOUR_US), sums=np.cumsum(raised),
            full=names >= LEAK_NAMES_MAX or len(kind) - names >= LEAK_QUERIES_MAX,
        )  # fmt: skip


def marks(bits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which mark each number of bits has passed: 0 below 1,024, 1 from there, 2 from 4,096, 3 from 8,192 and so on."""
    beyond = 2 + np.floor(np.log2(np.maximum(bits, 1.0) / HARD_BITS))
    return np.where(bits < TRIP_BITS, 0, np.where(bits < HARD_BITS, 1, beyond)).astype(np.int64)


def _findings(pair: _Pair, meters: _Meters, since_us: int, learnt: float) -> list[Finding]:
    days = meters.time // DAY_US
    if not len(days):
        return []
    by_names = by_total = np.zeros(len(days), np.int64)
    if meters.sums[-1] >= TRIP_BITS:
        counts = meters.counted & (np.cumsum(meters.counted) >= ITEMS_MIN)
        by_names = np.where(counts, marks(meters.slow), 0)
        total = np.where(counts & (meters.sums >= HARD_BITS), marks(meters.sums), 0)
        by_total = np.where(total > np.maximum.accumulate(np.concatenate(([0], total[:-1]))), total, 0)
    excess, baseline = _excess(meters, days, since_us, learnt)
    by_queries = marks(excess)
    if not (by_names.any() or by_queries.any() or by_total.any()):
        return []
    found = []
    for day in np.unique(days[(by_names > 0) | (by_queries > 0) | (by_total > 0)]).tolist():
        inside = np.flatnonzero(days == day)
        passed = [_passed(levels[inside]) for levels in (by_names, by_queries, by_total)]
        at = [None if one is None else (int(inside[one[0]]), int(inside[one[1]])) for one in passed]
        found.append(_finding(pair, meters, day, at, excess, baseline))
    return found


def _passed(levels: NDArray[np.int64]) -> tuple[int, int] | None:
    """Where the first mark is passed, and where the highest is."""
    if not levels.any():
        return None
    return int(np.argmax(levels > 0)), int(np.argmax(levels))


def _excess(
    meters: _Meters, days: NDArray[np.int64], since_us: int, learnt: float
) -> tuple[NDArray[np.float64], dict[int, float]]:  # fmt: skip
    """Bits of each day's queries above what is usual, after each of them; and what is usual on each day."""
    excess = np.zeros(len(days))
    queries = np.flatnonzero(~meters.counted)
    told, at = np.unique(days[queries], return_inverse=True)
    sums = dict(zip(told.tolist(), np.bincount(at, meters.bits[queries], len(told)).tolist(), strict=True)) if len(told) else {}
    baseline: dict[int, float] = {}
    for day in told.tolist():
        before = [sums[past] for past in range(day - BASELINE_DAYS, day) if past in sums]
        baseline[day] = BASELINE_FACTOR * max([learnt, *before])
        counts = queries[(days[queries] == day) & (meters.time[queries] >= since_us + LEARNING_US)]
        if len(counts) >= ITEMS_MIN:
            excess[counts[1:]] = np.maximum(0.0, np.cumsum(meters.bits[counts])[1:] - baseline[day])
    return excess, baseline


def _finding(
    pair: _Pair, meters: _Meters, day: int, at: Sequence[tuple[int, int] | None], excess: NDArray[np.float64],
    baseline: Mapping[int, float],
) -> Finding:  # fmt: skip
    names, queries, drip = at
    last = max(one[1] for one in at if one is not None)
    evidence, terms = _told(meters, names, drip)
    if queries is not None:
        bits, usual = round(float(excess[queries[1]]), 3), round(baseline[day], 3)
        evidence |= {"query_bits_today": round(bits + usual, 3), "query_bits_usual": usual}
        terms.append(Term(name="queries", value=bits, points=QUERIES_POINTS[bits >= HARD_BITS],
                          why="bits of today's queries above twice what is usual"))  # fmt: skip
    inside = np.flatnonzero(meters.time >= meters.time[last] - CARRIED_US)
    inside = inside[inside <= last]
    calls = [call_id(int(meters.boot[one]), int(meters.seq[one])) for one in inside]
    calls = list(dict.fromkeys(calls))
    where = pair.domain or pair.host
    return Finding(
        detector=LEAK, subject=f"agent={pair.agent} domain={where}", window_us=day * DAY_US, version=meters.calls,
        started_us=int(meters.time[inside[0]]), ended_us=int(meters.time[last]),
        time_us=min(int(meters.time[one[0]]) for one in at if one is not None), terms=tuple(terms), evidence=evidence,
        title=f"{pair.agent} may have told {where} {terms[0].value:,.0f} bits by {_by(evidence)}", calls=some_calls(calls),
        calls_count=len(calls), agent=pair.agent, domain=pair.domain, host=pair.host,
    )  # fmt: skip


def _told(
    meters: _Meters, names: tuple[int, int] | None, drip: tuple[int, int] | None
) -> tuple[dict[str, Any], list[Term]]:  # fmt: skip
    """What the meters of names and refused queries showed at their mark, and the terms of it."""
    shown = names or drip
    if shown is None:
        return {}, []
    counted = slice(0, shown[1] + 1)
    refused = int(meters.refused_query[counted].sum())
    slow, fast, total = (round(float(meter[shown[1]]), 3) for meter in (meters.slow, meters.fast, meters.sums))
    evidence = {
        "names": int(meters.counted[counted].sum()) - refused, "refused_queries": refused, "bits_24h": slow, "bits_1h": fast,
        "bits_total": total,
    }  # fmt: skip
    if names is None:
        why = "bits of names and refused queries, slowly, since they are known"
        return evidence, [Term(name="drip", value=total, points=DRIP_POINTS, why=why)]
    points = NAMES_POINTS[slow >= HARD_BITS]
    terms = [Term(name="names", value=slow, points=points, why="bits of names and refused queries, halved in 24 h")]
    if fast >= TRIP_BITS:
        terms.append(Term(name="burst", value=fast, points=BURST_POINTS, why="the same, halved in 1 h"))
    return evidence, terms


def _by(evidence: Mapping[str, Any]) -> str:
    parts = [f"{evidence[key]} {key.replace('_', ' ')}" for key in ("names", "refused_queries") if evidence.get(key)]
    return " and ".join([*parts, *(["queries"] if "query_bits_today" in evidence else [])])


# -- texts -----------------------------------------------------------------------------------------------------------


def _where(host: str, domain: str) -> tuple[str, str]:
    return domain, "" if domain else host


@lru_cache(65_536)
def _sub_name(host: str, domain: str) -> tuple[int, float]:
    """(hash, bits) of what a name has before its domain; 0 bits where that is nothing."""
    labels = host.removesuffix(f".{domain}") if domain else host
    if labels == host:
        return 0, 0.0
    name = labels.replace(".", "")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"), name_bits(name)


@lru_cache(65_536)
def _pair_hash(pair: _Pair) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(pair).encode(), digest_size=8).digest(), "big")


def _are_said(texts: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([bool(text) for text in texts], np.bool_)


def _unsigned(rows: pa.Table, name: str) -> NDArray[np.uint64]:
    values: NDArray[np.uint64] = rows[name].combine_chunks().to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    return values
