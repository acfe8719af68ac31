"""Rows of `traces` and `edges` from what was judged. No Python object for a call: only for a chain, an agent and a host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.stitch.model import DENIED, WORDS, Assurance, Cause, Flags, Grade, Ints, Judged, Who, Words
from schemas.store import EDGE_SCHEMA, TRACE_SCHEMA

_GRADES: Final = pa.array([grade.text for grade in Grade])
_ASSURANCES: Final = pa.array([one.text for one in Assurance])


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of each trace beside its calls, one entry a trace; of calls, one a call in the order of `Judged`."""

    ids: npt.NDArray[np.uint64]
    """Two words a trace: the 16 bytes of its id as they lie in memory."""
    version: Words
    unseen: Ints
    """Calls that it has no room for."""
    enforcer: Ints
    """Of each call, into `enforcers`."""
    enforcers: Sequence[str]
    whos: Mapping[int, Who]


def trace_table(judged: Judged, facts: Facts, wanted: Ints, calls_max: int) -> pa.Table:
    """The rows of the traces `wanted` (numbers, rising), each of which has a call."""
    calls = judged.calls
    mine = np.zeros(len(facts.version), bool)
    mine[wanted] = True
    keep = np.flatnonzero(mine[calls.trace])
    place = np.searchsorted(wanted, calls.trace[keep])
    count = np.bincount(place, minlength=len(wanted)).astype(np.int64)
    begin = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)

    def over(ufunc: np.ufunc, values: Any) -> Any:
        return ufunc.reduceat(values, begin) if len(wanted) else np.zeros(0, values.dtype)

    lengths = np.array([len(one) for one in judged.chains], np.int64)[judged.chain[keep]]
    who = np.unique(calls.who[keep]).tolist()
    agent = _numbers({one: facts.whos[one].agent for one in who})
    first = judged.first[wanted]
    roots = [judged.chains[number][0] if judged.chains[number] else "" for number in judged.chain[first].tolist()]
    tenants = [facts.whos[one].tenant for one in calls.who[first].tolist()]
    unseen = facts.unseen[wanted]
    grade = judged.trace_grade[wanted]
    columns = {
        "trace_id": _ids(facts.ids[wanted]),
        "version": pa.array(facts.version[wanted]),
        "grade": _GRADES.take(pa.array(np.where((unseen > 0) & (grade == Grade.COMPLETE), Grade.GAP, grade))),
        "root": pa.array(roots, pa.utf8()),
        "agents": _lists(place, agent.at(calls.who[keep]), agent.names, len(wanted), "agents"),
        "enforcers": _lists(place, *_ranked(facts.enforcer[keep], facts.enforcers), len(wanted), "enforcers"),
        "calls": pa.array((count + unseen).astype(np.uint32)),
        "denied": pa.array(over(np.add, ((calls.state[keep] & DENIED) != 0).astype(np.uint32))),
        "depth": pa.array(over(np.maximum, lengths).astype(np.uint8)),
        "started": _times(over(np.minimum, calls.start[keep])),
        "ended": _times(over(np.maximum, np.maximum(calls.start[keep], calls.end[keep]))),
        "why": pa.array(_whys(judged, keep, place, unseen.tolist(), calls_max), pa.utf8()),
        "tenant": pa.array(tenants, pa.utf8()),
    }
    return pa.Table.from_arrays([columns[field.name].cast(field.type) for field in TRACE_SCHEMA], schema=TRACE_SCHEMA)


def edge_table(judged: Judged, facts: Facts, rows: Ints) -> pa.Table:
    """The rows of some calls."""
    calls, trace, parent = judged.calls, judged.calls.trace[rows], judged.parent[rows]
    has = parent >= 0
    chains = pa.array([list(one) for one in judged.chains], EDGE_SCHEMA.field("chain").type)
    present, where = np.unique(calls.who[rows], return_inverse=True)
    tenants = pa.array([facts.whos[int(one)].tenant for one in present], pa.utf8())
    columns = {
        "trace_id": _ids(facts.ids[trace]),
        "boot": pa.array(calls.boot[rows]),
        "seq": pa.array(calls.seq[rows]),
        "version": pa.array(facts.version[trace]),
        "parent_boot": pa.array(np.where(has, calls.boot[parent], np.uint64(0))),
        "parent_seq": pa.array(np.where(has, calls.seq[parent], np.uint64(0))),
        "assurance": _ASSURANCES.take(pa.array(judged.assurance[rows])),
        "chain": chains.take(pa.array(judged.chain[rows])),
        "grade": _GRADES.take(pa.array(judged.grade[rows])),
        "tenant": tenants.take(pa.array(where)),
    }
    return pa.Table.from_arrays([columns[field.name] for field in EDGE_SCHEMA], schema=EDGE_SCHEMA)


def said(judged: Judged) -> Words:
    """A number for what an edge's row says of each call: another where it says something else. Never 0."""
    calls, parent = judged.calls, judged.parent
    has = parent >= 0
    names = np.array([hash(one) & 0xFFFF_FFFF_FFFF_FFFF for one in judged.chains], np.uint64)
    value = names[judged.chain] if len(judged.chain) else np.zeros(0, np.uint64)
    for part in (
        np.where(has, calls.boot[parent], np.uint64(0)),
        np.where(has, calls.seq[parent], np.uint64(0)),
        judged.assurance.astype(np.uint64) * np.uint64(16) + judged.grade,
    ):
        value = (value ^ part) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return np.asarray(value | np.uint64(1))


def whys(cause: Sequence[tuple[Cause, int]], unseen: int, calls_max: int) -> str:
    """Why a trace has its grade, from how many of its calls have each cause."""
    parts = [f"{WORDS[one]}: {many} call{'s' if many > 1 else ''}" for one, many in cause]
    if unseen:
        parts.append(f"is beyond the limit of {calls_max} calls: {unseen} more")
    return "; ".join(parts)


def _whys(judged: Judged, keep: Ints, place: Ints, unseen: list[int], calls_max: int) -> list[str]:
    found = judged.cause[keep]
    bad = np.flatnonzero(found)
    kinds = max(Cause) + 1
    pairs, many = np.unique(place[bad].astype(np.int64) * kinds + found[bad], return_counts=True)
    causes: dict[int, list[tuple[Cause, int]]] = {}
    for pair, times in zip(pairs.tolist(), many.tolist(), strict=True):
        causes.setdefault(pair // kinds, []).append((Cause(pair % kinds), times))
    return [whys(causes.get(trace, ()), beyond, calls_max) for trace, beyond in enumerate(unseen)]


class _numbers:
    """Texts by rank, so that a list of them is in the order of their names."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self.names = sorted(set(texts.values()))
        rank = {name: number for number, name in enumerate(self.names)}
        self._of = np.zeros(max(texts, default=0) + 1, np.int64)
        for one, text in texts.items():
            self._of[one] = rank[text]

    def at(self, keys: Ints) -> Ints:
        """The ranks of some keys' texts."""
        return self._of[keys]


def _ranked(keys: Ints, names: Sequence[str]) -> tuple[Ints, list[str]]:
    ranked = _numbers({int(one): names[int(one)] for one in np.unique(keys)})
    return ranked.at(keys), ranked.names


def _lists(place: Ints, rank: Ints, names: Sequence[str], traces: int, column: str) -> pa.Array:
    """For each trace the distinct texts of its calls, sorted; an empty text is none."""
    filled: Flags = np.array([bool(name) for name in names], bool)[rank] if len(rank) else np.zeros(0, bool)
    pairs = np.unique(place[filled] * max(1, len(names)) + rank[filled])
    offsets = np.searchsorted(pairs, np.arange(traces + 1) * max(1, len(names)))
    values = pa.array(names, pa.utf8()).take(pa.array(pairs % max(1, len(names))))
    kind = TRACE_SCHEMA.field(column).type
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=kind)


def _ids(words: npt.NDArray[np.uint64]) -> pa.Array:
    plain = np.ascontiguousarray(words)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(plain), [None, pa.py_buffer(plain)])


def _times(us: Ints) -> pa.Array:
    return pa.array(us).cast(pa.timestamp("us", tz="UTC"))
