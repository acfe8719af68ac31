"""What a verified token says: which agent acts, for whom, until when (RFC 7519, RFC 8693 section 4.1, the OAuth actor profile).

    {"iss": I, "sub": "alice", "aud": A, "exp": T, "act": {"sub": "r-17", "act": {"sub": "p-3"}}}
    User::"alice" -> Agent::"planner" -> Agent::"researcher"       (r-17 acts now, p-3 handed it on)

The outermost `act` is who acts; without one it is `sub`. Each actor is a listed agent, by its own `iss` or the token's, or one
that says of itself that it is no agent (`sub_profile`); who acts is always a listed agent. A chain is refused or kept whole,
never cut. Nothing inside `act` but names is believed: its `exp` and `aud` mean nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from enforcers.core.caller import JWS, Caller, NoIdentity
from enforcers.core.chain import make_chain
from schemas.agents import Agents
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX
from schemas.records import SEPARATOR
from schemas.vocabulary import agent_uid, service_uid, shown, user_uid

AUDIENCES_MAX: Final = 64
"""Texts in one `aud`."""

TIME_S_MAX: Final = (1 << 53) - 1
SIGNED: Final = "signed"
"""The assurance of an edge that the issuer of a verified token has signed."""

_AGENTS: Final = frozenset({"ai_agent"})
_SERVICES: Final = frozenset({"service", "workload", "tool"})
_USERS: Final = frozenset({"user"})


def issuer_of(claims: Mapping[str, Any]) -> str:
    """`iss`, which says whose keys a token is checked with: one text, never a list. Raises NoIdentity `token-claims`."""
    return _name(claims, "iss", RESOURCE_BYTES_MAX, "the token")


def check_claims(claims: Mapping[str, Any], *, audience: str, now_s: float) -> tuple[int, int]:
    """(`exp`, `iat`) in whole seconds; an `iat` that is not there is 0. Raises NoIdentity.

    Without leeway: `exp` has passed when it is reached; `nbf` and `iat` are never in the future. A token that is bound to a
    key (`cnf`) is refused: nothing here proves that its bearer has that key.
    """
    aud = claims.get("aud")
    texts = [aud] if isinstance(aud, str) else aud
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise NoIdentity("token-claims", "the token's `aud` is no text and no array of texts")
    if len(texts) > AUDIENCES_MAX:
        raise NoIdentity("token-claims", f"the token's `aud` has {len(texts)} texts, limit is {AUDIENCES_MAX}")
    if audience not in texts:
        raise NoIdentity("token-audience", f"the token is not for `{shown(audience)}`: that is not in its `aud`")
    times = {claim: _time(claims, claim) for claim in ("exp", "nbf", "iat") if claim in claims}
    if "exp" not in times:
        raise NoIdentity("token-claims", "the token has no `exp`, so it would be good for ever")
    if "jti" in claims and not isinstance(claims["jti"], str):
        raise NoIdentity("token-claims", "the token's `jti` is no text")
    if "cnf" in claims:
        raise NoIdentity("token-bound", "the token is bound to a key (`cnf`), and is no credential without a proof of that key")
    if times["exp"] <= now_s:
        raise NoIdentity("token-expired", f"the token has expired: its `exp` is {math.floor(times['exp'])}")
    for claim in ("nbf", "iat"):
        if times.get(claim, 0) > now_s:
            raise NoIdentity("token-early", f"the token's `{claim}` is in the future: {math.floor(times[claim])}")
    return math.floor(times["exp"]), math.floor(times.get("iat", 0))


def caller_of(
    claims: Mapping[str, Any], agents: Agents, *, issuer: str, until_s: int, issued_s: int, name: str = "", session: str = "",
    token: str, twin: str = "", key: str,
) -> Caller:  # fmt: skip
    """Who a token names. `name` is the agent that the request claims, empty where it claims none.

    Raises NoIdentity `token-chain` for a chain that cannot be read, `token-agent` where it names an agent that is not listed.
    """
    listed: list[tuple[str, str, str]] = []
    subject = _principal(claims, issuer, agents, listed, actor=False)
    actors = _actors(claims)
    uids = [_principal(actor, issuer, agents, listed, actor=True) for actor in actors]
    if actors and (_issuer(actors[-1], issuer), actors[-1].get("sub")) == (issuer, claims.get("sub")):
        uids.pop()  # who acts for itself hands nothing on
    principals = (subject, *reversed(uids))
    acting = (_issuer(actors[0], issuer), actors[0]["sub"]) if actors else (issuer, claims["sub"])
    agent = agents.by_sub.get(acting, "")
    if not agent:
        raise NoIdentity("token-agent", f"who acts is no agent of ours: `{shown(acting[1])}` of issuer `{shown(acting[0])}`")
    if name and name != agent:
        raise NoIdentity("token-agent", "the token is another agent's than the user name says")
    return Caller(
        agent=agent, chain=make_chain(principals), session=session, credential=token, proof=JWS, token=token, twin=twin,
        key=key, issuer=issuer, issued_s=issued_s, assurance=SEPARATOR.join([SIGNED] * (len(principals) - 1)), until_s=until_s,
        listed=tuple(dict.fromkeys(listed)),
    )  # fmt: skip


def _actors(claims: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The `act` objects, who acts first. Their number is bounded by the size of a token alone, so that none is dropped."""
    found: list[Mapping[str, Any]] = []
    here = claims
    while "act" in here:
        here = here["act"]
        if not isinstance(here, dict):
            raise NoIdentity("token-chain", "an `act` of the token is no object")
        if "client_profile" in here:
            raise NoIdentity("token-chain", "an `act` of the token has `client_profile`, which only a token itself may have")
        found.append(here)
    return found


def _principal(
    said: Mapping[str, Any], issuer: str, agents: Agents, listed: list[tuple[str, str, str]], *, actor: bool
) -> str:
    """The uid of a token's subject or of one actor; an agent of ours is noted in `listed`."""
    where = "an `act` of the token" if actor else "the token"
    namespace, subject = _issuer(said, issuer), _name(said, "sub", NAME_BYTES_MAX, where)
    if name := agents.by_sub.get((namespace, subject), ""):
        listed.append((namespace, subject, name))
        return agent_uid(name)
    profile = said.get("sub_profile", "")
    if not isinstance(profile, str):
        raise NoIdentity("token-chain", f"the `sub_profile` of {where} is no text")
    kinds = set(profile.split())
    if not kinds & _AGENTS:
        if kinds & _SERVICES:
            return service_uid(subject)
        if kinds & _USERS or (not actor and not kinds):
            return user_uid(subject)
    raise NoIdentity("token-agent", f"`{shown(subject)}` of issuer `{shown(namespace)}` in the token is no agent of ours")


def _issuer(said: Mapping[str, Any], issuer: str) -> str:
    return _name(said, "iss", RESOURCE_BYTES_MAX, "an `act` of the token") if "iss" in said else issuer


def _name(said: Mapping[str, Any], claim: str, limit: int, where: str) -> str:
    """A text that names somebody: not empty, bounded, without control characters and lone surrogates."""
    value = said.get(claim)
    if not isinstance(value, str) or not value:
        raise NoIdentity("token-claims", f"`{claim}` of {where} is no text" if claim in said else f"{where} has no `{claim}`")
    size = len(value.encode(errors="replace"))
    if size > limit:
        raise NoIdentity("token-claims", f"`{claim}` of {where} has {size} bytes, limit is {limit}")
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise NoIdentity("token-claims", f"`{claim}` of {where} has a control character")
    return value


def _time(claims: Mapping[str, Any], claim: str) -> float:
    value = claims[claim]
    if type(value) not in (int, float) or not 0 <= value <= TIME_S_MAX:
        raise NoIdentity("token-claims", f"the token's `{claim}` is no time in seconds since 1970")
    return float(value)
