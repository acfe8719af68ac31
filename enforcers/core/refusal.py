"""What a caller is told that is refused: a status, a reason, and whom to ask for what. As JSON, and never with a secret in it.

    400 431 501 505   malformed: a request that has no one meaning            407  no known identity
    403               policy, a revocation, a pause, the chain, an address    429  too many identities to check
    502 504           the origin, or its name, cannot be reached              503  stale, overloaded: try again

The reasons of 403 and 503 are those of the record; `call_id` names it, and is empty where the call has none of its own.
"""

import json
from dataclasses import dataclass
from typing import Final

from schemas.vocabulary import quote, shown

PHRASES: Final = {
    400: "Bad Request", 403: "Forbidden", 407: "Proxy Authentication Required", 408: "Request Timeout",
    413: "Content Too Large", 414: "URI Too Long", 417: "Expectation Failed",
    429: "Too Many Requests", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}  # fmt: skip

POLICIES_SAID_MAX: Final = 32
"""Policy ids in one body."""

RETRY_S: Final = 1
"""What `Retry-After` says, seconds."""

CHALLENGES: Final = (
    b'proxy-authenticate: Basic realm="wardline", charset="UTF-8"\r\n'
    b'proxy-authenticate: Bearer realm="wardline"\r\n'
)

_SAID: Final = {
    "forbid": ("a policy forbids this", "ask the operator to change the policies that are named"),
    "chain": ("the chain of principals is too deep", "ask the agent's owner for a shorter delegation"),
    "identity": ("nobody who may act is named", "ask the operator for an agent's credential"),
    "revoked": ("the agent, its credential, session or destination is revoked", "ask the operator to lift the revocation"),
    "paused": ("everything is paused", "ask the operator to resume"),
    "stale": ("the door may have missed a revocation", "try again; if it goes on, ask the operator whether control is running"),
    "overloaded": ("there is no room for this call", "try again; if it goes on, ask the operator: `wardline status`"),
    "address": ("the name leads to an address that may not be dialled", "ask the operator to list it: egress.allow_addresses"),
    "malformed": ("the request has no one meaning", "ask the author of the client to correct it"),
    "unreachable": ("the origin cannot be reached", "try again; if it goes on, ask whoever runs the origin"),
    "timeout": ("the origin does not answer in time", "try again; if it goes on, ask whoever runs the origin"),
}
_NO_PERMIT: Final = ("no policy permits this", "ask the operator to permit it")
_STATUS: Final = {"stale": 503, "overloaded": 503, "malformed": 400, "identity": 407}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a call is not made, for its caller."""

    status: int
    reason: str
    message: str
    ask: str
    call_id: str = ""
    policies: tuple[str, ...] = ()
    agent: str = ""
    action: str = ""
    resource: str = ""

    def encode(self, *, close: bool, body: bool = True) -> bytes:
        """A whole HTTP/1.1 response; `close` where the connection ends with it, no `body` where HEAD asked."""
        said = {
            "call_id": self.call_id, "policy": list(self.policies[:POLICIES_SAID_MAX]), "reason": self.reason,
            "message": self.message, "ask": self.ask, "agent": self.agent, "action": self.action, "resource": self.resource,
        }  # fmt: skip
        data = json.dumps(said).encode() + b"\n"
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n" % (
            self.status, PHRASES[self.status].encode(), len(data),
        )  # fmt: skip
        if self.status == 407:
            head += CHALLENGES
        elif self.status in (429, 503):
            head += b"retry-after: %d\r\n" % RETRY_S
        return head + (b"connection: close\r\n\r\n" if close else b"\r\n") + (data if body else b"")


def said_of(reason: str) -> str:
    """What `reason` means, in a few words."""
    return _SAID.get(reason, _NO_PERMIT)[0]


def refusal(
    reason: str, *, status: int = 0, detail: str = "", call_id: str = "", policies: tuple[str, ...] = (), agent: str = "",
    action: str = "", resource: str = "",
) -> Refusal:  # fmt: skip
    """Say what `reason` means and what can be done. `detail` takes the place of the general message.

    Where policy does not permit, what to ask for is the policy itself, in Cedar.
    """
    message, ask = _SAID.get(reason, _NO_PERMIT)
    if reason == "no-permit" and agent and action and resource:
        ask = (
            f"ask the operator for the policy `permit (principal == Agent::{quote(agent)}, action == Action::{quote(action)},"
            f" resource == {resource});`"
        )
    return Refusal(
        status=status or _STATUS.get(reason, 403), reason=reason, message=detail or message, ask=ask, call_id=call_id,
        policies=policies, agent=agent, action=action, resource=resource,
    )  # fmt: skip


def malformed(status: int, detail: str) -> Refusal:
    """A request that was not understood, so that there is no call; `detail` may quote it, as far as `shown` lets it."""
    return refusal("malformed", status=status, detail=detail)


def unknown(status: int, detail: str, claimed: str) -> Refusal:
    """Nobody is known by the credential that was shown: 407, or 429 and 503 where it was not even looked at."""
    if status == 407:
        return refusal("identity", detail=detail, agent=shown(claimed))
    return Refusal(status=status, reason="identity", message=detail, ask="try again", agent=shown(claimed))
