"""What a door obeys now, and its word on that: the board that it reads, the policies that the board names, the agents that its
host knows by then, its `seen`.

Everything here is done by the thread that decides, and nothing between a decision and its record. So `seen` holds by
construction: a decision that is recorded after `seen` was written was made after a look at a board of at least that epoch, by
the policies that `seen` names or later ones. The host writes its agents before the board: a door that reads them behind a look
at the board knows those of its epoch. Who was known before that look must be asked about again before a call is decided.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from enforcers.core.gate import Gate
from enforcers.doors.matchers import Matchers
from ext.board import BoardReader, SeenWriter, Selectors
from schemas.records import Standing

LOOK_S: Final = 0.005
"""How often a door that has no call looks at the board: what `revoke` waits for an idle door."""

LATE_S: Final = 2.0
"""How long policies may decide that were the wanted ones and are not, while the new ones are made ready."""


class Obeyed:
    """One door's view of its host's board."""

    def __init__(self, board: Path, bundles: Path, folder: Path, agents: Callable[[], bool] | None = None) -> None:
        """`bundles` holds the host's policies; the door's word goes to `seen` in its own `folder`.

        `agents` reads the agents again if they have changed, and says whether they are known: nothing is acknowledged before.
        A door that need not know any has none.

        Raises PeerFault when the disk has no room for that.
        """
        self.board = BoardReader(str(board))
        self.matchers = Matchers(bundles)
        self.gate = Gate(self.board, self.matchers.current)
        self.standing = Standing.STALE
        """Of nobody in particular, at the last look: GO, STALE or PAUSED."""
        self._seen = SeenWriter(str(folder))
        self._agents = agents
        self._known = agents is None
        self._read: tuple[int, int] | None = None
        """Generation and epoch of the board when the agents were last read."""
        self._said: tuple[int, bytes | None] | None = None
        self._agreed = 0.0
        """When the policies in use last were those that a board had that was not stale."""
        self._late = False
        self._nobody = Selectors(())
        self._calm = 0
        """The board's turn at which there was nothing left to follow; 0 where there is."""

    @property
    def may_decide(self) -> bool:
        """Whether there is something to decide by: the board was fresh once, its policies are ready, or will soon be, and the
        agents are known."""
        return self.matchers.policy is not None and not self._late and self._known

    def look(self, *, wait: bool = False) -> Standing:
        """Read the board without a call, then `follow`. With `wait`, new policies are made ready at once, here."""
        if self.standing is Standing.GO and self.board.turn == self._calm and self.board.unchanged():
            self._agreed = time.monotonic()
            return self.standing
        self.standing = Standing(self.board.check(self._nobody, self._nobody))
        if self.standing is not Standing.STALE:
            self.follow(wait=wait)
        return self.standing

    def follow(self, *, wait: bool = False) -> bool:
        """After a check that was not STALE: take the board's policies if they are ready, and acknowledge what is new.

        Returns whether anything was; then what was decided before must be decided again before it is recorded. A stale board
        is not followed: perhaps another host has just begun to write it. A door that stood still, or whose board was stale,
        may find that its policies are not wanted since long: then it decides nothing before the others are ready.
        """
        board, matchers, now = self.board, self.matchers, time.monotonic()
        if board.turn == self._calm:
            self._agreed = now
            return False
        self._calm = 0
        read = False
        # an entry behind a gap in the log changes the board and leaves its epoch; a new board may have an old generation
        if self._agents is not None and self._read != (at := (board.generation, board.epoch)):
            self._known = self._agents()
            if not self._known:
                return False
            self._read, read = at, True
        if self._said == (board.epoch, board.policy):
            self._agreed, self._calm = now, board.turn
            return read
        matchers.follow(board.policy, wait=wait)
        if matchers.policy == board.policy:
            self._agreed = now
        was, self._late = self._late, now - self._agreed > LATE_S
        said = (board.epoch, matchers.policy)
        if said == self._said or matchers.policy is None:
            return read or was != self._late
        self.gate.matcher = matchers.current
        self._seen.write(board.epoch, matchers.policy, time.time_ns())
        self._said = said
        return True
