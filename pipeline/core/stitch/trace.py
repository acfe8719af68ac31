"""One trace from rows of the view `calls`: the same judgement as a worker's, so that anyone can make it again."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core.stitch.judge import judge
from pipeline.core.stitch.model import DECIDED, DENIED, OUT, WORDS, Assurance, Calls, Cause, Edge, Grade, Judged, Trace, Who
from pipeline.core.stitch.rows import whys
from pipeline.core.stitch.whos import make_who
from schemas.limits import TRACE_CALLS_MAX
from schemas.records import call_id


def stitch_calls(
    rows: Sequence[Mapping[str, Any]], boots: Iterable[int], *, settled: bool, unseen: int = 0
) -> Trace:
    """The trace of its calls, one or more.

    A row has these columns of `calls`: boot, seq, trace_id, parent_span, chain, assurance, tenant, enforcer, verdict; and
    `time_us`, `ended_us` (0: it has not), `let_out` (whether its decision let it out). `boots` are those of the doors that are
    known, `settled` whether the trace is quiet, `unseen` how many of its calls are not among the rows.
    """
    whos: list[Who] = [make_who(row["tenant"], tuple(row["chain"]), tuple(row["assurance"])) for row in rows]
    numbers = {one: number for number, one in reversed(list(enumerate(whos)))}
    calls = Calls(
        trace=np.zeros(len(rows), np.int64),
        boot=np.array([row["boot"] for row in rows], np.uint64),
        seq=np.array([row["seq"] for row in rows], np.uint64),
        start=np.array([row["time_us"] for row in rows], np.int64),
        end=np.array([row["ended_us"] for row in rows], np.int64),
        parent=np.array([int(row["parent_span"], 16) for row in rows], np.uint64),
        who=np.array([numbers[one] for one in whos], np.int64),
        state=np.array([
            DECIDED | (OUT if row["let_out"] else 0) | (DENIED if row["verdict"] == "deny" else 0) for row in rows
        ], np.uint8),
    )  # fmt: skip
    doors = np.unique(np.array([boot & 0xFFFF_FFFF for boot in boots], np.uint64))
    judged = judge(calls, dict(enumerate(whos)), doors, np.full(1, settled, np.uint8))
    return _trace(rows, whos, judged, unseen)


def _trace(rows: Sequence[Mapping[str, Any]], whos: Sequence[Who], judged: Judged, unseen: int) -> Trace:
    calls = judged.calls
    effective = [judged.chains[number] for number in judged.chain.tolist()]
    grade = Grade(int(judged.trace_grade[0]))
    if unseen and grade is Grade.COMPLETE:
        grade = Grade.GAP
    found, many = np.unique(judged.cause[judged.cause != 0], return_counts=True)
    causes = [(Cause(one), times) for one, times in zip(found.tolist(), many.tolist(), strict=True)]
    first = effective[int(judged.first[0])]
    return Trace(
        trace_id=rows[0]["trace_id"],
        grade=grade.text,
        why=whys(causes, unseen, TRACE_CALLS_MAX),
        root=first[0] if first else "",
        agents=tuple(sorted({who.agent for who in whos if who.agent})),
        enforcers=tuple(sorted({row["enforcer"] for row in rows if row["enforcer"]})),
        calls=len(rows) + unseen,
        denied=sum(row["verdict"] == "deny" for row in rows),
        depth=max(map(len, effective)),
        started_us=int(calls.start.min()),
        ended_us=int(np.maximum(calls.start, calls.end).max()),
        edges=tuple(_edge(judged, effective, row) for row in range(len(calls))),
    )


def _edge(judged: Judged, effective: Sequence[tuple[str, ...]], row: int) -> Edge:
    up, named = int(judged.parent[row]), int(judged.calls.parent[row])
    return Edge(
        call_id=_id(judged, row),
        parent=_id(judged, up) if up >= 0 else "",
        named=f"{named:016x}" if named else "",
        assurance=Assurance(int(judged.assurance[row])).text,
        chain=effective[row],
        grade=Grade(int(judged.grade[row])).text,
        why=WORDS.get(Cause(int(judged.cause[row])), ""),
    )


def _id(judged: Judged, row: int) -> str:
    return call_id(int(judged.calls.boot[row]), int(judged.calls.seq[row]))
