"""Parents, effective chains and grades of the calls of many traces at once: columns in, columns out.

    parent    the call of the same trace whose span the caller named
    circles   nobody is caused by what it caused: the calls of a circle have no parent, and are forged
    depth     calls more than DEPTH_MAX below one another begin anew
    timing    where no parent was named, the one call that must have been it, if there is one
    chains    from the first call down: what each is to its parent

All of it is a function of the set of calls, of the doors that are known by their boots, and of which traces have settled.
Only distinct (parent's chain, chain) pairs are looked at one by one, and guesses by time.
"""

import itertools
from collections.abc import Mapping
from typing import Final

import numpy as np

from pipeline.core.stitch.kin import kin
from pipeline.core.stitch.model import (
    DECIDED,
    DEPTH_MAX,
    GRADES,
    MAY_COME,
    OUT,
    Assurance,
    Bytes,
    Calls,
    Cause,
    Flags,
    Grade,
    Ints,
    Judged,
    Who,
    Words,
)
from pipeline.core.stitch.timing import guess

ASKED_MAX: Final = 64
"""Calls of one trace whose cause is guessed, the earliest; the others have none."""

_LOW: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)
_GRADES: Final = np.array([GRADES[cause] for cause in Cause], np.uint8)
_MAY_COME: Final = np.array([cause in MAY_COME for cause in Cause])


def spans(boot: Words, seq: Words) -> Words:
    """What each call is named upstream: the low halves of its boot and its seq."""
    return (boot << _HALF) | (seq & _LOW)


def named_by_door(parent: Words, boots: Words) -> Flags:
    """Whether a span is one that a known door has made; `boots` are the sorted low halves of the doors' boots."""
    door = parent >> _HALF
    if not len(boots):
        return np.zeros(len(parent), bool)
    found: Flags = boots[np.minimum(np.searchsorted(boots, door), len(boots) - 1)] == door
    return found


def judge(calls: Calls, whos: Mapping[int, Who], boots: Words, settled: Bytes) -> Judged:
    """`settled` says of each trace whether it has been quiet; its length is the number of traces. Calls without a decision are
    left out."""
    order = np.flatnonzero(calls.state & DECIDED)
    order = order[np.lexsort((calls.seq[order], calls.boot[order], calls.start[order], calls.trace[order]))]
    calls = calls.at(order)
    count = len(calls)
    cause = np.zeros(count, np.uint8)
    assurance = np.zeros(count, np.uint8)
    parent = _parents(calls)
    assurance[parent >= 0] = Assurance.OBSERVED
    depth = _break_circles(parent, cause)
    present, position = np.unique(calls.who, return_inverse=True)
    mine = [whos[int(who)] for who in present]
    agents = np.array([who.agents for who in mine], np.int64)[position] if count else np.zeros(0, np.int64)
    # a span of no known door is one that the agent's own instrumentation made: the call begins here, unless others delegated
    ours = named_by_door(calls.parent, boots)
    cause[(parent < 0) & (cause == 0) & (calls.parent != 0) & (ours | (agents >= 2))] = Cause.MISSING
    first = _first(calls.trace, depth, len(settled))
    _guess(calls, parent, assurance, cause, whos, first, settled)
    depth = _cut(parent, assurance, cause)
    first = _first(calls.trace, depth, len(settled))
    chains, chain = _chains(calls, parent, depth, assurance, cause, mine, position, first, ours)
    grade = _GRADES[cause]
    grade[_MAY_COME[cause] & (settled[calls.trace] == 0)] = Grade.PROVISIONAL
    worst = np.zeros(len(settled), np.uint8)
    np.maximum.at(worst, calls.trace, grade)
    worst[settled == 0] = Grade.PROVISIONAL
    return Judged(order=order, calls=calls, parent=parent, assurance=assurance, cause=cause, grade=grade, chain=chain,
                  chains=chains, first=first, trace_grade=worst)  # fmt: skip


def _parents(calls: Calls) -> Ints:
    """For each call the one whose span it names, in its trace; -1 for none. Of two with one span, the one with the lower id."""
    count = len(calls)
    parent = np.full(count, -1, np.int64)
    asks = np.flatnonzero(calls.parent)
    if not len(asks):
        return parent
    own = spans(calls.boot, calls.seq)
    trace = np.concatenate([calls.trace, calls.trace[asks]])
    span = np.concatenate([own, calls.parent[asks]])
    boot = np.concatenate([calls.boot, np.zeros(len(asks), np.uint64)])
    seq = np.concatenate([calls.seq, np.zeros(len(asks), np.uint64)])
    asking = np.concatenate([np.zeros(count, np.uint8), np.ones(len(asks), np.uint8)])
    order = np.lexsort((seq, boot, asking, span, trace))
    trace, span, asking = trace[order], span[order], asking[order]
    begins = np.ones(len(order), bool)  # of a run with one trace and one span: the calls that have it, then those that name it
    begins[1:] = (trace[1:] != trace[:-1]) | (span[1:] != span[:-1])
    begin = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    here = np.flatnonzero(asking)
    there = order[begin[here]]
    asker = asks[order[here] - count]
    good = (asking[begin[here]] == 0) & (there != asker)
    parent[asker[good]] = there[good]
    return parent


def _depths(parent: Ints) -> tuple[Ints, Ints]:
    """How many calls stand above each, and the call that each gets to by going up more steps than there are calls.

    By doubling the steps (Wyllie's list ranking). A call in a circle, or below one, never gets to one without a parent.
    """
    count = len(parent)
    up = np.where(parent >= 0, parent, np.arange(count))
    depth = (parent >= 0).astype(np.int64)
    steps = 1
    while steps <= count:
        if not np.any(parent[up] >= 0):
            break
        depth = depth + depth[up]
        up = up[up]
        steps *= 2
    return depth, up


def _break_circles(parent: Ints, cause: Bytes) -> Ints:
    depth, up = _depths(parent)
    circle = np.unique(up[parent[up] >= 0])
    if len(circle):
        parent[circle] = -1
        cause[circle] = Cause.LOOP
        depth, _ = _depths(parent)
    return depth


def _first(trace: Ints, depth: Ints, traces: int) -> Ints:
    """The earliest call of each trace that no other caused."""
    first = np.full(traces, -1, np.int64)
    roots = np.flatnonzero(depth == 0)[::-1]
    first[trace[roots]] = roots  # of several the last one assigned, which is the earliest
    return first


def _guess(
    calls: Calls, parent: Ints, assurance: Bytes, cause: Bytes, whos: Mapping[int, Who], first: Ints, settled: Bytes
) -> None:
    """Give calls without a parent the one that time shows, in traces that have settled and where more than one chain acts."""
    asked = (parent < 0) & (cause == 0) & (settled[calls.trace] != 0)
    asked[first[first >= 0]] = False
    if not asked.any():
        return
    other = np.zeros(len(calls), bool)
    other[1:] = (calls.trace[1:] == calls.trace[:-1]) & (calls.who[1:] != calls.who[:-1])
    mixed = np.zeros(len(first), bool)
    mixed[calls.trace[other]] = True
    rows = np.flatnonzero(asked & mixed[calls.trace])
    if not len(rows):
        return
    # calls are in the order of their traces, and so are these rows
    ones, begin = np.unique(calls.trace[rows], return_index=True)
    bounds = zip(
        np.searchsorted(calls.trace, ones).tolist(), np.searchsorted(calls.trace, ones, "right").tolist(),
        begin.tolist(), [*begin[1:].tolist(), len(rows)], strict=True,
    )  # fmt: skip
    for low, high, first_row, end_row in bounds:
        found = guess(calls, parent, whos, low, high, rows[first_row:end_row][:ASKED_MAX].tolist())
        for row, up in found.items():
            parent[row] = up
            assurance[row] = Assurance.INFERRED


def _cut(parent: Ints, assurance: Bytes, cause: Bytes) -> Ints:
    depth, _ = _depths(parent)
    deep = (depth > 0) & (depth % (DEPTH_MAX + 1) == 0)
    if deep.any():
        parent[deep] = -1
        assurance[deep] = Assurance.NONE
        cause[deep] = Cause.DEEP
        depth, _ = _depths(parent)
    assurance[parent < 0] = Assurance.NONE
    return depth


def _chains(
    calls: Calls, parent: Ints, depth: Ints, assurance: Bytes, cause: Bytes, mine: list[Who], position: Ints, first: Ints,
    ours: Flags,
) -> tuple[list[tuple[str, ...]], Ints]:  # fmt: skip
    """Effective chains, level by level; sets cause and assurance."""
    chains = [who.chain for who in mine]
    chain = position.astype(np.int64)
    known = {one: number for number, one in reversed(list(enumerate(chains)))}
    roots = {"": -1}
    root = np.array([roots.setdefault(who.chain[0] if who.chain else "", len(roots)) for who in mine], np.int64)[position]
    begins = first[calls.trace]
    # a parent that one of our doors named may have been what links the roots; any other span is just what the caller says
    asked = (cause == 0) | ((cause == Cause.MISSING) & ~ours)
    strange = (depth == 0) & asked & (root >= 0) & (root[begins] >= 0) & (root != root[begins])
    cause[strange] = Cause.STRANGER
    at = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[at], np.arange(1, int(depth.max(initial=0)) + 2))
    for low, high in itertools.pairwise(bounds):
        rows = at[low:high]
        ups = parent[rows]
        keys = np.stack([chain[ups], position[ups], (calls.state[ups] & OUT) != 0, position[rows]])
        distinct, which = np.unique(keys, axis=1, return_inverse=True)
        said = []
        for effective, up, out, own in distinct.T.tolist():
            found = kin(mine[up], chains[effective], bool(out), mine[own])
            if found.chain not in known:
                known[found.chain] = len(chains)
                chains.append(found.chain)
            said.append((found.cause, known[found.chain], found.assurance))
        answer = np.array(said, np.int64)[which.reshape(-1)]
        free = cause[rows] == 0
        cause[rows[free]] = answer[free, 0]
        chain[rows] = answer[:, 1]
        observed = assurance[rows] == Assurance.OBSERVED
        assurance[rows[observed]] = answer[observed, 2]
    return chains, chain
