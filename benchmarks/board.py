"""What does a look at the board cost a decision, what does an entry weigh, and what does a decision cost while policies change?

A look is compared with an empty call that takes the same two arguments (`operator.is_`): both loops alternate, and the least of
each is taken, which is what it costs when no neighbour slows the processor down; medians stand beside it. A door swaps its
policies as `enforcers.doors.matchers` does it: a thread indexes them while the old ones decide. Each decision through the gate
is timed by itself, so what it waits for that thread is in it (what the new ones must work out for the first time is not: that
is a miss, and the benchmark `decide` measures it). `due` is the same for a door that has 500 calls a second, from when a call
is due, so that the wait for the interpreter's lock counts in full: a millisecond or so, and more where the thread that holds
the lock must itself wait for a processor. It has no limit.
"""

import gc
import operator
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.decide import bundle, questions
from enforcers.core.call import Call, decide, target_of
from enforcers.core.chain import make_chain
from enforcers.core.gate import Gate, caller_of
from enforcers.core.gate import target_of as touched
from enforcers.doors.matchers import Matchers
from ext.board import BoardReader, BoardWriter, Selectors
from schemas.bundle import Bundle
from schemas.records import Standing

LOOK_NS_MAX: Final = 10.0
"""What a look at a board that has not changed costs more than an empty call."""

SWAP_RATIO_MAX: Final = 2.0
"""The p99 of a decision while 10,000 policies are swapped, beside the quiet one."""

ENTRY_BYTES_MAX: Final = 64.0
"""Of the board's files, for each of a million entries."""

ENTRIES: Final = 1_000_000
POLICIES: Final = 10_000
TURNS: Final = 41
ROUNDS: Final = 20_000
SWAPS: Final = 9
QUIET_S: Final = 0.5
DUE_S: Final = 1 / 500
FRESH_NS: Final = 50_000_000_000
MONOTONIC_COARSE: Final = 6


def loop(function: Callable[..., object], *arguments: object) -> float:
    """Nanoseconds of the processor for each call."""
    begun = time.thread_time_ns()
    for _ in range(ROUNDS):
        function(*arguments)
    return (time.thread_time_ns() - begun) / ROUNDS


def beside(ours: Callable[..., object], theirs: Callable[..., object], *arguments: object) -> tuple[list[float], list[float]]:
    """Both in turns; which goes first alternates."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS):
        for which in (0, 1) if turn % 2 else (1, 0):
            found[which].append(loop((ours, theirs)[which], *arguments))
    return found


def spread(figures: list[float], digits: int = 1) -> str:
    """The median and the middle half."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def p99(figures: list[int]) -> float:
    return statistics.quantiles(figures, n=100)[98]


def clocks() -> None:
    """Why the coarse clock: what it saves, and how far behind it is."""
    if not sys.platform.startswith("linux"):
        return
    read = time.clock_gettime_ns
    fine, coarse = beside(lambda: read(time.CLOCK_MONOTONIC), lambda: read(MONOTONIC_COARSE))
    saved = [a - b for a, b in zip(fine, coarse, strict=True)]
    behind = []
    for _ in range(ROUNDS):
        now = read(MONOTONIC_COARSE)
        behind.append(read(time.CLOCK_MONOTONIC) - now)
    tick = time.clock_getres(MONOTONIC_COARSE) * 1e3
    ahead = sum(1 for ns in behind if ns < 0)
    print(f"clock: the coarse one saves {spread(saved)} ns, ticks every {tick:.0f} ms, was {max(behind) / 1e6:.1f} ms behind at"
          f" most, {ahead} times ahead in {len(behind)}")  # fmt: skip


def calls(many: int, links: int = 3) -> list[Call]:
    asked = questions(links)[:many]
    return [
        Call(time_ns=0, door="benchmark", chain=make_chain(('User::"alice"', *who)), action="mcp:tools/call",
             target=target_of(resource), trace_id=bytes(16), session=f"s-{number}")
        for number, (who, _, resource) in enumerate(asked)
    ]  # fmt: skip


def looks(folder: Path, entries: int) -> bool:
    """A look, and what a change costs; whether the limits hold."""
    writer = BoardWriter(str(folder / "board"), 1)
    policy = bytes(32)
    texts = [(f"token:{number:064x}", 0) for number in range(entries)]
    begun = time.perf_counter()
    writer.replace(texts, epoch=1, paused=False, policy=policy)
    took = time.perf_counter() - begun
    writer.fresh(time.monotonic_ns() + FRESH_NS)
    board = BoardReader(str(folder / "board"))
    call = calls(1)[0]
    caller, target = caller_of(call), touched(call)
    assert board.check(caller, target) == Standing.GO
    ours, empty = beside(board.check, operator.is_, caller, target)
    cost = min(ours) - min(empty)
    print(f"{entries:>8} entries  look {spread(ours)} ns, empty call {spread(empty)} ns, least {min(ours):.1f} and"
          f" {min(empty):.1f}: {cost:.1f} ns more, limit {LOOK_NS_MAX:.0f}")  # fmt: skip
    again, nothing = beside(board.unchanged, gc.isenabled)
    print(f"{entries:>8} entries  `unchanged` {spread(again)} ns, empty call {spread(nothing)} ns,"
          f" {min(again) - min(nothing):.1f} ns more")  # fmt: skip
    count = len(caller.texts) + len(target.texts)
    new, changed = first_looks(writer, board, policy)
    weight = writer.bytes / writer.entries
    print(f"{entries:>8} entries  {weight:.1f} bytes each, limit {ENTRY_BYTES_MAX:.0f}; the whole set in {took * 1e3:.0f} ms;"
          f" one change {change_ns(writer, policy) / 1e3:.2f} us; a look after a change {changed:.0f} ns,"
          f" at new texts ({count}) {new:.0f} ns")  # fmt: skip
    writer.close()
    return cost <= LOOK_NS_MAX and (entries < ENTRIES or weight <= ENTRY_BYTES_MAX)


def first_looks(writer: BoardWriter, board: BoardReader, policy: bytes) -> tuple[float, float]:
    """Nanoseconds of a look at texts that were never looked at, and of one at those after a change: medians."""
    asked = calls(1_000)
    pairs = [(Selectors(caller_of(call).texts), Selectors(touched(call).texts)) for call in asked]
    took: tuple[list[int], list[int]] = ([], [])
    clock = time.perf_counter_ns
    for which in (0, 1):
        for caller, target in pairs:
            if which:
                writer.change((), (), epoch=2, paused=False, policy=policy)
            begun = clock()
            board.check(caller, target)
            took[which].append(clock() - begun)
    return statistics.median(took[0]), statistics.median(took[1])


def change_ns(writer: BoardWriter, policy: bytes) -> float:
    """Of one revocation that comes or goes."""
    took = []
    for number in range(2_000):
        text = f"agent:new-{number // 2}"
        begun = time.perf_counter_ns()
        writer.change([] if number % 2 else [(text, 0)], [text] if number % 2 else [], epoch=3, paused=False, policy=policy)
        took.append(time.perf_counter_ns() - begun)
    return statistics.median(took)


class Door:
    """A door that has nothing to do but to decide, and swaps its policies when its board names others."""

    def __init__(self, folder: Path) -> None:
        self.bundles = [self.save(folder, Bundle()), *(self.save(folder, bundle(POLICIES + more)) for more in (0, 1))]
        self.writer = BoardWriter(str(folder / "board"), 1)
        self.matchers = Matchers(folder)
        self.board = BoardReader(str(folder / "board"))
        self.gate = Gate(self.board, self.matchers.current)
        self.calls = calls(1_000)
        self.epoch = self.named = 0
        self.name_others()
        self.board.check(Selectors(()), Selectors(()))
        self.matchers.follow(self.board.policy, wait=True)

    @staticmethod
    def save(folder: Path, known: Bundle) -> bytes:
        (folder / f"{known.digest}.json").write_bytes(known.encode())
        return bytes.fromhex(known.digest)

    def name_others(self) -> None:
        """What a host does when other policies are in force."""
        self.epoch += 1
        self.named = 2 if self.named == 1 else 1
        self.writer.change((), (), epoch=self.epoch, paused=False, policy=self.bundles[self.named])
        self.writer.fresh(time.monotonic_ns() + FRESH_NS)

    def one(self, number: int) -> None:
        self.gate.decide(self.calls[number % len(self.calls)])
        self.matchers.follow(self.board.policy)
        self.gate.matcher = self.matchers.current

    def run(self, pace_s: float, until: Callable[[], bool]) -> list[int]:
        """Nanoseconds of each decision, or since each was due."""
        took, clock, number, due = [], time.perf_counter_ns, 0, time.perf_counter_ns()
        while not until():
            if pace_s:
                due += int(pace_s * 1e9)
                time.sleep(max(0, due - clock()) / 1e9)
                begun = due
            else:
                begun = clock()
            self.one(number)
            took.append(clock() - begun)
            number += 1
        return took

    def remember(self) -> None:
        """Decide each call once, untimed."""
        for number in range(len(self.calls)):
            self.one(number)

    def quiet(self, pace_s: float) -> list[int]:
        """Nothing changes, and what was decided is remembered, as it is when a swap begins."""
        self.remember()
        end = time.perf_counter() + QUIET_S
        return self.run(pace_s, lambda: time.perf_counter() >= end)

    def swap(self, pace_s: float) -> list[int]:
        """From when the board names others until they decide, and then until all that belonged to the old ones is gone."""
        self.name_others()
        wanted = self.bundles[self.named]
        took = self.run(pace_s, lambda: self.matchers.policy == wanted)
        self.remember()
        return took + self.run(pace_s, lambda: threading.active_count() == 1)


def swaps(folder: Path) -> bool:
    """Whether the limit holds."""
    door = Door(folder)
    sound = True
    for label, pace_s in (("each decision", 0.0), ("due", DUE_S)):
        quiet, busy, ratios = [], [], []
        for _ in range(SWAPS):
            before = p99(door.quiet(pace_s))
            during = p99(door.swap(pace_s))
            quiet.append(before / 1e3)
            busy.append(during / 1e3)
            ratios.append(during / before)
        ratio = statistics.median(ratios)
        said = f"limit {SWAP_RATIO_MAX:.0f}" if not pace_s else "no limit"
        print(f"swap of {POLICIES} policies, {label:<13}  p99 {spread(busy)} us, quiet {spread(quiet)} us,"
              f" ratio {spread(ratios, 2)}, {said}", flush=True)  # fmt: skip
        sound &= bool(pace_s) or ratio <= SWAP_RATIO_MAX
    gate, alone = beside(door.gate.decide, lambda call: decide(door.gate.matcher, call), door.calls[0])
    print(f"a decision through the gate {spread(gate, 0)} ns, without the board {spread(alone, 0)} ns")
    return sound


def main(argv: list[str]) -> int:
    """Run it; 1 when a limit is missed, 2 for an argument, since it takes none."""
    if argv:
        print(f"benchmarks.board takes no `{argv[0]}`")
        return 2
    clocks()
    parts: list[tuple[Callable[..., bool], tuple[Any, ...]]] = [(looks, (1_000,)), (looks, (ENTRIES,)), (swaps, ())]
    sound = True
    for part, arguments in parts:
        with tempfile.TemporaryDirectory(prefix="wardline-board-") as folder:
            sound &= part(Path(folder), *arguments)
    return 0 if sound else 1
