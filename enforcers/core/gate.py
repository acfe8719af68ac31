"""What stands between a decision and its act: the policies' word, and the board's, which comes last and goes before it.

    decide      policies and their caches first, then the board: stale, paused, revoked, in this order, whatever they say
    unchanged   just before the record; if not, and where anything was waited for since, decide again
    stopped     when the record stands, just before the act: why the call must not be done any more, or nothing

So a decision that is recorded obeys what the board said just before, and nothing is sent that was revoked before it was sent.
What a door does while the board is stale is its own business: one on the network refuses, a replay waits and records nothing.
"""

from functools import lru_cache
from typing import Final, Protocol

from enforcers.core.call import Call, Decides, decide
from ext.board import Selectors
from schemas.errors import AgentFault
from schemas.records import Decision
from schemas.selectors import caller_texts, target_texts

REASONS: Final = ("", "stale", "paused", "revoked")
"""The reason of a call that the board refuses, by its Standing."""

_CACHED: Final = 4096


class Board(Protocol):
    """What `ext.board.BoardReader` does for us."""

    @property
    def epoch(self) -> int:
        """As of the last check."""

    def check(self, caller: Selectors, target: Selectors, /) -> int:
        """A `schemas.records.Standing`."""

    def unchanged(self) -> bool:
        """Whether the last check still holds."""


class Gate:
    """One door's gate; one thread at a time."""

    def __init__(self, board: Board, matcher: Decides) -> None:
        self.matcher = matcher
        """May be exchanged between two calls."""
        self._board = board

    @property
    def epoch(self) -> int:
        """What the last decision obeys: to be recorded with it."""
        return self._board.epoch

    def decide(self, call: Call) -> Decision:
        """Refuse unless the policies allow it and the board has nothing against it."""
        decision = decide(self.matcher, call)
        if reason := self.stopped(call):
            return Decision(reason=reason, policy_digest=self.matcher.digest, epoch=self._board.epoch)
        return decision

    def stopped(self, call: Call) -> str:
        """Why a call must not be done now, whatever was decided before: `revoked`, `paused`, `stale`; empty if it may be.

        `identity` where it has a name that cannot be said, and so cannot be looked up.
        """
        kept = call.kept
        try:
            if kept is None:
                return REASONS[self._board.check(caller_of(call), target_of(call))]
            if kept.selectors is None:
                kept.selectors = caller_of(call), target_of(call)
            return REASONS[self._board.check(*kept.selectors)]
        except AgentFault:
            return "identity"

    def unchanged(self) -> bool:
        """Whether the board is as it was when this gate was asked last, about whatever call: fresh, and nothing has changed."""
        return self._board.unchanged()


def caller_of(call: Call) -> Selectors:
    """What is true of who makes a call."""
    chain = call.chain
    if chain.too_deep:  # it may be very long, and must not be kept
        return _caller.__wrapped__(
            chain.principals, call.session, call.token, call.twin, call.key, call.grant, call.issuer, call.issued_s
        )
    return _caller(chain.principals, call.session, call.token, call.twin, call.key, call.grant, call.issuer, call.issued_s)


def target_of(call: Call) -> Selectors:
    """What is true of what a call touches."""
    return _target(call.target.resource, call.target.domain)


@lru_cache(_CACHED)
def _caller(
    principals: tuple[str, ...], session: str, token: str, twin: str, key: str, grant: str, issuer: str, issued_s: int
) -> Selectors:
    texts = caller_texts(principals, session=session, token=token, twin=twin, key=key, grant=grant, issuer=issuer)
    return Selectors(texts, issued_s)


@lru_cache(_CACHED)
def _target(resource: str, domain: str) -> Selectors:
    return Selectors(target_texts(resource, domain))
