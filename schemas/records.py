"""What a door writes: the kinds of record, their fields, and how a call is named.

A **call** is one `decision` record and what followed it. `call_id` is 16 bytes: the door's boot (u32 seconds, u32 random)
and the decision's seq (u64), both big-endian, so that ids are unique and in order within a boot.

A decision that lets a call out says OPEN, and progress, an effect or a loss follow it. Where the call was over before its host
had read the decision, that says what the effect would have said: outcome, status, bytes, duration, and in `address` what was
dialled behind where the caller came from. Such a decision is **whole**: nothing follows it, and its call ended at time +
duration.
"""

import enum
from dataclasses import dataclass
from typing import Final


class Kind(enum.IntEnum):
    """What a record says."""

    DECISION = 1
    PROGRESS = 2
    EFFECT = 3
    LOST = 4
    COUNT = 5


class Verdict(enum.IntEnum):
    """The zero value refuses, so that a forgotten field refuses."""

    DENY = 0
    ALLOW = 1


class Outcome(enum.IntEnum):
    """How a call ended; OPEN until something says so."""

    OPEN = 0
    OK = 1
    ERROR = 2
    REFUSED = 3
    LOST = 4


class Standing(enum.IntEnum):
    """What the board says of a call at one moment; the first of them that is so, from STALE on."""

    GO = 0
    STALE = 1
    """What is revoked may not be known here."""
    PAUSED = 2
    REVOKED = 3


class Mode(enum.IntEnum):
    """Whether a verdict was obeyed."""

    ENFORCE = 0
    SHADOW = 1
    BEST_EFFORT = 2


SEPARATOR: Final = "\x1f"
"""Joins the items of a list inside one text field (chain, policies), and the two addresses of a whole decision. Names never
contain control characters."""

STRING_FIELDS: Final = (
    "tenant",
    "door",
    "session",
    "agent",
    "root",
    "chain",
    "assurance",
    "credential",
    "proof",
    "action",
    "resource",
    "scheme",
    "host",
    "domain",
    "address",
    "path",
    "policies",
    "reason",
    "policy_digest",
    "error",
)
"""The texts of a record in layout order. `chain` is principal uids joined by SEPARATOR, root first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided about one call, and why.

    `because` are the determining policy ids, `failed` those that could not be evaluated, `reason` one of
    `permit`, `forbid`, `no-permit`, `chain`, `identity`, `overloaded`, or, whatever policy says, `revoked` (something that is
    true of the call), `paused` (everything), `stale` (what is revoked is not known), `address` (where its name leads may not be
    dialled), `malformed` (a request that has no one meaning).
    """

    verdict: Verdict = Verdict.DENY
    because: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    reason: str = "no-permit"
    policy_digest: str = ""
    epoch: int = 0


def addresses_of(address: str) -> tuple[str, str]:
    """Of a decision's `address`: where its caller's connection came from, and what was dialled; each may be empty."""
    client, _, dialled = address.partition(SEPARATOR)
    return client, dialled


def make_boot(seconds: int, random32: int) -> int:
    """The u64 that names one start of a door or host: seconds since 1970 in the high half, randomness in the low."""
    return ((seconds & 0xFFFFFFFF) << 32) | (random32 & 0xFFFFFFFF)


def call_id(boot: int, seq: int) -> str:
    """The 32 lower-case hex digits that name a call everywhere outside the store."""
    return f"{boot:016x}{seq:016x}"
