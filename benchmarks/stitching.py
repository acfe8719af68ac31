"""Are the calls of an operation put together rightly? `python -m benchmarks stitching`.

    context kept     every call carries the traceparent that its cause was sent with
    10, 30, 100 %    of the calls below a first one lose it on their way, so that their door begins a trace; drawn with a seed

The calls are the TrainTicket spans of 2023-01-29 in the data set of Nezha: each request from one service to another, with the
times of its caller's span, which is what the door on the caller's side sees. They go through the worker's stitcher as records;
which of the calls without a parent belong where is then asked of `Habits`, that has learnt from the files of the other half.
Nothing is set by the data: margins and odds are those that are shipped.

    clocks       the same with all headers lost, where each caller's door has a clock of its own that is off by so much
    nearest      the same again by the open call to the caller that began last: what the references call nearest enclosing

    right        of the edges that were given, those to the call that was the cause
    abstained    edges that were not given
    principal    calls under another first call than their own: acts that would be laid to somebody else

First, what the stitcher costs: calls with their ends, of traces with one call and with four, and the memory of those that live.
"""

import csv
import io
import os
import random
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from pipeline.core.stitch.habits import Habits, Hop
from pipeline.core.stitch.stitcher import Stitcher
from schemas.frame import ARROW_SCHEMA
from schemas.records import Kind, make_boot
from schemas.store import zero_of
from tests.support.stitching import many

SHARES: Final = (0.0, 0.1, 0.3, 1.0)
SEEDS: Final = (1, 2, 3)
CLOCKS_MS: Final = (1, 5, 20)

KEPT_RIGHT_MIN: Final = 0.999
LOST_RIGHT_MIN: Final = 0.92
PRINCIPAL_MAX: Final = 0.001

PACE_CALLS: Final = 400_000
PACE_FRAME: Final = 2_000

ARCHIVE: Final = "trainticket-2023-01-29.tar.gz"
OUTSIDE: Final = "outside"


@dataclass(frozen=True, slots=True)
class Story:
    """The calls of one file in the order of their starts, and what is true of them."""

    name: str
    hops: Sequence[Hop]
    parent: Sequence[int]
    root: Sequence[int]


@dataclass(slots=True)
class Score:
    """What was said of calls, against what is true."""

    edges: int = 0
    right: int = 0
    abstained: int = 0
    calls: int = 0
    misled: int = 0
    unknown: int = 0

    def add(self, story: Story, found: Sequence[int | None]) -> None:
        """One file's."""
        for number, up in enumerate(found):
            true = story.parent[number]
            if true >= 0:
                self.edges += 1
                self.right += up == true
                self.abstained += up is None
            top: int | None = number
            while top is not None and (above := found[top]) != -1:
                top = above
            self.calls += 1
            self.unknown += top is None
            self.misled += top is not None and top != story.root[number]

    @property
    def share_right(self) -> float:
        """Of the edges that were given; 0 where none was."""
        given = self.edges - self.abstained
        return self.right / given if given else 0.0


def main(argv: list[str]) -> int:
    """Measure and print; returns 1 when a limit is missed."""
    for each in (1, 4):
        pace(each)
    folder = data_folder()
    if folder is None:
        print("skipped: the shared data folder is not here")
        return 0
    stories = list(load(folder / "nezha" / ARCHIVE))
    edges = sum(up >= 0 for story in stories for up in story.parent)
    print(f"{len(stories)} files, {sum(len(story.hops) for story in stories):,} calls, {edges:,} edges, each half of the files "
          "judged by what the other half taught")  # fmt: skip
    halves = [Habits(), Habits()]
    for number, story in enumerate(stories):
        halves[number % 2].learn(story.hops, story.parent)
    missed = []
    for share in SHARES:
        score, begun = Score(), time.perf_counter()
        for seed in SEEDS if 0 < share < 1 else SEEDS[:1]:
            for number, story in enumerate(stories):
                draw = random.Random(f"{seed} {story.name}")
                lost = [up >= 0 and draw.random() < share for up in story.parent]
                known = stitched(story, lost)
                score.add(story, halves[1 - number % 2].guess(story.hops, known))
        took = time.perf_counter() - begun
        _print(f"{share:.0%} lost", score, took)
        low = LOST_RIGHT_MIN if share == 1 else KEPT_RIGHT_MIN if share == 0 else LOST_RIGHT_MIN
        if score.share_right < low:
            missed.append(f"{share:.0%}: {score.share_right:.2%} of the edges given are right, limit is {low:.1%}")
        if score.misled > PRINCIPAL_MAX * score.calls:
            missed.append(f"{share:.0%}: {score.misled / score.calls:.3%} wrong principals, limit is {PRINCIPAL_MAX:.1%}")
    for off_ms in CLOCKS_MS:
        score, begun = Score(), time.perf_counter()
        for number, story in enumerate(stories):
            other = skewed(story, off_ms)
            score.add(other, halves[1 - number % 2].guess(other.hops, [-1 if up < 0 else None for up in other.parent]))
        _print(f"clocks {off_ms} ms", score, time.perf_counter() - begun)
    score, begun = Score(), time.perf_counter()
    for story in stories:
        score.add(story, nearest(story))
    _print("nearest", score, time.perf_counter() - begun)
    for what in missed:
        print(f"MISSED: {what}")
    return 1 if missed else 0


def _print(name: str, score: Score, took: float) -> None:
    given = score.edges - score.abstained
    print(
        f"{name:<12}  {score.right / score.edges:>8.2%} of all edges right  {score.share_right:>8.2%} of the "
        f"{given:,} given  {score.abstained:>5,} abstained ({score.abstained / score.edges:.2%})  "
        f"{score.misled:>4,} wrong principals ({score.misled / score.calls:.3%})  "
        f"{score.unknown:>5,} unknown ({score.unknown / score.calls:.2%})  {took:5.1f} s", flush=True,
    )  # fmt: skip


def pace(each: int) -> None:
    """What a call costs, and what a thousand traces do."""
    before = _own_bytes()
    stitcher = Stitcher()
    spent = 0.0
    for first in range(0, PACE_CALLS, PACE_FRAME):
        batch = many(first, PACE_FRAME, each=each)
        begun = time.process_time()
        stitcher.take(batch, "enforce-1", first)
        spent += time.process_time() - begun
    grown = (_own_bytes() - before) / (stitcher.traces / 1000)
    cost = spent / PACE_CALLS * 1e6
    print(f"traces of {each}     {cost:6.2f} us of CPU a call  {grown / 1024:8.0f} KiB for 1,000 live traces", flush=True)


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def data_folder() -> Path | None:
    """WARDLINE_DATA, or `shared/data` beside the repository."""
    named = os.environ.get("WARDLINE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


# -- the spans -------------------------------------------------------------------------------------------------------


def load(archive: Path) -> Iterator[Story]:
    """The files of the archive by name."""
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda one: one.name):
            data = files.extractfile(member) if member.name.endswith("_trace.csv") else None
            if data is not None:
                yield story_of(member.name, list(csv.DictReader(io.TextIOWrapper(data, "utf-8"))))


def story_of(name: str, rows: Sequence[dict[str, str]]) -> Story:
    """The calls between services: a span whose parent is another service's, with that parent's times; a first span its own."""
    spans = {row["SpanID"]: row for row in rows}
    made: dict[str, Hop] = {}
    for row in rows:
        parent = spans.get(row["ParentID"])
        if parent is None:
            made[row["SpanID"]] = _hop(OUTSIDE, row, row)
        elif _service(parent) != _service(row):
            made[row["SpanID"]] = _hop(_service(parent), row, parent)
    order = sorted(made, key=lambda span: (made[span].start_us, span))
    place = {span: number for number, span in enumerate(order)}
    up: list[int] = []
    for span in order:
        above = spans[span]["ParentID"]
        while above in spans and above not in place:
            above = spans[above]["ParentID"]
        up.append(place.get(above, -1))
    root: list[int] = []
    for number in range(len(order)):
        top = number
        while up[top] >= 0:
            top = up[top]
        root.append(top)
    return Story(name, [made[span] for span in order], up, root)


def _hop(caller: str, called: dict[str, str], timed: dict[str, str]) -> Hop:
    start, end = (int(timed[name]) // 1000 for name in ("StartTimeUnixNano", "EndTimeUnixNano"))
    return Hop(caller, _service(called), timed["OperationName"], start, end)


def _service(row: dict[str, str]) -> str:
    return row["PodName"].rsplit("-", 2)[0]


def skewed(story: Story, off_ms: int) -> Story:
    """The same where the clocks of the callers' doors are wrong, each by up to `off_ms` either way."""
    draw = random.Random(f"{off_ms} {story.name}")
    off = {name: round(draw.uniform(-off_ms, off_ms) * 1000) for name in sorted({hop.caller for hop in story.hops})}
    moved = [hop._replace(start_us=hop.start_us + off[hop.caller], end_us=hop.end_us + off[hop.caller]) for hop in story.hops]
    order = sorted(range(len(moved)), key=lambda number: (moved[number].start_us, number))
    place = {number: at for at, number in enumerate(order)} | {-1: -1}
    return Story(story.name, [moved[one] for one in order], [place[story.parent[one]] for one in order],
                 [place[story.root[one]] for one in order])  # fmt: skip


def nearest(story: Story) -> list[int | None]:
    """The baseline: of the calls to a call's caller that were open around all of it, the one that began last."""
    found: list[int | None] = []
    for number, hop in enumerate(story.hops):
        around = [at for at, one in enumerate(story.hops[:number])
                  if one.destination == hop.caller and one.start_us <= hop.start_us and one.end_us >= hop.end_us]  # fmt: skip
        found.append(-1 if story.parent[number] < 0 else around[-1] if around else None)
    return found


# -- through the stitcher --------------------------------------------------------------------------------------------


def stitched(story: Story, lost: Sequence[bool]) -> list[int | None]:
    """What the stitcher says of each call: what caused it, -1 for a first one, None where it came without a parent."""
    doors = {name: make_boot(1_600_000_000, number + 1) for number, name in enumerate(sorted({h.caller for h in story.hops}))}
    calls = [(doors[hop.caller], number + 1) for number, hop in enumerate(story.hops)]
    place = {call: number for number, call in enumerate(calls)}
    traces: list[bytes] = []
    rows = []
    for number, (hop, (boot, seq)) in enumerate(zip(story.hops, calls, strict=True)):
        up = story.parent[number]
        alone = up < 0 or lost[number]
        traces.append((number + 1).to_bytes(16, "big") if alone else traces[up])
        parent = bytes(8) if alone else _span(*calls[up])
        agent = f'Agent::"{hop.caller}"'
        said = {"trace_id": traces[number], "parent_span": parent, "chain": agent, "root": agent, "agent": hop.caller,
                "tenant": "default", "boot": boot, "call_seq": seq}  # fmt: skip
        rows.append(_row(Kind.DECISION, hop.start_us, said | {"verdict": 1}))
        rows.append(_row(Kind.EFFECT, hop.end_us, said | {"verdict": 255}))
    random.Random(len(rows)).shuffle(rows)
    found: list[int | None] = [-1 if up < 0 else None for up in story.parent]
    told = Stitcher().take(_batch(rows), "enforce-1", 0)
    for row in told.edges.select(["boot", "seq", "parent_boot", "parent_seq"]).to_pylist():
        if row["parent_seq"]:
            found[place[row["boot"], row["seq"]]] = place[row["parent_boot"], row["parent_seq"]]
    return found


def _span(boot: int, seq: int) -> bytes:
    return (boot & 0xFFFF_FFFF).to_bytes(4, "big") + (seq & 0xFFFF_FFFF).to_bytes(4, "big")


_ZEROS: Final = {field.name: zero_of(field.type) for field in ARROW_SCHEMA}


def _row(kind: Kind, time_us: int, fields: dict[str, object]) -> dict[str, object]:
    return _ZEROS | {"kind": int(kind), "time": time_us, "recorded": time_us} | fields


def _batch(rows: Sequence[dict[str, object]]) -> pa.RecordBatch:
    return pa.Table.from_pylist(list(rows), schema=ARROW_SCHEMA).combine_chunks().to_batches()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
