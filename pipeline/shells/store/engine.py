"""chDB in threads: two that write, some that read, each query on a connection of its own.

A connection costs 0.3 ms, so every query gets a new one: its settings and its current database end with it, and nothing that
one user sets is seen by another. Reads run with `readonly` set inside the engine, on threads that writes do not use; the
writer's own reads (a worker asking for its lanes) have threads that no reader can fill. Rows that somebody waits for, to act on
them, have a writing thread that inserts of calls do not use: under load those queue for seconds.
"""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chdb.state.sqlitelike import connect

from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.migrate import migrate
from schemas.store import quote_name, quote_text

log = logging.getLogger(__name__)

TAG: Final = "query_cache_tag"
"""The setting that carries our name of a running query, so that it can be ended; it has no other use here."""

WAITING_MAX: Final = 64
"""Queries that wait for a reading thread. More are refused with 503, code 202."""

OWN_THREADS: Final = 3
"""Reads of the writer's that run at a time: what tap, lookout and rules ask does not wait for a page of a rebuild."""

KILL_AGAIN_S: Final = 0.1
KILLS_MAX: Final = 50

_CODE: Final = re.compile(r"Code: (\d+)\. DB::Exception: ")
_NAME: Final = re.compile(r"\(([A-Z][A-Z0-9_]+)\)\s*(?:\(version [^)]*\)+\s*)?$")
_VERSION: Final = re.compile(r"\s*\(version [^)]*\)+\.?")

PYTHON_OUTPUTS: Final = frozenset({"arrowtable", "dataframe", "datastore"})
"""Names that chDB's Python layer takes for its own objects; the engine has no such formats."""


class EngineError(Exception):
    """The engine refused or failed: its code, its name of it, and its one-line text."""

    def __init__(self, raw: str) -> None:
        flat = " ".join(raw.split())
        codes = _CODE.findall(flat)
        self.code = int(codes[0]) if codes else 1001
        named = _NAME.search(flat)
        self.name = named[1] if named else "STD_EXCEPTION"
        text = _CODE.sub("", flat)
        super().__init__(_VERSION.sub("", text).replace(f" ({self.name})", "").strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One statement for the engine. `level` is the engine's `readonly`; 0 only on the writing thread. `said` runs before it."""

    sql: str
    output: str
    tag: str
    database: str
    level: int
    said: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of a result (alive as long as this is) and what it cost."""

    view: memoryview
    keep: Any
    rows: int
    summary: Mapping[str, int]
    seconds: float


class Engine:
    """The open store."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Open the data, bring it up to date. Raises OperatorFault when it cannot be opened or has other migrations."""
        self._folder = str(folder)
        self._limits = (
            ("max_memory_usage", str(config.store.query_bytes)),
            ("max_execution_time", str(config.store.query_seconds)),
            ("async_insert", "0"),
        )
        try:
            self._root = connect(self._folder)
        except Exception as fault:
            raise OperatorFault(f"{folder}: the store cannot be opened: {' '.join(str(fault).split())}") from fault
        self._clean_default()
        applied = migrate(self.rows, config.clickhouse.database)
        if applied:
            log.info("migrations %s are applied", ", ".join(str(number) for number in applied))
        self.version, self.timezone = self.rows("SELECT version(), timezone()")[0]
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing_soon = ThreadPoolExecutor(1, thread_name_prefix="write-soon")
        self._reading = ThreadPoolExecutor(config.store.reader_threads, thread_name_prefix="read")
        self._own = ThreadPoolExecutor(OWN_THREADS, thread_name_prefix="own-read")
        self._killing = ThreadPoolExecutor(1, thread_name_prefix="kill")
        self._waiting = 0
        self._closing = False
        self._lock = threading.Lock()

    def _clean_default(self) -> None:
        """The engine's own `default` database reads any file that is named like a table: an ordinary one takes its place."""
        if self.rows("SELECT engine FROM system.databases WHERE name = 'default'") != [["Atomic"]]:
            self._root.query("DROP DATABASE IF EXISTS default", "Null")
            self._root.query("CREATE DATABASE default ENGINE = Atomic", "Null")

    def rows(self, sql: str) -> list[list[str]]:
        """Run one statement at start; the rows as texts."""
        text = self._root.query(sql, "TabSeparated").bytes().decode()
        return [line.split("\t") for line in text.splitlines()]

    def functions(self) -> list[str]:
        """Every table function that the engine has."""
        return [row[0] for row in self.rows("SELECT name FROM system.table_functions")]

    def settings(self) -> list[tuple[str, str]]:
        """Every setting of a query or a table, and its type."""
        found = self.rows("SELECT name, type FROM system.settings UNION ALL SELECT name, type FROM system.merge_tree_settings")
        return [(row[0], row[1] if len(row) > 1 else "") for row in found]

    @property
    def waiting(self) -> int:
        """Reads that are queued or running."""
        return self._waiting

    async def read(self, ask: Ask, *, own: bool) -> Answer:
        """Run a read; `own` is the writer's. A caller that goes away ends the query. Raises EngineError."""
        assert ask.level > 0
        if self._closing:
            raise EngineError("Code: 236. DB::Exception: the store stops. (ABORTED)")
        if not own and self._waiting >= WAITING_MAX:
            raise EngineError(f"Code: 202. DB::Exception: {WAITING_MAX} queries wait already. (TOO_MANY_SIMULTANEOUS_QUERIES)")
        with self._lock:
            self._waiting += 1
        future = (self._own if own else self._reading).submit(self._run, ask)
        future.add_done_callback(self._left)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                self._killing.submit(self._kill, f"= {quote_text(ask.tag)}", future.done)
            raise

    def _left(self, _: "Future[Answer]") -> None:
        with self._lock:
            self._waiting -= 1

    def write(self, ask: Ask, done: Callable[[], None], *, soon: bool = False) -> "asyncio.Future[Answer]":
        """Queue a write: one at a time, in order, to its end even when its client has gone. `done` runs behind it.

        Those that are wanted `soon` are a queue of their own, beside the other one.
        """
        future = (self._writing_soon if soon else self._writing).submit(self._run, ask)
        future.add_done_callback(lambda _: done())
        return asyncio.wrap_future(future)

    def _kill(self, which: str, done: Callable[[], bool]) -> None:
        """End the reads whose tag `which` says, again and again until they are done: one may only just be starting."""
        connection = connect(self._folder)
        sql = f"KILL QUERY WHERE query_kind != 'Insert' AND Settings['{TAG}'] {which} ASYNC"
        try:
            for _ in range(KILLS_MAX):
                if done():
                    return
                connection.query(sql, "Null")
                time.sleep(KILL_AGAIN_S)
            log.warning("a query does not end, it will at its time limit")
        except Exception as fault:
            log.warning("a query cannot be ended, it will at its time limit: %s", EngineError(str(fault)))
        finally:
            connection.close()

    def end_reads(self) -> None:
        """Take no more reads, and end those that run: the process stops."""
        self._closing = True
        self._killing.submit(self._kill, "!= ''", lambda: self._waiting == 0)

    def _run(self, ask: Ask) -> Answer:
        if ask.output.lower() in PYTHON_OUTPUTS:
            raise EngineError(f"Code: 73. DB::Exception: Unknown format {ask.output}. (UNKNOWN_FORMAT)")
        connection = connect(self._folder)
        try:
            connection.query(_set((*self._limits, (TAG, ask.tag))), "Null")
            for statement in ask.said:
                connection.query(statement, "Null")
            if ask.database:
                connection.query(f"USE {quote_name(ask.database)}", "Null")
            if ask.settings:
                connection.query(_set(ask.settings), "Null")
            if ask.level:
                connection.query(f"SET readonly = {ask.level}", "Null")
            result = connection.query(ask.sql, ask.output, params=dict(ask.params) or None)
            keep = result.get_memview()
            summary = {
                "read_rows": result.storage_rows_read(), "read_bytes": result.storage_bytes_read(),
                "written_rows": result.rows_written(), "written_bytes": result.bytes_written(),
                "total_rows_to_read": 0, "result_rows": result.rows_read(), "result_bytes": result.size(),
                "elapsed_ns": int(result.elapsed() * 1e9),
            }  # fmt: skip
            return Answer(keep.view(), (keep, result), result.rows_read(), summary, result.elapsed())
        except Exception as fault:
            raise EngineError(str(fault)) from None
        finally:
            connection.close()

    def close(self) -> None:
        """Let the running write finish, then close the data. Those that wait are not begun."""
        for pool in (self._reading, self._own, self._killing, self._writing_soon, self._writing):
            pool.shutdown(cancel_futures=True)
        self._root.close()


def _set(settings: Sequence[tuple[str, str]]) -> str:
    return "SET " + ", ".join(f"{quote_name(name)} = {quote_text(value)}" for name, value in settings)
