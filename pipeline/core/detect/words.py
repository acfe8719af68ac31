"""What a detector has said of a subject, and what it has to say now."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from schemas.findings import Finding

PAST_DAYS: Final = 7
"""How far back an agent's own past is taken."""

JUDGED_DAYS: Final = 8
"""What is said is of so many days up to an agent's latest call. A worker that starts reads fifteen days (`[detect]
lookback_days`), and so knows the whole past of each of these. What is older was judged when its past was known; a call that
comes later than that changes nothing any more."""

KEPT_DAYS: Final = PAST_DAYS + JUDGED_DAYS


def examples(texts: Sequence[str | Sequence[str]], most: int, bytes_max: int = 6 << 10) -> list[str | list[str]]:
    """The first `most` of some texts, or of lists of them, or fewer: as many as are `bytes_max` bytes of JSON at most."""
    shown: list[str | list[str]] = []
    for text in texts[:most]:
        bytes_max -= len(json.dumps(text, ensure_ascii=False).encode()) + 1
        if bytes_max < 0:
            break
        shown.append(text if isinstance(text, str) else list(text))
    return shown


class Rows:
    """How many rows were taken of each day: what versions are made of. Of the days that nobody asks for it knows nothing."""

    __slots__ = ("_days", "_latest")

    def __init__(self) -> None:
        self._days: dict[int, int] = {}
        self._latest = -(1 << 62)

    def add(self, day: int, count: int) -> None:
        """Rows of a day since 1970."""
        self._days[day] = self._days.get(day, 0) + count
        if day > self._latest:
            self._latest = day
            for old in [one for one in self._days if one < day - KEPT_DAYS]:
                del self._days[old]

    def version(self, day: int) -> int:
        """The version of a word on a day: the rows of that day, of its past and of what came behind it.

        It grows with each row that can change the word, and a worker that has read the lookback anew counts as many as one that
        runs for a year: its words on yesterday are not taken for old ones.
        """
        return sum(count for one, count in self._days.items() if one >= day - PAST_DAYS)


def news(
    said: Mapping[int, Finding], holds: Mapping[int, Finding], version: int | Callable[[Finding], int]
) -> list[Finding]:  # fmt: skip
    """What differs between what was said and what holds, by window: new words, other words, and words taken back.

    `version` is of the state that `holds` was judged from, and so of what is withdrawn; or it says which one that is.
    """
    changed = [one for window, one in holds.items() if window not in said or differs(said[window], one)]
    for window, one in said.items():
        if window not in holds:
            changed.append(replace(one, version=version if isinstance(version, int) else version(one), withdrawn=True))
    return changed


def differs(said: Finding, now: Finding) -> bool:
    """Whether two words on one thing say something else; that more calls are known is no difference."""
    return replace(said, version=now.version) != now
