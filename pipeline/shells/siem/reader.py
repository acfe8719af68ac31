"""Reads what is new from the store, as its reader user: one connection for one sink, made anew after any error. It blocks."""

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from pipeline.core.ocsf import Dialect
from pipeline.core.siem import questions
from pipeline.core.siem.choice import (
    DONE,
    FOUND,
    JUDGED,
    REVOKED,
    ROWS_MAX,
    SOURCES,
    Entry,
    Item,
    Page,
    due,
    items,
    refused,
    row_key,
)
from pipeline.core.siem.cursor import Cursor, Mark
from pipeline.core.siem.frames import DEEP_S, Arrived, Frames
from schemas.config import Config
from schemas.errors import PeerFault
from schemas.home import Home
from schemas.limits import FRAME_RECORDS_MAX
from schemas.links import store_link
from schemas.siem import REFUSALS

log = logging.getLogger(__name__)

CONNECT_S: Final = 5
ANSWER_S: Final = 60
KEYS_MAX: Final = 2_000
"""Calls that one question names."""

_OF_RESPONSE: Final = ("rule", "selector", "outcome", "epoch", "for_s", "why", "acted_us")

Row = dict[str, Any]


class Reader:
    """What one sink is sent, from the store."""

    def __init__(self, home: Home, config: Config, events: Iterable[str], speaks: Dialect) -> None:
        self._home = home
        self._config = config
        self._speaks = speaks
        self.sources = [source for one in events for source in SOURCES.get(one, ())]
        self.refusals = REFUSALS in events
        self._client: Any = None
        self._deep_us = 0

    def begin(self, cursor: Cursor) -> None:
        """Begin what has not begun, by the store's clock. Raises PeerFault."""
        cursor.begin(self.sources, refusals=self.refusals, now_us=self._now_us())

    def look(self, cursor: Cursor) -> list[Item]:
        """What is due, in its order; empty where nothing is. Raises PeerFault while the store does not answer."""
        lows = {source: cursor.marks[source].low_us(cursor.overlap_us) for source in self.sources}
        first: dict[str, list[Row]] = {source: [] for source in ("now", *self.sources)}
        for row in self._ask(questions.all_entries_sql(lows)):
            first[row["source"]].append(row)
        now_us = int(first["now"][0]["at"])
        pages = [self._page(source, cursor.marks[source], lows[source], first[source]) for source in self.sources]
        wanted, made = due(cursor, pages, now_us)
        made = [*made, *items(wanted, self._rows(wanted), cursor, speaks=self._speaks, now_us=now_us)]
        if cursor.frames is not None and self.refusals:
            made += self._refused(cursor.frames, now_us)
        return sorted(made, key=lambda item: item.at_us)

    def _now_us(self) -> int:
        return int(self._ask(questions.NOW)[0]["now_us"])

    def _page(self, source: str, mark: Mark, low_us: int, rows: list[Row]) -> Page:
        """Of the rows of a page those that are not seen; of later pages too, until there are ROWS_MAX of them."""
        fresh: list[Entry] = []
        while True:
            entries = sorted((questions.entry_of(source, row) for row in rows), key=lambda one: (one.at_us, one.key))
            fresh += [entry for entry in entries if entry.key not in mark.seen]
            if len(entries) < questions.PAGE:
                return Page(entries=fresh)
            after = entries[-1].at_us, entries[-1].key
            if len(fresh) >= ROWS_MAX:
                return Page(entries=fresh, bound_us=after[0])
            rows = self._ask(questions.entries_sql(source, low_us, after))

    # -- rows --------------------------------------------------------------------------------------------------------

    def _rows(self, wanted: Sequence[Entry]) -> dict[str, list[Row]]:
        """The rows of entries: source and key -> rows."""
        found: dict[str, list[Row]] = {}
        of = {source: [entry for entry in wanted if entry.source == source] for source in (FOUND, DONE, REVOKED, JUDGED)}
        ids = {entry.finding for entry in (*of[FOUND], *of[DONE])}
        findings = {row["id"]: row for row in self._ask(questions.findings_sql(ids))} if ids else {}
        for entry in of[FOUND]:
            if entry.finding in findings:
                found[row_key(entry)] = [findings[entry.finding]]
        if of[DONE]:
            done = {row["ident"]: row for row in self._ask(questions.responses_sql({entry.finding for entry in of[DONE]}))}
            for entry in of[DONE]:
                if (row := done.get(entry.key)) is not None:
                    finding = findings.get(entry.finding) or _unknown(entry, row)
                    found[row_key(entry)] = [finding | {"stored_us": entry.at_us} | {name: row[name] for name in _OF_RESPONSE}]
        if of[REVOKED]:
            for row in self._ask(questions.control_sql(REVOKED, {entry.key for entry in of[REVOKED]})):
                found[f"{REVOKED}/{row['ident']}"] = [row]
        for entry in of[JUDGED]:
            found[row_key(entry)] = self._judged(entry)
        self._add_chains([row for rows in found.values() for row in rows if row.get("calls")])
        return found

    def _judged(self, entry: Entry) -> list[Row]:
        name = entry.key.split(":", 2)[2]
        for row in self._ask(questions.exceptions_sql([name])):
            value = json.loads(row["last"])
            owner, reason = str(value.get("owner", "")), str(value.get("reason", ""))
            why = ", ".join(one for one in (reason, f"says {owner}" if owner else "") if one)
            rows = self._ask(questions.judged_sql(str(value.get("detector", "")), str(value.get("subject", ""))))
            return [row | {"why": why} for row in rows]
        return []

    def _add_chains(self, rows: Sequence[Row]) -> None:
        """For whom the agent of a finding acted, by the last call that the finding names."""
        keys = {key for row in rows if (key := questions.key_of(row["calls"][-1])) is not None}
        chains = {
            (row["boot"], row["seq"]): row for some in _shares(sorted(keys)) for row in self._ask(questions.chains_sql(some))
        }
        for row in rows:
            key = questions.key_of(row["calls"][-1])
            if key is not None and key in chains:
                row |= {name: chains[key][name] for name in ("chain", "assurance")}

    # -- refused calls -----------------------------------------------------------------------------------------------

    def _refused(self, frames: Frames, now_us: int) -> list[Item]:
        """Frames that are new, as many as have FRAME_RECORDS_MAX records together, and their refused calls."""
        made: list[Item] = []
        records = 0
        for frame in self._arrived(frames, now_us):
            records += frame.records
            if made and records > FRAME_RECORDS_MAX:
                break
            made.append(refused(frame, self._refused_in(frame), speaks=self._speaks))
        return made

    def _arrived(self, frames: Frames, now_us: int) -> list[Arrived]:
        recent = [questions.frame_of(row) for row in self._ask(questions.recent_sql(frames))]
        new = [frame for frame in recent if not frames.knows(frame.lane, frame.number)]
        # a page full of what is known hides what is behind it
        if new or (len(recent) < questions.PAGE and now_us - self._deep_us < DEEP_S * 10**6):
            return new
        late: list[Arrived] = []
        lanes = [questions.lane_of(row) for row in self._ask(questions.lanes_sql(frames))]
        for at in range(0, len(lanes), questions.LANES_MAX):
            some = lanes[at : at + questions.LANES_MAX]
            late += [questions.frame_of(row) for row in self._ask(questions.unknown_sql(frames, some))]
        if not late:
            self._deep_us = now_us
        return sorted(late, key=lambda frame: (frame.ingested_s, frame.lane, frame.number))

    def _refused_in(self, frame: Arrived) -> list[Row]:
        if not frame.boots:
            return []
        keys = [(int(row["boot"]), int(row["call_seq"])) for row in self._ask(questions.refused_sql(frame))]
        rows: dict[tuple[int, int], Row] = {}
        for some in _shares(keys):
            rows |= {(row["boot"], row["seq"]): row for row in self._ask(questions.calls_sql(some))}
        return [rows[key] | {"stored_us": frame.ingested_s * 10**6} for key in keys if key in rows]

    # -- the store ---------------------------------------------------------------------------------------------------

    def _ask(self, sql: str) -> list[Row]:
        link = store_link(self._home, self._config, "reader")
        try:
            if self._client is None:
                self._client = clickhouse_connect.get_client(
                    **link.options(), database=link.database, connect_timeout=CONNECT_S, send_receive_timeout=ANSWER_S,
                    autogenerate_session_id=False, query_limit=0,
                )  # fmt: skip
            found = self._client.query(sql)
        except (OperationalError, OSError) as fault:
            self.close()
            raise PeerFault(f"the store at {link.host}:{link.port} does not answer") from fault
        except ClickHouseError as fault:
            self.close()
            text = " ".join(str(fault).partition(" with url: ")[0].split())[:300]
            raise PeerFault(f"the store at {link.host}:{link.port} refuses: {text}") from fault
        return [dict(zip(found.column_names, map(_value, row), strict=True)) for row in found.result_rows]

    def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()


def _shares(keys: Sequence[tuple[int, int]]) -> Iterable[Sequence[tuple[int, int]]]:
    return (keys[at : at + KEYS_MAX] for at in range(0, len(keys), KEYS_MAX))


def _unknown(entry: Entry, row: Mapping[str, Any]) -> Row:
    """Instead of a finding that somebody has dropped: what a rule did about it is told all the same."""
    texts = dict.fromkeys(
        ("detector", "subject", "agent", "domain", "host", "credential", "session", "enforcer", "severity", "sql", "worker"), ""
    )
    us = dict.fromkeys(("started_us", "ended_us", "time_us", "stored_us"), row["acted_us"])
    return texts | us | {
        "id": entry.finding, "version": 0, "score": 0.0, "title": "a finding that is not in the store any more",
        "state": "open", "terms": "[]", "evidence": "{}", "calls": [], "calls_count": 0, "tenant": row["tenant"],
    }  # fmt: skip


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
