"""Which call of another trace may have caused the first one of a trace, where its header was lost on the way: `chain --guess`.

It learns who calls whom, and how fast, from the calls of the WINDOW_S before whose headers were kept, and names a call only
where no other is as usual (`pipeline.core.stitch.habits`). It explains; nobody is permitted or refused by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.cli.asking import Asker
from pipeline.core.stitch.habits import MARGIN_US, Habits, Hop
from schemas.records import Kind, Mode, Verdict, call_id
from schemas.store import ENDED_US, ENDING

WINDOW_S: Final = 900
"""How far back it looks: a call that was open for longer is not found."""

CALLS_MAX: Final = 50_000
"""Calls that it looks at, the newest of the window."""


@dataclass(frozen=True, kw_only=True)
class Perhaps:
    """A call that may have caused another."""

    call_id: str
    trace_id: str
    agent: str
    resource: str


def guess(asker: Asker, call: Mapping[str, Any]) -> Perhaps | None:
    """What may have caused a call (a row of `calls` with `time_us`); None where that cannot be told."""
    rows = _around(asker, int(call["time_us"]))
    mine = [number for number, row in enumerate(rows) if (row["boot"], row["seq"]) == (call["boot"], call["seq"])]
    if not mine:
        return None
    (asked,) = mine
    hops = [Hop(row["agent"], row["resource"], row["action"], row["time_us"], row["ended_us"]) for row in rows]
    place = {(row["trace"], f"{row['boot'] & 0xFFFFFFFF:08x}{row['seq'] & 0xFFFFFFFF:08x}"): n for n, row in enumerate(rows)}
    parent = [place.get((row["trace"], row["parent"]), -1) for row in rows]
    if parent[asked] >= 0:
        return None
    others = [number for number in range(len(rows)) if number != asked]
    renamed = {number: at for at, number in enumerate(others)} | {-1: -1, asked: -1}
    habits = Habits()
    habits.learn([hops[number] for number in others], [renamed[parent[number]] for number in others])
    found = habits.guess(hops, [None if number == asked else up for number, up in enumerate(parent)])[asked]
    if found is None or found < 0:
        return None
    row = rows[found]
    name = call_id(row["boot"], row["seq"])
    return Perhaps(call_id=name, trace_id=row["trace"], agent=row["agent"], resource=row["resource"])


def _around(asker: Asker, time_us: int) -> list[dict[str, Any]]:
    """The calls that were let out before a time, in the order of their starts."""
    low, high = (f"fromUnixTimestamp64Micro({us})" for us in (time_us - WINDOW_S * 1_000_000, time_us + MARGIN_US))
    wanted = (
        f"FROM records WHERE kind = {Kind.DECISION:d} AND boot != 0 AND time BETWEEN {low} AND {high}"
        f" AND (verdict = {Verdict.ALLOW:d} OR mode != {Mode.ENFORCE:d}) ORDER BY time DESC, boot DESC, call_seq DESC"
        f" LIMIT {CALLS_MAX}"
    )
    rows = asker.rows(
        "SELECT boot, call_seq AS seq, lower(hex(trace_id)) AS trace, lower(hex(parent_span)) AS parent,"
        " toString(agent) AS agent, toString(resource) AS resource, toString(action) AS action,"
        f" toUnixTimestamp64Micro(time) AS time_us {wanted}"
    )
    ends = asker.rows(
        f"SELECT boot, call_seq AS seq, max({ENDED_US}) AS ended_us FROM records"
        f" WHERE {ENDING} AND (boot, call_seq) IN (SELECT boot, call_seq {wanted}) GROUP BY boot, call_seq"
    )
    ended = {(row["boot"], row["seq"]): row["ended_us"] for row in ends}
    return [row | {"ended_us": ended.get((row["boot"], row["seq"]), 0)} for row in reversed(rows)]
