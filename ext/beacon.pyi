import numpy as np
from numpy.typing import NDArray

def rita(
    seconds: list[int], sizes: list[int] | list[float], low: int, high: int
) -> tuple[float, float, float, float, float] | None:
    """RITA's score of calls: (score, intervals, sizes, lasting, even); None for fewer than four different seconds.

    `seconds` and `sizes` are of the calls, in any order; the histogram is over `low` to `high`. Raises ValueError where there
    are no sizes, or no width.
    """

def wilson(hits: int, count: int) -> float:
    """The lower end of Wilson's 95 % interval for a share (Wilson, 1927): what it is at least, by so few or so many."""

class PairDay:
    """One UTC day of calls from one agent to one host: what it keeps is a function of the set of rows."""

    @property
    def calls(self) -> int: ...
    @property
    def rows(self) -> int:
        """Rows that were added, those of ends included."""

    @property
    def first(self) -> int:
        """The first second of the day that a row has; 86,400 before there is one."""

    @property
    def last(self) -> int:
        """The last one; -1 before there is one."""

    @property
    def kept(self) -> int:
        """Seconds of which it has the calls: the latest 512."""

    @property
    def full(self) -> bool:
        """Whether there were more."""

    @property
    def hours(self) -> list[int]:
        """Calls in each hour of the day."""

    def seconds(self) -> list[tuple[int, int, int, int]]:
        """(second of the day, calls, bytes sent, bytes got) of each second that is kept and in which a call was made."""

    def judge(self, least: float) -> tuple[float, float, float, float, float, float, int, int, int] | None:
        """(score, intervals, sizes, lasting, even, answers, seconds with the commonest answer, seconds, when).

        `sizes` is -1 where no call has one (nobody recorded them): the score is the mean of the other three then.
        `answers` is the least share of the commonest answer (`wilson`). `when` is the second from which on the day was so even
        and so long that score times answers is at least `least`; -1 where it is not. None where there is no score: fewer than
        four seconds, or as many calls as the day has seconds.
        """

def fill(
    days: list[PairDay],
    which: NDArray[np.int64],
    second: NDArray[np.int64],
    calls: NDArray[np.int64],
    sent: NDArray[np.int64],
    got: NDArray[np.int64],
) -> None:
    """Add rows to pairs' days: row i to `days[which[i]]`, at a second of the day. Raises ValueError for a row of no day."""
