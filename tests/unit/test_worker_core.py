"""The worker's ledger, batch and rows: small scripts, and the ledger against a set of numbers."""

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.batch import BATCH_BYTES_MAX, ENTRIES_MAX, Batch
from pipeline.core.intake import Accepted, judge
from pipeline.core.ledger import RECENT_MAX, Ledger, Standing
from pipeline.core.rows import FrameRow, Room, insert_table, insert_token
from schemas.frame import ARROW_SCHEMA, NO_FRAME, Lane
from schemas.limits import LANE_AHEAD_MAX, MIB
from schemas.store import FRAME_KIND, INSERT_RECORDS_MAX, INSERT_SCHEMA, frame_row
from tests.support.frames import Host, effect, record

LANE = Lane(host="enforce-1", host_boot=7, partition=3)
OTHER = Lane(host="enforce-2", host_boot=8, partition=3)


def digest(frame_no: int) -> bytes:
    return hashlib.sha256(frame_no.to_bytes(8, "big")).digest()


def held(frontier: int = 0, beyond: tuple[int, ...] = ()) -> Ledger:
    ledger = Ledger()
    ledger.take(3, {LANE: (frontier, beyond)} if frontier or beyond else {})
    return ledger


def begin(ledger: Ledger, *numbers: int) -> None:
    for number in numbers:
        ledger.begin(LANE, number, digest(number), digest(number - 1) if number > 1 else NO_FRAME)


def standing(ledger: Ledger, frame_no: int) -> Standing:
    return ledger.standing(LANE, frame_no, digest(frame_no))


def test_the_frontier_moves_when_the_gap_closes() -> None:
    ledger = held()
    begin(ledger, 1, 3, 2, 5)
    assert not ledger.stored(LANE, 3)
    assert ledger.frontier(LANE) == 0
    assert ledger.stored(LANE, 1)
    assert ledger.frontier(LANE) == 1
    assert not ledger.stored(LANE, 5)
    assert ledger.stored(LANE, 2)
    assert ledger.frontier(LANE) == 3


def test_what_the_store_has_beyond_its_frontier_is_known() -> None:
    ledger = held(4, (6, 7, 9))
    assert [standing(ledger, n) for n in (4, 5, 6, 8, 9, 10)] == [
        Standing.KNOWN, Standing.NEW, Standing.KNOWN, Standing.NEW, Standing.KNOWN, Standing.NEW,
    ]  # fmt: skip
    begin(ledger, 5)
    assert ledger.stored(LANE, 5)
    assert ledger.frontier(LANE) == 7


def test_a_frame_that_waits_is_known_and_does_not_count_as_stored() -> None:
    ledger = held()
    begin(ledger, 1)
    assert standing(ledger, 1) is Standing.KNOWN
    assert ledger.frontier(LANE) == 0


def test_lanes_do_not_mix() -> None:
    ledger = held()
    begin(ledger, 1)
    assert ledger.standing(OTHER, 1, digest(1)) is Standing.NEW
    ledger.stored(LANE, 1)
    assert (ledger.frontier(LANE), ledger.frontier(OTHER)) == (1, 0)


def test_only_so_many_frames_beyond_a_missing_one_are_taken() -> None:
    ledger = held(10)
    assert standing(ledger, 10 + LANE_AHEAD_MAX) is Standing.NEW
    assert standing(ledger, 11 + LANE_AHEAD_MAX) is Standing.AHEAD
    begin(ledger, 11)
    assert standing(ledger, 11 + LANE_AHEAD_MAX) is Standing.NEW


def test_a_lane_that_nobody_knew_has_the_same_limit() -> None:
    assert standing(held(), LANE_AHEAD_MAX) is Standing.NEW
    assert standing(held(), LANE_AHEAD_MAX + 1) is Standing.AHEAD


def test_another_frame_of_the_same_number_is_told_from_a_copy_while_its_digest_is_kept() -> None:
    ledger = held()
    for number in range(1, RECENT_MAX + 2):
        begin(ledger, number)
        ledger.stored(LANE, number)
    assert ledger.standing(LANE, 2, digest(2)) is Standing.KNOWN
    assert ledger.standing(LANE, 2, digest(99)) is Standing.TWIN
    assert ledger.standing(LANE, 1, digest(99)) is Standing.KNOWN, "its digest is not kept any more"


def test_a_frame_that_names_another_predecessor_is_noticed_from_either_side() -> None:
    ledger = held()
    assert ledger.continues(LANE, 1, NO_FRAME, digest(1))
    assert not ledger.continues(LANE, 1, digest(0), digest(1))
    begin(ledger, 1, 3)
    assert ledger.continues(LANE, 2, digest(1), digest(2))
    assert not ledger.continues(LANE, 2, digest(9), digest(2))
    assert not ledger.continues(LANE, 2, digest(1), digest(9)), "frame 3 names the digest that frame 2 must have"
    assert ledger.continues(LANE, 9, digest(1), digest(9)), "its neighbours are not known here"


def test_a_dead_frame_comes_alive_once_and_only_with_its_own_bytes() -> None:
    ledger = Ledger()
    ledger.take(3, {LANE: (2, [])}, {(LANE, 2): digest(2)})
    assert (ledger.is_dead(LANE, 2), ledger.is_dead(LANE, 1), ledger.is_dead(OTHER, 2)) == (True, False, False)
    assert standing(ledger, 2) is Standing.NEW
    assert ledger.standing(LANE, 2, digest(99)) is Standing.TWIN
    begin(ledger, 2)
    assert standing(ledger, 2) is Standing.KNOWN, "it waits"
    assert not ledger.stored(LANE, 2)
    assert standing(ledger, 2) is Standing.KNOWN
    assert (ledger.frontier(LANE), ledger.is_dead(LANE, 2)) == (2, False)


def test_nothing_is_known_after_clear() -> None:
    ledger = held(5)
    assert ledger.holds(3)
    assert ledger.lanes(3) == [LANE]
    ledger.clear()
    assert not ledger.holds(3)
    assert (ledger.lanes(3), ledger.frontier(LANE)) == ([], 0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.sets(st.integers(1, 12)), st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=60))
def test_the_ledger_agrees_with_a_set_of_numbers(frontier: int, beyond: set[int], steps: list[tuple[int, bool]]) -> None:
    """The oracle: two sets, and a frontier counted up from 1 each time."""
    stored = set(range(1, frontier + 1)) | beyond
    pending: set[int] = set()

    def count(numbers: set[int]) -> int:
        return next(n for n in range(1, 99) if n not in numbers) - 1

    ledger = Ledger()
    ledger.take(3, {LANE: (count(stored), sorted(stored))})
    for number, finish in steps:
        known = number in stored | pending
        assert (standing(ledger, number) is Standing.KNOWN) == known
        if not known:
            begin(ledger, number)
            pending.add(number)
        elif finish and number in pending:
            before = count(stored)
            pending.remove(number)
            stored.add(number)
            assert ledger.stored(LANE, number) == (count(stored) > before)
        assert ledger.frontier(LANE) == count(stored)


# -- batch --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_due_when_full_or_when_its_first_entry_has_waited() -> None:
    batch: Batch[str] = Batch(records_max=10, quiet_ns=200)
    assert (batch.due(10**9), batch.due_ns()) == (False, None)
    batch.add("a", 4, 1, 1000)
    batch.add("b", 4, 1, 1150)
    assert (batch.due(1199), batch.due(1200), batch.due_ns()) == (False, True, 1200)
    batch.add("c", 4, 1, 1160)
    assert batch.full
    assert batch.due(1160)
    assert batch.cut() == ["a", "b", "c"]
    assert (len(batch), batch.rows, batch.bytes, batch.due(10**9)) == (0, 0, 0, False)


def test_a_batch_never_has_more_rows_than_one_insert_may_have() -> None:
    batch: Batch[int] = Batch(records_max=INSERT_RECORDS_MAX, quiet_ns=1)
    batch.add(1, INSERT_RECORDS_MAX - 3, 1, 0)
    assert batch.takes(3, 1)
    assert not batch.takes(4, 1)
    assert not batch.full


def test_a_batch_never_has_more_bytes_than_its_limit_but_one_entry_may_always_come() -> None:
    batch: Batch[int] = Batch(records_max=100, quiet_ns=1)
    assert batch.takes(1, BATCH_BYTES_MAX + 1)
    batch.add(1, 1, BATCH_BYTES_MAX - MIB, 0)
    assert batch.takes(1, MIB)
    assert not batch.takes(1, MIB + 1)
    batch.add(2, 1, MIB, 0)
    assert batch.full


def test_entries_without_rows_fill_a_batch_too() -> None:
    batch: Batch[int] = Batch(records_max=100, quiet_ns=10**12)
    for n in range(ENTRIES_MAX):
        batch.add(n, 0, 0, 0)
    assert batch.full
    assert not batch.takes(0, 0)


# -- rows ---------------------------------------------------------------------------------------------------------------


def _rows() -> tuple[Host, list[FrameRow]]:
    host, ledger, rows = Host(), Ledger(), []
    ledger.take(1, {})
    for offset, records in enumerate(([record(1), effect(2, 1)], [record(3, door="egress", session="other")])):
        frame = host.frame(records, 1)
        found = judge(frame.wire, 1, host.key_of, ledger)
        assert isinstance(found, Accepted)
        rows.append(FrameRow(head=found.head, digest=found.digest, signed=found.signed, wire_bytes=found.wire_bytes,
                             offset=offset, flag=found.flag, batch=found.batch))  # fmt: skip
    return host, rows


def test_an_insert_has_each_record_and_a_row_for_each_frame() -> None:
    host, rows = _rows()
    dead = FrameRow(head=host.frame(5, 1).head, digest=b"d" * 32, signed=b"s", wire_bytes=9, offset=7, flag="dead", batch=None)
    table = insert_table([*rows, dead], 1_700_000_000)
    table.validate(full=True)
    assert table.schema.equals(INSERT_SCHEMA, check_metadata=False)
    made = table.to_pylist()
    assert [row["kind"] for row in made] == [1, 3, 1, FRAME_KIND, FRAME_KIND, FRAME_KIND]
    for row, frame in zip(made, (rows[0], rows[0], rows[1]), strict=False):
        assert (row["enforcer"], row["enforcer_boot"], row["partition"]) == (host.name, host.boot, 1)
        assert (row["frame_no"], row["frame_digest"], row["frame_ranges"]) == (frame.head.frame_no, bytes(32), [])
    given_back = [{name: row[name] for name in ARROW_SCHEMA.names} for row in made[:3]]
    assert given_back == [row for frame in rows if frame.batch is not None for row in frame.batch.to_pylist()]
    assert {row["ingested"].timestamp() for row in made} == {1_700_000_000}


def test_a_frame_row_is_the_one_that_the_store_describes() -> None:
    _, rows = _rows()
    head = rows[1].head
    wanted = frame_row(
        enforcer=head.lane.host, enforcer_boot=head.lane.host_boot, partition=1, frame_no=2, ingested_s=1_700_000_000,
        digest=rows[1].digest, previous=head.previous, records=1, size=rows[1].wire_bytes, created_us=head.created_ns // 1000,
        ranges=[n for r in head.ranges for n in (r.boot, r.first, r.last)], flag="", offset=1, head=rows[1].signed,
    )  # fmt: skip
    made = insert_table(rows, 1_700_000_000).slice(4, 1)
    described = pa.Table.from_pylist([wanted], schema=pa.schema([f if not pa.types.is_dictionary(f.type) else
                                     f.with_type(pa.utf8()) for f in INSERT_SCHEMA]))  # fmt: skip
    assert made.to_pylist() == described.to_pylist()


def test_an_insert_of_dead_letters_alone_has_frame_rows_alone() -> None:
    _, rows = _rows()
    dead = FrameRow(head=rows[0].head, digest=b"d" * 32, signed=b"s", wire_bytes=9, offset=7, flag="dead", batch=None)
    assert [row["frame_flag"] for row in insert_table([dead], 0).to_pylist()] == ["dead"]
    assert (dead.rows, rows[0].rows) == (1, 3)


def test_the_stream_is_one_batch_with_one_dictionary_per_text_and_the_same_bytes_each_time() -> None:
    _, rows = _rows()
    room = Room()
    stream = bytes(room.write(insert_table(rows, 1_700_000_000)))
    kinds = [message.type for message in pa.ipc.MessageReader.open_stream(stream)]
    texts = sum(pa.types.is_dictionary(field.type) for field in INSERT_SCHEMA)
    assert kinds == ["schema", *["dictionary"] * texts, "record batch"]
    assert len(room.write(insert_table(rows[:1], 1_700_000_000))) < len(stream)
    assert bytes(room.write(insert_table(rows, 1_700_000_000))) == stream


def test_the_token_names_the_content() -> None:
    _, rows = _rows()
    token = insert_token(rows, 1)
    assert insert_token(rows, 1) == token
    assert len({token, insert_token(rows, 2), insert_token(rows[:1], 1), insert_token(rows[::-1], 1)}) == 4


@pytest.mark.parametrize("count", [1, 40])
def test_dictionaries_of_many_frames_become_one(count: int) -> None:
    host, ledger, rows = Host(), Ledger(), []
    ledger.take(0, {})
    for n in range(count):
        found = judge(host.frame([record(n + 1, agent=f'Agent::"{n % 7}"')]).wire, 0, host.key_of, ledger)
        assert isinstance(found, Accepted)
        rows.append(FrameRow(head=found.head, digest=found.digest, signed=found.signed, wire_bytes=1, offset=n, flag="",
                             batch=found.batch))  # fmt: skip
    column = insert_table(rows, 0).column("agent")
    assert column.num_chunks == 1
    assert column.to_pylist() == [f'Agent::"{n % 7}"' for n in range(count)] + [""] * count
    assert len(column.chunk(0).dictionary) == min(count, 7) + 1
