"""Where a dead letter is sent to: the partition of its own lane, whatever partition a copy of it was put into."""

from pipeline.cli.deadletter import own_partition
from schemas.frame import NO_FRAME, FrameHead, Lane, Range, build_frame


def wire(partition: int) -> bytes:
    lane = Lane(host="h", host_boot=1, partition=partition)
    head = FrameHead(lane=lane, frame_no=1, records=1, created_ns=0, inflated_bytes=1, previous=NO_FRAME,
                     payload_digest=bytes(32), ranges=(Range(boot=5, first=1, last=1),))  # fmt: skip
    return build_frame(head, b"x", lambda _: bytes(64)).wire


def test_a_copy_in_another_partition_does_not_lead_a_frame_there() -> None:
    assert own_partition(wire(2), came_in=1, partitions=4) == 2


def test_bytes_that_are_no_frame_go_where_they_came_in() -> None:
    assert own_partition(b"noise", came_in=1, partitions=4) == 1


def test_a_partition_that_does_not_exist_is_not_believed() -> None:
    assert own_partition(wire(9), came_in=1, partitions=4) == 1
