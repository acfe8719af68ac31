"""`wardline chain`: the operation that a call belongs to, as a tree: who acted for whom, and how sure that is.

It asks the store for the calls alone and puts them together itself, by what the worker does it by (`pipeline.core.stitch`): so
anyone with the records can make the same judgement, and what the worker has said of a trace can be held against it.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.cli.asking import Asker, asking, jsonable
from pipeline.cli.calls import details
from pipeline.cli.chaincause import guess
from pipeline.cli.chainpage import page
from pipeline.cli.chainview import Shown, dot, text
from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of
from pipeline.core.stitch.model import Trace
from pipeline.core.stitch.stitcher import KINDS
from pipeline.core.stitch.trace import stitch_calls
from schemas.errors import OperatorFault
from schemas.limits import NAME_BYTES_MAX, TRACE_CALLS_MAX, TRACE_SETTLE_S
from schemas.records import Kind, Mode, Verdict
from schemas.store import ENDED_US, ENDING
from schemas.vocabulary import shown

DIGITS: Final = 32
DIGITS_MIN: Final = 8
"""Hex digits of a call id that name one call, if no other begins with them."""

TRACES_MAX: Final = 20
"""Traces of a session that are drawn, the newest."""

CANDIDATES_MAX: Final = 3


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `chain`."""
    what = "the tree of calls of one operation: who acted for whom, and how sure that is"
    parser = commands.add_parser("chain", parents=[common], help=what, allow_abbrev=False)
    what = f"a call id ({DIGITS} hex digits, or its first {DIGITS_MIN} or more), a trace id ({DIGITS} hex digits) or a session"
    parser.add_argument("id", metavar="ID", type=some_id, help=what)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--dot", action="store_true", help="a graph for Graphviz")
    form.add_argument("--html", metavar="FILE", help="write one page with everything in it, to attach to an incident")
    what = "also ask time which call of another trace may have caused the first one, should a header have been lost"
    parser.add_argument("--guess", action="store_true", help=what)
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def some_id(value: str) -> str:
    """A call, trace or session id."""
    if not value or len(value.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        raise argparse.ArgumentTypeError(f"`{shown(value)}` is no call, trace or session id")
    return value


def run(args: argparse.Namespace) -> int:
    """`wardline chain`. Raises OperatorFault for an id that no stored call has."""
    home = home_of(args)
    config = config_of(args, home)
    with asking(home, config) as asker:
        kind, ids, more = find(asker, args.id)
        drawn = [fetch(asker, one, asks_time=args.guess) for one in ids]
    if args.json:
        said = {"asked": args.id, "kind": kind, "traces": [as_json(one) for one in drawn], "more_traces": more}
        print(json.dumps(said, indent=2))
    elif args.dot:
        print(dot(drawn))
    elif args.html:
        path = Path(args.html)
        path.write_text(page(drawn, args.id, more), encoding="utf-8", errors="backslashreplace")
        print(f"{path}: {sum(one.trace.calls for one in drawn)} calls of {len(drawn)} traces")
    else:
        print("\n\n".join(text(one) for one in drawn))
        if more:
            print(f"\n{more} older traces of this session are not shown: `wardline calls --session` lists their calls")
    return 0


# -- which traces --------------------------------------------------------------------------------------------------------


def find(asker: Asker, name: str) -> tuple[str, list[str], int]:
    """What an id names (`call`, `trace` or `session`), the traces to draw, oldest first, and how many more there are."""
    digits = name.lower()
    if re.fullmatch(rf"[0-9a-f]{{{DIGITS_MIN},{DIGITS}}}", digits):
        if found := _by_call(asker, digits):
            return "call", found, 0
        if len(digits) == DIGITS and _has_trace(asker, digits):
            return "trace", [digits], 0
    rows = asker.rows(
        "SELECT lower(hex(trace_id)) AS trace, count() OVER () AS many FROM records"
        f" WHERE kind = {Kind.DECISION:d} AND boot != 0 AND session = {{name:String}}"
        f" GROUP BY trace_id ORDER BY min(time) DESC, trace_id LIMIT {TRACES_MAX}", name=name,
    )  # fmt: skip
    if not rows:
        raise OperatorFault(f"`{shown(name)}` is no call, trace or session that is in the store (yet: `wardline status`)")
    return "session", [row["trace"] for row in reversed(rows)], rows[0]["many"] - len(rows)


def _by_call(asker: Asker, digits: str) -> list[str]:
    low, high = int(digits.ljust(DIGITS, "0"), 16), int(digits.ljust(DIGITS, "f"), 16)
    first, last, ones = low >> 64, high >> 64, (1 << 64) - 1
    within = f" AND call_seq BETWEEN {low & ones} AND {high & ones}" if first == last else ""
    rows = asker.rows(
        "SELECT boot, call_seq AS seq, lower(hex(trace_id)) AS trace FROM records"
        f" WHERE boot BETWEEN {first} AND {last}{within} AND boot != 0 AND kind = {Kind.DECISION:d}"
        f" ORDER BY boot, seq LIMIT {CANDIDATES_MAX + 1}"
    )
    if len(rows) > 1:
        some = ", ".join(f"{row['boot']:016x}{row['seq']:016x}" for row in rows[:CANDIDATES_MAX])
        dots = ", ..." if len(rows) > CANDIDATES_MAX else ""
        raise OperatorFault(f"`{digits}` is the beginning of several calls, give more of it: {some}{dots}")
    return [row["trace"] for row in rows]


def _has_trace(asker: Asker, digits: str) -> bool:
    return bool(asker.rows(
        f"SELECT 1 FROM records WHERE trace_id = unhex('{digits}') AND kind = {Kind.DECISION:d} AND boot != 0 LIMIT 1"
    ))  # fmt: skip


# -- one trace -----------------------------------------------------------------------------------------------------------


def fetch(asker: Asker, trace_id: str, *, asks_time: bool = False) -> Shown:
    """A trace that is in the store, and its calls."""
    keys = asker.rows(
        f"SELECT boot, call_seq AS seq, verdict = {Verdict.ALLOW:d} OR mode != {Mode.ENFORCE:d} AS let_out,"
        f" count() OVER () AS many FROM records WHERE trace_id = unhex('{trace_id}') AND kind = {Kind.DECISION:d} AND boot != 0"
        f" ORDER BY time, boot, seq LIMIT {TRACE_CALLS_MAX}"
    )
    let_out = {(row["boot"], row["seq"]): bool(row["let_out"]) for row in keys}
    rows = details(asker, let_out)
    others = asker.rows(
        f"SELECT boot, call_seq AS seq, maxIf({ENDED_US}, {ENDING}) AS ended_us,"
        " toUnixTimestamp(now()) - toInt64(toUnixTimestamp(max(ingested))) AS quiet_s FROM records"
        f" WHERE trace_id = unhex('{trace_id}') AND kind IN {KINDS} AND boot != 0 GROUP BY boot, call_seq"
    )
    ended = {(row["boot"], row["seq"]): row["ended_us"] for row in others}
    for row in rows:
        key = row["boot"], row["seq"]
        row |= {"let_out": let_out[key], "time_us": round(row["time"].timestamp() * 1_000_000), "ended_us": ended[key]}
    named = sorted({row["parent_span"][:8] for row in rows} - {"0" * 8})
    doors = ", ".join(str(int(one, 16)) for one in named)
    boots = asker.rows(f"SELECT DISTINCT boot FROM records WHERE bitAnd(boot, 4294967295) IN ({doors})") if named else []
    trace = stitch_calls(
        rows, [row["boot"] for row in boots], settled=min(row["quiet_s"] for row in others) >= TRACE_SETTLE_S,
        unseen=keys[0]["many"] - len(keys),
    )  # fmt: skip
    stored = asker.rows("SELECT grade, version, calls, why FROM traces WHERE trace_id = {name:String}", name=trace_id)
    calls = {row["call_id"]: row for row in rows}
    first = next(edge for edge in trace.edges if not edge.parent)
    perhaps = guess(asker, calls[first.call_id]) if asks_time else None
    return Shown(trace=trace, calls=calls, stored=stored[0] if stored else None, perhaps=perhaps)


OWN: Final = ("let_out", "time_us", "ended_us")
"""What `fetch` adds to the columns of `calls`."""


def as_json(one: Shown) -> dict[str, Any]:
    """A trace and its calls: every column of `calls` with what was found of each beside it."""
    said: dict[str, Any] = {field: getattr(one.trace, field) for field in _FIELDS}
    said["stored"] = one.stored
    said["perhaps"] = dataclasses.asdict(one.perhaps) if one.perhaps is not None else None
    said["calls_drawn"] = [
        {name: value for name, value in jsonable(dict(one.calls[edge.call_id])).items() if name not in OWN}
        | {"parent": edge.parent, "edge_assurance": edge.assurance, "effective_chain": list(edge.chain), "grade": edge.grade,
           "why": edge.why}
        for edge in one.trace.edges
    ]  # fmt: skip
    return said


_FIELDS: Final[Sequence[str]] = [field.name for field in dataclasses.fields(Trace) if field.name != "edges"]
