"""How a worker reads its past from the store: what it must know to go on as if it had never been away.

    lookout     frames that are stored, then the columns of their records that aggregates are made of, in pages, in the order of
                the table's key: a call's decision, then its ends
    tap         a partition's newest records, and its open calls; of calls whose end is read again, what came before that
    findings    what is stored of some of them, of an agent, and lately
"""

from collections.abc import Iterable, Sequence
from typing import Final

from schemas.findings import FINDING_SCHEMA
from schemas.records import Kind, Outcome, Verdict
from schemas.store import FLAG_DEAD, FRAME_KIND, quote_name, quote_text

LOOKED_AT: Final = (
    "kind", "boot", "seq", "call_seq", "time", "verdict", "outcome", "bytes_out", "bytes_in", "query_hash", "query_bits",
    "trace_id", "session", "agent", "credential", "proof", "action", "resource", "host", "domain", "address", "enforcer",
    "enforcer_boot", "partition", "frame_no",
)  # fmt: skip
"""The columns of `records` that aggregates are made of."""

PAGE_SETTINGS: Final = {
    "output_format_arrow_low_cardinality_as_dictionary": "1",
    "output_format_arrow_string_as_string": "1",
    "output_format_arrow_fixed_string_as_fixed_byte_array": "1",
}
"""Texts come as dictionaries, as they do in a frame."""

_OF_CALLS: Final = f"({int(Kind.DECISION)}, {int(Kind.PROGRESS)}, {int(Kind.EFFECT)}, {int(Kind.LOST)})"
_ENDS: Final = f"({int(Kind.EFFECT)}, {int(Kind.LOST)})"


def frames_stored_sql(database: str, since_s: int, window: int) -> str:
    """Of each lane (enforcer, enforcer_boot, partition) the highest frame that was ingested from `since_s` on, and which of the
    `window` numbers up to it are there. Dead letters are not: their records are not there."""
    return (
        "SELECT toString(enforcer), call_seq AS host_boot, partition, max(seq) AS top,"
        f" arrayFilter(n -> n + {window} > top, groupUniqArray(seq)) FROM {quote_name(database)}.records"
        f" WHERE boot = 0 AND kind = {FRAME_KIND} AND frame_flag != {quote_text(FLAG_DEAD)} AND ingested >= {since_s}"
        " GROUP BY enforcer, host_boot, partition"
    )


def page_sql(database: str, since_s: int, after: tuple[int, int, int], rows: int) -> str:
    """The next records of calls behind `after` (boot, call_seq, seq), ingested from `since_s` on: `LOOKED_AT`."""
    boot, call_seq, seq = after
    # the first two conditions say nothing new, but by them the store skips what lies before
    return (
        f"SELECT {', '.join(LOOKED_AT)} FROM {quote_name(database)}.records"
        f" WHERE boot >= {boot} AND (boot > {boot} OR call_seq >= {call_seq})"
        f" AND (boot, call_seq, seq) > ({boot}, {call_seq}, {seq}) AND boot != 0 AND kind IN {_OF_CALLS}"
        f" AND ingested >= {since_s} ORDER BY boot, call_seq, seq LIMIT {rows}"
    )


def ingested_sql(database: str, partitions: Iterable[int], since_s: int) -> str:
    """How many records of some partitions were ingested in each second from `since_s` on, the newest first."""
    return (
        f"SELECT toUnixTimestamp(ingested) AS at, count() FROM {quote_name(database)}.records"
        f" WHERE partition IN ({_numbers(partitions)}) AND boot != 0 AND ingested >= {since_s} GROUP BY at ORDER BY at DESC"
    )


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def recent_sql(database: str, columns: Sequence[str], partitions: Iterable[int], since_s: int) -> str:
    """The records of calls of some partitions that were ingested from `since_s` on."""
    return (
        f"SELECT {', '.join(columns)} FROM {quote_name(database)}.records WHERE partition IN ({_numbers(partitions)})"
        f" AND boot != 0 AND kind IN {_OF_CALLS} AND ingested >= {since_s} ORDER BY boot, call_seq, seq"
    )


def boots_sql(database: str, since_s: int) -> str:
    """The starts of doors that frames ingested from `since_s` on have records of."""
    boots = "arrayFilter((one, at) -> at % 3 = 1, frame_ranges, arrayEnumerate(frame_ranges))"  # boot, first, last
    return (
        f"SELECT DISTINCT arrayJoin({boots}) FROM {quote_name(database)}.records"
        f" WHERE boot = 0 AND kind = {FRAME_KIND} AND ingested >= {since_s}"
    )


def traces_sql(database: str, columns: Sequence[str], traces: Iterable[bytes], since_s: int) -> str:
    """The records of some traces that were ingested from `since_s` on."""
    named = ", ".join(f"unhex('{trace.hex()}')" for trace in traces)
    return (
        f"SELECT {', '.join(columns)} FROM {quote_name(database)}.records WHERE boot != 0 AND kind IN {_OF_CALLS}"
        f" AND trace_id IN ({named}) AND ingested >= {since_s}"
    )


def open_sql(database: str, partitions: Iterable[int], since_s: int, before_s: int, calls: int) -> str:
    """What was recorded from `since_s` on and before `before_s` of calls that are open still: `LOOKED_AT`."""
    base, ours = quote_name(database), f"partition IN ({_numbers(partitions)}) AND boot != 0 AND ingested >= {since_s}"
    let_out = (
        f"SELECT boot, call_seq FROM {base}.records WHERE {ours} AND ingested < {before_s} AND kind = {int(Kind.DECISION)}"
        f" AND verdict = {int(Verdict.ALLOW)} AND outcome = {int(Outcome.OPEN)}"
    )
    ended = f"SELECT boot, call_seq FROM {base}.records WHERE {ours} AND kind IN {_ENDS}"
    return (
        f"SELECT {', '.join(LOOKED_AT)} FROM {base}.records WHERE {ours} AND ingested < {before_s}"
        f" AND kind IN ({int(Kind.DECISION)}, {int(Kind.PROGRESS)}) AND (boot, call_seq) IN"
        f" (SELECT boot, call_seq FROM ({let_out}) WHERE (boot, call_seq) NOT IN ({ended}) LIMIT {calls})"
        " ORDER BY boot, call_seq, seq"
    )


def earlier_sql(database: str, calls: Iterable[tuple[int, int]]) -> str:
    """The decisions and progress of some calls (boot, call_seq): `LOOKED_AT`."""
    named = ", ".join(f"({boot}, {call_seq})" for boot, call_seq in calls)
    return (
        f"SELECT {', '.join(LOOKED_AT)} FROM {quote_name(database)}.records"
        f" WHERE (boot, call_seq) IN ({named}) AND kind IN {_OF_CALLS} ORDER BY boot, call_seq, seq"
    )


def findings_known_sql(database: str, ids: Iterable[str]) -> str:
    """What is stored of some findings: what tells whether a word on them is news."""
    named = ", ".join(quote_text(one) for one in ids)
    return (
        "SELECT id, version, withdrawn, title, terms, evidence, calls"
        f" FROM {quote_name(database)}.findings_stored FINAL WHERE id IN ({named})"
    )


FINDING_FIELDS: Final = (*(f.name for f in FINDING_SCHEMA if f.name not in ("severity", "sql", "withdrawn", "worker")), "state")
"""What `parse_finding` takes, in the order of the columns of the two questions below. Times are us since 1970."""

_TIMES: Final = ("window", "started", "ended", "time")
_FINDING: Final = ", ".join(f"toUnixTimestamp64Micro({name})" if name in _TIMES else name for name in FINDING_FIELDS)


def findings_of_sql(database: str, agents: Iterable[str], first_us: int, last_us: int, most: int) -> str:
    """What is stored of some agents with a time between the two (us since 1970), those left out that someone has called false;
    of each agent the newest `most`."""
    named = ", ".join(quote_text(one) for one in agents)
    return (
        f"SELECT {_FINDING} FROM {quote_name(database)}.findings WHERE agent IN ({named}) AND state != 'false'"
        f" AND time BETWEEN fromUnixTimestamp64Micro({first_us}) AND fromUnixTimestamp64Micro({last_us})"
        f" ORDER BY time DESC, id LIMIT {most} BY agent"
    )


def findings_since_sql(database: str, since_s: int, most: int) -> str:
    """What was stored from `since_s` on, the newest `most`."""
    return (
        f"SELECT {_FINDING} FROM {quote_name(database)}.findings WHERE stored >= toDateTime64({since_s}, 6, 'UTC')"
        f" ORDER BY stored DESC, id LIMIT {most}"
    )
