"""What rules make of findings: what to revoke and why, and when not to.

    finding -> a rule that is about it -> excepted? answered? too old? -> what it names -> revoked already? too often? -> revoke

Pure: the time and what is known come as arguments. A rule answers a finding once. It revokes again only for calls that were
seen behind the end of what it had revoked, so that who lifts a revocation is not contradicted by the next call of the same
finding. What stood in the way (limit, exception, a fault) is looked at again whenever the finding has something new.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline.core.requests import REASON_BYTES_MAX
from schemas.canonical import canonical
from schemas.config import Respond
from schemas.control import TENANT
from schemas.detectors import AGENT, ANY, BEACON, CREDENTIAL, DESTINATION, LIMIT, REVOCABLE, RISK, ROOT, TACTICS
from schemas.errors import OperatorFault
from schemas.findings import Finding, Term
from schemas.selectors import POSITIONED, Selector, make_selector

REVOKED: Final = "revoked"
"""It is in force, as `epoch`."""
STANDING: Final = "standing"
"""It was revoked already, as `epoch`."""
LIMITED: Final = "limited"
"""The rule had revoked as often as it may."""
EXCEPTED: Final = "excepted"
"""Somebody has said that such a finding is false."""
LATE: Final = "late"
"""What was seen is over for longer than the rule would have revoked: calls of the past that came in today."""
FAILED: Final = "failed"
"""It cannot be revoked; `why` says what is in the way."""

STATES: Final = (REVOKED, STANDING, LIMITED, EXCEPTED, LATE, FAILED)

LATE_S: Final = 3_600
"""How old the last call of a finding may be for a rule that revokes for less than that."""

LIMIT_SCORE: Final = 90.0
"""Of the finding that says that a rule has reached its limit: a fleet misbehaves, or a detector does. Somebody must look."""

WHY_CHARS_MAX: Final = 500
US: Final = 1_000_000

_TOKEN_HEX: Final = 64
"""Hex digits that name a signed token, its SHA-256. A static secret has 32, of its stored hash, and no selector of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a rule did about a finding: a row of `responses`."""

    finding: str
    rule: str
    selector: str
    """Its text; empty where it is not known what would have been revoked."""
    state: str
    time_us: int
    epoch: int = 0
    for_s: int = 0
    """Of what is in force: how long from `time_us` on. 0 is without end."""
    why: str = ""

    def row(self, worker: str) -> dict[str, Any]:
        """A row of `RESPONSE_SCHEMA`."""
        return {
            "finding": self.finding, "rule": self.rule, "selector": self.selector, "state": self.state, "epoch": self.epoch,
            "for_s": self.for_s, "time": self.time_us, "why": self.why[:WHY_CHARS_MAX], "tenant": TENANT, "worker": worker,
        }  # fmt: skip

    def over(self, us: int) -> bool:
        """Whether what it is about has ended by `us`."""
        return bool(self.for_s) and us > self.time_us + self.for_s * US


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """What is to be asked of control."""

    rule: Respond
    finding: Finding
    selector: Selector
    reason: str
    id: str
    """The same for the same finding, rule, selector and time: asked twice, it is one change."""

    def made(self, epoch: int, time_us: int) -> Response:
        """It is in force."""
        return Response(finding=self.finding.id, rule=self.rule.name, selector=self.selector.text, state=REVOKED, epoch=epoch,
                        for_s=self.rule.for_s, time_us=time_us, why=self.reason)  # fmt: skip

    def failed(self, why: str, time_us: int) -> Response:
        """Control refuses it."""
        return Response(finding=self.finding.id, rule=self.rule.name, selector=self.selector.text, state=FAILED,
                        time_us=time_us, why=why)  # fmt: skip


class Standing(NamedTuple):
    """A revocation that is in force."""

    epoch: int
    ends_s: int
    """Seconds since 1970; 0 is never."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What decides beside the finding and the rule."""

    exceptions: Collection[tuple[str, str]] = ()
    """(detector, subject) of what somebody has said to be false."""
    standing: Callable[[str], Standing | None] = lambda text: None
    """By a selector's text."""
    roots: Mapping[str, Sequence[str]] | None = None
    """Finding -> the roots of the calls that it names, as uids; where a rule asks for them."""


class Book:
    """What rules have done already, as far as it decides something now."""

    def __init__(self, responses: Iterable[Response] = ()) -> None:
        self._last: dict[tuple[str, str], Response] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._revoked: dict[str, dict[int, int]] = {}
        self._limited: dict[str, int] = {}
        for one in responses:
            self.add(one)

    def add(self, response: Response) -> None:
        """Take one in, in any order."""
        key = response.finding, response.rule
        last = self._last.get(key)
        if last is None or (last.time_us, last.epoch) <= (response.time_us, response.epoch):
            self._last[key] = response
        self._epochs[key] = max(self._epochs.get(key, 0), response.epoch)
        if response.state == REVOKED:
            self._revoked.setdefault(response.rule, {})[response.epoch] = response.time_us
        elif response.state == LIMITED:
            self._limited[response.rule] = max(self._limited.get(response.rule, 0), response.time_us)

    def last(self, finding: str, rule: str) -> Response | None:
        """What a rule did about a finding last."""
        return self._last.get((finding, rule))

    def epoch(self, finding: str, rule: str) -> int:
        """The highest epoch as which anything was in force for a finding; 0 when nothing was."""
        return self._epochs.get((finding, rule), 0)

    def revoked(self, rule: Respond, now_us: int) -> list[int]:
        """When a rule has revoked within its `limit_s`, in order."""
        since = now_us - rule.limit_s * US
        return sorted(us for us in self._revoked.get(rule.name, {}).values() if us > since)

    def was_limited(self, rule: Respond, now_us: int) -> bool:
        """Whether somebody knows already that the rule has reached its limit."""
        return self._limited.get(rule.name, 0) > now_us - rule.limit_s * US


def late_s(rule: Respond) -> int:
    """How old the last call of a finding may be, in seconds."""
    return max(rule.for_s, LATE_S)


def about(rule: Respond, finding: Finding) -> bool:
    """Whether a rule is about a finding. What is withdrawn is none; nor is the word that a limit is reached."""
    if finding.withdrawn or finding.score < rule.min_score or rule.revoke not in REVOCABLE.get(finding.detector, ()):
        return False
    if finding.detector == RISK and _parts(finding) == {BEACON}:
        return False
    return rule.finding in (ANY, finding.detector)


def _parts(finding: Finding) -> set[str]:
    """The detectors that a risk is made of."""
    return {term.name.partition(" ")[0] for term in finding.terms} & TACTICS.keys()


def decide(finding: Finding, rule: Respond, book: Book, known: Known, *, now_us: int) -> Revoke | Response | None:
    """What a rule does about a finding that it is `about`: a question for control, a word that nothing is done, or nothing new.

    Whatever it says belongs into the book (`Revoke.made` when control has done it) before the next is decided.
    """
    last = book.last(finding.id, rule.name)
    said = _Words(finding, rule, last, now_us)
    if (finding.detector, finding.subject) in known.exceptions:
        return said.word(EXCEPTED, "", f"`{finding.detector}` of `{finding.subject}` is said to be false")
    if last is not None and last.state in (REVOKED, STANDING) and not last.over(finding.ended_us):
        return None
    if now_us - finding.ended_us > late_s(rule) * US:
        return said.word(LATE, "", "its last call is older than what would be revoked would last")
    try:
        selector = selector_of(finding, rule, (known.roots or {}).get(finding.id, ()))
    except OperatorFault as fault:
        return said.word(FAILED, "", str(fault))
    if (stands := _stands(selector, known, now_us)) is not None:
        # ours, whose answer got lost: the log has said so before control was asked again
        ours = stands.reason.startswith(_begins(finding, rule))
        return Response(
            finding=finding.id, rule=rule.name, selector=selector.text, state=REVOKED if ours else STANDING,
            epoch=stands.epoch, time_us=now_us, for_s=max(1, stands.ends_s - now_us // US) if stands.ends_s else 0,
            why=stands.reason if ours else "it was revoked already",
        )  # fmt: skip
    times = book.revoked(rule, now_us)
    if len(times) >= rule.limit:
        return said.word(LIMITED, selector.text, f"{_limit(rule, times)}; the next is possible {_ago(rule, times, now_us)}")
    again = book.epoch(finding.id, rule.name)
    return Revoke(rule=rule, finding=finding, selector=selector, reason=_reason(finding, rule),
                  id=_change_id(finding.id, rule.name, selector.text, again))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Words:
    finding: Finding
    rule: Respond
    last: Response | None
    now_us: int

    def word(self, state: str, selector: str, why: str) -> Response | None:
        """That nothing is revoked; None where that was the last word already."""
        if self.last is not None and self.last.state == state and (state != FAILED or self.last.why == why[:WHY_CHARS_MAX]):
            return None
        return Response(finding=self.finding.id, rule=self.rule.name, selector=selector, state=state, time_us=self.now_us,
                        why=why[:WHY_CHARS_MAX])  # fmt: skip


def selector_of(finding: Finding, rule: Respond, roots: Sequence[str] = ()) -> Selector:
    """What a rule revokes of a finding. Raises OperatorFault where the finding does not name it, or names no such thing."""
    kind, name = rule.revoke, ""
    match rule.revoke:
        case "root":
            kind = "principal"
            if len(set(roots)) > 1:
                raise OperatorFault(f"its calls have {len(set(roots))} roots: no one of them is known to be behind it")
            name = roots[0] if roots else ""
        case "credential":
            # a signed token is revoked alone; a secret is the agent's own, and ends with the agent's revocation or a new one
            signed = len(finding.credential) == _TOKEN_HEX
            kind, name = ("token", finding.credential) if signed else (AGENT, finding.agent if finding.credential else "")
        case "session":
            name = finding.session
        case "destination":
            name = finding.domain or finding.host
        case _:
            name = finding.agent
    if not name:
        raise OperatorFault(f"it names no {rule.revoke}")
    return make_selector(kind, name, cascade=rule.cascade)


assert {AGENT, ROOT, CREDENTIAL, DESTINATION, "session"} == {kind for kinds in REVOCABLE.values() for kind in kinds}


def _stands(selector: Selector, known: Known, now_us: int) -> Standing | None:
    """What is in force already, however long it lasts: then what is seen behind its end counts. If findings made it longer, an
    agent that only repeats what is refused would never come out of it.

    What holds at any position of a chain holds for who acts.
    """
    wide = make_selector(selector.kind, selector.name, cascade=True) if selector.kind in POSITIONED else selector
    for text in dict.fromkeys((selector.text, wide.text)):
        found = known.standing(text)
        if found is not None and (not found.ends_s or found.ends_s * US > now_us):
            return found
    return None


def _begins(finding: Finding, rule: Respond) -> str:
    return f"finding {finding.id}, rule `{rule.name}`, {finding.detector}, "


def _reason(finding: Finding, rule: Respond) -> str:
    """What stands in the log beside the revocation: the finding, and in a few words what it was made of."""
    parts = ", ".join(f"{term.name} {term.value:g}" for term in finding.terms)
    text = f"{_begins(finding, rule)}score {finding.score:g}: {finding.title} [{parts}]"
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


def _change_id(finding: str, rule: str, selector: str, again: int) -> str:
    """`again` is the epoch of what was in force for this finding before; 0 the first time."""
    named = {"finding": finding, "rule": rule, "selector": selector, "again": again}
    return f"respond-{hashlib.sha256(canonical(named)).hexdigest()[:32]}"


# -- the limit -----------------------------------------------------------------------------------------------------------


def _limit(rule: Respond, times: Sequence[int]) -> str:
    return f"rule `{rule.name}` has revoked {len(times)} times in {rule.limit_s} s, limit is {rule.limit}"


def _ago(rule: Respond, times: Sequence[int], now_us: int) -> str:
    """In how many seconds the oldest of the last `limit` is old enough."""
    return f"in {max(1, rule.limit_s - (now_us - times[-rule.limit]) // US)} s"


def limit_finding(rule: Respond, stopped: Finding, book: Book, *, now_us: int) -> Finding:
    """The word that a rule has reached its limit, which everybody who hears of findings hears.

    Named by the revocation that reached it: however often it is said, and by however many workers, it is one finding.
    """
    times = book.revoked(rule, now_us)
    reached = times[-1] if times else now_us
    term = Term(name="revocations", value=float(len(times)), points=LIMIT_SCORE, why=_limit(rule, times))
    return Finding(
        detector=LIMIT, subject=f"rule={rule.name}", window_us=reached, version=1, started_us=times[0] if times else now_us,
        ended_us=reached, time_us=now_us, terms=(term,), title=f"{_limit(rule, times)}: what is found now is not revoked",
        evidence={"rule": rule.name, "limit": rule.limit, "limit_s": rule.limit_s, "revoked_us": times[-100:],
                  "stopped": stopped.id, "agent": stopped.agent}, calls=stopped.calls, calls_count=stopped.calls_count,
    )  # fmt: skip


# -- trying rules out ----------------------------------------------------------------------------------------------------


def rehearse(
    rules: Sequence[Respond], findings: Iterable[Finding], *, exceptions: Collection[tuple[str, str]] = (),
    roots: Mapping[str, Sequence[str]] | None = None,
) -> list[tuple[Finding, Response]]:  # fmt: skip
    """What rules would have done about findings that are stored, each at the moment of the call that crossed its threshold.

    As if nothing had been revoked but by these rules, which begin with nothing. What is stored is the last word on a finding:
    one that was worth less at first would have been answered later than is said here.
    """
    book, held, said = Book(), dict[str, Standing](), list[tuple[Finding, Response]]()
    known = Known(exceptions=exceptions, standing=held.get, roots=roots)
    for finding in sorted(findings, key=lambda one: (one.time_us, -one.score, one.id)):
        for rule in rules:
            answer = decide(finding, rule, book, known, now_us=finding.time_us) if about(rule, finding) else None
            if isinstance(answer, Revoke):
                answer = answer.made(len(said) + 1, finding.time_us)
                ends_s = finding.time_us // US + rule.for_s
                held[answer.selector] = Standing(answer.epoch, ends_s, answer.why)
            if answer is not None:
                book.add(answer)
                said.append((finding, answer))
    return said
