"""Everybody who is compared, between the same two ends: the peers, Wardline, its door without a record, and nobody at all."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.egress.site import Site
from benchmarks.peers.programs import COMMANDS, CONNECTS, running
from benchmarks.peers.setup import programs
from benchmarks.wire.tools import load, memory, processor_us

OURS: Final = "wardline"
NULL: Final = "wardline, no record"
DIRECT: Final = "direct"
IDLE_S: Final = 3.0
WARM_S: Final = 0.3
"""Connections are made and names resolved before it counts."""


@dataclass(slots=True)
class Arm:
    """One of those who are compared."""

    name: str
    to: str
    origin: str
    auth: str = ""
    pids: Callable[[], list[int]] = list
    later: Callable[[], list[int]] = list
    """Those of `pids` whose work for a request may come after its answer: their time counts until `settle` returns."""

    settle: Callable[[], None] = lambda: None
    still: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Holds what else runs beside the two ends while it is measured."""

    idle: float = 0.0
    """What the arm's host uses when nothing happens, as a share of one processor."""

    connects: bool = False
    found: dict[str, list["Figures"]] = field(default_factory=dict)
    """By what was measured, one for each round."""

    def run(self, what: str, seconds: float, **how: Any) -> "Figures":
        """Measure one round of something, after a warm-up of its own."""
        words: dict[str, Any] = {"to": self.to, "origin": self.origin, "auth": self.auth, "mode": "http", **how}
        if self.name == DIRECT:
            words["mode"] = "direct"
        load(**words, seconds=WARM_S, warm=0)
        self.settle()
        later = self.later()
        now = [pid for pid in self.pids() if pid not in later]
        before, before_later = processor_us(now), processor_us(later)
        with self.still():
            found = load(**words, seconds=seconds, warm=0)
        used, began = processor_us(now) - before, time.monotonic() - found["seconds"]
        self.settle()
        host = processor_us(later) - before_later - self.idle * 1e6 * (time.monotonic() - began) if later else 0.0
        scale = 1 / (1 - self.idle)
        figures = Figures(
            turns=found["good"], bad=found["turns"] - found["good"] + found["errors"], seconds=found["seconds"],
            bytes=found["bytes"], used_us=(used + host) * scale, later_us=host * scale, p50_us=found["p50_us"],
            p99_us=found["p99_us"],
        )  # fmt: skip
        self.found.setdefault(what, []).append(figures)
        return figures

    @property
    def resident(self) -> float:
        """MB of memory."""
        return memory(self.pids()) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One round."""

    turns: int
    bad: int
    """Answers other than 200, and connections that broke."""
    seconds: float
    bytes: int
    used_us: float
    """Of a processor, by all the arm's processes, and the share of what they use when idle that a full processor's turns bear:
    with few turns on a busy machine, it would be all there is."""
    later_us: float
    """The part of it that was used behind the answer: sealing, signing, sending."""
    p50_us: int
    p99_us: int

    @property
    def rate(self) -> float:
        return self.turns / self.seconds

    @property
    def cost_us(self) -> float:
        """Of a processor, for each turn."""
        return self.used_us / self.turns if self.turns else float("inf")

    @property
    def cost_ms_mb(self) -> float:
        """Milliseconds of a processor for each megabyte."""
        return self.used_us / 1000 / (self.bytes / 1e6) if self.bytes else float("inf")


@contextlib.contextmanager
def peers(folder: Path, port: int, wanted: list[str]) -> Iterator[list[Arm]]:
    """Every peer that runs here, started; who does not is named."""
    have, lacks = programs()
    for name, why in lacks.items():
        print(f"  {name}: skipped, {why}")
    with contextlib.ExitStack() as stack:
        arms = []
        for name in COMMANDS:
            if name not in have or (wanted and name not in wanted):
                continue
            try:
                peer = stack.enter_context(running(name, have[name], folder / name, port))
            except (OSError, AssertionError) as fault:
                print(f"  {name}: skipped, {str(fault).strip().splitlines()[-1][:200]}")
                continue
            to, connects = f"127.0.0.1:{peer.port}", name in CONNECTS
            arms.append(Arm(name, to, f"localhost:{port}", pids=lambda peer=peer: peer.pids, connects=connects))
        yield arms


def ours(site: Site, port: int) -> Arm:
    """Wardline: the door counts as it works, its host until all is stored, and what the host uses when idle by its share."""

    def settle() -> None:
        site.quiet()
        time.sleep(0.05)

    host = site.host_pid
    settle()
    before, began = processor_us([host]), time.monotonic()
    time.sleep(IDLE_S)
    idle = (processor_us([host]) - before) / 1e6 / (time.monotonic() - began)
    return Arm(
        OURS, site.proxy, f"localhost:{port}", auth=site.auth(), pids=site.pids, later=lambda: [host],
        settle=settle, still=site.still, idle=idle, connects=True,
    )  # fmt: skip


def direct(port: int) -> Arm:
    """Nobody between the ends."""
    return Arm(DIRECT, f"127.0.0.1:{port}", f"localhost:{port}")
