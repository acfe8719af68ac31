"""What a detector is. It is pure: aggregates in, findings out; no clock, the calls' own times are all it knows.

What it says is a function of the set of rows that it has taken, not of their order: its state is made of sums, minima, maxima
and sets, by subject and window. After each take it judges again what the rows have touched. What holds is a finding, said
again when it has changed; what held and does not hold any more, since an older call came late, is the same finding, withdrawn.
"""

from typing import Protocol

import pyarrow as pa

from schemas.findings import Finding


class Detector(Protocol):
    """One way to notice something. Memory is bounded: what was not used for longest makes room, and is counted."""

    @property
    def name(self) -> str:
        """As in `schemas.findings.DETECTORS`."""

    @property
    def subject(self) -> str:
        """Whose rows it takes: `agent`, `credential` or `domain`, as in `schemas.egress.SUBJECTS`."""

    def take(self, rows: pa.Table) -> list[Finding]:
        """Take rows of its subject's schema, each once (`dedupe`), and say what is to be said now."""

    @property
    def entries(self) -> int:
        """What it keeps, in units of its limit."""

    @property
    def evicted(self) -> int:
        """What had to make room so far."""

    def clear(self) -> None:
        """Forget everything but the count of evictions: the partition is another's now."""
