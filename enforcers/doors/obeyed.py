"""What a door obeys now, and its word on that: the board that it reads, the policies that the board names, its `seen`.

Everything here is done by the thread that decides, and nothing between a decision and its record. So `seen` holds by
construction: a decision that is recorded after `seen` was written was made after a look at a board of at least that epoch, by
the policies that `seen` names or later ones.
"""

import time
from pathlib import Path
from typing import Final

from enforcers.core.gate import Gate
from enforcers.doors.matchers import Matchers
from ext.board import BoardReader, SeenWriter, Selectors
from schemas.records import Standing

LOOK_S: Final = 0.005
"""How often a door that has no call looks at the board: what `revoke` waits for an idle door."""


class Obeyed:
    """One door's view of its host's board."""

    def __init__(self, board: Path, bundles: Path, folder: Path) -> None:
        """`bundles` holds the host's policies; the door's word goes to `seen` in its own `folder`.

        Raises PeerFault when the disk has no room for that.
        """
        self.board = BoardReader(str(board))
        self.matchers = Matchers(bundles)
        self.gate = Gate(self.board, self.matchers.current)
        self.standing = Standing.STALE
        """Of nobody in particular, at the last look: GO, STALE or PAUSED."""
        self._seen = SeenWriter(str(folder))
        self._said: tuple[int, bytes | None] | None = None
        self._nobody = Selectors(())

    @property
    def may_decide(self) -> bool:
        """Whether there is something to decide by: the board was fresh once, and its policies were ready."""
        return self.matchers.policy is not None

    def look(self, *, wait: bool = False) -> Standing:
        """Read the board without a call, then `follow`. With `wait`, new policies are made ready at once, here."""
        self.standing = Standing(self.board.check(self._nobody, self._nobody))
        if self.standing is not Standing.STALE:
            self.follow(wait=wait)
        return self.standing

    def follow(self, *, wait: bool = False) -> bool:
        """After a check that was not STALE: take the board's policies if they are ready, and acknowledge what is new.

        Returns whether anything was; then what was decided before must be decided again before it is recorded. A stale board
        is not followed: perhaps another host has just begun to write it.
        """
        board, matchers = self.board, self.matchers
        if self._said == (board.epoch, board.policy):
            return False
        matchers.follow(board.policy, wait=wait)
        said = (board.epoch, matchers.policy)
        if said == self._said or matchers.policy is None:
            return False
        self.gate.matcher = matchers.current
        self._seen.write(board.epoch, matchers.policy, time.time_ns())
        self._said = said
        return True
