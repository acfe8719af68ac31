"""What the demo asks the store: whether the story has happened, and when each part of it did."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pipeline.cli.applied import labels_of
from pipeline.cli.asking import Asker
from schemas.errors import PeerFault
from schemas.home import Home

POLL_S: Final = 0.1

FINDINGS: Final = """
SELECT id, detector, score, severity, title, time, stored FROM findings
WHERE (agent = {agent:String} OR agent = '' AND position(subject, {agent:String}) > 0) AND state = 'open' ORDER BY stored
"""
RESPONSE: Final = """
SELECT r.finding AS finding, r.rule AS rule, r.selector AS selector, r.epoch AS epoch, f.time AS crossed
FROM responses AS r INNER JOIN findings AS f ON f.id = r.finding
WHERE r.rule = {rule:String} AND r.state = 'revoked' AND f.time >= {since:DateTime64(6, 'UTC')} ORDER BY r.time LIMIT 1
"""
FOUND: Final = "SELECT min(stored) AS found FROM findings_stored WHERE id = {id:String}"
REVOKED: Final = "SELECT since FROM revocations WHERE epoch = {epoch:UInt64}"
OBEYED: Final = """
SELECT host, door, min(applied) AS obeyed FROM acks WHERE epoch >= {epoch:UInt64} AND door != '' AND state = 'ready'
GROUP BY host, door HAVING obeyed >= {since:DateTime64(6, 'UTC')} ORDER BY obeyed
"""
REFUSED: Final = """
SELECT min(recorded) AS first, count() AS calls FROM calls
WHERE agent = {agent:String} AND reason = 'revoked' AND recorded >= {since:DateTime64(6, 'UTC')}
"""
GAPS: Final = "SELECT count() AS gaps FROM gaps"
GRADE: Final = "SELECT grade FROM traces WHERE trace_id = {trace:String} AND grade != 'provisional'"
PIECES: Final = """
SELECT count() AS calls, countIf(verdict = 'deny') AS denied, uniqExact(host) AS names
FROM calls WHERE agent = {agent:String} AND domain = {domain:String}
"""


class Missed(Exception):
    """A part of the story that did not happen; says which, and what is there instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """One closing of the loop: from the call that crossed a threshold to the call that was refused for it."""

    finding: str
    rule: str
    selector: str
    epoch: int
    crossed: datetime
    found: datetime | None
    """When it was first stored; None once the store has put a later version in its place."""
    revoked: datetime
    obeyed: tuple[tuple[str, datetime], ...]
    """Each door by its name, and when it began to obey."""
    refused: datetime
    refusals: int

    def steps(self) -> list[tuple[str, float]]:
        """What happened, and how many milliseconds after the crossing call."""
        said = [("the finding is in the store", self.found)] if self.found is not None else []
        said.append((f"control has revoked {brief(self.selector)}", self.revoked))
        said += [(f"{name} obeys", when) for name, when in self.obeyed]
        said += [("the first call is refused for it", self.refused)]
        return [(what, (when - self.crossed).total_seconds() * 1_000) for what, when in said]


def brief(selector: str) -> str:
    """A selector for a line: of a hash its first digits."""
    kind, _, name = selector.partition(":")
    return f"{kind}:{name[:12]}..." if len(name) == 64 else selector


class Facts:
    """The store, asked until it knows."""

    def __init__(self, home: Home, asker: Asker) -> None:
        self._home = home
        self._asker = asker

    def findings(self, agent: str) -> list[dict[str, Any]]:
        """What was noticed of an agent, in the order in which it was stored."""
        return self._asker.rows(FINDINGS, agent=agent)

    def gaps(self) -> int:
        """Records and frames that are provably missing."""
        return int(self._asker.rows(GAPS)[0]["gaps"])

    def pieces(self, agent: str, domain: str, least: int) -> dict[str, Any]:
        """What an agent tried to reach of a domain, once so many calls are stored. Raises Missed."""
        def look() -> dict[str, Any] | None:
            found = self._asker.rows(PIECES, agent=agent, domain=domain)[0]
            return found if found["calls"] >= least else None

        found: dict[str, Any] = self.until(look, 20, f"{least} calls of {agent} to {domain} are stored")
        return found

    def grade(self, trace: str, seconds: float) -> str:
        """How a trace stands, once it has been quiet for long enough to say. Raises Missed."""
        found: dict[str, str] = self.until(lambda: next(iter(self._asker.rows(GRADE, trace=trace)), None), seconds,
                                           f"trace {trace} has settled")  # fmt: skip
        return found["grade"]

    def closed(self, rule: str, agent: str, doors: int, since: datetime, seconds: float) -> Closed:
        """How a rule's first revocation since some time came about and was obeyed by so many doors. Raises Missed."""
        said = self.until(lambda: next(iter(self._asker.rows(RESPONSE, rule=rule, since=since)), None), seconds,
                          lambda: f"rule `{rule}` revokes; findings: {self._seen(agent)}")  # fmt: skip
        epoch = int(said["epoch"])
        found = self._asker.rows(FOUND, id=said["finding"])[0]["found"]  # at once: a later version takes its place

        def revoked() -> datetime | None:
            return next((row["since"] for row in self._asker.rows(REVOKED, epoch=epoch)), None)

        at: datetime = self.until(revoked, seconds, f"revocation {epoch} is stored")

        def obeyed() -> list[dict[str, Any]]:
            found = self._asker.rows(OBEYED, epoch=epoch, since=at)
            return found if len(found) >= doors else []

        acks = self.until(obeyed, seconds, f"{doors} doors acknowledge epoch {epoch}")

        def refused() -> dict[str, Any] | None:
            found = self._asker.rows(REFUSED, agent=agent, since=at)[0]
            return found if found["calls"] else None

        last = self.until(refused, seconds, f"a call of {agent} is refused as revoked")
        labels = labels_of(self._home)
        return Closed(
            finding=said["finding"], rule=said["rule"], selector=said["selector"], epoch=epoch, crossed=said["crossed"],
            found=found if found <= at else None, revoked=at, refused=last["first"], refusals=int(last["calls"]),
            obeyed=tuple((f"{labels.get(row['door'], row['door'])} of {row['host']}", row["obeyed"]) for row in acks),
        )  # fmt: skip

    def _seen(self, agent: str) -> str:
        return ", ".join(f"{one['detector']} {one['score']:g}" for one in self.findings(agent)) or "none"

    def until(self, look: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
        """What `look` finds, as soon as it finds anything. Raises Missed after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            away = ""
            try:
                found = look()
            except PeerFault as fault:  # the store is started again by `up`
                found, away = None, f"; {fault}"
            if found:
                return found
            if time.monotonic() > deadline:
                raise Missed(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}{away}")
            time.sleep(POLL_S)
