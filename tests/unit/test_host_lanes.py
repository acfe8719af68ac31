"""The lane book and the host's ledger, event by event: numbering, what is due, what a frontier passes, what a crash keeps."""

import pytest

from enforcers.core.box import (
    BoxHead,
    DoorCut,
    DoorState,
    encode_box,
    encode_checkpoint,
    head_bytes,
    parse_box,
    parse_checkpoint,
)
from enforcers.core.lanes import RESEND_BACKOFF_MAX, FrameRef, LaneBook, Where
from enforcers.core.ledger import HostLedger
from schemas.errors import OperatorFault
from schemas.frame import NO_FRAME, Frame, FrameHead, Lane, Range, build_frame

RESEND = 1_000
BOOT = (1 << 32) | 7


def book(*, frames: int = 0, partition: int = 0, size: int = 100) -> LaneBook:
    lanes = LaneBook("h", BOOT, resend_ns=RESEND)
    for number in range(1, frames + 1):
        lanes.commit(ref(lanes.lane(partition), number, size), bytes([number]) * 32)
    return lanes


def ref(lane: Lane, frame_no: int, size: int = 100, cut_no: int = 1) -> FrameRef:
    return FrameRef(lane=lane, frame_no=frame_no, records=10, cut_no=cut_no, offset=0, size=size)


def send_all(lanes: LaneBook, now: int, bound: int | None = None, *, ack: bool = True) -> list[int]:
    numbers = []
    for one in lanes.due(now, bound):
        lanes.sent(one)
        numbers.append(one.frame_no)
        if ack:
            lanes.acked(one, now)
    return numbers


def frame(lane: Lane, frame_no: int, payload: bytes = b"x") -> Frame:
    head = FrameHead(lane=lane, frame_no=frame_no, records=3, created_ns=0, inflated_bytes=1, previous=NO_FRAME,
                     payload_digest=bytes(32), ranges=(Range(boot=5, first=1, last=3),))  # fmt: skip
    return build_frame(head, payload, lambda _: bytes(64))


def test_a_lane_numbers_from_one_and_names_the_digest_before() -> None:
    lanes = book()
    assert lanes.next(2) == (1, NO_FRAME)
    lanes.commit(ref(lanes.lane(2), 1), b"d" * 32)
    assert lanes.next(2) == (2, b"d" * 32)
    assert lanes.next(0) == (1, NO_FRAME)


def test_a_number_is_used_once() -> None:
    lanes = book(frames=1)
    with pytest.raises(AssertionError):
        lanes.commit(ref(lanes.lane(0), 1), bytes(32))


def test_what_waits_is_due_once_and_in_order() -> None:
    lanes = book(frames=3)
    assert send_all(lanes, 0) == [1, 2, 3]
    assert send_all(lanes, 0) == []


def test_a_frame_that_failed_is_due_again() -> None:
    lanes = book(frames=2)
    first, second = lanes.due(0, None)
    lanes.sent(first)
    lanes.sent(second)
    lanes.failed(first)
    lanes.acked(second, 0)
    assert send_all(lanes, 0) == [1]


def test_the_bound_holds_back_until_the_frontier_moves() -> None:
    lanes = book(frames=4)
    assert send_all(lanes, 0, 250) == [1, 2]
    assert lanes.in_flight(0) == 200
    assert [r.frame_no for r in lanes.stored(lanes.lane(0), 1, 1)] == [1]
    assert send_all(lanes, 1, 250) == [3]


def test_a_frame_above_the_bound_goes_alone() -> None:
    lanes = book(frames=2, size=1_000)
    assert send_all(lanes, 0, 250) == [1]
    lanes.stored(lanes.lane(0), 1, 0)
    assert send_all(lanes, 0, 250) == [2]


def test_a_frontier_that_stands_still_has_the_head_sent_again_and_then_more() -> None:
    lanes = book(frames=8)
    send_all(lanes, 0)
    assert send_all(lanes, RESEND - 1) == []
    assert send_all(lanes, RESEND) == [1]
    assert send_all(lanes, 2 * RESEND) == [], "the second probe waits twice as long"
    assert send_all(lanes, 3 * RESEND) == [1, 2]
    assert send_all(lanes, 7 * RESEND) == [1, 2, 3, 4]
    lanes.stored(lanes.lane(0), 2, 8 * RESEND)
    assert send_all(lanes, 9 * RESEND) == [3], "a frontier that moved starts over"


def test_when_the_frontier_stops_behind_what_was_sent_again_more_goes_at_once() -> None:
    lanes = book(frames=20)
    send_all(lanes, 0)
    assert send_all(lanes, RESEND) == [1]
    sent, frontier = [], 1
    while frontier < 20:  # all of them were lost: only what is sent again is ever stored
        lanes.stored(lanes.lane(0), frontier, RESEND)
        sent.append(send_all(lanes, RESEND))
        frontier = sent[-1][-1]
    assert sent == [[2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15], [16, 17, 18, 19, 20]]


def test_frames_that_came_after_the_frontier_stood_still_are_not_taken_for_lost() -> None:
    lanes = book(frames=1)
    send_all(lanes, 0)
    assert send_all(lanes, RESEND) == [1]
    for number in (2, 3):
        lanes.commit(ref(lanes.lane(0), number), bytes([number]) * 32)
    assert send_all(lanes, RESEND) == [2, 3]
    lanes.stored(lanes.lane(0), 1, RESEND)
    assert send_all(lanes, RESEND) == []


def test_the_wait_between_probes_has_an_end() -> None:
    lanes = book(frames=1)
    now = sent = 0
    send_all(lanes, now)
    for _ in range(RESEND_BACKOFF_MAX * 12):
        now += RESEND
        sent += len(send_all(lanes, now))
    assert 6 + (12 - 2) <= sent <= 6 + 12


def test_a_resent_frame_counts_once_against_the_bound() -> None:
    lanes = book(frames=2)
    send_all(lanes, 0, 250)
    send_all(lanes, RESEND, 250)
    assert lanes.in_flight(0) == 200
    lanes.stored(lanes.lane(0), 2, RESEND)
    assert lanes.in_flight(0) == 0


def test_a_new_broker_knows_nothing() -> None:
    lanes = book(frames=3)
    send_all(lanes, 0, 250)
    lanes.stored(lanes.lane(0), 1, 0)
    lanes.broker_is_new()
    assert lanes.in_flight(0) == 0
    assert send_all(lanes, 1) == [2, 3]


@pytest.mark.parametrize("frame_no", [0, 4, 1 << 40])
def test_a_frontier_that_cannot_be_passes_nothing(frame_no: int) -> None:
    lanes = book(frames=3)
    send_all(lanes, 0)
    assert lanes.stored(lanes.lane(0), frame_no, 1) == []
    assert lanes.unstored() == 3
    assert lanes.plausible(lanes.lane(0), frame_no) is (frame_no == 0)


def test_a_frontier_never_goes_back() -> None:
    lanes = book(frames=3)
    assert len(lanes.stored(lanes.lane(0), 3, 0)) == 3
    assert lanes.stored(lanes.lane(0), 2, 1) == []


def test_a_frontier_of_another_boot_touches_nothing_of_ours() -> None:
    lanes = book(frames=3)
    assert lanes.stored(Lane(host="h", host_boot=BOOT + 1, partition=0), 3, 0) == []
    assert lanes.unstored() == 3


def test_late_news_of_a_stored_frame_changes_nothing() -> None:
    lanes = book(frames=1)
    (one,) = lanes.due(0, None)
    lanes.sent(one)
    lanes.stored(lanes.lane(0), 1, 0)
    lanes.acked(one, 1)
    lanes.failed(one)
    assert one.where is Where.STORED
    assert lanes.sent_records == 10
    assert send_all(lanes, 10 * RESEND) == []


def test_frames_of_an_earlier_boot_are_sent_and_then_forgotten() -> None:
    lanes = book()
    old = Lane(host="h", host_boot=BOOT - 1, partition=3)
    lanes.restore(ref(old, 41))
    lanes.restore(ref(old, 42))
    assert send_all(lanes, 0) == [41, 42]
    assert len(lanes.stored(old, 42, 0)) == 2
    assert lanes.unstored() == 0
    assert lanes.next(3) == (1, NO_FRAME)


def test_a_box_reads_back_as_it_was_written() -> None:
    lane = Lane(host="h", host_boot=BOOT, partition=1)
    cut = DoorCut(boot=5, first=1, last=3, last_ref=9, opened=((2, b"t" * 16),), closed=(1,))
    first, second = frame(lane, 1, b"abc"), frame(lane, 2, b"defg")
    data, refs = encode_box(7, [cut], [first, second])
    head = parse_box(data[: head_bytes(data[:48])], "box")
    assert (head.cut_no, head.doors) == (7, (cut,))
    assert [data[r.offset : r.offset + r.size] for r in head.frames] == [first.wire, second.wire]
    assert [(r.lane, r.frame_no, r.records, r.cut_no) for r in refs] == [(lane, 1, 3, 7), (lane, 2, 3, 7)]


@pytest.mark.parametrize("at", [0, 8, 20, 60])
def test_a_damaged_box_is_refused_by_name(at: int) -> None:
    data, _ = encode_box(1, [DoorCut(boot=5, first=1, last=3)], [frame(Lane(host="h", host_boot=1, partition=0), 1)])
    broken = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    with pytest.raises(OperatorFault, match=r"^some\.box: is damaged"):
        parse_box(broken, "some.box")


def test_a_checkpoint_reads_back_and_a_damaged_one_is_refused() -> None:
    doors = {5: DoorState(last=9, last_ref=4, open={8: b"t" * 16}), 6: DoorState(last=1)}
    data = encode_checkpoint(3, doors)
    assert parse_checkpoint(data, "x") == (3, doors)
    with pytest.raises(OperatorFault, match=r"^x: is damaged"):
        parse_checkpoint(data[:-1], "x")


def ledger_with(cuts: list[tuple[DoorCut, int]]) -> tuple[HostLedger, list[BoxHead]]:
    """One cut after another, each with one door part and one frame in a partition."""
    lanes = book()
    ledger = HostLedger(lanes)
    heads = []
    for cut, partition in cuts:
        made = frame(lanes.lane(partition), lanes.next(partition)[0])
        data, refs = encode_box(ledger.next_cut, [cut], [made])
        heads.append(parse_box(data, "box"))
        ledger.commit((cut,), refs, [made])
    return ledger, heads


def test_cuts_leave_from_the_front_only() -> None:
    ledger, _ = ledger_with([
        (DoorCut(boot=5, first=1, last=3, last_ref=2, opened=((3, b"a" * 16),)), 0),
        (DoorCut(boot=5, first=4, last=6, last_ref=3, closed=(3,)), 1),
    ])  # fmt: skip
    assert ledger.doors[5] == DoorState(last=6, last_ref=3)
    ledger.stored(ledger.lanes.lane(1), 1, 0)
    assert (ledger.trimmed_cut, ledger.trimmed) == (0, {})
    ledger.stored(ledger.lanes.lane(0), 1, 0)
    assert (ledger.trimmed_cut, ledger.trimmed) == (2, {5: DoorState(last=6, last_ref=3)})
    assert ledger.all_stored()
    ledger.forget_door(5)
    assert not ledger.doors


def test_a_start_from_checkpoint_and_boxes_knows_what_the_crash_knew() -> None:
    ledger, heads = ledger_with([
        (DoorCut(boot=5, first=1, last=3, opened=((2, b"a" * 16),)), 0),
        (DoorCut(boot=5, first=4, last=6, opened=((5, b"b" * 16),)), 0),
        (DoorCut(boot=5, first=7, last=7, closed=(2,)), 1),
    ])  # fmt: skip
    ledger.stored(ledger.lanes.lane(0), 1, 0)
    cut_no, doors = parse_checkpoint(encode_checkpoint(ledger.trimmed_cut, ledger.trimmed), "c")
    again = HostLedger(LaneBook("h", BOOT + 1, resend_ns=RESEND), cut_no, doors)
    again.replay(heads)
    assert again.doors == ledger.doors == {5: DoorState(last=7, open={5: b"b" * 16})}
    assert (again.next_cut, again.lanes.unstored()) == (4, 2)
    assert again.trimmed == {5: DoorState(last=3, open={2: b"a" * 16})}


def test_a_door_with_unstored_records_is_not_forgotten() -> None:
    ledger, _ = ledger_with([(DoorCut(boot=5, first=1, last=3), 0), (DoorCut(boot=5, first=4, last=4), 0)])
    ledger.stored(ledger.lanes.lane(0), 1, 0)
    ledger.forget_door(5)
    assert 5 in ledger.doors
