"""Sessions without state in the engine: what a client said with `SET` and `USE` is said again before each of its queries."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

SESSIONS_MAX: Final = 1000
"""Sessions that are remembered; the one that was used least recently goes first."""

SESSION_STATEMENTS_MAX: Final = 100
"""Statements that one session remembers; the oldest goes first."""

TIMEOUT_S: Final = 60.0
TIMEOUT_MAX_S: Final = 3600.0


@dataclass(slots=True)
class _Session:
    until: float
    said: list[str] = field(default_factory=list)


class Sessions:
    """Of all users; a session belongs to the user who began it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Session] = OrderedDict()

    def open(self, user: str, name: str, timeout_s: float = TIMEOUT_S) -> tuple[bool, tuple[str, ...]]:
        """Begin or continue a session: whether it was there, and what was said in it."""
        now, key = time.monotonic(), (user, name)
        known = self._known.get(key)
        there = known is not None and known.until > now
        session = known if known is not None and there else _Session(0.0)
        session.until = now + max(1.0, min(timeout_s, TIMEOUT_MAX_S))
        self._known[key] = session
        self._known.move_to_end(key)
        while len(self._known) > SESSIONS_MAX:
            self._known.popitem(last=False)
        return there, tuple(session.said)

    def say(self, user: str, name: str, statement: str) -> None:
        """A `SET` or `USE` succeeded in a session."""
        session = self._known.get((user, name))
        if session is not None:
            session.said.append(statement)
            del session.said[:-SESSION_STATEMENTS_MAX]
