"""The views on what control has said and who has applied it, on planted rows; and a database from before there were any."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.migrate import MIGRATIONS
from schemas.store import ACK_SCHEMA, CONTROL_SCHEMA
from tests.support.store import NOW_S, Store, decision, effect, frame_of, running

NOW_US = NOW_S * 1_000_000
OLD, NEW = "1" * 64, "2" * 64


def at(ms: float) -> int:
    """Milliseconds after the beginning, in microseconds since 1970."""
    return NOW_US + int(ms * 1000)


def when(ms: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at(ms) / 1e6, datetime.UTC).replace(tzinfo=None)


Row = dict[str, Any]


def entry(epoch: int, key: str, value: Mapping[str, Any] | None, ms: float, actor: str = "uid:op", journal: int = 1) -> Row:
    kind, _, name = key.partition("/")
    return {
        "journal": journal, "epoch": epoch, "key": key, "kind": kind, "name": name, "time": at(ms), "actor": actor,
        "value": "" if value is None else json.dumps(value), "tenant": "default",
    }  # fmt: skip


def revoked(name: str, **more: Any) -> Row:
    return {"kind": "agent", "name": name, "cascade": False, "reason": "leak", "expires": 0, "not_before": 0} | more


def word(door: str, epoch: int, ms: float, *, digest: str = OLD, host: str = "enforce-1", boot: str = "b1",
         state: str = "ready", doors: int = 2, said_ms: float | None = None, journal: int = 1) -> Row:  # fmt: skip
    return {
        "journal": journal, "host": host, "host_boot": boot, "door": door, "epoch": epoch, "policy_digest": digest,
        "applied": at(ms), "state": state, "doors": doors, "tenant": "default", "said": at(ms if said_ms is None else said_ms),
    }  # fmt: skip


def fill(store: Store, entries: list[Row], words: list[Row]) -> None:
    if entries:
        store.append("control", entries, CONTROL_SCHEMA)
    if words:
        store.append("acknowledged", words, ACK_SCHEMA)


def test_a_revocation_says_by_whom_since_when_until_when_and_how_it_ended(store: Store) -> None:
    fill(store, [
        entry(1, "revocation/agent:a", revoked("a"), 1),
        entry(2, "revocation/agent*:b", revoked("b", cascade=True, reason="first"), 2),
        entry(3, "revocation/agent:a", None, 3, "uid:other"),
        entry(4, "revocation/agent*:b", revoked("b", cascade=True, reason="second", not_before=NOW_S), 4),
        entry(5, "revocation/token:c", revoked("c", kind="token", expires=NOW_S + 9), 5),
        entry(6, "revocation/token:c", None, 9_000, "control"),
        entry(7, "revocation/agent:a", revoked("a", reason="again"), 9_001),
        entry(7, "revocation/agent:d", revoked("d"), 1),
        entry(8, "revocation/agent:d", None, 9_002, ""),
        entry(9, "pause", {"reason": "x"}, 9_003),
    ], [])  # fmt: skip
    found = store.rows("SELECT selector, state, reason, by, since, until, lifted_by FROM revocations ORDER BY epoch, selector")
    assert found == [
        ("agent:a", "lifted", "leak", "uid:op", when(1), when(3), "uid:other"),
        ("agent*:b", "replaced", "first", "uid:op", when(2), when(4), "uid:op"),
        ("agent*:b", "live", "second", "uid:op", when(4), None, ""),
        ("token:c", "expired", "leak", "uid:op", when(5), when(9_000), "control"),
        ("agent:a", "live", "again", "uid:op", when(9_001), None, ""),
        ("agent:d", "lifted", "leak", "uid:op", when(1), when(9_002), ""),
    ]
    ((kind, name, cascade, expires, not_before),) = store.rows(
        "SELECT kind, name, cascade, expires, not_before FROM revocations WHERE selector = 'agent*:b' AND state = 'live'"
    )
    assert (kind, name, cascade, expires, not_before) == ("agent", "b", 1, None, when(0))
    assert store.rows("SELECT expires FROM revocations WHERE kind = 'token'") == [(when(9_000),)]


def test_an_entry_that_is_written_twice_is_one(store: Store) -> None:
    rows = [entry(1, "revocation/agent:a", revoked("a"), 1), entry(2, "pause", None, 2)]
    words = [word("d1", 1, 1), word("d1", 2, 3)]
    fill(store, rows, words)
    fill(store, rows, [one | {"said": one["said"] + 5_000_000} for one in words])
    assert store.rows("SELECT selector, state FROM revocations") == [("agent:a", "live")]
    assert store.rows("SELECT epoch, applied, slowest_ms FROM epochs ORDER BY epoch") == [(1, 0, None), (2, 1, 1.0)]
    assert store.rows("SELECT epoch, said, last FROM acks ORDER BY epoch") == [(1, when(1), 0), (2, when(3), 1)], "said first"


def test_each_epoch_names_its_slowest_door_and_how_many_wait(store: Store) -> None:
    fill(store, [
        entry(1, "policy/main", {"digest": OLD}, 0),
        entry(2, "revocation/agent:a", revoked("a"), 100),
        entry(3, "revocation/agent:a", None, 200),
        entry(4, "revocation/agent:b", revoked("b"), 210),
        entry(5, "policy/main", {"digest": NEW}, 300),
        entry(6, "pause", {"reason": "x"}, 400),
    ], [
        word("", 1, 5), word("", 6, 401),
        word("d1", 1, 10), word("d1", 2, 103), word("d1", 4, 213), word("d1", 5, 302),
        word("d1", 5, 350, digest=NEW), word("d1", 6, 401, digest=NEW),
        # this one was away while 2 and 3 came, has 5 without its policies, and has not said 6
        word("d2", 1, 11), word("d2", 4, 240), word("d2", 5, 303), word("d2", 5, 380, digest=NEW),
        # this one came late: what was there before is not its to be slow with
        word("d3", 0, 280, digest=""), word("d3", 4, 290), word("d3", 5, 310, digest=NEW), word("d3", 6, 402, digest=NEW),
        # a host without doors stands for itself
        word("", 1, 1, host="enforce-2", doors=0), word("", 2, 101, host="enforce-2", doors=0),
        word("", 6, 403, host="enforce-2", doors=0, digest=NEW),
    ])  # fmt: skip
    found = store.rows("SELECT epoch, key, applied, waiting, host, door, slowest_ms FROM epochs ORDER BY epoch")
    assert found == [
        (1, "policy/main", 0, 0, "", "", None),
        (2, "revocation/agent:a", 3, 0, "enforce-1", "d2", 140.0),
        (3, "revocation/agent:a", 3, 0, "enforce-2", "", 203.0),
        (4, "revocation/agent:b", 3, 0, "enforce-2", "", 193.0),
        (5, "policy/main", 4, 0, "enforce-2", "", 103.0),
        (6, "pause", 3, 1, "enforce-2", "", 3.0),
    ]


def test_whoever_has_left_is_not_waited_for(store: Store) -> None:
    fill(store, [entry(1, "pause", {"reason": "x"}, 0), entry(2, "pause", None, 100)], [
        word("d1", 1, 1), word("d1", 1, 1, state="gone", said_ms=50),
        word("", 1, 1, doors=1), word("", 1, 1, said_ms=50, doors=0), word("", 2, 101, doors=0),
        # killed, and started again: its doors of before are nobody any more
        word("d2", 1, 1, host="enforce-2", boot="a1"), word("", 1, 1, host="enforce-2", boot="a1", doors=1),
        word("", 2, 150, host="enforce-2", boot="a2", doors=0),
        word("", 1, 1, host="enforce-3", doors=0), word("", 1, 1, host="enforce-3", doors=0, state="stopped", said_ms=60),
    ])  # fmt: skip
    assert store.rows("SELECT epoch, waiting FROM epochs ORDER BY epoch") == [(1, 0), (2, 0)]
    assert store.rows("SELECT host, door, state FROM acks WHERE last ORDER BY host, door") == [
        ("enforce-1", "", "ready"), ("enforce-1", "d1", "gone"), ("enforce-2", "", "ready"), ("enforce-3", "", "stopped"),
    ]  # fmt: skip


def test_a_journal_that_began_anew_is_the_one_that_is_shown(store: Store) -> None:
    fill(store, [entry(1, "revocation/agent:a", revoked("a"), 0), entry(1, "pause", {"reason": "x"}, 50, journal=2)],
         [word("d1", 1, 1), word("d9", 1, 51, journal=2)])  # fmt: skip
    assert store.rows("SELECT count() FROM revocations") == [(0,)]
    assert store.rows("SELECT epoch, key FROM epochs") == [(1, "pause")]
    assert store.rows("SELECT door FROM acks") == [("d9",)]


def test_clients_that_want_nulls_from_joins_get_the_same_epochs(store: Store) -> None:
    fill(store, [entry(1, "pause", {"reason": "x"}, 0), entry(2, "pause", None, 100)], [word("d1", 1, 1), word("d1", 2, 101)])
    query = "SELECT epoch, applied, waiting, host, door, slowest_ms FROM epochs ORDER BY epoch"
    assert store.rows(query, settings={"join_use_nulls": 1}) == store.rows(query)


def test_a_database_from_before_gets_the_tables_and_keeps_its_records(tmp_path: Path) -> None:
    with running(tmp_path / "home") as store:
        store.insert(frame_of([decision(1), effect(2, 1)], frame_no=1))
        for view in ("epochs", "acks", "revocations"):
            store.run(f"DROP VIEW {view}")
        for table in ("control", "acknowledged"):
            store.run(f"DROP TABLE {table} SYNC")
        store.run("ALTER TABLE migrations DELETE WHERE number = 3")
        store.wardline.stop("store")
        store.forget()
        store.start()
        numbers = store.rows("SELECT number FROM migrations ORDER BY number", user="writer")
        assert numbers == [(migration.number,) for migration in MIGRATIONS]
        assert store.rows("SELECT count() FROM calls") == [(1,)]
        fill(store, [entry(1, "revocation/agent:a", revoked("a"), 0)], [word("d1", 1, 1)])
        assert store.rows("SELECT selector FROM revocations") == [("agent:a",)]
