"""Second holder: a credential that somebody shows who is not the one that showed it first.

A holder is an enforcer and a network (`schemas.egress.network_of`): where a call was decided and where its connection came
from. The one whose first call is the earliest is the one that the credential is bound to. The first call of any other is a
finding, whose score says how much speaks against it:

    enforcer    it came through another enforcer                                                3
    network     it came from another network, where both are known: not two of this machine's   2
    agent       it was for another agent than the first call                                    1
    overlap     the bound holder has shown it within 30 minutes before, or since: both have it   2

The weights are those of a bearer token (3 workload, 2 network, 1 kind of client, 2 both active), 17.5 points each: the four
that make it a theft there are 70 points, high. There is one finding for a credential and holder, whatever it does next.

A holder with two ways out (an IPv4 and an IPv6 address, a pool of them, a service that calls on its behalf) shows both at
once: who comes in the credential's first minute, through the same enforcer and for the same agent, is the bound holder too. So
a thief in that minute is missed, and one behind the same enforcer and in the same /24 always.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.core.detect.columns import codes, each_group, numbers
from pipeline.core.detect.interface import Room
from pipeline.core.detect.words import news
from schemas.detectors import SECOND_HOLDER
from schemas.egress import network_of
from schemas.findings import Finding, Term
from schemas.limits import HOLDER_CREDENTIALS_MAX, HOLDERS_MAX
from schemas.records import call_id
from schemas.vocabulary import UNIX

OVERLAP_US: Final = 1_800_000_000
BINDING_US: Final = 60_000_000
HERE: Final = frozenset({UNIX, network_of("127.0.0.1"), network_of("::1")})
"""Networks of the enforcer's own machine: one place."""

WEIGHTS: Final[Mapping[str, int]] = {"enforcer": 3, "network": 2, "agent": 1, "overlap": 2}
POINTS: Final = 17.5
"""Of the score for each of the weight: 4 are 70, 5 are 87.5, 6 and more are 100."""

_WHY: Final = {
    "enforcer": "through another enforcer", "network": "from another network", "agent": "for another agent",
    "overlap": "the bound holder has it too: it showed it within 30 minutes before, or since",
}  # fmt: skip

Holder: TypeAlias = tuple[str, str]
"""Enforcer and network."""
Use: TypeAlias = tuple[int, int, int, str, str]
"""A call: time in us, boot, seq, agent, proof. The smallest of several is the first."""


@dataclass(slots=True)
class _Uses:
    """What is known of one holder's calls: the first, and the time of the last."""

    first: Use
    last_us: int


@dataclass(slots=True)
class _Credential:
    calls: int = 0
    holders: dict[Holder, _Uses] = field(default_factory=dict)
    """Those whose first call is the earliest."""
    said: dict[int, Finding] = field(default_factory=dict)


class SecondHolders:
    """Which credentials have a second holder. Its detector's name and whose rows it takes are `name` and `subject`."""

    name: Final = SECOND_HOLDER
    subject: Final = "credential"

    def __init__(self, credentials: int = HOLDER_CREDENTIALS_MAX, holders: int = HOLDERS_MAX) -> None:
        self._credentials_max, self._holders_max = credentials, holders
        self._credentials: OrderedDict[str, _Credential] = OrderedDict()
        """The one used last is the last."""
        self._evicted = 0

    @property
    def entries(self) -> int:
        """Credentials that are kept."""
        return len(self._credentials)

    @property
    def evicted(self) -> int:
        """Credentials and holders that had to make room."""
        return self._evicted

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        return (Room(len(self._credentials), self._credentials_max),)

    def forget_oldest(self, which: int) -> bool:
        """Let go of the credential used least lately."""
        if len(self._credentials) < 2:
            return False
        self._credentials.popitem(last=False)
        self._evicted += 1
        return True

    def clear(self) -> None:
        """Forget every credential."""
        self._credentials.clear()

    def take(self, rows: pa.Table) -> list[Finding]:
        """Take rows of `CREDENTIAL_ROWS`, and say what is to be said now."""
        credential, credentials = codes(rows, "credential")
        enforcer, enforcers = codes(rows, "enforcer")
        network, networks = codes(rows, "network")
        agent, agents = codes(rows, "agent")
        proof, proofs = codes(rows, "proof")
        calls, first, last = (numbers(rows, name) for name in ("calls", "first", "last"))
        boot, seq = (rows[name].combine_chunks().to_numpy(zero_copy_only=False) for name in ("call_boot", "call_seq"))
        touched: set[str] = set()
        for (held, by, came), at in each_group([credential, enforcer, network]):
            one = at[np.lexsort((proof[at], agent[at], seq[at], boot[at], first[at]))[0]]
            use = (int(first[one]), int(boot[one]), int(seq[one]), agents[agent[one]], proofs[proof[one]])
            state = self._of(credentials[held])
            state.calls += int(calls[at].sum())
            self._use(state, (enforcers[by], networks[came]), use, int(last[at].max()))
            touched.add(credentials[held])
        found: list[Finding] = []
        for name in sorted(touched & self._credentials.keys()):
            found += _judge(name, self._credentials[name])
        return found

    def _of(self, name: str) -> _Credential:
        state = self._credentials.pop(name, None)
        if state is None:
            state = _Credential()
            if len(self._credentials) >= self._credentials_max:
                self._credentials.popitem(last=False)
                self._evicted += 1
        self._credentials[name] = state
        return state

    def _use(self, state: _Credential, holder: Holder, use: Use, last_us: int) -> None:
        known = state.holders.get(holder)
        if known is not None:
            known.first, known.last_us = min(known.first, use), max(known.last_us, last_us)
            return
        state.holders[holder] = _Uses(use, last_us)
        if len(state.holders) > self._holders_max:
            del state.holders[max(state.holders, key=lambda one: (state.holders[one].first, one))]
            self._evicted += 1


def _judge(name: str, state: _Credential) -> list[Finding]:
    bound = min(state.holders, key=lambda one: (state.holders[one].first, one))
    holds = {}
    for holder in state.holders.keys() - {bound}:
        finding = _finding(name, state, bound, holder)
        if finding is not None:
            holds[int(finding.id, 16)] = finding
    found = news(state.said, holds, state.calls)
    state.said = holds
    return sorted(found, key=lambda one: (one.time_us, one.id))


def _finding(name: str, state: _Credential, bound: Holder, other: Holder) -> Finding | None:
    held, shown = state.holders[bound], state.holders[other]
    evidence = {
        "bound": _described(bound, held.first), "other": _described(other, shown.first),
        "both_active": held.last_us >= shown.first[0] - OVERLAP_US,
    }  # fmt: skip
    if not _is_another(evidence):
        return None
    terms = terms_of(evidence)
    first_us, boot, seq, agent, _ = shown.first
    through, network = other
    calls = (call_id(held.first[1], held.first[2]), call_id(boot, seq))
    return Finding(
        detector=SECOND_HOLDER, subject=f"credential={name} holder={through}/{network}", window_us=0, version=state.calls,
        started_us=held.first[0], ended_us=first_us, time_us=first_us, terms=terms, evidence=evidence,
        title=f"credential {name[:16]} of {held.first[3]} was shown {_why(terms)}", calls=calls, calls_count=len(calls),
        agent=agent, credential=name, enforcer=through,
    )  # fmt: skip


def _described(holder: Holder, use: Use) -> dict[str, Any]:
    first_us, boot, seq, agent, proof = use
    return {
        "enforcer": holder[0], "network": holder[1], "agent": agent, "proof": proof, "first_us": first_us,
        "call": call_id(boot, seq),
    }  # fmt: skip


def terms_of(evidence: Mapping[str, Any]) -> tuple[Term, ...]:
    """What is held against the first call of another holder."""
    bound, other = evidence["bound"], evidence["other"]
    weights = {
        "enforcer": WEIGHTS["enforcer"] * (bound["enforcer"] != other["enforcer"]),
        "network": WEIGHTS["network"] * _are_two(bound["network"], other["network"]),
        "agent": WEIGHTS["agent"] * (bound["agent"] != other["agent"]),
        "overlap": WEIGHTS["overlap"] * evidence["both_active"],
    }
    return tuple(
        Term(name=name, value=float(weight), points=weight * POINTS, why=_WHY[name])
        for name, weight in weights.items()
        if weight
    )


def _is_another(evidence: Mapping[str, Any]) -> bool:
    bound, other = evidence["bound"], evidence["other"]
    if bound["enforcer"] != other["enforcer"]:
        return True
    at_once = other["first_us"] - bound["first_us"] < BINDING_US and bound["agent"] == other["agent"]
    return _are_two(bound["network"], other["network"]) and not at_once


def _are_two(one: str, other: str) -> bool:
    if not one or not other or HERE.issuperset((one, other)):
        return False
    return one != other


def _why(terms: tuple[Term, ...]) -> str:
    return ", ".join(term.why for term in terms if term.name != "overlap") or "by another holder"
