"""The door that a file of recorded calls is fed through: the same core, spool and host as a door on the network.

    decided -> anything new on the board? then it is acknowledged, and decided again -> recorded -> still so? then let out

What it touches has happened already, so an allowed call ends as its line says. Where a network door would refuse for want of
room, or since it may have missed a revocation, this one waits: a refusal that nobody decided must not stand in the record.
"""

import time
from functools import lru_cache
from typing import Final, Protocol

from enforcers.core.call import (
    Call,
    End,
    Record,
    decision_record,
    effect_record,
    target_of,
    withdrawn,
)
from enforcers.core.chain import make_chain
from enforcers.core.gate import REASONS
from enforcers.doors.obeyed import Obeyed
from enforcers.doors.spooler import Spooler
from schemas.calls import RecordedCall
from schemas.errors import SpoolFull
from schemas.records import Decision, Standing, Verdict

DOOR: Final = "replay"
STALE: Final = REASONS[Standing.STALE]
WAITS_FRESH: Final = "its host cannot show that it knows every revocation: is control running?"
WAITS_POLICIES: Final = "its host has no policies for it yet"

_chain = lru_cache(8192)(make_chain)


class Rests(Protocol):
    """A short while of waiting, in which the board is looked at and followed."""

    def __call__(self, why: str, *, may_stop: bool) -> None:
        """`may_stop`: whether the call may still be given up. What this raises ends the wait."""


class ReplayDoor:
    """Decides and records one call after another."""

    def __init__(self, spooler: Spooler, obeyed: Obeyed, rest: Rests) -> None:
        self.open = False
        """Whether a call is recorded as let out and its end is not."""
        self._spooler = spooler
        self._obeyed = obeyed
        self._gate = obeyed.gate
        self._rest = rest

    def call(self, said: RecordedCall) -> Decision:
        """Decide and record one call, with its end when it was allowed; returns the last word on it.

        A crash before the first record: the call was not made. A crash before the second: the host records it as lost.
        """
        call = Call(
            time_ns=said.time_ns, door=DOOR, chain=_chain(said.chain), action=said.action, target=target_of(said.resource),
            trace_id=said.trace_id, parent_span=said.parent_span, session=said.session, token=said.token, key=said.key,
            grant=said.grant, issuer=said.issuer, credential=said.credential, client=said.client, ref=said.ref,
        )  # fmt: skip
        decision, seq = self._decide(call)
        if decision.verdict is not Verdict.ALLOW:
            return decision
        self.open = True
        # nobody has asked the gate about anything else since this call was decided
        why = "" if self._gate.unchanged() else self._gate.stopped(call)
        while why == STALE:
            self._rest(WAITS_FRESH, may_stop=False)
            why = self._gate.stopped(call)
        if why:
            # recorded as allowed, then revoked: it is not made, and its last word says so
            self._end(call, seq, withdrawn(why, said.time_ns))
            return Decision(reason=why, policy_digest=decision.policy_digest)
        self._end(
            call, seq,
            End(
                time_ns=said.time_ns + said.duration_ns, outcome=said.outcome, status=said.status, bytes_out=said.bytes_out,
                bytes_in=said.bytes_in, duration_ns=said.duration_ns, error=said.error,
            ),
        )  # fmt: skip
        return decision

    def _decide(self, call: Call) -> tuple[Decision, int]:
        """Decide and record; returns the decision and its seq. Whatever it waits for, it decides anew afterwards."""
        gate, obeyed = self._gate, self._obeyed
        while True:
            decision = gate.decide(call)
            if decision.reason == STALE or not obeyed.may_decide:
                self._rest(WAITS_FRESH if decision.reason == STALE else WAITS_POLICIES, may_stop=True)
                continue
            if obeyed.follow() or not gate.unchanged():
                continue
            try:
                return decision, self._spooler.append(decision_record(call, decision, time.time_ns(), gate.epoch))
            except SpoolFull as fault:
                self._rest(str(fault), may_stop=True)

    def _end(self, call: Call, seq: int, end: End) -> None:
        if not end.error and not end.reason and self._spooler.complete(
            seq, end.outcome, end.status, end.bytes_out, end.bytes_in, end.duration_ns, end.address
        ):  # fmt: skip
            self.open = False
            return
        record: Record = effect_record(call, seq, end, time.time_ns(), self._gate.epoch if end.reason else 0)
        while True:
            try:
                self._spooler.append(record)
            except SpoolFull as fault:
                self._rest(str(fault), may_stop=False)
            else:
                self.open = False
                return
