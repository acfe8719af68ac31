"""Who makes a call, and what proved it: what identity hands to the rest of the core.

A caller is made from one credential by what the host knew of agents and issuers at that moment. It may be kept, and is asked
about again (`listed`, `until_s`) whenever either has changed. Whether it is revoked is another question, which the gate asks
with every call.
"""

from dataclasses import dataclass
from typing import Final

from enforcers.core.chain import Chain
from schemas.errors import AgentFault

SECRET: Final = "secret"
JWS: Final = "jws"
"""The kinds of proof: a static secret, whose holder is believed, and a token that an issuer has signed."""

BUSY: Final = "busy"
UNREADY: Final = "unready"


class NoIdentity(AgentFault):
    """Nobody is known by what a request shows: it is refused and counted, and has no record of its own.

    `code` is one word for the count, and says no more than the answer may: a name that nobody has and a secret that is wrong
    are both `credential`. `claimed` is the name that the request gave, bounded, empty where it gave none or where it may be a
    secret. `status` is 407; 429 where too many are being checked (`busy`) and 503 where the agents are not known (`unready`):
    then the same request may pass a second later.
    """

    def __init__(self, code: str, message: str, claimed: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.claimed = claimed

    @property
    def status(self) -> int:
        """Of the answer."""
        return 429 if self.code == BUSY else 503 if self.code == UNREADY else 407


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An agent that is known, for whom it acts, and by what. Fields that `Call` has too mean the same there."""

    agent: str
    """The name of the agent that acts."""
    chain: Chain
    """May be too deep: then it is refused for that, and recorded with its agent."""
    session: str = ""
    credential: str = ""
    """What the record calls the proof: 32 hex digits for a secret, of its stored hash; a token's SHA-256."""
    proof: str = SECRET
    token: str = ""
    """SHA-256 of the token's text, 64 hex digits."""
    twin: str = ""
    """SHA-256 of the one other text that is the same token: every ES256 signature has a second form. Revoked with it."""
    key: str = ""
    """Thumbprint of the issuer's key that signed the token (RFC 7638)."""
    issuer: str = ""
    issued_s: int = 0
    """`iat`, seconds since 1970; 0 where the token does not say it."""
    assurance: str = ""
    """Of each edge of the chain, joined by SEPARATOR."""
    until_s: int = 0
    """From when on the token is worth nothing, seconds since 1970; 0 for a secret, which has no end of its own."""
    listed: tuple[tuple[str, str, str], ...] = ()
    """(issuer, subject, agent) by which the token's agents are known: true as long as control says so."""
