"""What a trace is made of, and what is said of it.

A **trace** is the calls with one trace id; all its records lie in one partition. A call's **parent** is the call that caused
it: the one whose span the caller named in `traceparent`, a span being the low 32 bits of boot and of seq. Its **effective
chain** is who it was made for: its own chain, or that behind the chain of its parent.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class Grade(enum.IntEnum):
    """How a call stands in its trace, and the worst of them a trace; a trace that has not settled is PROVISIONAL."""

    COMPLETE = 0
    PROVISIONAL = 1
    """Something is not there that may still come."""
    GAP = 2
    """Something is not there that was."""
    WIDENED = 3
    """A call acts for fewer principals than the call that caused it: rights were added."""
    FORGED = 4
    """A call acts for another root principal."""

    @property
    def text(self) -> str:
        """As it is stored and shown."""
        return self.name.lower()


class Assurance(enum.IntEnum):
    """How the parent of a call is known, weakest first."""

    NONE = 0
    """It has none."""
    INFERRED = 1
    """By time alone. It may flag, and never authorises."""
    OBSERVED = 2
    """By its traceparent, seen at both doors."""
    ISSUED = 3
    """So, and our issuer minted the token that made the chain longer."""
    SIGNED = 4
    """So, and whoever delegated has signed it."""

    @property
    def text(self) -> str:
        """As it is stored and shown; empty for NONE."""
        return self.name.lower() if self else ""


class Cause(enum.IntEnum):
    """What a grade of a call comes from."""

    NONE = 0
    MISSING = 1
    LOOP = 2
    DEEP = 3
    LONG = 4
    WIDER = 5
    STRANGER = 6
    ANOTHER = 7


GRADES: Final = {
    Cause.NONE: Grade.COMPLETE, Cause.MISSING: Grade.GAP, Cause.DEEP: Grade.GAP, Cause.LONG: Grade.GAP,
    Cause.WIDER: Grade.WIDENED, Cause.LOOP: Grade.FORGED, Cause.STRANGER: Grade.FORGED, Cause.ANOTHER: Grade.FORGED,
}  # fmt: skip

WORDS: Final = {
    Cause.MISSING: "names a parent that is not recorded",
    Cause.LOOP: "is named as a parent by a call that it caused",
    Cause.DEEP: "lies deeper than 64 calls below the first",
    Cause.LONG: "has an effective chain of more than 16 principals",
    Cause.WIDER: "drops principals that the call which caused it acts for",
    Cause.STRANGER: "acts for another root, and no call of the trace is known to have caused it",
    Cause.ANOTHER: "acts for another root than the call that caused it",
}
"""What is said of a call, behind its name or a number of calls."""

MAY_COME: Final = (Cause.MISSING, Cause.STRANGER)
"""What a record that is still on its way may put right."""

DEPTH_MAX: Final = 64
"""Calls below one another. A deeper one begins anew, as a gap."""

PRINCIPALS_MAX: Final = 16
"""Principals of an effective chain. Where it would be longer a call keeps its own, as a gap."""

DECIDED: Final = 1
OUT: Final = 2
DENIED: Final = 4
HAS_EFFECT: Final = 8
HAS_LOST: Final = 16
"""The bits of a call's state, as `ext.traces` sets them: its decision is there; that let it out; its last word is a refusal; an
effect, a loss is there."""


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts in a call, and for whom: what its record says."""

    tenant: str
    chain: tuple[str, ...]
    """Principal uids, root first; empty where the record has none."""
    assurance: tuple[str, ...]
    """Of each edge of the chain."""
    agent: str
    """The name of the one that acts."""
    agents: int
    """Agents among the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls as columns of one length, in any order."""

    trace: Ints
    """The number of the call's trace."""
    boot: Words
    seq: Words
    start: Ints
    """Microseconds since 1970."""
    end: Ints
    """0 where it is not known."""
    parent: Words
    """The span that the caller named, as a big-endian number; 0 for none."""
    who: Ints
    """Into a list of `Who`."""
    state: Bytes

    def at(self, order: Ints) -> "Calls":
        """These calls, in this order."""
        return Calls(
            trace=self.trace[order], boot=self.boot[order], seq=self.seq[order], start=self.start[order], end=self.end[order],
            parent=self.parent[order], who=self.who[order], state=self.state[order],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is known of the calls of some traces. Calls are in the order of trace, time and id."""

    order: Ints
    """For each call, which one it was of those that came in."""
    calls: Calls
    parent: Ints
    """The call that caused it, -1 for none."""
    assurance: Bytes
    cause: Bytes
    grade: Bytes
    chain: Ints
    """Its effective chain, of `chains`."""
    chains: Sequence[tuple[str, ...]]
    first: Ints
    """For each trace, the call that begins it: the earliest that no other caused; -1 for a trace without a call."""
    trace_grade: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A call in its trace."""

    call_id: str
    parent: str
    """The id of the call that caused it; empty for none."""
    named: str
    """The span that its caller named, 16 hex digits; empty for none."""
    assurance: str
    chain: tuple[str, ...]
    """The effective one."""
    grade: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One operation across enforcers."""

    trace_id: str
    grade: str
    why: str
    root: str
    """The principal on whose behalf it began."""
    agents: tuple[str, ...]
    enforcers: tuple[str, ...]
    calls: int
    denied: int
    depth: int
    """Principals of the longest effective chain."""
    started_us: int
    ended_us: int
    edges: tuple[Edge, ...]
    """In the order of time."""
