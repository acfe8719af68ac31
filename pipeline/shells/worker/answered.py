"""What the store knows of findings and of what rules did about them: all that the responder remembers is asked for here."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline.core.respond import LIMITED, REVOKED, Response
from pipeline.shells.worker.sink import Sink
from schemas.findings import FINDING_SCHEMA, Finding, finding_row, parse_finding
from schemas.records import Kind
from schemas.store import RESPONSE_SCHEMA, quote_name, quote_text

_TIMES: Final = ("window", "started", "ended", "time")
_COLUMNS: Final = ", ".join(
    f"toUnixTimestamp64Micro({field.name})" if field.name in _TIMES else field.name for field in FINDING_SCHEMA
)
_NAMES: Final = [field.name for field in FINDING_SCHEMA]


class Answered(Sink):
    """A connection of the responder's own. Every method blocks, and raises StoreAway, StoreRefuses, OperatorFault."""

    def keep_responses(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store what rules did; the same again replaces its row."""
        self._append("responses_stored", pa.Table.from_pylist([dict(one) for one in rows], schema=RESPONSE_SCHEMA))

    def keep_notice(self, finding: Finding, worker: str) -> None:
        """Store a finding of the responder's own; the same again replaces its row."""
        self._append("findings_stored", pa.Table.from_pylist([finding_row(finding, worker)], schema=FINDING_SCHEMA))

    def responses(self, since_us: int, findings: Sequence[str]) -> list[Response]:
        """What rules did since then that counts for their limits, and all that they did about some findings.

        Rows that were replaced may be among them: a book does not mind.
        """
        named = ", ".join(quote_text(one) for one in findings)
        with self._errors():
            rows = self._connected().query(
                "SELECT finding, rule, selector, state, epoch, for_s, toUnixTimestamp64Micro(time), why"
                f" FROM {quote_name(self._database)}.responses_stored WHERE finding IN ({named})"
                f" OR (state IN ('{REVOKED}', '{LIMITED}') AND time > fromUnixTimestamp64Micro({since_us}))"
            ).result_rows
        return [
            Response(finding=finding, rule=rule, selector=selector, state=state, epoch=int(epoch), for_s=int(for_s),
                     time_us=int(time_us), why=why)
            for finding, rule, selector, state, epoch, for_s, time_us, why in rows
        ]  # fmt: skip

    def roots(self, calls: Sequence[str]) -> list[str]:
        """The roots of calls, each once."""
        keys = [(int(one[:16], 16), int(one[16:], 16)) for one in calls]
        boots, seqs = (", ".join(map(str, sorted({key[part] for key in keys}))) for part in (0, 1))
        pairs = ", ".join(map(str, keys))
        if not keys:
            return []
        with self._errors():
            # the first two conditions are for the table's key
            rows = self._connected().query(
                f"SELECT DISTINCT toString(root) FROM {quote_name(self._database)}.records WHERE kind = {Kind.DECISION:d}"
                f" AND boot IN ({boots}) AND seq IN ({seqs}) AND (boot, seq) IN ({pairs}) AND root != ''"
            ).result_rows
        return sorted(str(root) for (root,) in rows)

    def lately(self, since_us: int, score: float, limit: int) -> list[Finding]:
        """Findings whose last call is younger than that, and that have this score at least; the worst where there are more."""
        with self._errors():
            rows = self._connected().query(
                f"SELECT {_COLUMNS} FROM {quote_name(self._database)}.findings_stored FINAL WHERE withdrawn = 0"
                f" AND ended > fromUnixTimestamp64Micro({since_us}) AND score >= {score} ORDER BY score DESC, id LIMIT {limit}"
            ).result_rows
        return [parse_finding(dict(zip(_NAMES, row, strict=True))) for row in rows]
