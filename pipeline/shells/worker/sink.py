"""How the worker writes to ClickHouse: over HTTP, from one thread, with a fence and a token in every insert.

Nothing here retries: whoever calls decides whether to try again, with the same arguments. Every method blocks.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from schemas.config import Config
from schemas.control import Entry
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.frame import Lane
from schemas.home import Home
from schemas.links import store_link
from schemas.migrate import migrate
from schemas.store import (
    ACK_SCHEMA,
    CONTROL_SCHEMA,
    DEADLETTER_SCHEMA,
    FENCED,
    FLAG_DEAD,
    FRAME_KIND,
    FRONTIER_SCHEMA,
    INSERT_FORMAT,
    INSERT_SETTINGS,
    ack_state_sql,
    control_has_sql,
    control_known_sql,
    control_live_sql,
    fenced_into,
    lane_state_sql,
    quote_name,
    quote_text,
    take_over_sql,
)

log = logging.getLogger(__name__)

CONNECT_S: Final = 5
POLL_S: Final = 0.05


class StoreAway(PeerFault):
    """The store cannot be reached, or did not answer in time: nobody knows whether it did what was asked."""


class StoreRefuses(PeerFault):
    """The store answered with an error."""


class Fenced(WardlineError):
    """Another worker has taken a partition of ours: nothing was stored, and this worker must leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A partition that is ours from now on, and what the store has of its lanes: frontier and what is stored beyond it."""

    epoch: int
    lanes: Mapping[Lane, tuple[int, Sequence[int]]]
    dead: Mapping[tuple[Lane, int], bytes]
    """Digests of the frames among them that are dead letters."""


class Sink:
    """One connection to the store. After any error the next call makes a new one, and asks anew where the store is."""

    def __init__(self, home: Home, config: Config, *, slot: str) -> None:
        self._home = home
        self._config = config
        self._slot = slot
        self._database = config.clickhouse.database
        self._client: Any = None
        self._migrated = not config.clickhouse.url

    def take_over(self, partition: int) -> Taken:
        """Own a partition: fence whoever had it, wait until the last insert that passed its fence has ended, then read.

        Raises StoreAway, StoreRefuses, OperatorFault.
        """
        write, read = take_over_sql(self._database, [partition], f"{self._slot}/{uuid.uuid4()}")
        with self._errors():
            client = self._connected()
            client.command(write)
            written = time.monotonic()
            rows = client.query(read).result_rows
            if len(rows) != 1:
                raise StoreRefuses(f"the fence of partition {partition} was written and is not there")
            self._wait_for_older_inserts(client, written)
            found = client.query(lane_state_sql(self._database, partition)).result_rows
            buried = client.query(
                f"SELECT toString(enforcer), call_seq, seq, any(frame_digest) FROM {quote_name(self._database)}.records"
                f" WHERE boot = 0 AND kind = {FRAME_KIND} AND partition = {partition}"
                f" GROUP BY enforcer, call_seq, seq HAVING countIf(frame_flag != {quote_text(FLAG_DEAD)}) = 0"
            ).result_rows
        lanes = {
            Lane(host=host, host_boot=int(boot), partition=partition): (int(frontier), [int(n) for n in beyond])
            for host, boot, frontier, beyond in found
        }
        dead = {
            (Lane(host=host, host_boot=int(boot), partition=partition), int(frame_no)): bytes(digest)
            for host, boot, frame_no, digest in buried
        }
        return Taken(epoch=int(rows[0][1]), lanes=lanes, dead=dead)

    def _wait_for_older_inserts(self, client: Any, written: float) -> None:
        """An insert looks at the fence when it starts. One that started before ours was written may still end, and store."""
        deadline = written + self._config.worker.insert_timeout_s
        while True:
            age = time.monotonic() - written
            # on a server this shows our own user's queries, and the former owner's inserts are ours
            running = client.query(
                f"SELECT count() FROM system.processes WHERE query_kind = 'Insert' AND elapsed >= {age:.6f}"
                f" AND position(query, 'INSERT INTO {quote_name(self._database)}.records') > 0"
            ).result_rows[0][0]
            if not running:
                return
            if time.monotonic() > deadline:
                raise StoreRefuses(f"an insert of the former owner has not ended in {self._config.worker.insert_timeout_s} s")
            time.sleep(POLL_S)

    def insert(self, stream: bytes | memoryview, token: str, owned: Mapping[int, int]) -> None:
        """Store one batch, all or nothing. `owned` is partition -> our epoch of every partition in it.

        Raises Fenced, StoreAway (it may be stored: try again with the same token), StoreRefuses, OperatorFault.
        """
        # wait_end_of_query: the status line must not be sent before it is known whether the insert held
        settings = {**INSERT_SETTINGS, "insert_deduplication_token": token, "wait_end_of_query": "1"}
        with self._errors():
            # a view is sent as it is; bytes are copied, and `command` would read them all as text first
            self._connected().raw_insert(
                fenced_into(self._database, owned), insert_block=memoryview(stream), fmt=INSERT_FORMAT, settings=settings
            )

    def keep(self, letters: Sequence[Mapping[str, Any]]) -> None:
        """Store dead letters; the same bytes again replace their row. Raises StoreAway, StoreRefuses, OperatorFault."""
        self._append("deadletters", pa.Table.from_pylist([dict(one) for one in letters], schema=DEADLETTER_SCHEMA))

    def note(self, frontiers: Sequence[Mapping[str, Any]]) -> None:
        """Store how far lanes are. Raises StoreAway, StoreRefuses, OperatorFault."""
        self._append("frontiers", pa.Table.from_pylist([dict(one) for one in frontiers], schema=FRONTIER_SCHEMA))

    def keep_entries(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store control entries; the same one again replaces its row. Raises StoreAway, StoreRefuses, OperatorFault."""
        self._append("control", pa.Table.from_pylist([dict(one) for one in rows], schema=CONTROL_SCHEMA))

    def keep_acks(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store acknowledgements; the same one again is one row. Raises StoreAway, StoreRefuses, OperatorFault."""
        self._append("acknowledged", pa.Table.from_pylist([dict(one) for one in rows], schema=ACK_SCHEMA))

    def control_known(self, first: Entry | None) -> tuple[int, int]:
        """The journal to which a log belongs whose oldest live entry is `first`, and the highest epoch of it that is stored.

        A journal whose entry is not the one that is stored at that epoch is a new one: control has begun anew, at epoch 1.
        Raises StoreAway, StoreRefuses, OperatorFault.
        """
        with self._errors():
            client = self._connected()
            found = client.query(control_known_sql(self._database)).result_rows
            if not found:
                return 1, 0
            journal, known = int(found[0][0]), int(found[0][1])
            if first is not None and first.epoch <= known:
                there = client.query(control_has_sql(self._database, journal, first.epoch)).result_rows
                if (first.key, first.time_ns // 1000) not in {(str(key), int(time_us)) for key, time_us in there}:
                    return journal + 1, 0
            return journal, known

    def control_count(self, journal: int, epoch: int) -> int:
        """How many keys the store has as live of which nothing above `epoch` was said."""
        with self._errors():
            sql = control_live_sql(self._database, journal, epoch, "count()")
            return int(self._connected().query(sql).result_rows[0][0])

    def control_keys(self, journal: int, epoch: int) -> list[str]:
        """Those keys."""
        with self._errors():
            sql = control_live_sql(self._database, journal, epoch, "key")
            return [str(key) for (key,) in self._connected().query(sql).result_rows]

    def ack_state(self, journal: int, host: str, host_boot: str) -> list[tuple[Any, ...]]:
        """What is stored of one start of a host, as `schemas.store.ack_state_sql` has it."""
        with self._errors():
            return list(self._connected().query(ack_state_sql(self._database, journal, host, host_boot)).result_rows)

    def _append(self, table: str, rows: pa.Table) -> None:
        with self._errors():
            # what replaces its own rows is merged later and not while it is inserted, which took three times as long
            self._connected().insert_arrow(table, rows, database=self._database, settings={"optimize_on_insert": "0"})

    def _connected(self) -> Any:
        if self._client is None:
            link = store_link(self._home, self._config, "writer")
            self._client = clickhouse_connect.get_client(
                **link.options(), connect_timeout=CONNECT_S, send_receive_timeout=self._config.worker.insert_timeout_s,
                compress=False, autogenerate_session_id=False, query_limit=0,
            )  # fmt: skip
        if not self._migrated:
            migrate(self._execute, self._database)
            self._migrated = True
        return self._client

    def _execute(self, sql: str) -> Sequence[Sequence[Any]]:
        if sql.lstrip()[:6].upper() == "SELECT":
            return list(self._client.query(sql).result_rows)
        self._client.command(sql)
        return []

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except (StoreRefuses, OperatorFault):
            self.close()
            raise
        except PeerFault as fault:
            self.close()
            raise StoreAway(str(fault)) from fault
        except (ClickHouseError, OSError) as fault:
            self.close()
            text = _line(fault)
            if FENCED in text:
                raise Fenced("another worker has taken a partition of this one") from fault
            if "ACCESS_DENIED" in text and "system.processes" in text:
                raise OperatorFault("the store's writer needs SELECT on system.processes, to see inserts end") from fault
            # an OperationalError is a DatabaseError too: no connection, no answer, or a 503
            if isinstance(fault, DatabaseError) and not isinstance(fault, OperationalError):
                raise StoreRefuses(f"the store refuses: {text}") from fault
            raise StoreAway(f"the store is away: {text}") from fault

    def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()


def _line(fault: BaseException) -> str:
    """A fault in one line. The URL of a request, which has the whole statement in it, is left out."""
    text = " ".join(str(fault).partition(" with url: ")[0].split())
    return (text or type(fault).__name__)[:300]
