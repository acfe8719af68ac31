"""What carries a batch's sums, and what remembers which were taken."""

import asyncio
import random

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.core.detect.aggregate import Aggregator
from pipeline.core.parcel import Piece, make_parcels, parcel_worker, parse_parcel
from pipeline.core.rows import FrameRow, insert_table
from pipeline.core.seen import WINDOW, Exactly, Numbers, Seen, of_frames
from pipeline.shells.worker.carrier import Carrier, Flow
from pipeline.shells.worker.patience import Given
from schemas.config import Config, Kafka
from schemas.egress import SUBJECTS, subject_partition
from schemas.errors import FrameFault
from schemas.findings import CHAIN, FINDING_SCHEMA, Finding, finding_row, parse_finding
from schemas.frame import Lane
from schemas.limits import EGRESS_BYTES_MAX, FRAME_BYTES_MAX
from tests.support.frames import Host, batch_of, flipped, record

KEY = Ed25519PrivateKey.generate()
CHECK = KEY.public_key().verify
PARTITIONS = 4
LANE = Lane(host="enforce-1", host_boot=7, partition=0)


def rows_of(frames: list[list[dict[str, object]]]) -> list[FrameRow]:
    host = Host()
    made = []
    for records in frames:
        frame = host.frame(records)
        made.append(FrameRow(head=frame.head, digest=frame.digest, signed=b"", wire_bytes=0, offset=0, flag="",
                             batch=batch_of(records)))  # fmt: skip
    return made


def sent(frames: list[list[dict[str, object]]]) -> list[tuple[int, bytes]]:
    rows = rows_of(frames)
    sums = Aggregator().rebuild(insert_table(rows, 0))
    named = [(row.head.lane, row.head.frame_no) for row in rows]
    return make_parcels(named, {one: sums.of(one) for one in SUBJECTS}, {}, PARTITIONS, "work-1", KEY.sign)


def some(count: int, first: int = 1, noise: int = 0, agents: int = 7) -> list[dict[str, object]]:
    dice = random.Random(first)
    text = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [
        record(n, agent=f"agent-{n % agents}", domain=f"d{n % 11}.example",
               host="".join(dice.choices(text, k=noise)) or "h.example", credential=f"c{n % 5}", proof="secret",
               session=f"s-{n}")
        for n in range(first, first + count)
    ]  # fmt: skip


def test_every_row_comes_to_the_partition_of_its_subject_and_says_its_frame() -> None:
    messages = sent([some(60), some(60, 100)])
    parcels = [parse_parcel(data, CHECK) for _, data in messages]
    assert [parcel.partition for parcel in parcels] == [partition for partition, _ in messages]
    calls = 0
    for parcel in parcels:
        assert {(piece.frame_no, piece.piece) for piece in parcel.pieces} == {(1, 0), (2, 0)}
        assert parcel.worker == "work-1"
        for subject, table in parcel.rows.items():
            owners = {subject_partition(text, PARTITIONS) for text in table[subject].to_pylist() if text}
            assert owners <= {parcel.partition}
        calls += sum(parcel.rows["agent"]["calls"].to_pylist())
    assert calls == 120


def test_rows_of_frames_that_were_taken_are_left_out_and_the_others_stay() -> None:
    (parcel, *_) = [parse_parcel(data, CHECK) for _, data in sent([some(60), some(60, 100)])]
    known = {1}
    fresh = parcel.without(lambda piece: piece.frame_no in known)
    assert [piece.frame_no for piece in fresh.pieces] == [2]
    for subject in SUBJECTS:
        numbers = parcel.rows[subject]["frame_no"].to_pylist()
        assert fresh.rows[subject]["frame_no"].to_pylist() == [number for number in numbers if number == 2]
    assert parcel.without(lambda _: False) is parcel


def test_a_frame_that_is_too_large_for_a_message_comes_in_pieces_that_are_the_same_each_time() -> None:
    records = some(2_000, noise=900, agents=1)
    first, again = sent([records]), sent([records])
    assert max(len(data) for _, data in first) <= FRAME_BYTES_MAX
    parcels = [parse_parcel(data, CHECK) for _, data in first]
    pieces = {(parcel.partition, piece.piece) for parcel in parcels for piece in parcel.pieces}
    assert len(pieces) == len(parcels) > PARTITIONS
    assert sum(sum(parcel.rows["agent"]["calls"].to_pylist()) for parcel in parcels) == 2_000
    for one, other in zip(parcels, (parse_parcel(data, CHECK) for _, data in again), strict=True):
        assert one.pieces == other.pieces
        assert all(one.rows[subject].equals(other.rows[subject]) for subject in SUBJECTS)


def test_two_large_frames_are_shared_out_before_either_is_cut() -> None:
    messages = sent([some(900, noise=900, agents=1), some(900, 2_000, noise=900, agents=1)])
    parcels = [parse_parcel(data, CHECK) for _, data in messages]
    assert max(len(data) for _, data in messages) <= FRAME_BYTES_MAX
    assert sum(sum(parcel.rows["agent"]["calls"].to_pylist()) for parcel in parcels) == 1_800
    for parcel in parcels:
        told = {piece.frame_no for piece in parcel.pieces}
        assert {n for table in parcel.rows.values() for n in table["frame_no"].to_pylist()} <= told


def test_what_is_not_a_message_as_it_was_signed_is_refused() -> None:
    (_, data), *_ = sent([some(20)])
    with pytest.raises(FrameFault) as raised:
        parse_parcel(data, Ed25519PrivateKey.generate().public_key().verify)
    assert raised.value.reason == "signature"
    reasons = set()
    for at in (0, 4, 6, 8, 12, 20, 49, 60, 140, len(data) - 3):
        with pytest.raises(FrameFault) as raised:
            parse_parcel(flipped(data, at), CHECK)
        reasons.add(raised.value.reason)
    for size in (0, 10, 60, 130, len(data) - 1):
        with pytest.raises(FrameFault) as raised:
            parse_parcel(data[:size], CHECK)
        reasons.add(raised.value.reason)
    assert {"form", "version", "signature", "digest"} <= reasons
    assert (parcel_worker(data), parcel_worker(b"noise")) == ("work-1", "")


def test_numbers_remember_what_a_set_would_and_take_what_is_far_behind_for_known() -> None:
    dice = random.Random(5)
    numbers, oracle = Numbers(), set[int]()
    for _ in range(3_000):
        number = dice.choice([dice.randint(1, 200), dice.randint(1, 70_000)])
        numbers.add(number)
        oracle.add(number)
    top = max(oracle)
    asked = list(range(1, top + 50))
    expected = [n in oracle or n <= top - WINDOW for n in asked]
    assert [n in numbers for n in asked] == expected
    assert numbers.there(np.array(asked, np.uint64)).tolist() == expected


def test_pieces_and_frames_from_the_store_are_known_apart() -> None:
    seen = Seen()
    seen.begin({LANE: Numbers([1, 2, 5])})
    assert [Piece(lane=LANE, frame_no=n) in seen for n in range(1, 7)] == [True, True, False, False, True, False]
    assert Piece(lane=LANE, frame_no=2, piece=3) in seen, "all of a stored frame is known"
    seen.add(Piece(lane=LANE, frame_no=9, piece=1))
    assert Piece(lane=LANE, frame_no=9) not in seen
    assert Piece(lane=LANE, frame_no=9, piece=1) in seen
    seen.add(Piece(lane=LANE, frame_no=9))
    assert Piece(lane=LANE, frame_no=9) in seen
    assert Piece(lane=Lane(host="other", host_boot=7, partition=0), frame_no=9) not in seen


def test_records_are_told_apart_by_their_frames() -> None:
    rows = rows_of([some(5), some(5, 50), some(5, 90)])
    table = insert_table(rows, 0)
    lane = rows[0].head.lane
    for known, wanted in (({1, 3}, {1, 3}), (set(), set()), ({2}, {2})):
        kept = of_frames(table, {lane: Exactly(known)})
        assert {n for n, keep in zip(table["frame_no"].to_pylist(), kept, strict=True) if keep} == wanted
    assert not of_frames(table, {LANE: Numbers([1, 2, 3])}).any(), "another lane's frames"
    assert of_frames(table.slice(0, 0), {lane: Numbers([1])}).tolist() == []


class Producer:
    """Acknowledges what it is given; the first `faults` sends fail."""

    def __init__(self, faults: int = 0) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.faults = faults

    async def send(self, topic: str, value: bytes, *, partition: int) -> "asyncio.Future[None]":
        if self.faults:
            self.faults -= 1
            raise OSError("away")
        self.sent.append((partition, value))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def stop(self) -> None:
        pass


def carrying(config: Config, producer: Producer) -> tuple[Carrier, Flow]:
    flow = Flow(config)
    carrier = Carrier(config, servers="h:1", slot="work-1", flow=flow)

    async def connected() -> Producer:
        return producer

    carrier._connected = connected  # type: ignore[method-assign]
    return carrier, flow


def test_a_batch_that_is_larger_than_the_broker_keeps_goes_out_in_parts() -> None:
    """What fits is sent before the rest waits: a worker that had been stopped for seconds waited for itself for ever."""

    async def main() -> None:
        producer, closing = Producer(), asyncio.Event()
        carrier, flow = carrying(Config(), producer)
        third = EGRESS_BYTES_MAX // 3
        batch = [(0, bytes([n]) * third) for n in range(10)] + [(1, b"another")]
        task, taken = asyncio.create_task(carrier.carry(batch, closing)), 0
        deadline = asyncio.get_running_loop().time() + 5
        while not task.done():
            assert asyncio.get_running_loop().time() < deadline, f"stands at {len(producer.sent)} messages"
            await asyncio.sleep(0.001)
            assert sum(partition == 0 for partition, _ in producer.sent) <= taken + 3
            if len(producer.sent) > taken:
                flow.taken(0, third)
                taken += 1
        await task
        assert producer.sent == batch, "in order"

    asyncio.run(main())


def test_on_the_embedded_broker_no_more_is_sent_than_it_keeps_until_it_was_taken() -> None:
    async def main() -> None:
        producer, closing = Producer(), asyncio.Event()
        carrier, flow = carrying(Config(), producer)
        half = bytes(EGRESS_BYTES_MAX // 2)
        await carrier.carry([(0, half), (0, half), (1, half)], closing)
        third = asyncio.create_task(carrier.carry([(0, b"more")], closing))
        await asyncio.sleep(0.02)
        assert len(producer.sent) == 3
        assert carrier.waits_for
        flow.taken(0, len(half))
        await asyncio.wait_for(third, 1)
        assert producer.sent[-1] == (0, b"more")
        assert not carrier.waits_for
        # one that is larger than all that may wait goes alone, and a drain is not kept waiting
        flow.skipped(0)
        await carrier.carry([(0, bytes(EGRESS_BYTES_MAX + 1))], closing)
        stuck = asyncio.create_task(carrier.carry([(0, b"more")], closing))
        await asyncio.sleep(0.02)
        closing.set()
        with pytest.raises(Given):
            await asyncio.wait_for(stuck, 1)

    asyncio.run(main())


def test_a_kafka_keeps_everything_and_after_an_error_everything_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shells.worker.carrier.RECONNECT_S", 0.01)

    async def main() -> None:
        producer = Producer(faults=2)
        carrier, _ = carrying(Config(kafka=Kafka(servers="h:1")), producer)
        messages = [(0, bytes(EGRESS_BYTES_MAX))] * 3
        await asyncio.wait_for(carrier.carry(messages, asyncio.Event()), 2)
        assert [partition for partition, _ in producer.sent] == [0, 0, 0]

    asyncio.run(main())


def test_findings_reach_the_owner_of_their_agent_beside_no_rows() -> None:
    finding = Finding(detector=CHAIN, subject="trace=1", window_us=0, version=1, started_us=1, ended_us=2, time_us=1, terms=(),
                      evidence={"a": 1}, title="t", agent="planner")  # fmt: skip
    rows = pa.Table.from_pylist([finding_row(finding, "work-1")], schema=FINDING_SCHEMA)
    ((partition, data),) = make_parcels([], {}, {2: rows}, PARTITIONS, "work-1", KEY.sign)
    parcel = parse_parcel(data, CHECK)
    assert (partition, parcel.partition) == (2, 2)
    assert [parse_finding(row) for row in parcel.findings.to_pylist()] == [finding]
