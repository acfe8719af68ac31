"""Stands in for ClickHouse: one table without any deduplication of its own but the token's, a fence, and answers that lie.

What a worker asks is on its way (`Request`) until `execute`: its sender may be dead by then, or another worker may own the
partition, which is what the fence is for. An insert is one part: all rows or none.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.shells.worker.sink import Fenced, StoreAway, StoreRefuses, Taken
from schemas.frame import Lane
from schemas.store import FLAG_DEAD, FRAME_KIND
from tests.sim.rules import Truth
from tests.sim.story import Story

COLUMNS = ["kind", "boot", "seq", "call_seq", "outcome", "trace_id", "enforcer", "partition", "frame_digest", "frame_previous",
           "frame_flag"]  # fmt: skip
TOKENS_MAX = 1_000
"""`non_replicated_deduplication_window` of the table."""


@dataclass(slots=True, eq=False)
class Request:
    """One thing that a worker asks of the store; `answer(result, fault)` tells the worker, if it still lives."""

    work: Callable[[], Any]
    answer: Callable[[Any, BaseException | None], None]


@dataclass(frozen=True, slots=True)
class FrameRow:
    """What the table says of a frame; `dead` when its records are in a dead letter, not in the table."""

    digest: bytes
    previous: bytes
    dead: bool


class Store:
    """The tables, and what is asked of them. The methods that a worker calls are those of the shipped `Sink`."""

    def __init__(self, story: Story, truth: Truth) -> None:
        self.up = True
        self.ails = False
        self.inbox: list[Request] = []
        self.frames: dict[Lane, dict[int, FrameRow]] = defaultdict(dict)
        self.letters: dict[bytes, tuple[int, bytes]] = {}
        """digest of a dead letter -> partition and bytes"""
        self.taker: dict[int, str] = {}
        """Who has the highest epoch of a partition, as `take_over` was told."""
        self._late: list[Callable[[], None]] = []
        self._epochs: dict[int, int] = defaultdict(int)
        self._tokens: dict[str, None] = {}
        self._story = story
        self._truth = truth

    def execute(self, request: Request) -> None:
        """A request reaches the store, and its answer comes back."""
        self.inbox.remove(request)
        try:
            result = request.work()
        except (Fenced, StoreAway, StoreRefuses) as fault:
            request.answer(None, fault)
        else:
            request.answer(result, None)

    def late(self) -> None:
        """An insert arrives whose sender has given up on it."""
        if self._late and self.up:
            self._story.fault("a late insert arrives")
            try:
                self._late.pop(self._story.random.randrange(len(self._late)))()
            except Fenced:
                self._story.fault("a late insert is fenced")

    def _fate(self, what: str, do: Callable[[], Any], *more: str) -> Any:
        """Do it, or not, and say so, or not."""
        if not self.up:
            raise StoreAway("the store is down")
        fate = self._story.pick(("kept", "kept", "lost", "refused", "kept but failed", *more)) if self.ails else "kept"
        if fate != "kept":
            self._story.fault(f"{what}: {fate}")
        if fate == "refused":
            raise StoreRefuses("too many parts")
        if fate == "late":
            self._late.append(do)
        if fate in {"lost", "late"}:
            raise StoreAway("no answer")
        result = do()
        if fate == "kept but failed":
            raise StoreAway("no answer")
        return result

    # -- what a worker asks ------------------------------------------------------------------------------------------

    def take_over(self, partition: int, taker: str = "") -> Taken:
        """From now on every insert with an older epoch is refused; says what the table has of the partition's lanes."""

        def do() -> Taken:
            self._epochs[partition] += 1
            self.taker[partition] = taker
            self._story.tell(f"store: partition {partition} is taken over, epoch {self._epochs[partition]}, by a {taker}")
            lanes, dead = {}, {}
            for lane, frames in self.frames.items():
                if lane.partition == partition:
                    frontier = self.frontier(lane)
                    lanes[lane] = (frontier, sorted(n for n in frames if n > frontier))
                    dead.update({(lane, n): row.digest for n, row in frames.items() if row.dead})
            return Taken(epoch=self._epochs[partition], lanes=lanes, dead=dead)

        taken: Taken = self._fate("take-over", do)
        return taken

    def insert(self, stream: memoryview, token: str, owned: Mapping[int, int]) -> None:
        """All rows, or none: when one of the epochs is not the highest, or the token is known."""
        sent = bytes(stream)  # what is on its way does not change when the worker writes its next stream
        self._fate("insert", lambda: self._insert(sent, token, owned), "late")

    def keep(self, letters: Sequence[Mapping[str, Any]]) -> None:
        """Dead letters; the same bytes replace their row."""

        def do() -> None:
            for letter in letters:
                self.letters[letter["digest"]] = (letter["partition"], letter["data"])
                self._truth.letter_kept(letter["digest"])

        self._fate("dead letters", do)

    def note(self, frontiers: Sequence[Mapping[str, Any]]) -> None:
        """Frontier rows; they say nothing that the frame rows do not, as long as no day is dropped."""
        self._fate("frontier rows", lambda: None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def frontier(self, lane: Lane) -> int:
        """The highest n with 1..n all in the table."""
        frames = self.frames.get(lane, {})
        n = self._truth.frontier.get(lane, 0)
        while n + 1 in frames:
            n += 1
        self._truth.frontier[lane] = n
        return n

    def _insert(self, stream: bytes, token: str, owned: Mapping[int, int]) -> None:
        if any(self._epochs[partition] != epoch for partition, epoch in owned.items()):
            raise Fenced("another worker has taken a partition of this one")
        if token in self._tokens:
            self._story.fault("token known")
            return
        self._tokens[token] = None
        self._story.tell(f"store: insert {token[:8]} under {dict(owned)}")
        if len(self._tokens) > TOKENS_MAX:
            del self._tokens[next(iter(self._tokens))]
        with pa.ipc.open_stream(stream) as opened:
            rows = opened.read_all().select(COLUMNS).to_pylist()
        for row in rows:
            if row["kind"] != FRAME_KIND:
                self._truth.record_stored(row)
                continue
            lane = Lane(host=row["enforcer"], host_boot=row["call_seq"], partition=row["partition"])
            dead = row["frame_flag"] == FLAG_DEAD
            self._truth.frame_stored(lane, row["seq"], dead=dead)
            self.frames[lane][row["seq"]] = FrameRow(row["frame_digest"], row["frame_previous"], dead)
