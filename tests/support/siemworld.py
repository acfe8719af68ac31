"""A sink, its feeder and a store in one thread with a clock of their own: an hour passes in a moment, one seed is one history.

Real are the choice of what is due, the events, the feeder, the cursor's bytes and each sink's framing; the store is a list of
rows that become visible later than they were stored and in another order, the sink a function that takes, refuses, or takes and
says that it did not.
"""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.core.ocsf import Alert, Dialect, fitted
from pipeline.core.siem.choice import (
    DONE,
    FOUND,
    JUDGED,
    REVOKED,
    Entry,
    Item,
    Page,
    due,
    items,
    refused,
    row_key,
)
from pipeline.core.siem.cursor import Cursor, decode
from pipeline.core.siem.feeder import Batch, Feeder, Look, Save, Send, Wait
from pipeline.core.siem.frames import Arrived
from pipeline.core.siem.framing import hec_body, json_lines, syslog_event, syslog_frames
from pipeline.core.siem.questions import agent_of
from tests.support import alerting

Row = dict[str, Any]

START_S: Final = 1_790_000_000.0
OVERLAP_US: Final = 180 * 10**6
PAGE: Final = 17
"""A page so small that looks have to turn some."""

SOURCES: Final = (FOUND, JUDGED, DONE, REVOKED)
AGENTS: Final = ("ann", "bob", "cid")


def of_file(batch: Batch) -> list[Row]:
    """What a reader of the file finds."""
    return [json.loads(line) for line in json_lines(batch.events).splitlines()]


def of_splunk(batch: Batch) -> list[Row]:
    """What Splunk finds in a request."""
    body = gzip.decompress(hec_body(batch.alerts, batch.events, host="here", index="")).decode()
    return [json.loads(line)["event"] for line in body.split("\n")]


def of_syslog(batch: Batch) -> list[Row]:
    """What a receiver finds in its frames."""
    stamps = ["2026-01-31T12:00:00.000000Z"] * len(batch.alerts)
    data, found = syslog_frames(batch.alerts, batch.events, host="here", pid=1, stamps=stamps), []
    while data:
        size, _, rest = data.partition(b" ")
        found.append(json.loads(rest[: int(size)].split(b" ", 7)[7]))
        data = rest[int(size) :]
    return found


def of_kafka(batch: Batch) -> list[Row]:
    """What a consumer finds, partition by partition."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for alert, event in zip(batch.alerts, batch.events, strict=True):
        parts[alert.key].append(json.loads(event))
    return [event for key in sorted(parts) for event in parts[key]]


KINDS: Final[Mapping[str, tuple[Callable[[Alert], bytes], Callable[[Batch], list[Row]]]]] = {
    "file": (fitted, of_file), "splunk": (fitted, of_splunk), "syslog": (syslog_event, of_syslog), "kafka": (fitted, of_kafka),
}  # fmt: skip


@dataclass(slots=True)
class Stored:
    """A row: when it was written, when it can be seen."""

    source: str
    stored_us: int
    visible_us: int
    key: str
    row: Row


@dataclass(slots=True)
class World:
    """One history."""

    seed: int
    kind: str
    refusals: bool = False
    now_s: float = START_S
    rows: list[Stored] = field(default_factory=list)
    frames: list[tuple[int, Arrived, list[Row]]] = field(default_factory=list)
    """(visible, frame, its refused calls)."""
    got: list[Row] = field(default_factory=list)
    """What the other side has, duplicates too."""
    take: Callable[["World", Batch], str] = lambda world, batch: ""
    """Says why a batch was not taken; empty where it was. Time may pass in it."""
    keeps_refused: bool = False
    """Whether what was not taken has arrived all the same."""
    most: int = 0
    """Events that were held at a time."""
    crashes: int = 0
    feeder: Feeder = field(init=False)
    saved: bytes = b""
    rng: random.Random = field(init=False)
    _versions: dict[int, int] = field(default_factory=dict)
    _epoch: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} {self.kind}")
        self.start()

    # -- the process -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As the process starts: from the cursor that was written, or anew."""
        cursor = decode(self.saved, overlap_us=OVERLAP_US, where="x") if self.saved else Cursor(overlap_us=OVERLAP_US)
        if not self.saved:
            cursor.begin(SOURCES, refusals=self.refusals, now_us=self.us)
            self.saved = cursor.encode()
        self.feeder = Feeder(cursor=cursor, pack=KINDS[self.kind][0], retry_s=30.0)

    def crash(self) -> None:
        """kill -9."""
        self.crashes += 1
        self.start()

    @property
    def us(self) -> int:
        return int(self.now_s * 10**6)

    def run(self, seconds: float, *, each: Callable[[], None] = lambda: None) -> None:
        """Let time pass; `each` happens before each step."""
        end = self.now_s + seconds
        while self.now_s < end:
            each()
            self.step(end)

    def step(self, end: float) -> None:
        """One turn of the feeder."""
        feeder = self.feeder
        match feeder.next(self.now_s):
            case Wait(until_s):
                self.now_s = min(max(until_s, self.now_s + 0.001), end)
            case Look():
                feeder.found(self.look(feeder.cursor), self.now_s)
            case Send(batch):
                why = self.take(self, batch)
                if not why or self.keeps_refused:
                    self.got += KINDS[self.kind][1](batch)
                if why:
                    feeder.failed(why, self.now_s)
                else:
                    feeder.taken(self.now_s)
            case Save(data):
                self.saved = data
                feeder.saved(self.now_s)
        self.most = max(self.most, feeder.waiting)

    # -- the store ---------------------------------------------------------------------------------------------------

    def look(self, cursor: Cursor) -> list[Item]:
        """As the reader looks: pages of what is there, then the rows that are due."""
        seen = [one for one in self.rows if one.visible_us <= self.us]
        pages = [self._page(source, cursor, [one for one in seen if one.source == source]) for source in SOURCES]
        wanted, made = due(cursor, pages, self.us)
        latest: dict[str, Row] = {}
        for one in seen:
            if one.source == FOUND and one.row["version"] > latest.get(one.row["id"], {"version": 0})["version"]:
                latest[one.row["id"]] = one.row
        by_key = {(one.source, one.key): one.row for one in seen if one.source != FOUND}
        rows: dict[str, Sequence[Row]] = {}
        for entry in wanted:
            if entry.source == FOUND:
                rows[row_key(entry)] = [latest[entry.finding]]
            else:
                rows[row_key(entry)] = [by_key[entry.source, entry.key]]
        made += items(wanted, rows, cursor, speaks=Dialect(), now_us=self.us)
        if cursor.frames is not None:
            new = [
                (frame, calls) for visible, frame, calls in self.frames
                if visible <= self.us and not cursor.frames.knows(frame.lane, frame.number)
            ]  # fmt: skip
            new.sort(key=lambda one: one[0].ingested_s)
            made += [refused(frame, calls, speaks=Dialect()) for frame, calls in new[:5]]
        return sorted(made, key=lambda item: item.at_us)

    def _page(self, source: str, cursor: Cursor, there: Iterable[Stored]) -> Page:
        mark = cursor.marks[source]
        low = mark.low_us(cursor.overlap_us)
        window = [one for one in there if one.stored_us >= low]
        if source == FOUND:
            last = {one.row["id"]: one for one in sorted(window, key=lambda one: one.row["version"])}
            window = list(last.values())
        window.sort(key=lambda one: (one.stored_us, one.key))
        fresh: list[Entry] = []
        for at in range(0, len(window), PAGE):
            page = window[at : at + PAGE]
            fresh += [entry_of(one) for one in page if one.key not in mark.seen]
            if len(fresh) >= PAGE and len(page) == PAGE:
                return Page(entries=fresh, bound_us=page[-1].stored_us)
        return Page(entries=fresh)

    # -- what happens ------------------------------------------------------------------------------------------------

    def write(self, source: str, key: str, row: Row, *, late_s: float = 0.0) -> None:
        """A row is stored now, and can be seen `late_s` later."""
        row = row | {"stored_us": self.us}
        self.rows.append(Stored(source, self.us, self.us + int(late_s * 10**6), key, row))

    def finding(self, number: int, *, late_s: float = 0.0, **fields: Any) -> None:
        """The next version of finding `number`."""
        version = self._versions[number] = self._versions.get(number, 0) + self.rng.randint(1, 3)
        row = alerting.finding(number, agent=AGENTS[number % len(AGENTS)], version=version, **fields)
        self.write(FOUND, f"{row['id']}:{version}", row, late_s=late_s)

    def response(self, number: int) -> None:
        """A rule has acted on finding `number`."""
        row = alerting.response(number, agent=AGENTS[number % len(AGENTS)], epoch=self._next(), acted_us=self.us)
        self.write(DONE, f"{row['id']}:leaks:{row['epoch']}", row)

    def revocation(self, agent: str, *, late_s: float = 0.0) -> None:
        """Somebody is revoked."""
        row = alerting.revocation(name=f"agent:{agent}", epoch=self._next())
        self.write(REVOKED, f"1:{row['epoch']}:agent:{agent}", row, late_s=late_s)

    def frame(self, agent: str, calls: int, *, late_s: float = 0.0) -> None:
        """A frame with refused calls of an agent; `ingested` is when its insert was first tried."""
        number = self._next()
        rows = [
            alerting.refusal(call_id=f"{number:016x}{n:016x}", agent=agent, stored_us=self.us, time_us=self.us + n)
            for n in range(calls)
        ]
        frame = Arrived(lane=("enforce-1", 7, AGENTS.index(agent)), number=number, ingested_s=int(self.now_s), records=calls,
                        boots=(7,))  # fmt: skip
        self.frames.append((self.us + int(late_s * 10**6), frame, rows))

    def _next(self) -> int:
        self._epoch += 1
        return self._epoch

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing is lost: of each finding the last version, and every response, revocation and refused call."""
        uids = {event["metadata"]["uid"] for event in self.got}
        versions: dict[str, int] = {}
        for event in self.got:
            if event["metadata"]["log_name"] == "findings" and "response_rule" not in event["unmapped"]:
                one = event["finding_info"]["uid"]
                versions[one] = max(versions.get(one, 0), event["unmapped"]["finding_version"])
        latest: dict[str, int] = {}
        for stored in self.rows:
            if stored.source == FOUND:
                latest[stored.row["id"]] = max(latest.get(stored.row["id"], 0), stored.row["version"])
        assert versions == latest, f"seed={self.seed}"
        responses = {stored.row["epoch"] for stored in self.rows if stored.source == DONE}
        assert responses == {event["unmapped"]["response_epoch"] for event in self.got if "response_epoch" in event["unmapped"]}
        revoked = {stored.row["epoch"] for stored in self.rows if stored.source == REVOKED}
        assert revoked == {event["unmapped"]["epoch"] for event in self.got if event["class_uid"] == 3004}
        calls = {row["call_id"] for _, _, rows in self.frames for row in rows}
        assert calls <= uids

    def check_order(self) -> None:
        """Of one agent nothing is in another order than it was stored in: by the first time that each event came."""
        first: dict[str, Row] = {}
        for event in self.got:
            first.setdefault(event["metadata"]["uid"], event)
        by_agent: dict[str, list[Row]] = defaultdict(list)
        for event in first.values():
            name = event["unmapped"].get("agent") or event["unmapped"]["selector"].partition(":")[2]
            by_agent[name].append(event)
        for agent, events in by_agent.items():
            stored = [event["metadata"]["logged_time"] for event in events if event["class_uid"] in (2004, 3004)]
            assert stored == sorted(stored), f"{agent}, seed={self.seed}"
            by_lane = [event["metadata"]["uid"] for event in events if event["class_uid"] == 4002]
            assert by_lane == sorted(by_lane), f"{agent}, seed={self.seed}"
            versions: dict[str, int] = {}
            for event in events:
                if event["class_uid"] == 2004 and "response_rule" not in event["unmapped"]:
                    one = event["finding_info"]["uid"]
                    assert event["unmapped"]["finding_version"] > versions.get(one, 0)
                    assert event["activity_id"] == (2 if one in versions else 1) or self.crashes
                    versions[one] = event["unmapped"]["finding_version"]


def entry_of(one: Stored) -> Entry:
    """As the question about what is there answers."""
    row = one.row
    if one.source == FOUND:
        return Entry(source=FOUND, at_us=one.stored_us, key=one.key, agent=row["agent"], finding=row["id"],
                     version=row["version"], severity=row["severity"], withdrawn=row["state"] == "withdrawn")  # fmt: skip
    agent = agent_of(row["name"]) if one.source == REVOKED else None
    return Entry(source=one.source, at_us=one.stored_us, key=one.key, agent=agent, finding=row.get("id", ""))
