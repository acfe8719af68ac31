"""Has revoked what rules say of findings, through control, as anybody who asks it to.

    act       findings that are stored -> those that a rule is about wait
    decided   by the core, with what the store has of earlier answers and what is live in control's log
    asked     control, under an id that is made of finding, rule and selector
    stored    a row of `responses`

A crash before `asked` leaves nothing; one behind it leaves a revocation without a row, and the same question is the same
change. The next start looks at what is stored and has no answer, so that a finding whose worker died is answered by another.
While control or the store is away, what waits is tried again; nobody else waits for that longer than ACT_S.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from pipeline.core import respond
from pipeline.core.respond import Book, Known, Response, Revoke, Standing
from pipeline.shells.controlclient import ALREADY, Change, Refused
from pipeline.shells.worker import metrics
from schemas.config import Respond
from schemas.detectors import ROOT
from schemas.errors import OperatorFault, PeerFault
from schemas.findings import Finding

log = logging.getLogger(__name__)

ACT_S: Final = 2.0
"""How long who brings findings waits for their answers."""

WAITING_MAX: Final = 10_000
"""Findings that wait. Beyond it they are taken from the store later, the worst first."""

BATCH: Final = 500
"""Findings that are answered at a time: what the store is told of at once."""

RETRY_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
ANSWER_S: Final = 5.0
"""How long control may take for one answer before it is asked again."""


class Keys(Protocol):
    """What the responder needs of `registry`."""

    def excepted(self) -> Collection[tuple[str, str]] | None:
        """What is said to be false; None while that is not known."""

    def standing(self, selector: str) -> Standing | None:
        """A live revocation."""


class Rows(Protocol):
    """What the responder needs of `answered`."""

    def keep_responses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store what rules did."""

    def keep_notice(self, finding: Finding, worker: str) -> None:
        """Store that a limit is reached."""

    def responses(self, since_us: int, findings: Sequence[str]) -> list[Response]:
        """What rules did."""

    def roots(self, calls: Sequence[str]) -> list[str]:
        """The roots of calls."""

    def lately(self, since_us: int, score: float, limit: int) -> list[Finding]:
        """What was found."""


class Asked(Protocol):
    """What the responder needs of `controlclient`."""

    def change_once(self, change_id: str, do: str, /, **fields: Any) -> Change:
        """Have a change made, once."""


class _Later(PeerFault):
    """Not now: what control has said is not known here yet."""


class Responder:
    """Answers findings by rules. It owns a thread for what blocks; without rules it does nothing."""

    def __init__(
        self, rules: Sequence[Respond], *, slot: str, control: Asked, keys: Keys, store: Rows,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:  # fmt: skip
        self._rules = tuple(rules)
        self._slot = slot
        self._control = control
        self._keys = keys
        self._store = store
        self._now_us = now_us
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responder")
        self._waiting: dict[str, Finding] = {}
        self._behind = bool(self._rules)
        self._something = asyncio.Event()
        self._something.set()
        self._idle = asyncio.Event()
        self.waits_for = ""
        """Why findings wait for their answers; empty when none do."""

    async def act(self, findings: Sequence[Finding]) -> None:
        """Answer findings that are stored; returns once that is done, or after ACT_S, and then it goes on without whoever asks.

        A crash at any moment loses no answer: what is stored and has none is answered by the next start.
        """
        wanted = [one for one in findings if any(respond.about(rule, one) for rule in self._rules)]
        if not wanted:
            return
        for one in wanted:
            known = self._waiting.get(one.id)
            if known is None or known.version <= one.version:
                self._waiting[one.id] = one
        while len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
            self._behind = True
        self._idle.clear()
        self._something.set()
        try:
            async with asyncio.timeout(ACT_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d findings wait for their answers: %s", len(self._waiting), self.waits_for or "there are many")

    async def run(self) -> None:
        """Answer for ever; returns only by cancellation. Raises OperatorFault."""
        wait_s = RETRY_S
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self._answer_all()
            except PeerFault as fault:
                if not self.waits_for:
                    log.warning("findings wait for their answers: %s", fault)
                metrics.RETRIES.inc()
                self.waits_for = f"responses: {fault}"
                self._something.set()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
            else:
                wait_s, self.waits_for = RETRY_S, ""
                if not self._waiting:
                    self._idle.set()

    async def _answer_all(self) -> None:
        while self._waiting or self._behind:
            excepted = self._keys.excepted()
            while excepted is None and not self._waiting:
                await asyncio.sleep(RETRY_S)
                excepted = self._keys.excepted()
            if excepted is None:
                raise PeerFault("the control log has not been whole yet")
            if self._behind:
                since_us = self._now_us() - max(respond.late_s(rule) for rule in self._rules) * respond.US
                least = min(rule.min_score for rule in self._rules)
                missed = await self._run(self._store.lately, since_us, float(least), WAITING_MAX)
                self._waiting = {one.id: one for one in missed} | self._waiting
                self._behind = False
            batch = sorted(self._waiting.values(), key=lambda one: (-one.score, one.time_us, one.id))[:BATCH]
            later: dict[str, str] = await self._run(self._answer, batch, excepted)
            for one in batch:
                if self._waiting.get(one.id) is one and one.id not in later:  # else something newer was said of it meanwhile
                    del self._waiting[one.id]
            if later:
                raise PeerFault(next(iter(later.values())))

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments))

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _answer(self, findings: Sequence[Finding], excepted: Collection[tuple[str, str]]) -> dict[str, str]:
        """Answer findings, each by each rule; returns those that must be asked about again, and why."""
        since_us = self._now_us() - max(rule.limit_s for rule in self._rules) * respond.US
        book = Book(self._store.responses(since_us, [one.id for one in findings]))
        rows: list[dict[str, Any]] = []
        later: dict[str, str] = {}
        try:
            for finding, rule in ((one, rule) for one in findings for rule in self._rules if respond.about(rule, one)):
                try:
                    response = self._answer_one(finding, rule, book, excepted)
                except _Later as fault:
                    later[finding.id] = str(fault)
                    continue
                if response is not None:
                    book.add(response)
                    rows.append(response.row(self._slot))
                    metrics.RESPONSES.labels(response.state).inc()
        finally:
            # a crash before this leaves revocations without rows: they are asked for again, and are the same change
            if rows:
                self._store.keep_responses(rows)
        return later

    def _answer_one(
        self, finding: Finding, rule: Respond, book: Book, excepted: Collection[tuple[str, str]]
    ) -> Response | None:
        roots = {finding.id: self._store.roots(finding.calls)} if rule.revoke == ROOT else None
        known = Known(exceptions=excepted, standing=self._keys.standing, roots=roots)
        said = respond.decide(finding, rule, book, known, now_us=self._now_us())
        if isinstance(said, Revoke):
            said = self._revoke(said)
        if said is not None and said.state == respond.LIMITED and not book.was_limited(rule, said.time_us):
            notice = respond.limit_finding(rule, finding, book, now_us=said.time_us)
            log.error("%s", notice.title)
            self._store.keep_notice(notice, self._slot)
        return said

    def _revoke(self, wanted: Revoke) -> Response:
        selector = wanted.selector
        try:
            change = self._control.change_once(
                wanted.id, "revoke", kind=selector.kind, name=selector.name, cascade=selector.cascade, reason=wanted.reason,
                for_s=wanted.rule.for_s, only_new=True,
            )  # fmt: skip
        except Refused as fault:
            if fault.status == ALREADY:  # since a moment ago: the log will say so, and then it is no question any more
                raise _Later(str(fault)) from fault
            log.error("finding %s: `%s` is not revoked: %s", wanted.finding.id, selector.text, fault)
            return wanted.failed(str(fault), self._now_us())
        except OperatorFault as fault:  # a setting of ours: somebody must put it right, and then it goes on
            raise PeerFault(str(fault)) from fault
        log.warning("epoch %d: `%s` is revoked: %s", change.epoch, selector.text, wanted.reason)
        return wanted.made(change.epoch, self._now_us())
