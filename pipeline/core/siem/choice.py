"""Which rows are due, in which order, and what is said of them.

    new                        in the order of (stored, kind, key), late ones first
    more of a kind are there   nothing of any kind behind the last that was read of it: what is stored first is sent first
    an update that changes     at most once in UPDATE_US for each finding, the last one always; but before anything else of its
    neither severity nor state agent that was stored later, so that an agent's events keep their order

An `Item` is what is done or not done as a whole: a row and its event, or all refused calls of a frame.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pipeline.core.ocsf import Alert, Dialect, finding_alert, refusal_alert, response_alert, revocation_alert
from pipeline.core.siem.cursor import Cursor, Told
from pipeline.core.siem.frames import Arrived
from schemas.siem import FINDINGS, REVOCATIONS

FOUND: Final = "findings"
JUDGED: Final = "exceptions"
DONE: Final = "responses"
REVOKED: Final = "revocations"
REFUSED: Final = "refusals"

SOURCES: Final[Mapping[str, tuple[str, ...]]] = {FINDINGS: (FOUND, JUDGED, DONE), REVOCATIONS: (REVOKED,)}
"""Which rows each of a sink's `events` is about. Refused calls are read by frames, not by the time of a row."""

_ORDER: Final = {source: number for number, source in enumerate((FOUND, JUDGED, REVOKED, DONE, REFUSED))}
"""Of rows that were stored in the same microsecond."""

ROWS_MAX: Final = 200
"""Rows of one look."""

PAGE_WAITS_MAX: Final = 5000
"""Updates that one look puts off."""

UPDATE_US: Final = 60 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """That a row is there: its kind, when it was stored, its key; of a finding its id, version and severity too.

    `agent` is what its event's order is kept by, None where only its row says that.
    """

    source: str
    at_us: int
    key: str
    agent: str | None = None
    finding: str = ""
    version: int = 0
    severity: str = ""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What was found of one kind: rows that are not seen yet, in order, and up to when these are all (None: to the end)."""

    entries: Sequence[Entry]
    bound_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is sent and then marked as a whole."""

    at_us: int
    alerts: Sequence[Alert] = ()
    marks: Sequence[tuple[str, str, int]] = ()
    """(source, key, stored) that are seen once the alerts were taken."""
    ahead: Sequence[tuple[str, str, int]] = ()
    """The same, of rows whose turn had not come: a finding is read in its latest version."""
    told: Sequence[tuple[str, Told]] = ()
    frame: Arrived | None = None

    def apply(self, cursor: Cursor) -> None:
        """Say in the cursor that it was taken."""
        for source, key, at_us in self.marks:
            if source in cursor.marks:
                cursor.marks[source].take(key, at_us, cursor.overlap_us)
        for source, key, at_us in self.ahead:
            if source in cursor.marks:
                cursor.marks[source].take(key, at_us, cursor.overlap_us, ahead=True)
        for finding, told in self.told:
            cursor.tell(finding, told)
        if self.frame is not None and cursor.frames is not None:
            cursor.frames.take(self.frame)


def due(cursor: Cursor, pages: Iterable[Page], now_us: int) -> tuple[list[Entry], list[Item]]:
    """What to read now, in its order; and items without an event: updates that wait from now on."""
    pages = list(pages)
    bounds = [page.bound_us for page in pages if page.bound_us is not None]
    bound = min(bounds, default=None)
    entries = sorted(
        (entry for page in pages for entry in page.entries if bound is None or entry.at_us <= bound),
        key=lambda entry: (entry.at_us, _ORDER[entry.source], entry.key),
    )
    # whose next version is here has its turn with that
    newer = {entry.finding for page in pages for entry in page.entries if entry.source == FOUND}
    turn = _Turn({one: told for one, told in cursor.told.items() if told.due_us and one not in newer})
    waits: list[Item] = []
    for entry in entries:
        if len(turn.wanted) >= ROWS_MAX or len(waits) >= PAGE_WAITS_MAX:
            return turn.wanted, waits
        told = cursor.told.get(entry.finding) if entry.source == FOUND else None
        if told is not None and (later := _later(told, entry, now_us)) is not None:
            waits.append(Item(at_us=entry.at_us, marks=[(FOUND, entry.key, entry.at_us)], told=[(entry.finding, later)]))
            if later.due_us:
                turn.waiting[entry.finding] = later
            continue
        known = cursor.told.get(entry.finding) if entry.source == DONE else None
        if turn.flush(known.agent if known is not None else entry.agent):
            turn.wanted.append(entry)
    for agent in [told.agent for told in turn.waiting.values() if told.due_us <= now_us]:
        turn.flush(agent)
    return turn.wanted, waits


@dataclass(slots=True)
class _Turn:
    """What is read in one look, and the updates that would wait for a later one."""

    waiting: dict[str, Told]
    wanted: list[Entry] = field(default_factory=list)

    def flush(self, agent: str | None) -> bool:
        """Let what waits of an agent go first, of everyone where it is not known who; False when there is no more room."""
        for finding, told in sorted(self.waiting.items(), key=lambda one: one[1].waits_us):
            if agent is None or told.agent == agent:
                if len(self.wanted) >= ROWS_MAX:
                    return False
                self.wanted.append(Entry(source=FOUND, at_us=told.waits_us, key="", finding=finding, agent=told.agent))
                del self.waiting[finding]
        return True


def _later(told: Told, entry: Entry, now_us: int) -> Told | None:
    """What is remembered of a finding whose new version can wait; None where it is sent now."""
    if entry.severity != told.severity or entry.withdrawn != (told.state == "withdrawn"):
        return None
    if entry.version <= told.version:
        return told  # it was sent already: in the place of an older one
    due_us = told.due_us or told.sent_us + UPDATE_US
    return None if due_us <= now_us else replace(told, due_us=due_us, waits_us=entry.at_us)


def items(
    entries: Sequence[Entry], rows: Mapping[str, Sequence[Mapping[str, Any]]], cursor: Cursor, *, speaks: Dialect, now_us: int
) -> list[Item]:
    """The events of entries, in their order. `rows` has the rows that were read: source and key -> rows (`row_key`)."""
    told = dict(cursor.told)
    made = []
    for entry in entries:
        found = rows.get(row_key(entry), ())
        match entry.source:
            case "findings":
                item = _found(entry, found, told, speaks, now_us)
            case "exceptions":
                item = _judged(entry, found, told, speaks)
            case "responses":
                alerts = [response_alert(row, speaks=speaks) for row in found]
                item = Item(at_us=entry.at_us, alerts=alerts, marks=[(DONE, entry.key, entry.at_us)])
            case _:
                alerts = [revocation_alert(row, speaks=speaks) for row in found]
                item = Item(at_us=entry.at_us, alerts=alerts, marks=[(REVOKED, entry.key, entry.at_us)])
        told.update(item.told)
        made.append(item)
    return made


def row_key(entry: Entry) -> str:
    """Where the rows of an entry are found among those that were read."""
    return f"{FOUND}/{entry.finding}" if entry.source == FOUND else f"{entry.source}/{entry.key}"


def _found(
    entry: Entry, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Told], speaks: Dialect, now_us: int
) -> Item:
    marks = [(FOUND, entry.key, entry.at_us)] if entry.key else []
    known = told.get(entry.finding)
    if not rows:  # dropped by somebody since it was looked at
        gone = [(entry.finding, replace(known, due_us=0, waits_us=0))] if known is not None else []
        return Item(at_us=entry.at_us, marks=marks, told=gone)
    row = rows[0]
    ahead = [(FOUND, f"{row['id']}:{row['version']}", row["stored_us"])]
    new = Told(version=row["version"], severity=row["severity"], state=row["state"], sent_us=now_us, agent=row["agent"])
    if known is not None and (
        (known.version, known.severity, known.state) == (new.version, new.severity, new.state)
        or known.state == new.state == "false"
    ):
        # nothing new: it was read before in place of an older version, or is a false one that goes on
        told_now = replace(known, version=new.version, due_us=0, waits_us=0)
        return Item(at_us=entry.at_us, marks=marks, ahead=ahead, told=[(entry.finding, told_now)])
    alert = finding_alert(row, told=known is not None, speaks=speaks)
    return Item(at_us=entry.at_us, alerts=[alert], marks=marks, ahead=ahead, told=[(entry.finding, new)])


def _judged(entry: Entry, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Told], speaks: Dialect) -> Item:
    """Findings that somebody has called false, or whose exception is over; what is withdrawn is closed already."""
    alive = [row for row in rows if row["state"] != "withdrawn"]
    alerts = [finding_alert(row, told=True, speaks=speaks, why=row["why"], because=entry.key) for row in alive]
    after = [
        (row["id"], replace(told[row["id"]], version=row["version"], state=row["state"])) for row in alive if row["id"] in told
    ]
    return Item(at_us=entry.at_us, alerts=alerts, marks=[(JUDGED, entry.key, entry.at_us)], told=after)


def refused(frame: Arrived, rows: Sequence[Mapping[str, Any]], *, speaks: Dialect) -> Item:
    """All refused calls of a frame."""
    return Item(at_us=frame.ingested_s * 10**6, alerts=[refusal_alert(row, speaks=speaks) for row in rows], frame=frame)
