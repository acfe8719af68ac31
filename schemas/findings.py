"""A finding: what a detector saw, with the evidence to compute its score again.

Its id is a hash of (detector, subject, start of its window), so that a replay, another order of frames or a second worker makes
no second one. What a detector says of it later, with more calls or fewer, is the same finding with a higher version; the store
keeps the highest. A score is the sum of the points of its terms, 100 at most, and every term's value follows from the evidence.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa

from schemas.canonical import canonical
from schemas.detectors import (
    BEACON,
    CHAIN,
    DENY_BURST,
    DETECTORS,
    FIRST_SEEN,
    LEAK,
    LIMIT,
    RISK,
    SECOND_HOLDER,
    SEQUENCE,
    TACTICS,
    VOLUME,
)
from schemas.store import quote_text

__all__ = [
    "BEACON", "CALLS_MAX", "CHAIN", "DENY_BURST", "DETECTORS", "EVIDENCE_BYTES_MAX", "FINDING_SCHEMA", "FIRST_SEEN", "Finding",
    "LEAK", "LIMIT", "RISK", "SCORE_MAX", "SECOND_HOLDER", "SEQUENCE", "SEVERITIES", "TACTICS", "TITLE_CHARS_MAX", "Term",
    "VOLUME", "finding_id", "finding_row", "parse_finding", "score_of", "severity", "some_calls", "sql_of",
]  # fmt: skip

SCORE_MAX: Final = 100.0
SEVERITIES: Final = ((90.0, "critical"), (70.0, "high"), (40.0, "medium"), (0.0, "low"))

CALLS_MAX: Final = 100
"""Calls that a finding names: the first 50 and the last 50 of more. `calls_count` counts all."""

TITLE_CHARS_MAX: Final = 400

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

EVIDENCE_BYTES_MAX: Final = 16 << 10
"""Bytes of evidence as JSON. A detector keeps below it by naming fewer examples, never by dropping a number of its score."""

FINDING_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.utf8(), nullable=False),
        pa.field("version", pa.uint64(), nullable=False),
        pa.field("detector", pa.utf8(), nullable=False),
        pa.field("subject", pa.utf8(), nullable=False),
        pa.field("agent", pa.utf8(), nullable=False),
        pa.field("domain", pa.utf8(), nullable=False),
        pa.field("host", pa.utf8(), nullable=False),
        pa.field("credential", pa.utf8(), nullable=False),
        pa.field("session", pa.utf8(), nullable=False),
        pa.field("enforcer", pa.utf8(), nullable=False),
        pa.field("window", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("started", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("ended", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("severity", pa.utf8(), nullable=False),
        pa.field("title", pa.utf8(), nullable=False),
        pa.field("terms", pa.utf8(), nullable=False),
        pa.field("evidence", pa.utf8(), nullable=False),
        pa.field("calls", pa.list_(pa.field("item", pa.utf8(), nullable=False)), nullable=False),
        pa.field("calls_count", pa.uint64(), nullable=False),
        pa.field("sql", pa.utf8(), nullable=False),
        pa.field("withdrawn", pa.uint8(), nullable=False),
        pa.field("tenant", pa.utf8(), nullable=False),
        pa.field("worker", pa.utf8(), nullable=False),
    ]
)
"""The Arrow columns of an insert into `findings_stored`. `terms` and `evidence` are JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One part of a score: `points` of it, because `name` has `value`; `why` says so in words."""

    name: str
    value: float
    points: float
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One word of a detector on one subject in one window. Texts that do not apply are empty. Times are us since 1970, UTC."""

    detector: str
    subject: str
    """What it is about, in one canonical text: `agent=x domain=example.com`."""
    window_us: int
    """The start of the window; with detector and subject, what names the finding."""
    version: int
    """Calls that the detector's state of this subject and window holds: it only grows."""
    started_us: int
    ended_us: int
    """The first and the last call that count."""
    time_us: int
    """The call that crossed the threshold."""
    terms: tuple[Term, ...]
    evidence: Mapping[str, Any]
    title: str
    calls: tuple[str, ...] = ()
    calls_count: int = 0
    agent: str = ""
    domain: str = ""
    host: str = ""
    credential: str = ""
    session: str = ""
    enforcer: str = ""
    withdrawn: bool = False
    """Whether it does not hold any more, now that an older call has come in late."""
    tenant: str = "default"
    id: str = field(init=False)
    """32 lower-case hex digits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", finding_id(self.detector, self.subject, self.window_us))

    @property
    def score(self) -> float:
        """0 to 100."""
        return score_of(self.terms)


def finding_id(detector: str, subject: str, window_us: int) -> str:
    """What a finding is called: the first half of the SHA-256 of what it is about."""
    return hashlib.sha256(canonical({"detector": detector, "subject": subject, "window": window_us})).hexdigest()[:32]


def score_of(terms: Sequence[Term]) -> float:
    """The sum of the points, within 0 and 100, to three decimals."""
    return round(min(SCORE_MAX, max(0.0, sum(term.points for term in terms))), 3)


def severity(score: float) -> str:
    """`critical` from 90, `high` from 70, `medium` from 40, else `low`."""
    return next(name for least, name in SEVERITIES if score >= least)


def some_calls(calls: Sequence[str]) -> tuple[str, ...]:
    """Those calls that a finding names, of calls in their order."""
    if len(calls) <= CALLS_MAX:
        return tuple(calls)
    half = CALLS_MAX // 2
    return (*calls[:half], *calls[-half:])


def sql_of(finding: Finding) -> str:
    """The question that shows the calls behind a finding: by who and where, in its time; by their ids where none is said."""
    parts = [
        f"{column} = {quote_text(value)}"
        for column, value in (
            ("agent", finding.agent), ("domain", finding.domain), ("host", finding.host), ("credential", finding.credential),
            ("session", finding.session),
        )
        if value
    ]  # fmt: skip
    if not parts:
        named = ", ".join(quote_text(one) for one in finding.calls) or "''"
        return f"SELECT * FROM calls WHERE call_id IN ({named}) ORDER BY time"
    first, last = (f"fromUnixTimestamp64Micro({us})" for us in (finding.started_us, finding.ended_us))
    parts.append(f"time BETWEEN {first} AND {last}")
    return f"SELECT * FROM calls WHERE {' AND '.join(parts)} ORDER BY time"


def finding_row(finding: Finding, worker: str) -> dict[str, Any]:
    """A finding as a row of `FINDING_SCHEMA`."""
    evidence = json.dumps(finding.evidence, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert len(evidence.encode()) <= EVIDENCE_BYTES_MAX, f"{finding.detector} keeps its evidence small"
    terms = [{"name": t.name, "value": t.value, "points": t.points, "why": t.why} for t in finding.terms]
    return {
        "id": finding.id, "version": finding.version, "detector": finding.detector, "subject": finding.subject,
        "agent": finding.agent, "domain": finding.domain, "host": finding.host, "credential": finding.credential,
        "session": finding.session, "enforcer": finding.enforcer, "window": finding.window_us,
        "started": finding.started_us, "ended": finding.ended_us, "time": finding.time_us, "score": finding.score,
        "severity": severity(finding.score),
        "title": finding.title[:TITLE_CHARS_MAX], "terms": json.dumps(terms, ensure_ascii=False, separators=(",", ":")),
        "evidence": evidence, "calls": list(finding.calls), "calls_count": finding.calls_count, "sql": sql_of(finding),
        "withdrawn": int(finding.withdrawn), "tenant": finding.tenant, "worker": worker,
    }  # fmt: skip


def parse_finding(row: Mapping[str, Any]) -> Finding:
    """A row of `FINDING_SCHEMA`, or of the view `findings`, as what it was made of. Times are us, or datetimes with a zone.

    A worker reads back what it or another one has stored, so a row that is none raises KeyError, TypeError or ValueError.
    """
    terms = tuple(
        Term(name=term["name"], value=float(term["value"]), points=float(term["points"]), why=term["why"])
        for term in json.loads(row["terms"])
    )
    return Finding(
        detector=row["detector"], subject=row["subject"], window_us=_us(row["window"]), version=int(row["version"]),
        started_us=_us(row["started"]), ended_us=_us(row["ended"]), time_us=_us(row["time"]), terms=terms,
        evidence=json.loads(row["evidence"]), title=row["title"], calls=tuple(row["calls"]),
        calls_count=int(row["calls_count"]), agent=row["agent"], domain=row["domain"], host=row["host"],
        credential=row["credential"], session=row["session"],
        enforcer=row["enforcer"], withdrawn=row["state"] == "withdrawn" if "state" in row else bool(row["withdrawn"]),
        tenant=row["tenant"],
    )  # fmt: skip


def _us(time: Any) -> int:
    if isinstance(time, datetime):
        return (time - _EPOCH) // timedelta(microseconds=1)
    return int(time)
