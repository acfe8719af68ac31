"""What the tap and the lookout read from the store and write to it, over connections of their own (`sink` says how).

Rows that are written twice are one row: each table keeps the highest version. Nothing here retries, and every method blocks.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline.core.seen import WINDOW, Numbers
from pipeline.shells.worker.sink import Sink
from schemas.findings import FINDING_SCHEMA, Finding, finding_row, parse_finding
from schemas.frame import Lane
from schemas.limits import OPEN_CALLS_MAX
from schemas.past import (
    FINDING_FIELDS,
    LOOKED_AT,
    PAGE_SETTINGS,
    boots_sql,
    earlier_sql,
    findings_known_sql,
    findings_of_sql,
    findings_since_sql,
    frames_stored_sql,
    ingested_sql,
    open_sql,
    page_sql,
    recent_sql,
    traces_sql,
)
from schemas.store import EDGE_SCHEMA, TRACE_SCHEMA

PAGE_ROWS: Final = 200_000
"""Records that are read at once: 40 MB."""

NAMED_MAX: Final = 5_000
"""Calls, findings or agents that one statement names."""

OF_AGENT_MAX: Final = 1_000
"""Findings of one agent that its risk is made of, the newest."""


@dataclass(frozen=True, slots=True)
class Word:
    """What tells whether a word on a finding is news."""

    version: int
    said: bytes
    """A hash of all that it says."""


def word_of(row: Mapping[str, Any]) -> Word:
    """The word that a row of a finding is."""
    said = (int(row["withdrawn"]), row["title"], row["terms"], row["evidence"], tuple(row["calls"]))
    return Word(int(row["version"]), hashlib.blake2b(repr(said).encode(), digest_size=16).digest())


class Past(Sink):
    """One connection, for one thread."""

    # -- what is written ---------------------------------------------------------------------------------------------

    def keep_traces(self, traces: pa.Table, edges: pa.Table) -> None:
        """Store what is known of traces, and which call caused which. Raises StoreAway, StoreRefuses, OperatorFault."""
        if edges.num_rows:  # first, so that a trace that is there has all of its edges
            self._append("edges_stored", edges.cast(EDGE_SCHEMA))
        if traces.num_rows:
            self._append("traces_stored", traces.cast(TRACE_SCHEMA))

    def keep_findings(self, findings: Sequence[Finding]) -> None:
        """Store words on findings. Raises StoreAway, StoreRefuses, OperatorFault."""
        rows = [finding_row(finding, self._slot) for finding in findings]
        self._append("findings_stored", pa.Table.from_pylist(rows, schema=FINDING_SCHEMA))

    # -- what is read ------------------------------------------------------------------------------------------------

    def frames(self, since_s: int) -> dict[Lane, Numbers]:
        """The frames of every lane that were ingested from `since_s` on."""
        with self._errors():
            found = self._connected().query(frames_stored_sql(self._database, since_s, WINDOW)).result_rows
        return {
            Lane(host=host, host_boot=int(boot), partition=int(partition)): Numbers([*map(int, numbers), int(top)])
            for host, boot, partition, top, numbers in found
        }

    def page(self, since_s: int, after: tuple[int, int, int], rows: int = PAGE_ROWS) -> pa.Table:
        """The next records of calls, in the order of (boot, call_seq, seq)."""
        return self._arrow(page_sql(self._database, since_s, after, rows))

    def recent(
        self, columns: Sequence[str], partitions: Sequence[int], since_s: int, most: int
    ) -> tuple[pa.Table, int]:
        """The newest records of partitions that were ingested from `since_s` on, `most` or fewer; and from when on they are."""
        with self._errors():
            seconds = self._connected().query(ingested_sql(self._database, partitions, since_s)).result_rows
        first_s, total = since_s, 0
        for at_s, count in seconds:
            total += int(count)
            if total > most:
                break
            first_s = int(at_s)
        return self._arrow(recent_sql(self._database, columns, partitions, first_s)), first_s

    def boots(self, since_s: int) -> list[int]:
        """The starts of doors that frames ingested from `since_s` on have records of."""
        with self._errors():
            return [int(boot) for (boot,) in self._connected().query(boots_sql(self._database, since_s)).result_rows]

    def traces(self, columns: Sequence[str], traces: Sequence[bytes], since_s: int) -> pa.Table:
        """The records of some traces that were ingested from `since_s` on."""
        parts = [self._arrow(traces_sql(self._database, columns, part, since_s)) for part in _parts(traces)]
        return pa.concat_tables(parts, promote_options="permissive")

    def open_calls(self, partitions: Sequence[int], since_s: int, before_s: int) -> pa.Table:
        """What was recorded from `since_s` on and before `before_s` of the calls of partitions that have not ended."""
        return self._arrow(open_sql(self._database, partitions, since_s, before_s, OPEN_CALLS_MAX))

    def earlier(self, calls: Sequence[tuple[int, int]]) -> pa.Table:
        """What is stored of some calls (boot, call_seq)."""
        parts = [self._arrow(earlier_sql(self._database, part)) for part in _parts(calls)]
        return pa.concat_tables(parts, promote_options="permissive")

    def known(self, ids: Sequence[str]) -> dict[str, Word]:
        """What was said of some findings."""
        found: dict[str, Word] = {}
        for part in _parts(ids):
            with self._errors():
                rows = self._connected().query(findings_known_sql(self._database, part)).named_results()
                found |= {str(row["id"]): word_of(row) for row in rows}
        return found

    def of_agents(self, agents: Sequence[str], first_us: int, last_us: int) -> list[Finding]:
        """What was said of some agents' calls between two times, but for what somebody has called false."""
        found: list[Finding] = []
        for part in _parts(agents):
            found += self._findings(findings_of_sql(self._database, part, first_us, last_us, OF_AGENT_MAX))
        return found

    def lately(self, since_s: int, most: int) -> list[Finding]:
        """The newest findings that were stored from `since_s` on."""
        return self._findings(findings_since_sql(self._database, since_s, most))

    def _findings(self, sql: str) -> list[Finding]:
        with self._errors():
            rows = self._connected().query(sql).result_rows
            return [parse_finding(dict(zip(FINDING_FIELDS, row, strict=True))) for row in rows]

    def _arrow(self, sql: str) -> pa.Table:
        with self._errors():
            return self._connected().query_arrow(sql, settings=PAGE_SETTINGS)


def _parts(named: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (named[start : start + NAMED_MAX] for start in range(0, len(named), NAMED_MAX))


assert set(LOOKED_AT) >= {"enforcer", "enforcer_boot", "partition", "frame_no"}
