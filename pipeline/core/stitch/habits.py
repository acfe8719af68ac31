"""Which call caused another when its header was lost, trace id and all: by who calls whom, and when, as learnt from calls whose
headers were kept.

A service that was called calls on while that call is open. So the cause of a call is one that leads to its caller and was
open when it began. Where there is one such call, that is it. Where there are more, each is asked how usual it would be for it
to go on so: behind what it did last, after that time. One that is ODDS times as usual as every other is taken, or else none.

    leads    (destination, caller): a call to that destination was seen to cause a call of that caller
    state    (kind of call, what it caused last, whether more of that is open): how often it was seen
    step     state, kind of the next call, time since: how often it was seen

It explains what was lost, and never authorises. It needs both ends of every call; what is still open is open for ever. Kind is
caller, destination and action.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

ODDS: Final = 10.0
"""How many times as usual as any other a cause must be."""

MARGIN_US: Final = 5_000
"""What the clocks of two doors may differ by."""

SHARE_MAX: Final = 0.1
"""A kind of call that more often than so had no cause is not asked for one: it may as well have none now."""

_SEEN_LITTLE: Final = 0.02
_NEAR: Final = ((0, 1.0), (-1, 0.5), (1, 0.5), (-2, 0.2), (2, 0.2))
"""A time that was seen counts for the times beside it too, each half as long again by a square root of 2."""


class Hop(NamedTuple):
    """A call, as its door saw it."""

    caller: str
    destination: str
    action: str
    start_us: int
    end_us: int
    """0 while it is open."""

    @property
    def kind(self) -> tuple[str, str, str]:
        """What is alike of calls."""
        return self.caller, self.destination, self.action


_Kind = tuple[str, str, str]
_State = tuple[_Kind, _Kind | None, bool]


class Habits:
    """Who calls whom, and when."""

    def __init__(self) -> None:
        self._leads: dict[str, set[str]] = defaultdict(set)
        self._state: Counter[_State] = Counter()
        self._step: Counter[tuple[_State, _Kind, int]] = Counter()
        self._alone: Counter[_Kind] = Counter()
        self._all: Counter[_Kind] = Counter()

    def learn(self, hops: Sequence[Hop], parent: Sequence[int]) -> None:
        """From calls in the order of their starts, and which of them caused each; -1 for none."""
        caused: dict[int, list[Hop]] = defaultdict(list)
        for hop, up in zip(hops, parent, strict=True):
            self._all[hop.kind] += 1
            self._alone[hop.kind] += up < 0
            if up >= 0:
                state, since = _state(hops[up], caused[up], hop.start_us)
                self._step[state, hop.kind, _bin(since)] += 1
                self._leads[hop.caller].add(hops[up].destination)
                caused[up].append(hop)
        for number, hop in enumerate(hops):
            self._state[hop.kind, None, False] += 1
            for one in caused[number]:
                self._state[hop.kind, one.kind, False] += 1
                self._state[hop.kind, one.kind, True] += 1

    def guess(self, hops: Sequence[Hop], parent: Sequence[int | None]) -> list[int | None]:
        """For calls in the order of their starts: which of them caused each, -1 for none, None where it is not known.

        `parent` says so where the header was kept, and None where it was lost.
        """
        found = list(parent)
        caused: dict[int, list[Hop]] = defaultdict(list)
        open_at: dict[str, list[int]] = defaultdict(list)
        ahead = 0
        for number, hop in enumerate(hops):
            while ahead < len(hops) and hops[ahead].start_us <= hop.start_us + MARGIN_US:
                open_at[hops[ahead].destination].append(ahead)
                ahead += 1
            up = found[number]
            if up is None:
                up = found[number] = self._cause(hops, number, caused, open_at, found)
            if up is not None and up >= 0:
                caused[up].append(hop)
        return found

    def _cause(
        self, hops: Sequence[Hop], number: int, caused: dict[int, list[Hop]], open_at: dict[str, list[int]],
        found: Sequence[int | None],
    ) -> int | None:  # fmt: skip
        hop = hops[number]
        places = self._leads.get(hop.caller)
        if not places:
            return -1  # nobody was ever seen to call this caller
        if self._alone[hop.kind] > SHARE_MAX * max(1, self._all[hop.kind]):
            return None
        fit: list[int] = []
        for place in places:
            here = open_at[place] = [one for one in open_at[place] if _is_open(hops[one], hop.start_us)]
            fit += [one for one in here if not _is_below(one, number, found)]
        if len(fit) < 2:
            return fit[0] if fit else None
        usual = sorted(((self._usual(hops[one], caused[one], hop), one) for one in fit), reverse=True)
        return usual[0][1] if usual[0][0] >= ODDS * usual[1][0] else None

    def _usual(self, cause: Hop, caused: Sequence[Hop], hop: Hop) -> float:
        """How usual it is that a call which has caused these goes on with that one, now."""
        state, since = _state(cause, caused, hop.start_us)
        at = _bin(since)
        seen = sum(weight * self._step[state, hop.kind, at + beside] for beside, weight in _NEAR)
        return (seen + _SEEN_LITTLE) / (self._state[state] + 1)


def _is_below(one: int, number: int, found: Sequence[int | None]) -> bool:
    """Whether a call is that one, or was caused by it."""
    at: int | None = one
    while at is not None and at >= 0:
        if at == number:
            return True
        at = found[at]
    return False


def _is_open(hop: Hop, now_us: int) -> bool:
    return not hop.end_us or now_us <= hop.end_us + MARGIN_US


def _state(cause: Hop, caused: Sequence[Hop], now_us: int) -> tuple[_State, int]:
    """What a call did last, and how long ago that was, in microseconds."""
    ended = [one for one in caused if one.end_us and one.end_us <= now_us + MARGIN_US // 5]
    still = len(ended) < len(caused)
    if not ended:
        return (cause.kind, None, still), now_us - cause.start_us
    last = max(ended, key=lambda one: (one.end_us, one.start_us))
    return (cause.kind, last.kind, still), now_us - last.end_us


def _bin(us: int) -> int:
    """Times in steps of a square root of 2, from a quarter of a millisecond to a second and a half."""
    return max(-4, min(21, round(2 * math.log2(max(us, 250) / 1000))))
