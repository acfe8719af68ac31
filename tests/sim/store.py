"""Stands in for ClickHouse: one table without any deduplication of its own, a fence, dead letters, and inserts that lie.

A request is on its way (`Request`) until `execute`: its sender may be dead by then, or another worker may own the partition,
which is what the fence is for. Atomic as one part is: all rows or none. The same token twice inserts once.
"""

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa

from schemas.frame import Lane
from tests.sim.rules import Truth
from tests.sim.story import Story

COLUMNS = ["kind", "boot", "seq", "call_seq", "outcome", "trace_id", "enforcer", "partition", "frame_digest", "frame_previous",
           "frame_flag"]  # fmt: skip
PAST_TOKENS = 1_000
"""`non_replicated_deduplication_window` of the table."""


class Fenced(Exception):
    """Another worker has taken a partition of this insert: nothing was stored."""


class Ambiguous(Exception):
    """No answer: stored or not, nobody knows."""


@dataclass(slots=True, eq=False)
class Request:
    """One insert on its way."""

    owner: str
    token: str
    rows: pa.Table
    fence: dict[int, int]
    answer: str = ""
    """`kept`, `fenced` or `failed`, once there is one."""


class Store:
    """The table `records`, and what is asked of it."""

    def __init__(self, story: Story, truth: Truth) -> None:
        self.up = True
        self.ails = False
        self.inbox: list[Request] = []
        self.frames: dict[Lane, dict[int, tuple[bytes, bytes]]] = defaultdict(dict)
        """frame_no -> (digest, previous)"""
        self.checks_fence = True
        self._epochs: dict[int, int] = defaultdict(int)
        self._tokens: dict[str, None] = {}
        self._story = story
        self._truth = truth

    def take_over(self, partition: int) -> int:
        """A worker takes a partition: from now on every insert with an older epoch is refused. Raises Ambiguous when down."""
        self._ask()
        self._epochs[partition] += 1
        return self._epochs[partition]

    def _ask(self) -> None:
        if not self.up:
            raise Ambiguous("the store is down")

    def lane_state(self, partition: int) -> dict[Lane, tuple[int, list[int]]]:
        """For each lane of a partition: its frontier, and the frame numbers beyond it. Raises Ambiguous when down."""
        self._ask()
        found = {}
        for lane, frames in self.frames.items():
            if lane.partition == partition:
                frontier = self.frontier(lane)
                found[lane] = (frontier, sorted(n for n in frames if n > frontier))
        return found

    def frontier(self, lane: Lane) -> int:
        """The highest n with 1..n all in the table."""
        frames = self.frames.get(lane, {})
        n = self._truth.frontier.get(lane, 0)
        while n + 1 in frames:
            n += 1
        self._truth.frontier[lane] = n
        return n

    def execute(self, request: Request) -> None:
        """The request reaches the store. Its answer may lie about what happened (`kept but failed`), never about a fence."""
        self.inbox.remove(request)
        if not self.up:
            request.answer = "failed"
            return
        fate = self._story.pick(("kept", "kept", "lost", "kept but failed")) if self.ails else "kept"
        if fate != "kept":
            self._story.fault(f"insert: {fate}")
        if fate == "lost":
            request.answer = "failed"
            return
        if self.checks_fence and any(self._epochs[partition] != epoch for partition, epoch in request.fence.items()):
            request.answer = "fenced"
            self._story.fault("fenced", request.owner)
            return
        if request.token in self._tokens:
            self._story.fault("token known")
        else:
            self._insert(request.rows)
            self._tokens[request.token] = None
            if len(self._tokens) > PAST_TOKENS:
                del self._tokens[next(iter(self._tokens))]
        request.answer = "kept" if fate == "kept" else "failed"

    def _insert(self, rows: pa.Table) -> None:
        for row in rows.select(COLUMNS).to_pylist():
            if row["kind"] == 0:
                lane = Lane(host=row["enforcer"], host_boot=row["call_seq"], partition=row["partition"])
                self._truth.frame_stored(lane, row["seq"], row["frame_digest"], row["frame_flag"])
                self.frames[lane][row["seq"]] = (row["frame_digest"], row["frame_previous"])
            else:
                self._truth.record_stored(row)
