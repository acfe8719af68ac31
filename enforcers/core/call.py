"""One call: decide it, say what to record before it goes out, and what to record when it has ended.

    Call --decide--> Decision --decision_record--> append()   then, when that has returned and the verdict is ALLOW, act
                                progress_record--> append()   now and then while it is out, with the seq that append gave
                                effect_record  --> append()   when it has ended, with that seq; or, where nobody has read the
                                                              decision's record yet, its end goes into that

A record is the exact arguments of `SpoolWriter.append`. A door that dies between the two leaves the call open; its host then
records it as lost. A refused call is closed by its decision and has no effect. One that is revoked between its record and its
act is not done: its effect says so, and takes the verdict back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, TypeAlias

from enforcers.core.chain import Chain
from ext.board import Selectors
from schemas.layout import VERDICT_UNSAID
from schemas.limits import STRING_BYTES_MAX
from schemas.records import SEPARATOR, Decision, Kind, Mode, Outcome, Verdict
from schemas.vocabulary import action_uid, parse_uid, registrable_domain

TENANT: Final = "default"

PATH_CHARS_MAX: Final = 1024
"""Characters of a path in a record."""

Texts: TypeAlias = tuple[
    str, str, str, str, str, str, str, str, str, str, str, str, str, str, str, str, str, str, str, str
]  # fmt: skip
Record: TypeAlias = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, bytes, bytes, Texts, bool
]  # fmt: skip
"""`kind, call_seq, time_ns, recorded_ns, verdict, outcome, mode, depth, status, count, bytes_out, bytes_in, duration_ns, epoch,
ref, query_hash, query_bytes, query_bits, trace_id, parent_span, texts, reserved`"""

Append: TypeAlias = Callable[[Record], int]
"""Writes a record and returns its seq. Raises SpoolFull, or AgentFault where no record can hold it; then nothing is written."""

Complete: TypeAlias = Callable[[int, int, int, int, int, int, str], bool]
"""Writes how a call ended into the record of its decision, if that can be: `seq, outcome, status, bytes_out, bytes_in,
duration_ns, address`. Returns whether it did; then the call has no other record."""


class Decides(Protocol):
    """What `ext.decide.Matcher` does for us."""

    @property
    def digest(self) -> str:
        """Of the policies that it decides by."""

    def decide(self, links: tuple[str, ...], action: str, resource: str, /) -> Decision:
        """The AND over the links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a call touches: the resource's uid and, as far as its door knows them, where that is."""

    resource: str
    scheme: str = ""
    host: str = ""
    domain: str = ""


class Kept:
    """What was worked out for one call, and holds for each that differs from it in nothing but its time and its trace.

    Whoever makes a call that says again what one before it said, such as the next request of a client, may give it the same.
    """

    __slots__ = ("decision", "selectors", "texts")

    def __init__(self) -> None:
        self.selectors: tuple[Selectors, Selectors] | None = None
        """What is true of its caller and of its target."""
        self.decision: Decision | None = None
        self.texts: Texts | None = None
        """Those of the record of this decision."""


class Call(NamedTuple):
    """What a door knows of a call before it is decided. It cannot be changed: what was judged is what is recorded.

    A tuple, as `End` is: one is made for every request, in a third of the time of a frozen dataclass.
    """

    time_ns: int
    """When the call was made, nanoseconds since 1970."""
    door: str
    chain: Chain
    action: str
    """`http:POST`, `mcp:tools/call`."""
    target: Target
    trace_id: bytes
    parent_span: bytes = bytes(8)
    session: str = ""
    assurance: str = ""
    """Of each edge of the chain, joined by SEPARATOR; empty where nobody has assured any."""
    credential: str = ""
    """The thumbprint or hash of what proved the agent; empty where nothing did."""
    proof: str = ""
    """The kind of that proof."""
    token: str = ""
    """SHA-256 of the token that was shown, 64 lower-case hex digits. It may be revoked, like the next three."""
    twin: str = ""
    """The same of the one other text that is the same token, where there is one: revoked with it."""
    key: str = ""
    """Thumbprint of the key that proved the agent."""
    grant: str = ""
    issuer: str = ""
    """Who issued the token."""
    issued_s: int = 0
    """When, seconds since 1970; where nobody knows it is before every `not before`."""
    path: str = ""
    """Without the query, of which only the next three are kept: see `query`."""
    query_bytes: int = 0
    query_bits: int = 0
    query_hash: int = 0
    client: str = ""
    """Where its caller's connection came from: an IP address, or `UNIX`; empty where nobody knows."""
    ref: int = 0
    """The caller's own number for the call."""
    kept: Kept | None = None

    def asking(self, action: str) -> "Call":
        """The same call with another action: a second question about it. Who asks about what is the same."""
        kept = None
        if self.kept is not None:
            kept = Kept()
            kept.selectors = self.kept.selectors
        return tuple.__new__(Call, (*self[:3], action, *self[4:-1], kept))


class End(NamedTuple):
    """How a call ended that was let out."""

    time_ns: int
    outcome: Outcome
    status: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    duration_ns: int = 0
    error: str = ""
    reason: str = ""
    """Why it was refused after all, though its decision let it out; empty where it was not."""
    address: str = ""
    """What was dialled, `ADDRESS:PORT`; empty where nothing was."""


def withdrawn(reason: str, time_ns: int) -> End:
    """The end of a call that was let out and not done, since `reason` (`revoked`, `paused`, `stale`) came before the act."""
    return End(time_ns=time_ns, outcome=Outcome.REFUSED, error=f"{reason} while waiting", reason=reason)


@lru_cache(8192)
def target_of(resource: str, scheme: str = "") -> Target:
    """What a resource's uid alone says: of a host, its name and registrable domain."""
    kind, name = parse_uid(resource)
    if kind != "Host":
        return Target(resource=resource, scheme=scheme)
    host = name.rpartition(":")[0]
    return Target(resource=resource, scheme=scheme, host=host, domain=registrable_domain(host))


def path_text(path: str) -> str:
    """A path as it is recorded: `...` stands for what is behind PATH_CHARS_MAX. It is a fact, and nothing is decided by it."""
    return path if len(path) <= PATH_CHARS_MAX else f"{path[: PATH_CHARS_MAX - 3]}..."


def decide(matcher: Decides, call: Call) -> Decision:
    """Refuse unless every link of the chain is permitted and none is forbidden.

    A chain that is too deep is refused for that (`chain`), one where no agent acts for that (`identity`); neither asks policy.
    """
    if call.chain.too_deep:
        return Decision(reason="chain", policy_digest=matcher.digest)
    if not call.chain.links:
        return Decision(reason="identity", policy_digest=matcher.digest)
    return matcher.decide(call.chain.links, _action(call.action), call.target.resource)


_action = lru_cache(1024)(action_uid)


def decision_record(call: Call, decision: Decision, recorded_ns: int, epoch: int = 0) -> Record:
    """What to record before anything goes out. `epoch` is what its gate obeyed; 0 where the decision itself says it.

    A refusal may use the spool's reserved room and ends the call; nothing went out, so its sizes are zero.
    """
    # all at once: a name of a tuple's field costs as much as a look into a dict, and there is a record for each call
    (
        time_ns, door, chain, action, target, trace_id, parent_span, session, assurance, credential, proof, _, _, _, _, _, _,
        path, query_bytes, query_bits, query_hash, client, ref, kept,
    ) = call  # fmt: skip
    allowed = decision.verdict is _ALLOW
    if kept is not None and kept.decision is decision and kept.texts is not None:
        texts = kept.texts
    else:
        texts = (
            TENANT, door, session, chain.agent, chain.root, chain.text, assurance, credential, proof, action, target.resource,
            target.scheme, target.host, target.domain, client, path, policies_text(decision.because), decision.reason,
            decision.policy_digest, "",
        )  # fmt: skip
        if kept is not None:
            kept.decision, kept.texts = decision, texts
    return (
        _DECISION, 0, time_ns, recorded_ns, allowed, _OPEN if allowed else _REFUSED, _ENFORCE, chain.depth,
        0, 0, 0, 0, 0, epoch or decision.epoch, ref, query_hash, query_bytes, query_bits, trace_id, parent_span, texts,
        not allowed,
    )  # fmt: skip


def effect_record(call: Call, seq: int, end: End, recorded_ns: int, epoch: int = 0) -> Record:
    """What to record when a call that was let out has ended; `seq` is its decision's.

    It may use the reserved room: the call is out, and its end must not wait for others. What the decision said is not
    repeated: they meet by `call_seq`. Where the end has a reason, the verdict is now DENY, by `epoch`.
    """
    time_ns, outcome, status, bytes_out, bytes_in, duration_ns, error, reason, address = end
    texts = _plain(address) if not error and not reason else _texts(address, reason, error)
    return (
        _EFFECT, seq, time_ns, recorded_ns, _DENY if reason else VERDICT_UNSAID, int(outcome), _ENFORCE, 0, status, 0,
        bytes_out, bytes_in, duration_ns, epoch, call.ref, 0, 0, 0, call.trace_id, call.parent_span, texts, True,
    )  # fmt: skip


def progress_record(
    call: Call, seq: int, bytes_out: int, bytes_in: int, time_ns: int, recorded_ns: int, address: str = ""
) -> Record:
    """What to record of a call that is out and goes on: what was dialled, and the bytes since it began, so that a record that
    found no room is made up for by the next one. It may not use the reserved room."""
    texts = _plain(address)
    return (
        int(Kind.PROGRESS), seq, time_ns, recorded_ns, VERDICT_UNSAID, _OPEN, _ENFORCE, 0, 0, 0, bytes_out, bytes_in,
        max(0, time_ns - call.time_ns), 0, call.ref, 0, 0, 0, call.trace_id, call.parent_span, texts, False,
    )  # fmt: skip


def _texts(address: str, reason: str, error: str) -> Texts:
    return TENANT, "", "", "", "", "", "", "", "", "", "", "", "", "", address, "", "", reason, "", error


@lru_cache(1024)
def _plain(address: str) -> Texts:
    """Of a call that has gone well: the same for each that went there."""
    return _texts(address, "", "")


_DECISION: Final = int(Kind.DECISION)
_EFFECT: Final = int(Kind.EFFECT)
_ALLOW: Final = Verdict.ALLOW
_DENY: Final = int(Verdict.DENY)
_OPEN: Final = int(Outcome.OPEN)
_REFUSED: Final = int(Outcome.REFUSED)
_ENFORCE: Final = int(Mode.ENFORCE)


@lru_cache(8192)
def policies_text(ids: tuple[str, ...]) -> str:
    """The ids joined by SEPARATOR; those that do not fit into STRING_BYTES_MAX are counted in a last item, `+12`."""
    text = SEPARATOR.join(ids)
    if len(text.encode()) <= STRING_BYTES_MAX:
        return text
    fit, size = [], 0
    room = STRING_BYTES_MAX - len(f"{SEPARATOR}+{len(ids)}")
    for one in ids:
        size += len(one.encode()) + 1
        if size > room:
            break
        fit.append(one)
    return SEPARATOR.join([*fit, f"+{len(ids) - len(fit)}"])
