"""Pure Python twins of the kernels, too simple to be wrong: record bytes, their check, Kafka's partitioner, frame columns."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from schemas.layout import (
    END_ADDRESS_BYTES,
    END_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    VERDICT_UNSAID,
)
from schemas.records import SEPARATOR, STRING_FIELDS, Kind, Outcome, Verdict

_MASK64 = (1 << 64) - 1
_FIXED = struct.Struct("<QQqqQQQQQQIIIiBBBBBB2x16s8s20H")  # from byte 8 on
_END = struct.Struct(f"<QQQiBB2x{END_ADDRESS_BYTES}s")  # from byte 8 of the room on
_THERE = 2
_ADDRESS = STRING_FIELDS.index("address")
_EMPTY = ("",) * len(STRING_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a call ended, in its decision's record: the arguments of `SpoolWriter.complete` behind the seq."""

    outcome: int = int(Outcome.OK)
    status: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    duration_ns: int = 0
    address: str = ""

    def arguments(self) -> tuple[int, int, int, int, int, str]:
        """What `complete` takes."""
        return self.outcome, self.status, self.bytes_out, self.bytes_in, self.duration_ns, self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Rec:
    """One record: the arguments of `SpoolWriter.append` by name."""

    kind: int = int(Kind.DECISION)
    call_seq: int = 0
    time_ns: int = 0
    recorded_ns: int = 0
    verdict: int = int(Verdict.ALLOW)
    outcome: int = int(Outcome.OPEN)
    mode: int = 0
    depth: int = 0
    status: int = 0
    count: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    duration_ns: int = 0
    epoch: int = 0
    ref: int = 0
    query_hash: int = 0
    query_bytes: int = 0
    query_bits: int = 0
    trace_id: bytes = bytes(16)
    parent_span: bytes = bytes(8)
    texts: tuple[str, ...] = _EMPTY
    end: Ended | None = None
    """What was written into its room."""

    @property
    def has_room(self) -> bool:
        """Whether it is a decision that lets a call out."""
        return (self.kind, self.verdict, self.outcome) == (Kind.DECISION, Verdict.ALLOW, Outcome.OPEN)

    def arguments(self, *, reserved: bool = False) -> tuple[Any, ...]:
        """What `append` takes."""
        return (
            self.kind, self.call_seq, self.time_ns, self.recorded_ns, self.verdict, self.outcome, self.mode, self.depth,
            self.status, self.count, self.bytes_out, self.bytes_in, self.duration_ns, self.epoch, self.ref, self.query_hash,
            self.query_bytes, self.query_bits, self.trace_id, self.parent_span, self.texts, reserved,
        )  # fmt: skip

    def bytes_needed(self) -> int:
        """The size of the record in a spool."""
        said = -(-(RECORD_HEADER_BYTES + sum(len(text.encode()) for text in self.texts)) // 8) * 8
        return said + END_BYTES * self.has_room


def mix32(data: bytes) -> int:
    """The check over a record's bytes (or a segment header's), as `ext/layout.pxd` defines it."""
    odd_multiplier = 0xD6E8FEB86659FD93
    lanes = [(0x9E3779B97F4A7C15 ^ len(data)) * odd_multiplier & _MASK64, 0xC2B2AE3D27D4EB4F]
    words = [word for (word,) in struct.iter_unpack("<Q", data)]
    for number, word in enumerate(words):
        lane = number % 2
        lanes[lane] = (lanes[lane] ^ word) * odd_multiplier & _MASK64
        if number + 1 < len(words) or len(words) % 2 == 0:  # a last word alone is not shifted
            lanes[lane] ^= lanes[lane] >> (32, 29)[lane]
    even, odd = lanes
    folded = (odd ^ (even >> 31) ^ even) * odd_multiplier & _MASK64
    return (folded ^ (folded >> 32)) & 0xFFFFFFFF


def encode_record(seq: int, rec: Rec) -> bytes:
    """The bytes of a record in a spool."""
    texts = [text.encode() for text in rec.texts]
    body = _FIXED.pack(
        seq, rec.call_seq or seq, rec.time_ns, rec.recorded_ns, rec.bytes_out, rec.bytes_in, rec.duration_ns, rec.epoch,
        rec.ref, rec.query_hash, rec.query_bytes, rec.query_bits, rec.count, rec.status, rec.kind, rec.verdict, rec.outcome,
        rec.mode, rec.depth, rec.has_room, rec.trace_id, rec.parent_span, *(len(text) for text in texts),
    ) + b"".join(texts)  # fmt: skip
    body += bytes(-len(body) % 8)
    room = bytes(END_BYTES * rec.has_room)
    if rec.end is not None:
        *numbers, address = rec.end.arguments()
        outcome, status, bytes_out, bytes_in, duration_ns = numbers
        told = _END.pack(duration_ns, bytes_out, bytes_in, status, outcome, len(address.encode()), address.encode())
        room = struct.pack("<II", _THERE, mix32(told)) + told
    return struct.pack("<II", 8 + len(body) + len(room), mix32(body)) + body + room


def encode_header(boot: int, index: int, first_seq: int, ref_before: int, size: int) -> bytes:
    """The first bytes of a segment."""
    head = struct.pack("<8sQQQQQ", SEGMENT_MAGIC, boot, index, first_seq, ref_before, size)
    return (head + struct.pack("<I", mix32(head))).ljust(SEGMENT_HEADER_BYTES, b"\0")


def parse_records(data: bytes) -> Iterator[tuple[int, Rec]]:
    """The (seq, record) of whole records; `call_seq` is as written, never 0. AssertionError for anything else."""
    while data:
        size, check = struct.unpack_from("<II", data)
        assert RECORD_HEADER_BYTES <= size <= len(data)
        assert size % 8 == 0
        whole, room = size, _FIXED.unpack_from(data, 8)[19]
        size -= END_BYTES * room
        assert mix32(data[8:size]) == check
        (seq, call_seq, time_ns, recorded_ns, bytes_out, bytes_in, duration_ns, epoch, ref, query_hash, query_bytes, query_bits,
         count, status, kind, verdict, outcome, mode, depth, _, trace_id, parent_span, *lengths) = _FIXED.unpack_from(data, 8)
        texts, at = [], RECORD_HEADER_BYTES
        for length in lengths:
            texts.append(data[at : at + length].decode())
            at += length
        assert data[at:size] == bytes(size - at)
        assert size - at < 8
        yield seq, Rec(
            kind=kind, call_seq=call_seq, time_ns=time_ns, recorded_ns=recorded_ns, verdict=verdict, outcome=outcome, mode=mode,
            depth=depth, status=status, count=count, bytes_out=bytes_out, bytes_in=bytes_in, duration_ns=duration_ns,
            epoch=epoch, ref=ref, query_hash=query_hash, query_bytes=query_bytes, query_bits=query_bits, trace_id=trace_id,
            parent_span=parent_span, texts=tuple(texts), end=parse_end(data[size:whole]),
        )  # fmt: skip
        data = data[whole:]


def parse_end(room: bytes) -> Ended | None:
    """What stands in a record's room; none where there is no room."""
    if not room or int.from_bytes(room[:4], "little") != _THERE:
        return None
    assert mix32(room[8:]) == int.from_bytes(room[4:8], "little")
    duration_ns, bytes_out, bytes_in, status, outcome, length, address = _END.unpack(room[8:])
    assert address == address[:length].ljust(END_ADDRESS_BYTES, b"\0")
    return Ended(outcome=outcome, status=status, bytes_out=bytes_out, bytes_in=bytes_in, duration_ns=duration_ns,
                 address=address[:length].decode())  # fmt: skip


def apart(seq: int, rec: Rec) -> list[Rec]:
    """A record; or a whole decision as the two that it stands for."""
    if rec.end is None:
        return [rec]
    end, texts = rec.end, ["default", *_EMPTY[1:]]
    texts[_ADDRESS] = end.address
    effect = Rec(
        kind=int(Kind.EFFECT), call_seq=seq, time_ns=rec.time_ns + end.duration_ns, recorded_ns=rec.time_ns + end.duration_ns,
        verdict=VERDICT_UNSAID, outcome=end.outcome, status=end.status, bytes_out=end.bytes_out, bytes_in=end.bytes_in,
        duration_ns=end.duration_ns, ref=rec.ref, trace_id=rec.trace_id, parent_span=rec.parent_span, texts=tuple(texts),
    )  # fmt: skip
    return [replace(rec, end=None), effect]


def murmur2(data: bytes) -> int:
    """Kafka's hash of a key: org.apache.kafka.common.utils.Utils.murmur2, as a signed 32-bit number."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        k = word * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m ^ k) & mask
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


def partition_of(trace_id: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key."""
    return (murmur2(trace_id) & 0x7FFFFFFF) % partitions


def row(boot: int, seq: int, rec: Rec) -> dict[str, Any]:
    """One record as the columns of `schemas.frame.ARROW_SCHEMA`; times in microseconds."""
    if rec.end is not None:
        end, texts = rec.end, list(rec.texts)
        if end.address:
            texts[_ADDRESS] += SEPARATOR + end.address
        rec = replace(rec, outcome=end.outcome, status=end.status, bytes_out=end.bytes_out, bytes_in=end.bytes_in,
                      duration_ns=end.duration_ns, texts=tuple(texts), end=None)  # fmt: skip
    return {
        "kind": rec.kind, "boot": boot, "seq": seq, "call_seq": rec.call_seq or seq, "time": rec.time_ns // 1000,
        "recorded": rec.recorded_ns // 1000, "verdict": rec.verdict, "outcome": rec.outcome, "mode": rec.mode,
        "depth": rec.depth, "status": rec.status, "count": rec.count, "bytes_out": rec.bytes_out, "bytes_in": rec.bytes_in,
        "duration_us": rec.duration_ns // 1000, "epoch": rec.epoch, "ref": rec.ref, "query_hash": rec.query_hash,
        "query_bytes": rec.query_bytes, "query_bits": rec.query_bits, "trace_id": rec.trace_id,
        "parent_span": rec.parent_span, **dict(zip(STRING_FIELDS, rec.texts, strict=True)),
    }  # fmt: skip


def columns(boot: int, records: list[tuple[int, Rec]], partitions: int) -> dict[int, list[dict[str, Any]]]:
    """The rows of each partition that has any, in order."""
    found: dict[int, list[dict[str, Any]]] = {}
    for seq, rec in records:
        found.setdefault(partition_of(rec.trace_id, partitions), []).append(row(boot, seq, rec))
    return dict(sorted(found.items()))


def open_and_closed(records: list[tuple[int, Rec]]) -> tuple[list[tuple[int, bytes]], list[int]]:
    """What a run of records leaves open, and which calls of earlier runs it ends."""
    opened: dict[int, bytes] = {}
    closed = []
    for seq, rec in records:
        if rec.kind == Kind.DECISION and rec.verdict == Verdict.ALLOW:
            if rec.end is not None:
                continue
            opened[seq] = rec.trace_id
        elif rec.kind in (Kind.EFFECT, Kind.LOST):
            if rec.call_seq < records[0][0]:
                closed.append(rec.call_seq)
            opened.pop(rec.call_seq, None)
    return list(opened.items()), closed


def sip128(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 with 128 bits, as the paper writes it; an all-zero first half is kept from being one by the board."""
    top = (1 << 64) - 1
    k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turned(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & top

    def rounds(many: int) -> None:
        for _ in range(many):
            v[0], v[2] = (v[0] + v[1]) & top, (v[2] + v[3]) & top
            v[1], v[3] = turned(v[1], 13) ^ v[0], turned(v[3], 16) ^ v[2]
            v[0] = turned(v[0], 32)
            v[2], v[0] = (v[2] + v[1]) & top, (v[0] + v[3]) & top
            v[1], v[3] = turned(v[1], 17) ^ v[2], turned(v[3], 21) ^ v[0]
            v[2] = turned(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(4)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return first.to_bytes(8, "little") + (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
