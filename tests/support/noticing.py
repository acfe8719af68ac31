"""Rows of aggregates by agent for tests of detectors, in any order and any cut."""

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.core.detect.interface import Detector
from schemas.egress import AGENT_ROWS
from schemas.findings import Finding, finding_row, parse_finding

DAY_S = 86_400
T0 = 1_764_547_200
"""2025-12-01, a Monday."""

Row = dict[str, Any]


def row(second: float, agent: str = "a", **more: Any) -> Row:
    """One call of an agent, `second` seconds after T0; columns that matter come as keywords."""
    us = round((T0 + second) * 1e6)
    return {
        "lane_host": "h", "lane_boot": 1, "lane_partition": 0, "frame_no": 1, "agent": agent, "host": "", "domain": "",
        "action": 'Action::"http:GET"', "resource": 'Host::"x.example:443"', "task": "", "second": us // 1_000_000,
        "query_hash": 0, "query_bits": 0, "calls": 1, "denied": 0, "bytes_out": 0, "bytes_in": 0, "time": us,
        "call_boot": 1, "call_seq": us & 0xFFFFFFFF,
    } | more  # fmt: skip


def table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=AGENT_ROWS)


def words(detector: Detector, *takes: Iterable[Row]) -> list[Finding]:
    """Everything that a detector says of these rows, one table after another."""
    return [finding for rows in takes for finding in detector.take(table(rows))]


def standing(said: Iterable[Finding]) -> dict[str, Finding]:
    """What stands at the end, as the store sees it: of each finding the highest version, and what is withdrawn is gone.

    Asserts that no two words on one finding have one version, but for the same words: which one stood would depend on order.
    """
    last: dict[str, Finding] = {}
    for finding in said:
        before = last.get(finding.id)
        assert before is None or before.version < finding.version, "a later word has a higher version"
        last[finding.id] = finding
    return {name: finding for name, finding in last.items() if not finding.withdrawn}


def orders(rows: list[Row], seeds: Iterable[int]) -> Iterator[list[list[Row]]]:
    """The same rows shuffled, and cut into takes of any size."""
    for seed in seeds:
        dice = random.Random(seed)
        shuffled = dice.sample(rows, len(rows))
        takes = []
        while shuffled:
            size = dice.randint(1, max(1, len(rows) // 3))
            takes.append(shuffled[:size])
            shuffled = shuffled[size:]
        yield takes


def stored(finding: Finding) -> Finding:
    """A finding as it comes back from the store."""
    return parse_finding(json.loads(json.dumps(finding_row(finding, "w"))))
