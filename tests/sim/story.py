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
ASKED_MAX = 100_000


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
        self.spun = False
        """Whether somebody has asked without end and not let time pass: on a real machine it would use a core for ever."""
        self._asked = 0

    def pass_ms(self, ms: int) -> None:
        """Only the world lets time pass."""
        self.now_ns += ms * 1_000_000
        self._asked = 0

    def monotonic(self) -> float:
        """Seconds."""
        return self.monotonic_ns() / 1e9

    def monotonic_ns(self) -> int:
        """Nanoseconds. Raises Broken when the question comes for the hundred thousandth time in one moment."""
        self._asked += 1
        if self._asked > ASKED_MAX:
            self.spun, self._asked = True, 0
            raise Broken("ends", "somebody goes round and round and lets nobody else run")
        return self.now_ns

    def time(self) -> float:
        """Seconds since 1970."""
        return START_S + self.now_ns / 1e9

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return START_S * 1_000_000_000 + self.now_ns


class Story:
    """What happened, and what decides what happens next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.events: list[str] = []
        self.seen: Counter[str] = Counter()

    def tell(self, text: str) -> None:
        """Something happened."""
        self.events.append(text)

    def fault(self, kind: str, text: str = "") -> None:
        """A fault happened: count its kind and write it into the log."""
        self.seen[kind] += 1
        self.events.append(f"! {kind} {text}".rstrip())

    def chance(self, share: float) -> bool:
        """True in that share of cases."""
        return self.random.random() < share

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.random.randrange(len(choices))]
