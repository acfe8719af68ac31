"""The request that came last over a connection, and what was found out about it: most clients say the same again and again.

    same head, byte for byte   ->  the same request, to the same place
    same credential            ->  the same caller, until `identify` forgets or its time is up
    same caller, same target   ->  the same question: policies and board are asked it anew, and it is recorded anew

What is kept here was kept with the request in hand before there was this module, and goes with its connection.
"""

from typing import TYPE_CHECKING

from enforcers.core.caller import Caller
from enforcers.core.http.head import Request, parse_request
from enforcers.core.http.target import Where, read_target

if TYPE_CHECKING:
    from enforcers.doors.egress.asking import Asked
    from enforcers.doors.egress.identify import Held, Identify


class Last:
    """Of one connection. `request` and `where` are there once a head was good."""

    __slots__ = ("_as_of", "_known", "asked", "head", "request", "where")

    def __init__(self) -> None:
        self.head = b""
        """What the next request is compared with; empty where the last one was no good."""
        self.request: Request
        self.where: Where
        self.asked: Asked | None = None
        """What its call was, whoever made it."""
        self._known: Held | None = None
        """Whose its credential is, as of so many changes of what identity knows."""
        self._as_of = 0

    def read(self, head: bytes) -> None:
        """Understand another head. Raises BadRequest."""
        before = self.request.credential if self.head else None
        self.head = b""
        request = parse_request(head)
        self.where = read_target(request)
        self.request, self.head = request, head
        if request.credential != before:
            self._known = None

    def caller(self, identify: "Identify", now_s: float) -> Caller | None:
        """Who shows this credential; None where that must be checked."""
        known = self._known
        if known is None or self._as_of != identify.changes or now_s >= known.until_s:
            known = self._known = identify.held(self.request.credential, now_s)
            self._as_of = identify.changes
        return known.caller if known is not None else None
