"""Does an hour or a day far above an agent's past stand out? `python -m benchmarks.detect_volume`, on NAB's `realKnownCause`.

There is no public record of what agents send with exports marked in it. NAB's seven series are real ones with marked failures:
each is taken for an agent that sends so many bytes at each of its times, in a unit in which its median hour is 2 MB (or else
the floor of 1 MB would decide). It is a check of the statistics, not of exports: what the detector looks for, an hour far above
the past, is what few of these failures look like.

The second table is synthetic and says so: one hour of each day outside the marked windows gets an export on top, of so many
times the median hour; each is judged by itself.
"""

import csv
import io
import json
import pickle
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.detectdata import data
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect.volume import Volumes
from schemas.egress import AGENT_ROWS

ARCHIVE: Final = "nab/realKnownCause.tar.gz"
MEDIAN_HOUR_BYTES: Final = 2_000_000
EXPORTS: Final = (1, 3, 10, 30)
"""Sizes of an export, in median hours."""

DAY_S: Final = 86_400
HOUR_S: Final = 3600
Point = tuple[int, int]
"""Second since 1970, bytes."""

LIMITS: Final[dict[str, float]] = {}


def main(argv: list[str]) -> int:
    """Print the table; returns 2 without data."""
    if data() is None:
        print("detect_volume: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of all series. There are no options."""
    source = data()
    if source is None:
        return []
    hits: dict[str, Counts] = {}
    false: dict[str, Counts] = {}
    exports: dict[int, dict[str, Counts]] = defaultdict(dict)
    for name, points, windows in series(source):
        found = run(name, points)
        hits[name] = float(sum(any(_meet(f, w) for f in found) for w in windows)), float(len(windows))
        days = len({second // DAY_S for second, _ in points})
        false[name] = float(sum(not any(_meet(f, w) for w in windows) for f in found)), float(days)
        for size, counts in injected(name, points, windows).items():
            exports[size][name] = counts
    total = f"{sum(of for _, of in false.values()):.0f} series-days"
    figures = [
        share("volume", "nab realKnownCause", "marked windows with a finding", hits, note="19 windows of 7 series"),
        share("volume", "nab realKnownCause", "findings outside, in 1,000 agent-days", false, times=1000.0, note=total),
    ]
    figures += [
        share("volume", "nab, synthetic exports", f"exports found, {size} x the median hour", exports[size])
        for size in EXPORTS
    ]  # fmt: skip
    return figures


def series(source: Path) -> Iterator[tuple[str, list[Point], list[Point]]]:
    """(name, bytes of each time, marked windows as first and last second) of each series."""
    with tarfile.open(source / ARCHIVE) as tar:
        files = {member.name: member for member in tar.getmembers() if member.isfile()}

        def text(name: str) -> str:
            file = tar.extractfile(files[name])
            assert file is not None
            return file.read().decode()

        marked = json.loads(text("labels/combined_windows.json"))
        for name in sorted(one for one in files if one.endswith(".csv")):
            lines = list(csv.DictReader(io.StringIO(text(name))))
            values = [(_second(line["timestamp"]), max(0.0, float(line["value"]))) for line in lines]
            hours: dict[int, float] = defaultdict(float)
            for second, value in values:
                hours[second // HOUR_S] += value
            unit = MEDIAN_HOUR_BYTES / float(np.median([value for value in hours.values() if value]))
            windows = [(_second(first), _second(last)) for first, last in marked[name.removeprefix("data/")]]
            yield Path(name).stem, [(second, round(value * unit)) for second, value in values], windows


def _second(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def run(name: str, points: list[Point]) -> list[Point]:
    """First and last second of each finding that stands at the end; a day's points come together."""
    detector = Volumes()
    standing = {}
    for day in sorted({second // DAY_S for second, _ in points}):
        for finding in detector.take(table(name, [p for p in points if p[0] // DAY_S == day])):
            standing[finding.id] = finding
    return [(f.started_us // 1_000_000, f.ended_us // 1_000_000) for f in standing.values() if not f.withdrawn]


def _meet(one: Point, other: Point) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def injected(name: str, points: list[Point], windows: list[Point]) -> dict[int, Counts]:
    """Of one export a day at noon (UTC), how many make their hour a finding, where that hour is none without it."""
    detector = Volumes()
    found: dict[int, list[bool]] = {size: [] for size in EXPORTS}
    days = sorted({second // DAY_S for second, _ in points})
    for day in days:
        noon = day * DAY_S + 12 * HOUR_S
        before = [p for p in points if day * DAY_S <= p[0] < noon + HOUR_S]
        detector.take(table(name, before))
        known = pickle.dumps(detector)
        hour_us = noon * 1_000_000
        quiet = not any(_meet((noon, noon + HOUR_S), window) for window in windows)
        if quiet and day > days[1] and not _says(known, table(name, [(noon, 0)]), hour_us):
            for size in EXPORTS:
                found[size].append(_says(known, table(name, [(noon, size * MEDIAN_HOUR_BYTES)]), hour_us))
        detector.take(table(name, [p for p in points if noon + HOUR_S <= p[0] < (day + 1) * DAY_S]))
    return {size: (float(sum(one)), float(len(one))) for size, one in found.items()}


def _says(known: bytes, rows: pa.Table, hour_us: int) -> bool:
    detector: Volumes = pickle.loads(known)
    detector.take(rows)
    return any(hour_us // 3_600_000_000 in state.said["hour"] for state in detector._agents.values())


def table(name: str, points: list[Point]) -> pa.Table:
    """Points as rows of aggregates."""
    rows: list[dict[str, Any]] = [
        {
            "lane_host": "benchmark", "lane_boot": 1, "lane_partition": 0, "frame_no": 1, "agent": name, "host": "nab.example",
            "domain": "nab.example", "action": 'Action::"http:POST"', "resource": 'Host::"nab.example:443"', "task": "",
            "second": second, "query_hash": 0, "query_bits": 0, "calls": 1, "denied": 0, "bytes_out": sent, "bytes_in": 0,
            "time": second * 1_000_000, "call_boot": 1, "call_seq": second,
        }
        for second, sent in points
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=AGENT_ROWS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
