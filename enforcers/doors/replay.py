"""The door that a file of recorded calls is fed through: the same core, spool and host as a door on the network.

What it touches has happened already, so an allowed call ends as its line says. Where a network door would refuse for want of
room, this one waits: a refusal that nobody decided must not stand in the record.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from enforcers.core.call import Call, Decides, End, Record, decide, decision_record, effect_record, target_of
from enforcers.core.chain import make_chain
from enforcers.doors.spooler import Spooler
from schemas.calls import RecordedCall
from schemas.errors import SpoolFull
from schemas.records import Decision, Verdict

DOOR: Final = "replay"
WAIT_S: Final = 0.001
WAIT_S_MAX: Final = 0.2

_chain = lru_cache(8192)(make_chain)


class ReplayDoor:
    """Decides and records one call after another.

    `idle` is called again and again while the spool has no room, with whether the call may still be given up; what it raises
    ends the wait.
    """

    def __init__(self, spooler: Spooler, matcher: Decides, idle: Callable[[bool], None]) -> None:
        self.matcher = matcher
        """May be exchanged between two calls."""
        self.full = ""
        """Why a call is waiting now; empty when none is."""
        self.open = False
        """Whether a call is recorded as let out and its end is not."""
        self._spooler = spooler
        self._idle = idle

    def call(self, said: RecordedCall) -> Decision:
        """Decide a call and record it; returns when both its records are in the spool.

        A crash before the first append: the line is not done. A crash before the second: the host records the call as lost.
        """
        call = Call(
            time_ns=said.time_ns, door=DOOR, chain=_chain(said.chain), action=said.action, target=target_of(said.resource),
            trace_id=said.trace_id, parent_span=said.parent_span, session=said.session, ref=said.ref,
        )  # fmt: skip
        decision = decide(self.matcher, call)
        seq = self._append(decision_record(call, decision, time.time_ns()), may_stop=True)
        if decision.verdict is Verdict.ALLOW:
            end = End(
                time_ns=said.time_ns + said.duration_ns, outcome=said.outcome, status=said.status, bytes_out=said.bytes_out,
                bytes_in=said.bytes_in, duration_ns=said.duration_ns, error=said.error,
            )  # fmt: skip
            self.open = True
            self._append(effect_record(call, seq, end, time.time_ns()), may_stop=False)
            self.open = False
        return decision

    def _append(self, record: Record, *, may_stop: bool) -> int:
        wait = WAIT_S
        while True:
            try:
                seq = self._spooler.append(record)
            except SpoolFull as fault:
                self.full = str(fault)
            else:
                self.full = ""
                return seq
            self._idle(may_stop)
            time.sleep(wait)
            wait = min(2 * wait, WAIT_S_MAX)
