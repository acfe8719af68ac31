"""Frames of plain records through the real aggregator and into detectors, as a worker does it."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.core.detect.aggregate import Aggregates, Aggregator
from pipeline.core.detect.interface import Detector
from schemas.findings import Finding
from schemas.frame import Lane
from tests.support.frames import Record, batch_of

DAY_US = 86_400_000_000
START_US = 1_700_006_400_000_000
"""00:00 UTC of some day."""

LANE = Lane(host="enforce-1", host_boot=7, partition=0)


def rows_of(
    records: Sequence[Record], frame_no: int = 1, lane: Lane = LANE, aggregator: Aggregator | None = None
) -> Aggregates:  # fmt: skip
    """What one frame of these records says."""
    return (aggregator or Aggregator()).take(batch_of(records), lane, frame_no)


def taken(detector: Detector, frames: Iterable[Sequence[Record]], lane: Lane = LANE) -> list[Finding]:
    """Everything that a detector says of these frames, in turn."""
    aggregator = Aggregator()
    found: list[Finding] = []
    for number, records in enumerate(frames, 1):
        found += detector.take(rows_of(records, number, lane, aggregator).of(detector.subject))
    return found


def last_words(findings: Iterable[Finding]) -> dict[str, Finding]:
    """The highest version of each finding, of those that hold."""
    last: dict[str, Finding] = {}
    for one in findings:
        assert one.id not in last or one.version >= last[one.id].version, f"{one.detector}: versions only grow"
        last[one.id] = one
    return {name: one for name, one in last.items() if not one.withdrawn}


def content(findings: Iterable[Finding]) -> dict[str, Any]:
    """What is said in the end, without how many calls were known by then."""
    return {
        name: (one.subject, one.window_us, one.started_us, one.ended_us, one.time_us, one.terms, one.evidence, one.calls)
        for name, one in last_words(findings).items()
    }


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with times as numbers."""
    columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in table.columns]
    found: list[dict[str, Any]] = pa.Table.from_arrays(columns, names=table.column_names).to_pylist()
    return found
