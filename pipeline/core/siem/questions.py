"""What a sink asks of the store: first which rows are there, by a few columns, then those that are due, by their keys.

A question about what is there is answered in the order of (stored, key) from a place on, PAGE rows at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipeline.core.siem.choice import DONE, FOUND, JUDGED, REVOKED, Entry
from pipeline.core.siem.frames import Arrived, Frames, Lane
from schemas.records import Kind, Verdict
from schemas.store import FLAG_DEAD, FRAME_KIND, quote_text

PAGE: Final = 5000
JUDGED_MAX: Final = 1000
"""Findings, the newest ones, of which one exception is told."""

FRAMES_MAX: Final = 100
LANES_MAX: Final = 100

_KINDS: Final = {JUDGED: "exception", REVOKED: "revocation"}
"""The kind of control entry that a source reads."""

_NOTHING: Final = "'' AS who, toUInt64(0) AS latest, '' AS how, 0 AS gone"
_US: Final = "toUnixTimestamp64Micro"
_FINDING: Final = (
    f"id, version, toString(detector) AS detector, subject, toString(agent) AS agent, domain, host, credential, session,"
    f" toString(enforcer) AS enforcer, {_US}(started) AS started_us, {_US}(ended) AS ended_us, {_US}(time) AS time_us, score,"
    f" toString(severity) AS severity, title, state, terms, evidence, calls, calls_count, sql, toString(tenant) AS tenant,"
    f" toString(worker) AS worker, {_US}(stored) AS stored_us"
)
_CALL: Final = (
    f"call_id, boot, seq, {_US}(time) AS time_us, toString(door) AS door, toString(tenant) AS tenant, session,"
    " toString(agent) AS agent, toString(root) AS root, chain, assurance, toString(credential) AS credential,"
    " toString(proof) AS proof, toString(action) AS action, toString(resource) AS resource, toString(scheme) AS scheme,"
    " toString(host) AS host, toString(domain) AS domain, address, client, path, mode, policies, reason,"
    " toString(policy_digest) AS policy_digest, epoch, outcome, status, query_bytes, query_bits, trace_id,"
    " toString(enforcer) AS enforcer"
)

NOW: Final = f"SELECT {_US}(now64(6)) AS now_us"


def all_entries_sql(lows: Mapping[str, int]) -> str:
    """The first page of each source, from its place on; and `now`, whose `at` is the store's clock. One question, not five."""
    now = f"SELECT 'now' AS source, '' AS finding, '' AS ident, {_US}(now64(6)) AS at, {_NOTHING}"
    parts = [entries_sql(source, low_us, (0, "")) for source, low_us in lows.items()]
    return " UNION ALL ".join([now, *(f"SELECT * FROM ({part})" for part in parts)])


def entries_sql(source: str, low_us: int, after: tuple[int, str]) -> str:
    """Which rows of a source were stored from `low_us` on, behind `after` (stored, key)."""
    named = f"SELECT {quote_text(source)} AS source,"
    since = f"stored >= fromUnixTimestamp64Micro({low_us})"
    behind = f"HAVING (at, ident) > ({after[0]}, {quote_text(after[1])}) ORDER BY at, ident LIMIT {PAGE}"
    if source == FOUND:
        return (
            f"{named} id AS finding, concat(id, ':', toString(max(version))) AS ident, {_US}(argMax(stored, version)) AS at,"
            f" argMax(toString(agent), version) AS who,"
            f" max(version) AS latest, argMax(toString(severity), version) AS how, argMax(withdrawn, version) AS gone"
            f" FROM findings_stored WHERE {since} GROUP BY id {behind}"
        )
    if source == DONE:
        return (
            f"{named} finding, {_response_key()} AS ident, {_US}(max(stored)) AS at, {_NOTHING}"
            f" FROM responses_stored AS r WHERE {since} GROUP BY finding, rule, selector, time {behind}"
        )
    return (
        f"{named} '' AS finding, {_control_key()} AS ident, {_US}(max(stored)) AS at, {_NOTHING} FROM control AS c"
        f" WHERE kind = {quote_text(_KINDS[source])} AND {since} GROUP BY journal, epoch, name {behind}"
    )


def _response_key() -> str:
    return f"concat(r.finding, ':', r.rule, ':', r.selector, ':', toString({_US}(r.time)))"


def _control_key() -> str:
    return "concat(toString(c.journal), ':', toString(c.epoch), ':', c.name)"


def entry_of(source: str, row: Mapping[str, Any]) -> Entry:
    """A row of `entries_sql`."""
    if source == FOUND:
        return Entry(source=source, at_us=row["at"], key=row["ident"], agent=row["who"], finding=row["finding"],
                     version=row["latest"], severity=row["how"], withdrawn=bool(row["gone"]))  # fmt: skip
    agent = agent_of(row["ident"].split(":", 2)[2]) if source == REVOKED else None
    return Entry(source=source, at_us=row["at"], key=row["ident"], agent=agent, finding=row["finding"])


def agent_of(selector: str) -> str:
    """The agent that a selector is about, or the selector: what the order of its events is kept by."""
    kind, _, name = selector.partition(":")
    return name if kind.rstrip("*") == "agent" else selector


def findings_sql(ids: Iterable[str]) -> str:
    """Findings by their ids."""
    return f"SELECT {_FINDING} FROM findings WHERE id IN ({_texts(ids)})"


def responses_sql(ids: Iterable[str]) -> str:
    """What rules did about findings; `ident` is as `entries_sql` has it."""
    return (
        f"SELECT {_response_key()} AS ident, finding, rule, selector, toString(state) AS outcome, epoch, for_s, why,"
        f" {_US}(time) AS acted_us, toString(tenant) AS tenant FROM responses AS r WHERE finding IN ({_texts(ids)})"
    )


def control_sql(source: str, keys: Iterable[str]) -> str:
    """Control entries by their keys."""
    return (
        f"SELECT {_control_key()} AS ident, journal, epoch, name, value, toString(actor) AS actor, {_US}(time) AS time_us,"
        f" toString(tenant) AS tenant, {_US}(stored) AS stored_us FROM control AS c"
        f" WHERE kind = {quote_text(_KINDS[source])} AND epoch IN ({', '.join(sorted({key.split(':')[1] for key in keys}))})"
        f" AND ident IN ({_texts(keys)}) ORDER BY stored LIMIT 1 BY journal, epoch, name"
    )


def exceptions_sql(names: Iterable[str]) -> str:
    """What exceptions are or were about: the last value of each."""
    return (
        f"SELECT name, argMax(value, (journal, epoch)) AS last FROM control WHERE kind = 'exception' AND value != ''"
        f" AND name IN ({_texts(names)}) GROUP BY name"
    )


def judged_sql(detector: str, subject: str) -> str:
    """The findings that an exception is about."""
    return (
        f"SELECT {_FINDING} FROM findings WHERE detector = {quote_text(detector)} AND subject = {quote_text(subject)}"
        f" ORDER BY time DESC LIMIT {JUDGED_MAX}"
    )


# -- calls ---------------------------------------------------------------------------------------------------------------


def key_of(call_id: str) -> tuple[int, int] | None:
    """(boot, seq) of a call's id; None where it is no such id."""
    try:
        return (int(call_id[:16], 16), int(call_id[16:], 16)) if len(call_id) == 32 else None
    except ValueError:
        return None


def chains_sql(keys: Sequence[tuple[int, int]]) -> str:
    """For whom calls were made."""
    return f"SELECT boot, seq, chain, assurance FROM calls WHERE {_by_key(keys)}"


def calls_sql(keys: Sequence[tuple[int, int]]) -> str:
    """Refused calls by their keys."""
    return f"SELECT {_CALL} FROM calls WHERE {_by_key(keys)} AND verdict = 'deny'"


def _by_key(keys: Sequence[tuple[int, int]]) -> str:
    # two lists and not one of pairs: both sides of the view's join are then read by the table's key
    boots, seqs = (", ".join(map(str, sorted(set(some)))) for some in zip(*keys, strict=True))
    return f"boot IN ({boots}) AND seq IN ({seqs})"


# -- frames --------------------------------------------------------------------------------------------------------------

_OF_FRAMES: Final = f"FROM records WHERE boot = 0 AND kind = {FRAME_KIND} AND frame_flag != {quote_text(FLAG_DEAD)}"
"""A dead letter passes without its records: they come, under the same number, when it is retried."""

_LANE: Final = "toString(enforcer) AS lane_host, call_seq AS lane_boot, partition AS lane_part"
_FRAME: Final = (
    f"{_LANE}, seq AS number, toUnixTimestamp(ingested) AS came, frame_records AS many,"
    " arrayFilter((one, n) -> n % 3 = 1, frame_ranges, arrayEnumerate(frame_ranges)) AS boots"
)
_IN_ORDER: Final = "ORDER BY ingested, lane_host, lane_boot, lane_part, number"


def recent_sql(frames: Frames) -> str:
    """Frames that came in lately and are not known."""
    known = [f"({_at(lane)} AND seq BETWEEN {low} AND {high})" for lane in frames.lanes for low, high in frames.spans(lane)]
    unknown = f" AND NOT ({' OR '.join(known)})" if 0 < len(known) <= LANES_MAX else ""
    return f"SELECT {_FRAME} {_OF_FRAMES} AND ingested >= toDateTime({frames.low_s()}, 'UTC'){unknown} {_IN_ORDER} LIMIT {PAGE}"


def lanes_sql(frames: Frames) -> str:
    """The lanes that have a frame which may still be new."""
    return f"SELECT DISTINCT {_LANE} {_OF_FRAMES} AND ingested >= toDateTime({frames.floor_s}, 'UTC')"


def unknown_sql(frames: Frames, lanes: Sequence[Lane]) -> str:
    """Frames of some lanes that are not known, however late they came in."""
    known = [(lane, (f" AND NOT seq BETWEEN {low} AND {high}" for low, high in frames.spans(lane))) for lane in lanes]
    wanted = " OR ".join(f"({_at(lane)}{''.join(spans)})" for lane, spans in known)
    since = f"ingested >= toDateTime({frames.floor_s}, 'UTC')"
    return f"SELECT {_FRAME} {_OF_FRAMES} AND {since} AND ({wanted}) {_IN_ORDER} LIMIT {FRAMES_MAX}"


def _at(lane: Lane) -> str:
    return f"enforcer = {quote_text(lane[0])} AND call_seq = {lane[1]} AND partition = {lane[2]}"


def frame_of(row: Mapping[str, Any]) -> Arrived:
    """A row of `recent_sql` or `unknown_sql`."""
    return Arrived(lane=lane_of(row), number=row["number"], ingested_s=row["came"], records=row["many"],
                   boots=tuple(sorted(set(row["boots"]))))  # fmt: skip


def lane_of(row: Mapping[str, Any]) -> Lane:
    """The lane of a row."""
    return row["lane_host"], row["lane_boot"], row["lane_part"]


def refused_sql(frame: Arrived) -> str:
    """The calls that a frame refuses, or takes back."""
    boots = ", ".join(map(str, frame.boots))
    return (
        f"SELECT DISTINCT boot, call_seq FROM records WHERE boot IN ({boots}) AND verdict = {Verdict.DENY:d}"
        f" AND kind IN ({Kind.DECISION:d}, {Kind.EFFECT:d}) AND ingested = toDateTime({frame.ingested_s}, 'UTC')"
        f" AND enforcer = {quote_text(frame.lane[0])} AND enforcer_boot = {frame.lane[1]} AND partition = {frame.lane[2]}"
        f" AND frame_no = {frame.number} ORDER BY boot, call_seq"
    )


def _texts(values: Iterable[str]) -> str:
    return ", ".join(quote_text(value) for value in sorted(set(values)))
