"""What does a record cost before a call may go out? One append at a time, as a door does it, beside `os.write`.

`os.write` writes the same bytes to an open file: the least that a record in a file costs without a spool. Each call is timed
on its own; the clock's own cost is taken off and shown. The limits are those of the promise to doors; a median over repeats is
compared, so that one burst of a neighbour does not decide.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ext.spool import SpoolReader, SpoolWriter
from schemas.layout import VERDICT_UNSAID
from schemas.limits import SEGMENT_BYTES, SPOOL_BYTES_MAX, SPOOL_RESERVED_BYTES
from schemas.records import SEPARATOR, STRING_FIELDS, Kind, Outcome, Verdict

P50_NS_MAX: Final = 1_000
P99_NS_MAX: Final = 5_000
BLOCKS_MAX: Final = 4
"""Memory blocks that may be left over after ALLOCATION_CALLS appends: what the measurement itself keeps."""

PEAK_BYTES_MAX: Final = 0
"""Traced bytes that an append uses at once beyond those of a function that only returns a number."""

REPEATS: Final = 9
CALLS: Final = 20_000
PREPARE_CALLS: Final = 1_000
"""A door's thread makes the next segment ready; here that is done off the clock, once in so many calls."""

ALLOCATION_CALLS: Final = 10_000

TEXTS: Final = {
    "tenant": "default", "door": "replay", "session": "workspace/user_task_11/injection_task_3", "agent": "researcher",
    "root": 'User::"emma.johnson@bluesparrowtech.com"', "assurance": "observed",
    "chain": SEPARATOR.join(('User::"emma.johnson@bluesparrowtech.com"', 'Agent::"planner"', 'Agent::"researcher"')),
    "action": "mcp:tools/call", "resource": 'Tool::"workspace/search_calendar_events"', "scheme": "mcp", "host": "workspace",
    "policies": "workspace-read", "reason": "permit", "policy_digest": "5e" * 32,
}  # fmt: skip
"""The texts of a decision about a recorded tool call of a chain of three."""


def record(kind: Kind) -> tuple[Any, ...]:
    """The arguments of one append: a decision of a replayed call, or its effect."""
    decides = kind is Kind.DECISION
    texts = tuple(TEXTS.get(name, "") if decides or name in ("tenant", "door") else "" for name in STRING_FIELDS)
    verdict, outcome = (Verdict.ALLOW, Outcome.OPEN) if decides else (VERDICT_UNSAID, Outcome.OK)
    now = time.time_ns()
    return (
        int(kind), 0 if decides else 1, now, now, int(verdict), int(outcome), 0, 3, 200, 0, 512, 4_096, 1_500_000, 7, 4_711,
        0, 0, 0, os.urandom(16), os.urandom(8), texts, False,
    )  # fmt: skip


def timed(function: Callable[..., object], arguments: list[tuple[Any, ...]], took: "array[int]", start: int, stop: int) -> None:
    """Call `function` with each of the arguments in turn, and note how long each call took in nanoseconds."""
    clock, many = time.perf_counter_ns, len(arguments)
    for at in range(start, stop):
        now = arguments[at % many]
        begun = clock()
        function(*now)
        ended = clock()
        took[at] = ended - begun


def clock_ns() -> int:
    """What two looks at the clock cost when nothing lies between."""
    clock = time.perf_counter_ns
    took = array("q", bytes(8 * CALLS))
    for at in range(CALLS):
        begun = clock()
        ended = clock()
        took[at] = ended - begun
    return int(statistics.median(took))


def percentiles(took: "array[int]", clock: int) -> tuple[int, int]:
    """p50 and p99 without the clock's share."""
    ordered = sorted(took)
    return ordered[len(ordered) // 2] - clock, ordered[len(ordered) * 99 // 100] - clock


def measure(folder: Path) -> dict[str, list[int]]:
    """Append and write in turns, so that both meet the same neighbours; nanoseconds, one entry for each repeat."""
    spool_folder = folder / "spool"
    spool_folder.mkdir()
    spool = SpoolWriter(str(spool_folder), 1, SEGMENT_BYTES, SPOOL_BYTES_MAX, SPOOL_RESERVED_BYTES)
    records = [record(Kind.DECISION), record(Kind.EFFECT)]
    for one in records:
        spool.append(*one)
    reader = SpoolReader(str(spool_folder), 1)
    alike = [(data,) for _ in records for data in (bytes(reader.read(1, 1)[0].view),)]
    found: dict[str, list[int]] = {"clock": [], "append p50": [], "append p99": [], "write p50": [], "write p99": []}
    found["record bytes"] = [len(data) for (data,) in alike]
    took = array("q", bytes(8 * CALLS))
    for _ in range(REPEATS):
        clock = clock_ns()
        found["clock"].append(clock)
        for start in range(0, CALLS, PREPARE_CALLS):
            spool.prepare()
            timed(spool.append, records, took, start, start + PREPARE_CALLS)
        _note(found, "append", percentiles(took, clock))
        handle = os.open(folder / "written", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            timed(lambda data, handle=handle: os.write(handle, data), alike, took, 0, CALLS)
        finally:
            os.close(handle)
        _note(found, "write", percentiles(took, clock))
        for path in sorted(path for path in spool_folder.glob("*.seg") if path.stem.isdigit())[:-1]:
            path.unlink()  # as a host does when it has sealed them
    found["allocated"] = list(allocations(spool, records))
    spool.close()
    return found


def _note(found: dict[str, list[int]], what: str, both: tuple[int, int]) -> None:
    for name, value in zip(("p50", "p99"), both, strict=True):
        found[f"{what} {name}"].append(value)


def allocations(spool: SpoolWriter, records: list[tuple[Any, ...]]) -> tuple[int, int]:
    """Blocks left over after many appends, and traced bytes in use at once beyond those of a function that returns a number."""
    append, one = spool.append, records[0]
    spool.prepare()
    for _ in range(100):
        append(*one)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for _ in range(ALLOCATION_CALLS):
            append(*one)
        blocks = sys.getallocatedblocks() - before
        # the least of some: what the interpreter has in its own stores is not taken anew, and not seen
        bare = min([peak_bytes(time.perf_counter_ns, ()) for _ in range(5)])
        peak = min([peak_bytes(append, one) for _ in range(5)]) - bare
    finally:
        gc.enable()
    return blocks, peak


def peak_bytes(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    """The most traced bytes in use at once in a thousand calls, the loop's own included."""
    tracemalloc.start()
    try:
        for _ in range(100):
            function(*arguments)
        tracemalloc.reset_peak()
        in_use = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            function(*arguments)
        return tracemalloc.get_traced_memory()[1] - in_use
    finally:
        tracemalloc.stop()


def main(argv: list[str]) -> int:
    """Measure, print, and compare with the limits; returns 1 when one is missed."""
    del argv  # nothing here can be chosen
    with tempfile.TemporaryDirectory(prefix="wardline-spool-") as folder:
        found = measure(Path(folder))
    sizes = " and ".join(map(str, found["record bytes"]))
    print(f"records of {sizes} bytes, {CALLS} calls, {REPEATS} repeats: median (spread)")
    print(f"clock, taken off    {_line(found['clock'])}")
    for what in ("append", "write"):
        for name in ("p50", "p99"):
            title = f"{'os.write' if what == 'write' else what} {name}"
            print(f"{title:<19} {_line(found[f'{what} {name}'])}")
    ratios = [write / append for write, append in zip(found["write p50"], found["append p50"], strict=True)]
    print(f"os.write / append   {statistics.median(ratios):8.1f} x  ({min(ratios):.1f} .. {max(ratios):.1f}), p50")
    blocks, peak = found["allocated"]
    print(f"allocated           {blocks:8d} blocks left of {ALLOCATION_CALLS} appends, {peak} bytes at once beside the number")
    checks = {
        f"append p50 is {statistics.median(found['append p50']):.0f} ns, limit is {P50_NS_MAX}":
            statistics.median(found["append p50"]) < P50_NS_MAX,
        f"append p99 is {statistics.median(found['append p99']):.0f} ns, limit is {P99_NS_MAX}":
            statistics.median(found["append p99"]) < P99_NS_MAX,
        f"append leaves {blocks} blocks, limit is {BLOCKS_MAX}": blocks <= BLOCKS_MAX,
        f"append uses {peak} bytes at once, limit is {PEAK_BYTES_MAX}": peak <= PEAK_BYTES_MAX,
    }  # fmt: skip
    for said, holds in checks.items():
        if not holds:
            print(f"MISSED: {said}")
    return 0 if all(checks.values()) else 1


def _line(values: list[int]) -> str:
    return f"{statistics.median(values):8.0f} ns  ({min(values)} .. {max(values)})"
