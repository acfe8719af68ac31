"""Spools for tests: records at random, short ways to write and read them, and the processes that a test stops or kills."""

import ctypes
import errno
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from ext.spool import Run, SpoolReader, SpoolWriter
from schemas.errors import SpoolFull
from schemas.limits import KIB
from schemas.records import STRING_FIELDS, Kind
from tests.support.oracles import Ended, Rec, parse_records

BOOT = (0x6565_6565 << 32) | 7
SEGMENT = 64 * KIB
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def _edges(top: int) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([0, 1, top // 2, top - 1, top]), st.integers(0, top))


few_texts = st.sampled_from(["", "a", "default", "€uro", "日本", "\x00", "🙂" * 3, "x" * 300])
"""A few values, so that records share texts as real ones do, in one, two, three and four bytes of UTF-8."""

any_text = st.one_of(few_texts, st.text(max_size=40))

any_records = st.builds(
    Rec,
    kind=st.sampled_from(list(map(int, Kind))),
    call_seq=st.integers(0, 12),
    time_ns=st.one_of(st.integers(-5_000, 5_000), st.integers(-(1 << 63), (1 << 63) - 1)),
    recorded_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    verdict=st.sampled_from([0, 1, 255]),
    outcome=st.integers(0, 4),
    mode=st.integers(0, 2),
    depth=st.integers(0, 255),
    status=st.integers(-(1 << 31), (1 << 31) - 1),
    count=_edges(U32),
    bytes_out=_edges(U64),
    bytes_in=_edges(U64),
    duration_ns=_edges(U64),
    epoch=_edges(U64),
    ref=st.integers(0, 50),
    query_hash=_edges(U64),
    query_bytes=_edges(U32),
    query_bits=_edges(U32),
    trace_id=st.binary(min_size=16, max_size=16),
    parent_span=st.binary(min_size=8, max_size=8),
    texts=st.tuples(*[any_text] * len(STRING_FIELDS)),
)

_NAMED = st.builds(
    Rec,
    kind=st.sampled_from([int(Kind.DECISION), int(Kind.EFFECT), int(Kind.LOST), int(Kind.DECISION), int(Kind.PROGRESS)]),
    call_seq=st.integers(0, 8),
    verdict=st.sampled_from([1, 1, 0]),
    ref=st.integers(0, 50),
    trace_id=st.sampled_from([bytes([n]) * 16 for n in range(8)]),
)

records = st.one_of(any_records, _NAMED)
"""Records of every value, mixed with calls that begin and end close to each other."""


def writer(folder: Path, *, spool: int = 16 * SEGMENT, reserved: int = SEGMENT, after_seq: int = 0) -> SpoolWriter:
    """A writer with small segments."""
    return SpoolWriter(str(folder), BOOT, SEGMENT, spool, reserved, after_seq)


def put(spool: SpoolWriter, rec: Rec, *, reserved: bool = False) -> tuple[int, Rec]:
    """Append; returns the seq, and the record as it should be read."""
    seq = spool.put(rec.arguments(reserved=reserved))
    return seq, replace(rec, call_seq=rec.call_seq or seq)


def padded(number: int, size: int) -> Rec:
    """A record of `size` bytes (a multiple of 8, from 176 on) that ends with its texts, told apart by its number."""
    left = size - 176
    texts = []
    for _ in STRING_FIELDS:
        texts.append("x" * min(left, 4_096))
        left -= len(texts[-1])
    assert not left
    return Rec(kind=int(Kind.PROGRESS), ref=number, trace_id=number.to_bytes(16, "big"), texts=tuple(texts))


def told(runs: list[Run]) -> list[tuple[int, Rec]]:
    """The records of runs, by the oracle."""
    return [found for run in runs for found in parse_records(bytes(run.view))]


def read_all(folder: Path, after_seq: int = 0) -> tuple[list[tuple[int, Rec]], str]:
    """Everything that a new reader finds, and what it says of damage."""
    reader = SpoolReader(str(folder), BOOT, after_seq)
    try:
        return told(reader.read(1 << 20, 1 << 40)), reader.torn
    finally:
        reader.close()


def segments(folder: Path) -> list[Path]:
    """The numbered segments, in order."""
    return sorted(path for path in folder.glob("*.seg") if path.stem.isdigit())


# -- what children do ----------------------------------------------------------------------------------------------------


def write_on(folder: Path, records_max: int) -> None:
    """Write numbered records, waiting where the spool is full, and say when done."""
    spool = writer(folder, spool=4 * SEGMENT)
    for number in range(1, records_max + 1):
        rec = padded(number, 176 + 8 * (number % 50))
        while True:
            try:
                spool.append(*rec.arguments())
                break
            except SpoolFull:
                time.sleep(0.0005)
        if number % 64 == 0:
            spool.prepare()
    print("done", flush=True)


def call_on(folder: Path, calls: int, open_at_once: int) -> None:
    """Let calls out and end them, the oldest first, in their decision's record or in one of their own; say how many had one."""
    spool, out, apart = writer(folder, spool=1 << 30), deque[int](), 0
    for number in range(1, calls + open_at_once + 1):
        if number <= calls:
            out.append(put(spool, Rec(ref=number, texts=("x" * (number % 90), *("",) * 19)))[0])
        if number > open_at_once:
            seq = out.popleft()
            end = Ended(status=seq % 600, bytes_out=seq, address=f"10.0.0.1:{seq % 60_000}")
            if not spool.complete(seq, *end.arguments()):
                apart += 1
                put(spool, Rec(kind=int(Kind.EFFECT), call_seq=seq, verdict=255, status=end.status, bytes_out=seq))
    print(apart, flush=True)


def _fill(spool: SpoolWriter) -> int:
    while True:
        try:
            put(spool, padded(spool.last_seq + 1, 1_024))
        except SpoolFull:
            return spool.last_seq


def _fill_and_go_on(folder: Path, make_room: Callable[[], object]) -> None:
    """Whatever the reason there is no room: nothing is half written, and it goes on when there is."""
    spool = writer(folder, spool=64 * SEGMENT)
    full = _fill(spool)
    assert _fill(spool) == full, "full is full"
    spool.prepare()
    assert not list(folder.glob("next-*")), "what could not be made is removed"
    make_room()
    more = _fill(spool)
    assert more > full, "it goes on by itself"
    found, torn = read_all(folder)
    assert [seq for seq, _ in found] == list(range(1, more + 1))
    assert torn == ""
    spool.close()
    print("went on", flush=True)


def limited(folder: Path) -> None:
    """No file may be as long as a segment, then it may."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    spool = writer(folder)
    full = put(spool, padded(1, 1_024))[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT - 1, hard))
    full = _fill(spool)
    assert full == (SEGMENT - 64) // 1_024
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert _fill(spool) > full
    found, torn = read_all(folder)
    assert [seq for seq, _ in found] == list(range(1, spool.last_seq + 1))
    assert torn == ""
    print("went on", flush=True)


def full_disk(folder: Path) -> None:
    """A file system of its own with room for four segments, three of which somebody else has, then not."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14
    if libc.unshare(new_mounts) and libc.unshare(new_mounts | new_users):
        print("not allowed", flush=True)
        return
    libc.mount(b"none", b"/", None, private | recursive, None)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={4 * SEGMENT}".encode()):
        print("not allowed", flush=True)
        return
    other = folder / "other"
    handle = os.open(other, os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(handle, 0, 2 * SEGMENT)
    os.close(handle)
    _fill_and_go_on(folder, other.unlink)


def no_space(folder: Path) -> None:
    """The same where nothing may be mounted: the system's word for it, without the disk."""
    real, away = os.posix_fallocate, [True]

    def allocate(handle: int, offset: int, length: int) -> None:
        if away[0] and segments(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle, offset, length)

    os.posix_fallocate = allocate
    _fill_and_go_on(folder, lambda: away.__setitem__(0, False))


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    children = {"write": write_on, "calls": call_on, "limited": limited, "full": full_disk, "no-space": no_space}
    children[what](Path(where), *map(int, rest))  # type: ignore[operator]
