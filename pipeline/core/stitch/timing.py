"""The cause of a call by time alone, where it names none: the nearest call around it whose service may be the caller.

A call is around another when it was open from before the other began until after it ended, clocks differing by MARGIN_US at
most. It may have caused the other when it was let out, and the other's chain goes on from its own, or is one agent that is not
in it. Where two such calls are open beside each other nothing is guessed.

It explains, and never authorises: no verdict asks it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.core.stitch.model import DECIDED, OUT, Calls, Ints, Who

MARGIN_US: Final = 10_000
"""What clocks of two machines may differ by, microseconds."""


def guess(calls: Calls, parent: Ints, whos: Mapping[int, Who], low: int, high: int, asked: Sequence[int]) -> dict[int, int]:
    """For the calls `asked` of one trace, rows `low` to `high` in the order of time, which row caused each, where one must.

    `parent` is what is known already; what is guessed first counts for what is guessed later, so nothing goes in a circle.
    """
    found: dict[int, int] = {}
    start, end, state = (column[low:high].tolist() for column in (calls.start, calls.end, calls.state))
    chains = [whos[who].chain for who in calls.who[low:high].tolist()]

    def above(row: int) -> list[int]:
        way = []
        while (up := found.get(row, int(parent[row]))) >= 0:
            way.append(up)
            row = up
        return way

    for row in asked:
        at = row - low
        until = end[at] or start[at]
        fit: list[int] = []
        best = 0
        for other, begun in enumerate(start):
            if begun > start[at]:
                break
            if other == at or not state[other] & OUT or not state[other] & DECIDED:
                continue
            if end[other] and end[other] + MARGIN_US < until:
                continue
            links = _links(chains[other], chains[at])
            if links and links >= best:
                fit = [*fit, other] if links == best else [other]
                best = links
        if not fit:
            continue
        nearest = low + max(fit, key=lambda one: (start[one], one))
        over = above(nearest)
        if row not in over and all(low + one == nearest or low + one in over for one in fit):
            found[row] = nearest
    return found


def _links(caller: tuple[str, ...], chain: tuple[str, ...]) -> int:
    """How many principals of a chain the caller accounts for; 0 where it may not be the caller."""
    if caller and len(chain) > len(caller) and chain[: len(caller)] == caller:
        return len(caller)
    return 1 if caller and len(chain) == 1 and chain[0] not in caller else 0
