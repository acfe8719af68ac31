"""The request that came last over a connection, and what was found out about it: most clients say the same again and again.

    same head, byte for byte   ->  the same request, to the same place
    same credential            ->  the same caller, until `identify` forgets or its time is up
    same caller, same target   ->  the same question: policies and board are asked it anew, and it is recorded anew

What is kept with a connection was kept with the request in hand before there was this module, and goes with the connection.
A tunnel takes its connection with it, so what CONNECT meant is kept for the door (`Connects`), by a keyed hash of the head and
without what may be a secret.
"""

import hashlib
import os
from typing import TYPE_CHECKING, Final, TypeAlias

from enforcers.core.caller import Caller
from enforcers.core.http.head import Request, parse_request
from enforcers.core.http.target import Where, read_target

if TYPE_CHECKING:
    from enforcers.doors.egress.asking import Asked
    from enforcers.doors.egress.identify import Held, Identify

CONNECTS: Final = 1024
"""Heads of CONNECT in one of the two halves of a door's memory: some 2 KB each, 4 MB in all."""

CONNECT_BYTES_MAX: Final = 4096
"""Of a head that is remembered. A longer one is read each time."""

Seen: TypeAlias = "tuple[Request, Where, Asked | None, Held | None, int]"


class Last:
    """Of one connection. `request` and `where` are there once a head was good."""

    __slots__ = ("_as_of", "_known", "_lent", "asked", "head", "request", "where")

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
        self._lent = False
        """Whether `request` is another connection's, without its fields."""

    def read(self, head: bytes, connects: "Connects", peer: str) -> None:
        """Understand another head, which came from `peer`. Raises BadRequest."""
        if not self.head and head.startswith(b"CONNECT "):
            seen = connects.find(head, peer)
            if seen is not None:
                self.request, self.where, self.asked, self._known, self._as_of = seen
                self.head, self._lent = head, True
                return
        before = self.request if self.head and not self._lent else None
        self.head = b""
        request = parse_request(head, before)
        self.where = read_target(request)
        self.request, self.head, self._lent = request, head, False
        if before is None or request.credential != before.credential:
            self._known = None

    def caller(self, identify: "Identify", now_s: float) -> Caller | None:
        """Who shows this credential; None where that must be checked, by `request.headers`."""
        known = self._known
        if known is None or self._as_of != identify.changes or now_s >= known.until_s:
            if self._lent:
                self.request, self._lent = parse_request(self.head), False
            known = self._known = identify.held(self.request.credential, now_s)
            self._as_of = identify.changes
        return known.caller if known is not None else None

    def keep(self, connects: "Connects", peer: str) -> None:
        """Let the next connection that says the same have what was found out, once its caller is known by its credential."""
        if self._known is not None and not self.request.trace:
            connects.keep(self.head, peer, (self.request.bare(), self.where, self.asked, self._known, self._as_of))


class Connects:
    """What the CONNECTs meant that came lately to one door."""

    def __init__(self) -> None:
        self._hasher = hashlib.blake2b(key=os.urandom(32), digest_size=16)
        self._new: dict[bytes, Seen] = {}
        self._old: dict[bytes, Seen] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def _mark(self, head: bytes, peer: str) -> bytes:
        hasher = self._hasher.copy()
        hasher.update(head)  # no head begins another: each ends with its empty line
        hasher.update(peer.encode())
        return hasher.digest()

    def find(self, head: bytes, peer: str) -> "Seen | None":
        """The same head from the same place."""
        if len(head) > CONNECT_BYTES_MAX:
            return None
        mark = self._mark(head, peer)
        seen = self._new.get(mark)
        if seen is None and (seen := self._old.pop(mark, None)) is not None:
            self._put(mark, seen)
        return seen

    def keep(self, head: bytes, peer: str, seen: Seen) -> None:
        """Remember it; what was not asked for while one half was filled is gone."""
        if len(head) <= CONNECT_BYTES_MAX:
            self._put(self._mark(head, peer), seen)

    def _put(self, mark: bytes, seen: Seen) -> None:
        if len(self._new) >= CONNECTS:
            self._old, self._new = self._new, {}
        self._new[mark] = seen
