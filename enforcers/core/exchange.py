"""One call of a door on the network, from its decision to its end: what is recorded, when it may act, why it must stop.

    begin    decided, then recorded             -> None: it is open; a Refusal: it is over, and nothing may go out
    also     a second question about it         -> None, or a Refusal: over, its effect says what was asked
    may_act  just before the first byte goes up -> None, or a Refusal: over, its effect takes the verdict back (`withdrawn`)
    stopped  whenever the board has changed     -> why it must not go on; then cut
    end / refuse / cut                          -> over: exactly one effect, in its decision's record or as one of its own

Nothing is awaited in here, so between a decision and its record, and between `may_act` and the byte that follows it, nobody
else is asked. A crash before the decision's record: nothing went out. Behind it: the call is open, and its host records it as
lost, whether or not it went out.

An effect that finds no room, not even in the reserve, is kept here until there is some; it is one for each call that is open,
so it is bounded by those. Meanwhile no call is begun: what cannot end in the record must not begin.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from enforcers.core.call import (
    Append,
    Call,
    Complete,
    Decides,
    End,
    Record,
    decision_record,
    effect_record,
    progress_record,
    withdrawn,
)
from enforcers.core.caller import Caller
from enforcers.core.refusal import Refusal, refusal, said_of
from schemas.errors import AgentFault, SpoolFull
from schemas.records import Decision, Outcome, Verdict, call_id


class Gates(Protocol):
    """What `enforcers.core.gate.Gate` does for us."""

    matcher: Decides

    @property
    def epoch(self) -> int:
        """What the last decision obeys."""

    def decide(self, call: Call) -> Decision:
        """Policies and board."""

    def stopped(self, call: Call) -> str:
        """Why it must not be done now; empty if it may be."""

    def unchanged(self) -> bool:
        """Whether the board is as when it was asked last."""


class Obeys(Protocol):
    """What `enforcers.doors.obeyed.Obeyed` does for us."""

    @property
    def may_decide(self) -> bool:
        """Whether there are policies to decide by."""

    def follow(self) -> bool:
        """Take what the board names; whether anything was new."""


class Desk:
    """What the exchanges of one door share. One thread."""

    def __init__(
        self, gate: Gates, obeyed: Obeys, append: Append, complete: Complete, boot: int,
        still: Callable[[Caller], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        """`still` says whether a caller would be known now."""
        self.gate = gate
        self.still = still
        self.obeyed = obeyed
        self.append = append
        self.complete = complete
        self.boot = boot
        self.span_front = (boot & 0xFFFF_FFFF).to_bytes(4, "big")
        """What the span of each call begins with."""
        self.waiting: deque[Record] = deque()
        """Effects for which there was no room yet, oldest first."""

    def finish(self, record: Record) -> None:
        """Write an effect, now or as soon as there is room, in the order in which the calls ended."""
        if self.waiting:
            self.waiting.append(record)
            return
        try:
            self.append(record)
        except (SpoolFull, OSError):
            self.waiting.append(record)

    def retry(self) -> bool:
        """Write what waits, as far as there is room; whether nothing waits any more."""
        while self.waiting:
            try:
                self.append(self.waiting[0])
            except (SpoolFull, OSError):
                return False
            self.waiting.popleft()
        return True


class Exchange:
    """One call. `call` and `decision` are there from `begin` on."""

    __slots__ = ("_desk", "_told", "address", "call", "caller", "decision", "open", "seq")

    def __init__(self, desk: Desk, caller: Caller | None = None) -> None:
        self.call: Call
        self.caller = caller
        """Who makes it, as identity knows; whether it still does is asked with the board."""
        self.decision: Decision
        self.seq = 0
        """Of its decision's record; 0 before it, and where there was no room for it."""
        self.open = False
        """Whether it is recorded as let out and its end is not."""
        self.address = ""
        """What was dialled for it, `ADDRESS:PORT`: set by whoever dials."""
        self._desk = desk
        self._told = False
        """Whether it has another record than its decision's."""

    @property
    def call_id(self) -> str:
        """The name of the call; empty where nothing is recorded of it."""
        return call_id(self._desk.boot, self.seq) if self.seq else ""

    @property
    def span(self) -> bytes:
        """8 bytes that stand for this call in the trace, and go upstream as its parent: the low halves of its door's boot
        (which is random) and of its seq. Never zero."""
        return self._desk.span_front + (self.seq & 0xFFFF_FFFF).to_bytes(4, "big")

    # -- before it acts ----------------------------------------------------------------------------------------------

    def begin(self, call: Call, now_ns: int) -> Refusal | None:
        """Decide and record. None: it is open and may be prepared; nothing may go out before `may_act`.

        A door that cannot show that it knows every revocation refuses (`stale`), one whose spool is full too (`overloaded`):
        that is recorded as long as the reserve has room, and a call of which nothing is recorded has no id.
        """
        desk = self._desk
        gate = desk.gate
        self.call = call
        while True:
            decision = gate.decide(call)
            if decision.reason == "stale":
                break
            if desk.obeyed.follow():  # other policies, or other agents
                if self.caller is not None and not desk.still(self.caller):
                    decision = Decision(reason="identity", policy_digest=gate.matcher.digest)
                    break
                continue
            if not desk.obeyed.may_decide:
                decision = Decision(reason="stale", policy_digest=gate.matcher.digest)
                break
            if gate.unchanged():
                break
        self.decision = decision
        if desk.waiting:
            return self._no_room()
        try:
            self.seq = desk.append(decision_record(call, decision, now_ns, gate.epoch))
        except (SpoolFull, OSError):
            return self._no_room(now_ns)
        except AgentFault as fault:
            self.decision = Decision(reason="malformed", policy_digest=decision.policy_digest)
            return self._refusal("malformed", str(fault))
        if decision.verdict is Verdict.ALLOW:
            self.open = True
            return None
        return self._refusal(decision.reason)

    def _no_room(self, now_ns: int = 0) -> Refusal:
        was, self.decision = self.decision, Decision(reason="overloaded", policy_digest=self.decision.policy_digest)
        if now_ns and was.verdict is Verdict.ALLOW:  # else the reserve is used up already
            with contextlib.suppress(SpoolFull, OSError):
                self.seq = self._desk.append(decision_record(self.call, self.decision, now_ns, self._desk.gate.epoch))
        return self._refusal("overloaded")

    def also(self, action: str, now_ns: int, why: str) -> Refusal | None:
        """Ask for the same chain and target whether it may do `action` too, which it needs for the reason `why`.

        What was allowed for the first question does not count. A refusal ends the call; its effect names the action and why.
        """
        desk, call = self._desk, self.call
        asked = call.asking(action)
        while True:
            decision = desk.gate.decide(asked)
            if decision.reason == "stale" or desk.gate.unchanged():
                break
        if decision.verdict is Verdict.ALLOW:
            return None
        self._take_back(decision.reason, f"{action}: {why}", now_ns)
        said = f"{action} is needed ({why}): {said_of(decision.reason)}"
        return self._refusal(decision.reason, said, policies=decision.because, action=action)

    def may_act(self, now_ns: int, *, at_once: bool = False) -> Refusal | None:
        """Ask just before the first byte goes up, and send that byte before anything else happens.

        `at_once`: nothing has happened at this door since `begin` returned, so that the gate was asked last about this call.
        """
        if at_once and self._desk.gate.unchanged():
            return None
        reason = self._desk.gate.stopped(self.call)
        if not reason:
            return None
        self._finish(withdrawn(reason, now_ns))
        return self._refusal(reason)

    # -- while it is out ---------------------------------------------------------------------------------------------

    def stopped(self) -> str:
        """Why it must not go on: `revoked`, `paused`, or `stale` where the door may have missed a revocation."""
        return self._desk.gate.stopped(self.call)

    def progress(self, bytes_out: int, bytes_in: int, now_ns: int) -> None:
        """Record how much it has moved since it began. Without room nothing is: the next one, or the effect, says more."""
        if not self.open or self._desk.waiting:
            return
        with contextlib.suppress(SpoolFull, OSError):
            self._desk.append(progress_record(self.call, self.seq, bytes_out, bytes_in, now_ns, now_ns, self.address))
            self._told = True

    # -- how it ends; each does nothing for one that is over ---------------------------------------------------------

    def end(
        self, outcome: Outcome, status: int, bytes_out: int, bytes_in: int, now_ns: int, error: str = ""
    ) -> None:
        """It was done, or it failed on its way: `error` says how."""
        if not self.open:
            return
        self.open = False
        desk, took = self._desk, self._since(now_ns)
        # most calls end before anybody has read how they began: one record then says both
        if not error and not self._told and desk.complete(self.seq, outcome, status, bytes_out, bytes_in, took, self.address):
            return
        end = End(now_ns, outcome, status, bytes_out, bytes_in, took, error, "", self.address)
        desk.finish(effect_record(self.call, self.seq, end, now_ns))

    def refuse(self, reason: str, error: str, now_ns: int) -> Refusal:
        """It was let out and must not be done after all, for what only its preparation showed, such as an address."""
        self._take_back(reason, error, now_ns)
        return self._refusal(reason, error)

    def cut(self, reason: str, bytes_out: int, bytes_in: int, now_ns: int) -> Refusal:
        """It was out and is stopped by the board; what it had moved until then stays in the record."""
        self._take_back(reason, f"{reason} while open", now_ns, bytes_out, bytes_in)
        return self._refusal(reason)

    def withdraw(self, reason: str, now_ns: int) -> Refusal:
        """It waits, and the board will not have it any more: nothing of it was sent."""
        self._finish(withdrawn(reason, now_ns))
        return self._refusal(reason)

    def _take_back(self, reason: str, error: str, now_ns: int, bytes_out: int = 0, bytes_in: int = 0) -> None:
        """Its last word is a refusal, though its decision let it out."""
        self._finish(
            End(time_ns=now_ns, outcome=Outcome.REFUSED, bytes_out=bytes_out, bytes_in=bytes_in,
                duration_ns=self._since(now_ns), error=error, reason=reason, address=self.address),
        )  # fmt: skip

    def _finish(self, end: End) -> None:
        if not self.open:
            return
        self.open = False
        epoch = self._desk.gate.epoch if end.reason else 0
        self._desk.finish(effect_record(self.call, self.seq, end, end.time_ns, epoch))

    def _since(self, now_ns: int) -> int:
        took = now_ns - self.call.time_ns
        return took if took > 0 else 0  # the clock of the machine may be set back

    # -- what its caller is told -------------------------------------------------------------------------------------

    def _refusal(
        self, reason: str, detail: str = "", *, policies: tuple[str, ...] = (), action: str = ""
    ) -> Refusal:
        call = self.call
        return refusal(
            reason, detail=detail, call_id=self.call_id, policies=policies or self.decision.because, agent=call.chain.agent,
            action=action or call.action, resource=call.target.resource,
        )  # fmt: skip

    def failed(self, status: int, detail: str) -> Refusal:
        """The answer to a call that failed on its way: 502, or 504 where something took too long."""
        return refusal(
            "timeout" if status == 504 else "unreachable", status=status, detail=detail, call_id=self.call_id,
            agent=self.call.chain.agent, action=self.call.action, resource=self.call.target.resource,
        )  # fmt: skip
