"""Figures of an evaluation: a value with its 95 % bootstrap interval, by clusters, and the limit that it is held to.

Calls of one agent are not independent of each other, so what is drawn again is agents (or series, or suites), whole.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

DRAWS: Final = 1_000
Counts = tuple[float, float]
"""What is counted and of how many: of one cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a table."""

    detector: str
    data: str
    what: str
    value: float
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether a limit is missed."""
        below = self.least is not None and not self.value >= self.least
        return below or (self.most is not None and not self.value <= self.most)

    @property
    def line(self) -> str:
        """As it is printed."""
        between = "" if self.low is None or self.high is None else f"[{self.low:.3f}, {self.high:.3f}]"
        limit = "".join(
            f"{sign} {bound:g}" for sign, bound in ((">=", self.least), ("<=", self.most)) if bound is not None
        ) + (" MISSED" if self.missed else "")  # fmt: skip
        words = f"{self.detector:<11} {self.data:<26} {self.what:<44} {self.value:>10.3f} {between:<18} {limit:<16} {self.note}"
        return words.rstrip()


def share(
    detector: str, data: str, what: str, counts: Mapping[str, Counts], *, least: float | None = None, most: float | None = None,
    times: float = 1.0, note: str = "",
) -> Figure:  # fmt: skip
    """Sum of what is counted by the sum of how many, over clusters, `times` something; with its interval."""
    clusters = [counts[name] for name in sorted(counts)]
    low, high = interval(clusters, times)
    return Figure(
        detector=detector, data=data, what=what, value=ratio(clusters) * times, low=low, high=high, least=least, most=most,
        note=note,
    )  # fmt: skip


def ratio(clusters: Sequence[Counts]) -> float:
    """The share over some clusters; 0 of nothing."""
    total = sum(of for _, of in clusters)
    return sum(counted for counted, _ in clusters) / total if total else 0.0


def interval(clusters: Sequence[Counts], times: float = 1.0, seed: int = 1) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the share over clusters drawn again, with replacement. The same clusters, the same."""
    dice = random.Random(seed)
    drawn = sorted(ratio(dice.choices(clusters, k=len(clusters))) * times for _ in range(DRAWS)) if clusters else [0.0]
    return drawn[round(0.025 * (len(drawn) - 1))], drawn[round(0.975 * (len(drawn) - 1))]


def show(figures: Sequence[Figure]) -> int:
    """Print them; returns 1 when a limit is missed."""
    for figure in figures:
        print(figure.line, flush=True)
    return int(any(figure.missed for figure in figures))
