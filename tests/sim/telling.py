"""Telling a history and catching a planted bug, the same for every simulated world."""

import argparse
import functools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import pytest

from tests.sim.story import Broken, Story
from tests.sim.world import scratch
from tests.support.data import REPOSITORY


class History(Protocol):
    """A world: one history, told from its seed."""

    story: Story

    def __enter__(self) -> Self:
        """It may be run."""

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None, /) -> None:
        """It is over."""

    def run(self) -> None:
        """Raises Broken when a rule does not hold."""


SEEDS = 1_000
"""Histories of each world that must hold."""

BLOCK = 50
QUICK = 200
BLOCKS = [pytest.param(first, marks=pytest.mark.soak if first >= QUICK else ()) for first in range(0, SEEDS, BLOCK)]
"""Where each block of seeds begins: the first QUICK seeds run with every change, the others with the long tests."""

W = TypeVar("W", bound=History)
Plant = tuple[Callable[[], AbstractContextManager[None]], str]
"""What plants a bug, and the rule that it breaks."""


@dataclass(frozen=True)
class Told:
    """What is left of a history when it is over."""

    events: tuple[str, ...]
    seen: Counter[str]
    broken: str


def tell(make: Callable[[int, Path], History], seed: int) -> Told:
    """Run one history from the start."""
    with scratch() as folder, make(seed, folder) as world:
        broken = _broken(world)
    return Told(tuple(world.story.events), world.story.seen, broken)


def _broken(world: History) -> str:
    """Run to the end; the rule that does not hold, or nothing."""
    try:
        world.run()
    except Broken as fault:
        return str(fault)
    return ""


@functools.cache
def outcome(make: Callable[[int, Path], History], seed: int) -> tuple[str, Counter[str]]:
    """The broken rule of a history, if any, and the faults in it; run once for all tests of a process."""
    told = tell(make, seed)
    return told.broken, told.seen


def told_elsewhere(module: str, seed: int, hash_seed: int) -> bytes:
    """What another process prints of a history."""
    return subprocess.run(
        [sys.executable, "-m", module, "--seed", str(seed)], cwd=REPOSITORY, check=True, capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
    ).stdout  # fmt: skip


def catch(make: Callable[[int, Path], History], planted: Mapping[str, Plant], bug: str, seeds_max: int) -> None:
    """Fail unless a planted bug breaks its rule in one of the histories."""
    plant, rule = planted[bug]
    others = set()
    with plant():
        for seed in range(seeds_max):
            with scratch() as folder, make(seed, folder) as world:
                try:
                    world.run()
                except Broken as fault:
                    if fault.rule == rule:
                        return
                    others.add(fault.rule)
    pytest.fail(f"{bug} breaks no rule `{rule}` in {seeds_max} histories, only {sorted(others)}")


def print_history(make: Callable[[int, Path], W], prog: str, what: str, figures: Callable[[W], str]) -> int:
    """Tell one seed's story, the faults that came up in it, and the rule that broke, if one did; 1 then, else 0."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=f"print one simulated history of {what}")
    parser.add_argument("--seed", type=int, default=0, help="which history (default 0)")
    seed = parser.parse_args().seed
    with scratch() as folder, make(seed, folder) as world:
        broken = _broken(world)
    print("\n".join(world.story.events))
    print(f"\n{figures(world)}; " + ", ".join(f"{kind} {count}" for kind, count in sorted(world.story.seen.items())))
    print(f"BROKEN {broken}" if broken else "every rule holds")
    return 1 if broken else 0
