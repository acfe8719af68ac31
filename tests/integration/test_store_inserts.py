"""What the worker relies on: one part per insert, all or nothing; a fence; a token; and kill -9 at any moment."""

import contextlib
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from schemas.store import (
    DEADLETTER_SCHEMA,
    FENCED,
    FENCED_CODE,
    FRONTIER_SCHEMA,
    INSERT_SCHEMA,
    INSERT_SETTINGS,
    insert_sql,
    lane_state_sql,
)
from tests.support.store import HOST_BOOT, NOW_S, Store, decision, frame_of, running, stream_of, table_of


def many(count: int, *, first: int = 1) -> pa.Table:
    """`count` records, quickly."""
    one = table_of([decision(1)])
    columns = [one.column(i).combine_chunks() for i in range(one.num_columns)]
    seqs = pa.array(range(first, first + count), pa.uint64())
    made = []
    for field, column in zip(INSERT_SCHEMA, columns, strict=True):
        if field.name in ("seq", "call_seq"):
            made.append(seqs)
        elif field.name == "ingested":
            made.append(pa.array([NOW_S] * count, field.type))
        else:
            made.append(column.take(pa.array([0] * count)))
    return pa.table(made, schema=INSERT_SCHEMA)


@pytest.mark.parametrize("count", [1, 2_000, 100_000, 300_000])
def test_an_insert_is_one_part(store: Store, count: int) -> None:
    settings = {**INSERT_SETTINGS, "insert_deduplication_token": str(uuid.uuid4())}
    sql = insert_sql(store.database, {0: store.own(0)})
    store.client("writer").command(sql, data=stream_of(many(count)), settings=settings)
    assert store.rows("SELECT count(), uniqExact(_part) FROM records") == [(count, 1)]


def test_the_same_token_inserts_nothing_again(store: Store) -> None:
    rows = frame_of([decision(1), decision(2)], frame_no=1)
    for _ in range(3):
        store.insert(rows, token="batch-1")
    assert store.rows("SELECT count() FROM records") == [(3,)]
    store.insert(rows, token="batch-2")
    assert store.rows("SELECT count() FROM records") == [(6,)]


def test_an_owner_whose_partition_was_taken_stores_nothing(store: Store) -> None:
    mine = {0: store.take(0), 1: store.take(1)}
    rows = frame_of([decision(1)], frame_no=1) + frame_of([decision(2)], frame_no=1, partition=1)
    store.insert(rows, epochs=mine)
    theirs = store.take(1)
    with pytest.raises(DatabaseError) as fault:
        store.insert(rows, epochs=mine)
    assert fault.value.code == FENCED_CODE
    assert FENCED in str(fault.value)
    assert store.rows("SELECT count() FROM records") == [(4,)]
    store.insert(rows, epochs=mine | {1: theirs})
    assert store.rows("SELECT count() FROM records") == [(8,)]


def test_a_partition_that_nobody_has_taken_takes_nothing(store: Store) -> None:
    with pytest.raises(DatabaseError, match=FENCED):
        store.insert(frame_of([decision(1)], frame_no=1), epochs={0: 1})
    assert store.rows("SELECT count() FROM records") == [(0,)]


def test_epochs_grow_and_differ_between_owners(store: Store) -> None:
    epochs = [store.take(3) for _ in range(4)]
    assert sorted(epochs) == epochs
    assert [epoch >> 32 for epoch in epochs] == [1, 2, 3, 4]
    assert len({epoch & 0xFFFFFFFF for epoch in epochs}) == 4


def lanes(store: Store, partition: int = 0) -> list[tuple[object, ...]]:
    return store.rows(lane_state_sql(store.database, partition), user="writer")


def test_the_frontier_of_a_lane_is_where_its_frames_stop_being_whole(store: Store) -> None:
    assert lanes(store) == []
    for number in (1, 2, 4, 7):
        store.insert(frame_of([decision(number)], frame_no=number))
    store.insert(frame_of([decision(9)], frame_no=2, enforcer="enforce-2"))
    store.insert(frame_of([decision(9)], frame_no=1, partition=1))
    assert lanes(store) == [("enforce-1", HOST_BOOT, 2, [4, 7]), ("enforce-2", HOST_BOOT, 0, [2])]
    store.insert(frame_of([decision(3)], frame_no=3))
    assert lanes(store)[0] == ("enforce-1", HOST_BOOT, 4, [7])


def test_a_lane_whose_old_frames_were_dropped_keeps_its_frontier(store: Store) -> None:
    for number in (1, 2, 3):
        store.insert(frame_of([decision(number)], frame_no=number))
    note = {"partition": 0, "enforcer": "enforce-1", "enforcer_boot": HOST_BOOT, "frame_no": 2, "stored": NOW_S * 10**6,
            "worker": "w"}  # fmt: skip
    table = pa.Table.from_pylist([note], schema=FRONTIER_SCHEMA)
    store.client("writer").insert_arrow("frontiers", table, database=store.database)
    store.run("ALTER TABLE records DELETE WHERE boot = 0 AND seq <= 2")
    assert lanes(store) == [("enforce-1", HOST_BOOT, 3, [])]
    store.run("TRUNCATE TABLE records")
    assert lanes(store) == [("enforce-1", HOST_BOOT, 2, [])]


def test_a_dead_letter_is_kept_once_with_its_last_state(store: Store) -> None:
    letter = {
        "received": NOW_S * 10**6, "partition": 1, "offset": 2, "enforcer": "e", "enforcer_boot": 3, "frame_no": 4,
        "reason": "signature", "message": "no", "digest": b"d" * 32, "data": b"\x00\xff" * 1000, "state": "new",
    }  # fmt: skip
    for state in ("new", "new", "retried"):
        table = pa.Table.from_pylist([letter | {"state": state}], schema=DEADLETTER_SCHEMA)
        store.client("writer").insert_arrow("deadletters", table, database=store.database)
    assert store.rows("SELECT reason, length(data), state FROM deadletters FINAL") == [("signature", 2000, "retried")]


def test_what_was_acknowledged_is_there_after_kill_9_and_no_half_batch(tmp_path: Path) -> None:
    dice, each, kills = random.Random(7), 20_000, 6
    bodies = [stream_of(many(each, first=1 + n * each)) for n in range(6)]
    number = 0
    with running(tmp_path / "home") as store:
        epoch = store.own(0)

        def send(writer: Any) -> None:
            settings = {**INSERT_SETTINGS, "insert_deduplication_token": f"batch-{number}"}
            writer.command(insert_sql(store.database, {0: epoch}), data=bodies[number % 6], settings=settings)

        def kill_in(seconds: float) -> None:
            time.sleep(seconds)
            store.kill()

        for _ in range(kills):
            writer = store.connect("writer", autogenerate_session_id=False, query_retries=0)
            killer = threading.Thread(target=kill_in, args=(dice.uniform(0.05, 0.4),))
            killer.start()
            with contextlib.suppress(ClickHouseError):
                while True:
                    send(writer)
                    number += 1
            killer.join()
            store.start()
            ((found,),) = store.rows("SELECT count() FROM records")
            assert found in (number * each, (number + 1) * each)
            # sent again with its token, as a worker does that got no answer: it is in once, whether it was stored or not
            send(store.client("writer"))
            number += 1
            assert store.rows("SELECT count() FROM records") == [(number * each,)]
    assert number > kills
