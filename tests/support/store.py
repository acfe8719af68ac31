"""A real store process, and rows for it: `records` by the hundred thousand without an enforcer.

    def test_something(store: Store) -> None:
        store.insert(frame_of([decision(1), effect(2, 1)], frame_no=1))
        assert store.rows("SELECT count() FROM calls") == [(1,)]

The process lives for the whole run; a test that kills it, or that needs an empty store, makes one with `running`.
"""

import contextlib
import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest

from schemas.config import Config, load_config
from schemas.home import Home
from schemas.layout import VERDICT_UNSAID
from schemas.links import store_link
from schemas.records import Kind, Outcome, Verdict
from schemas.store import INSERT_SCHEMA, INSERT_SETTINGS, frame_row, insert_sql, take_over_sql, zero_of
from tests.support.home import Wardline

Row = Mapping[str, Any]

HOST_BOOT = 77
NOW_S = 1_790_000_000
ZEROS = {field.name: zero_of(field.type) for field in INSERT_SCHEMA}


class Store:
    """One home whose only process is the store."""

    def __init__(self, wardline: Wardline) -> None:
        self.wardline = wardline
        self.home: Home = wardline.home
        self.config: Config = load_config(wardline.home.config)
        self.database = "wardline"
        self._clients: dict[str, Any] = {}
        self._epochs: dict[int, int] = {}

    @property
    def url(self) -> str:
        """http://HOST:PORT of the process that runs now."""
        link = store_link(self.home, self.config, "reader")
        return f"http://{link.host}:{link.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.wardline.pid("store")

    def said(self) -> dict[str, Any]:
        """Its run file."""
        return dict(json.loads(self.home.run_file("store").read_bytes()))

    def password(self, user: str) -> str:
        """Of `writer` or `reader`."""
        return self.home.password(user).read_text().strip()

    def connect(self, user: str, **options: Any) -> Any:
        """A client of its own."""
        link = store_link(self.home, self.config, user)
        return clickhouse_connect.get_client(**(link.options() | {"database": self.database} | options))

    def client(self, user: str = "reader") -> Any:
        """A client that is kept."""
        if user not in self._clients:
            self._clients[user] = self.connect(user, autogenerate_session_id=False)
        return self._clients[user]

    def rows(self, sql: str, *, user: str = "reader", **options: Any) -> list[tuple[Any, ...]]:
        """Ask."""
        return [tuple(row) for row in self.client(user).query(sql, **options).result_rows]

    def run(self, sql: str) -> None:
        """Let the writer do something, at once."""
        self.client("writer").command(sql, settings={"mutations_sync": "2"})

    def own(self, partition: int) -> int:
        """Take a partition if it is not ours; our epoch."""
        if partition not in self._epochs:
            self._epochs[partition] = self.take(partition)
        return self._epochs[partition]

    def take(self, partition: int) -> int:
        """Take a partition as a worker that starts."""
        write, read = take_over_sql(self.database, [partition], str(uuid.uuid4()))
        self.run(write)
        ((_, epoch),) = self.rows(read, user="writer")
        return int(epoch)

    def insert(self, rows: Iterable[Row], *, token: str = "", epochs: Mapping[int, int] | None = None) -> None:
        """One insert, fenced, as a worker does it."""
        table = table_of(rows)
        partitions = {int(value) for value in table["partition"].unique().to_pylist()}
        owned = dict(epochs) if epochs is not None else {partition: self.own(partition) for partition in partitions}
        settings = {**INSERT_SETTINGS, "insert_deduplication_token": token or str(uuid.uuid4())}
        self.client("writer").command(insert_sql(self.database, owned), data=stream_of(table), settings=settings)

    def append(self, table: str, rows: Iterable[Row], schema: pa.Schema) -> None:
        """An insert into one of the small tables, as a worker does it."""
        self.client("writer").insert_arrow(table, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))

    def curl(
        self, *words: str, path: str = "/", user: str = "reader", data: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """What curl gets: status, headers in lower case, body."""
        who = ["-u", f"{user}:{self.password(user)}"] if user else []
        body = ["--data-binary", "@-"] if data is not None else []
        done = subprocess.run(
            ["curl", "-sS", "-i", "--http1.1", *who, *body, *words, self.url + path], input=data, capture_output=True,
            timeout=60, check=True,
        )  # fmt: skip
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, rest = rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, rest

    def clear(self) -> None:
        """Forget all records, frames and ownership."""
        for table in ("records", "fence", "deadletters", "frontiers", "control", "acknowledged"):
            self.run(f"TRUNCATE TABLE {table}")
        self._epochs.clear()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.wardline.kill("store")
        self.forget()

    def start(self) -> None:
        """Start it again."""
        self.wardline.start("store")

    def forget(self) -> None:
        """Let the kept clients go: the process will have another address."""
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                client.close()
        self._clients.clear()


@contextlib.contextmanager
def running(root: Path, config: str = "") -> Iterator[Store]:
    """A store of its own."""
    with Wardline(root, config=config) as wardline:
        wardline.start("store")
        store = Store(wardline)
        try:
            yield store
        finally:
            store.forget()


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The one store process of the run."""
    with running(tmp_path_factory.mktemp("store") / "home") as store:
        yield store


@pytest.fixture
def store(shared_store: Store) -> Store:
    """The one store process of the run, with empty tables."""
    shared_store.clear()
    return shared_store


def decision(seq: int, **fields: Any) -> dict[str, Any]:
    """An allowed call, unless `fields` say otherwise."""
    row = {
        "kind": int(Kind.DECISION), "boot": 5, "seq": seq, "call_seq": seq, "verdict": int(Verdict.ALLOW),
        "time": NOW_S * 10**6 + seq, "recorded": NOW_S * 10**6 + seq, "door": "replay", "session": "s", "agent": "planner",
        "root": 'User::"alice"', "chain": 'User::"alice"\x1fAgent::"planner"', "depth": 2, "action": "mcp:tools/call",
        "resource": 'Tool::"bank/send"', "policies": "p1\x1fp2", "reason": "permit", "policy_digest": "d" * 64,
        "trace_id": hashlib.sha256(str(seq).encode()).digest()[:16],
    }  # fmt: skip
    return ZEROS | row | fields


def effect(seq: int, call_seq: int, **fields: Any) -> dict[str, Any]:
    """The good end of a call, unless `fields` say otherwise."""
    row = {
        "kind": int(Kind.EFFECT), "boot": 5, "seq": seq, "call_seq": call_seq, "time": NOW_S * 10**6 + seq,
        "recorded": NOW_S * 10**6 + seq, "verdict": VERDICT_UNSAID, "outcome": int(Outcome.OK), "status": 200, "bytes_out": 10,
        "bytes_in": 20, "duration_us": 1500,
    }  # fmt: skip
    return ZEROS | row | fields


def whole_decision(seq: int, **fields: Any) -> dict[str, Any]:
    """A call that came whole: what `decision` and `effect` say of it in one record, unless `fields` say otherwise."""
    ended = {name: effect(seq, seq)[name] for name in ("outcome", "status", "bytes_out", "bytes_in", "duration_us")}
    return decision(seq, **ended | fields)


def digest_of(lane: tuple[str, int, int], frame_no: int) -> bytes:
    """A digest for frame `frame_no` of a lane."""
    return hashlib.sha256(f"{lane} {frame_no}".encode()).digest() if frame_no else bytes(32)


def frame_of(
    records: Sequence[Row], *, frame_no: int, partition: int = 0, enforcer: str = "enforce-1", boot: int = HOST_BOOT,
    ingested_s: int = NOW_S, ranges: Sequence[int] | None = None, flag: str = "", previous: bytes | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one frame: its own, and its records'. `ranges` is by default what the records span, boot by boot."""
    lane = (enforcer, boot, partition)
    if ranges is None:
        seqs: dict[int, list[int]] = {}
        for row in records:
            seqs.setdefault(row["boot"], []).append(row["seq"])
        ranges = [number for door, found in seqs.items() for number in (door, min(found), max(found))]
    own = frame_row(
        enforcer=enforcer, enforcer_boot=boot, partition=partition, frame_no=frame_no, ingested_s=ingested_s,
        digest=digest_of(lane, frame_no), previous=digest_of(lane, frame_no - 1) if previous is None else previous,
        records=len(records), size=100, created_us=ingested_s * 10**6, ranges=ranges, flag=flag, offset=frame_no, head=b"head",
    )  # fmt: skip
    where = {"enforcer": enforcer, "enforcer_boot": boot, "partition": partition, "frame_no": frame_no, "ingested": ingested_s}
    return [own, *(dict(row) | where for row in records)]


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Rows as the worker's Arrow table."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=INSERT_SCHEMA)


def stream_of(table: pa.Table) -> bytes:
    """An Arrow IPC stream of several batches, as a batch of frames is."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=2000)
    return bytes(sink.getvalue())
