"""A whole pipeline in one home, and a door in the test's own process that records into it what the test says happened.

    door = RecordingDoor(home)
    call = door.call(resource='Host::"a.example:443"')      decided by the policies of the home, recorded, sealed, stored
    door.progress(call, out=5)
    door.end(call)

Nothing listens and nothing is sent: it is what a network door does to the record, without the network.
"""

import itertools
import os
import time
from dataclasses import dataclass
from typing import Any

from enforcers.core.call import Call, Decides, End, decide, decision_record, effect_record, progress_record, target_of
from enforcers.core.chain import make_chain
from enforcers.core.flood import Flood
from enforcers.doors.spooler import Spooler
from ext.decide import Matcher
from pipeline.policy.load import load_bundle
from schemas.config import Enforcer
from schemas.records import SEPARATOR, Decision, Outcome, Verdict, call_id, make_boot
from tests.support.home import Wardline

POLICIES = """
@id("read-the-web")
permit (principal in AgentGroup::"readers", action in Action::"http:read", resource);

@id("tunnels")
permit (principal in AgentGroup::"readers", action == Action::"http:CONNECT", resource);

// nobody pays
@id("no-paste")
@reason("pastes; leave \\"no\\" trace")
forbid (principal, action, resource == Host::"paste.example:443");
"""

ENTITIES = """[
    {"uid": {"type": "Agent", "id": "planner"}, "attrs": {}, "parents": [{"type": "AgentGroup", "id": "readers"}]},
    {"uid": {"type": "Agent", "id": "researcher"}, "attrs": {}, "parents": [{"type": "AgentGroup", "id": "readers"}]}
]"""

NO_DOORS = "[egress]\ndoors = 0\n"
"""A home whose only door is the test's."""


@dataclass(frozen=True)
class Made:
    """A call that was recorded."""

    id: str
    call: Call
    seq: int
    decision: Decision

    @property
    def allowed(self) -> bool:
        return self.decision.verdict is Verdict.ALLOW


class RecordingDoor:
    """A door of host `enforce-1` of a home."""

    def __init__(self, home: Wardline, host: str = "enforce-1") -> None:
        self.boot = make_boot(int(time.time()), int.from_bytes(os.urandom(4), "big"))
        self.spooler = Spooler(home.home.host(host), self.boot, Enforcer())
        self.matcher: Decides = Matcher(load_bundle(home.home.policies).encode())
        self.flood = Flood("door-9")
        self._minted = itertools.count(1)

    def call(
        self, chain: tuple[str, ...] = ('User::"alice"', 'Agent::"planner"'), *, action: str = "http:GET",
        resource: str = 'Host::"a.example:443"', epoch: int = 0, **fields: Any,
    ) -> Made:  # fmt: skip
        """Decide a call by the policies, and record the decision."""
        said: dict[str, Any] = {
            "session": "s-1", "proof": "jws", "credential": "ab" * 32, "trace_id": next(self._minted).to_bytes(16, "big"),
            "assurance": SEPARATOR.join(["signed"] * (len(chain) - 1)),
        } | fields  # fmt: skip
        call = Call(time_ns=time.time_ns(), door="door-9", chain=make_chain(chain), action=action,
                    target=target_of(resource), **said)  # fmt: skip
        decision = decide(self.matcher, call)
        seq = self.spooler.append(decision_record(call, decision, time.time_ns(), epoch))
        return Made(call_id(self.boot, seq), call, seq, decision)

    def progress(self, made: Made, out: int = 0, came: int = 0) -> None:
        """A tunnel says how far it is."""
        now = time.time_ns()
        self.spooler.append(progress_record(made.call, made.seq, out, came, now, now))

    def end(self, made: Made, outcome: Outcome = Outcome.OK, *, epoch: int = 0, **fields: Any) -> None:
        """The end of a call; with a `reason` it takes the decision back."""
        now = time.time_ns()
        end = End(time_ns=now, outcome=outcome, duration_ns=now - made.call.time_ns, **fields)
        self.spooler.append(effect_record(made.call, made.seq, end, now, epoch))

    def cut(self, made: Made, reason: str, *, epoch: int = 0, **fields: Any) -> None:
        """It was open and the board stopped it."""
        self.end(made, Outcome.REFUSED, epoch=epoch, reason=reason, error=f"{reason} while open", **fields)

    def nobody(self, claimed: str, times: int, code: str = "credential") -> None:
        """Requests that no identity came of."""
        for _ in range(times):
            self.flood.add("identity", code, claimed, status=407)
        self.flood.write(self.spooler.append, time.time_ns(), everything=True)

    def close(self) -> None:
        """End the door cleanly."""
        self.spooler.close()


def start(home: Wardline) -> None:
    """Policies, and every process of a home but doors."""
    home.write_policies(POLICIES)
    (home.home.policies / "entities.json").write_text(ENTITIES)
    home.start_all()
