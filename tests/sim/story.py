"""One history: the seed's own random numbers, its clock, and the log of what happened.

Everything that a run decides comes from `Story.random`, everything that it knows of time from `Story.clock`, so that one seed
tells the same story twice. `seen` counts each kind of fault, so that a test can ask whether the generator reaches it.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

START_S = 1_700_000_000


class Died(BaseException):
    """A process ended here (kill -9, power loss). No handler of the shipped code may catch it: none can catch the real one."""


class Broken(AssertionError):
    """An invariant does not hold: `rule` is its name, the text says where."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Clock:
    """Stands in for the module `time` in the shipped code that asks for it."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def pass_ms(self, ms: int) -> None:
        self.now_ns += ms * 1_000_000

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time(self) -> float:
        return START_S + self.now_ns / 1e9

    def time_ns(self) -> int:
        return START_S * 1_000_000_000 + self.now_ns


class Story:
    """What happened, and what decides what happens next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.events: list[str] = []
        self.seen: Counter[str] = Counter()

    def tell(self, text: str) -> None:
        self.events.append(text)

    def fault(self, kind: str, text: str = "") -> None:
        """A fault happened: count its kind and write it into the log."""
        self.seen[kind] += 1
        self.events.append(f"! {kind} {text}".rstrip())

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.random.randrange(len(choices))]
