"""A frame: one Kafka message, one signed, compressed Arrow IPC stream of records from one lane.

A **lane** is (host, host boot, partition). Frames of a lane are numbered 1, 2, 3, ... and each names the digest of the one
before it, so that a missing or exchanged frame is provable.

    0   magic `WLF1`         4 version u16        6 head_bytes u16 (from byte 0 to the signature)
    8   host_boot u64        16 partition u32     20 records u32        24 frame_no u64
    32  created_ns i64       40 inflated_bytes u32                      44 ranges u16, host_bytes u8, codec u8
    48  previous [32]        80 payload_digest [32] (SHA-256 of the payload as sent)
    112 host name, UTF-8     then ranges x (boot u64, first u64, last u64)
    head_bytes .. +64        Ed25519 signature over bytes 0 .. head_bytes
    then                     payload: one zstd frame (codec 1) around an Arrow IPC stream with `ARROW_SCHEMA`

All integers are little-endian. A frame's digest is SHA-256 over bytes 0 .. head_bytes + 64: it covers the payload by its
digest.
A range (boot, first, last) is the door's records from which this cut was made; the records themselves may lie in other lanes of
the same cut, and every record of a boot lies in exactly one.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from schemas.errors import FrameFault
from schemas.limits import FRAME_BYTES_MAX, FRAME_INFLATED_BYTES_MAX, FRAME_RANGES_MAX, FRAME_RECORDS_MAX, NAME_BYTES_MAX
from schemas.records import STRING_FIELDS

MAGIC: Final = b"WLF1"
VERSION: Final = 1
CODEC_ZSTD: Final = 1
SIGNATURE_BYTES: Final = 64
NO_FRAME: Final = bytes(32)
"""`previous` of the first frame of a lane."""

_FIXED: Final = struct.Struct("<4sHHQIIQqIHBB32s32s")
_RANGE: Final = struct.Struct("<QQQ")

_TEXT: Final = pa.dictionary(pa.int32(), pa.utf8())
_TIME: Final = pa.timestamp("us", tz="UTC")

ARROW_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.uint8(), nullable=False),
        pa.field("boot", pa.uint64(), nullable=False),
        pa.field("seq", pa.uint64(), nullable=False),
        pa.field("call_seq", pa.uint64(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("recorded", _TIME, nullable=False),
        pa.field("verdict", pa.uint8(), nullable=False),
        pa.field("outcome", pa.uint8(), nullable=False),
        pa.field("mode", pa.uint8(), nullable=False),
        pa.field("depth", pa.uint8(), nullable=False),
        pa.field("status", pa.int32(), nullable=False),
        pa.field("count", pa.uint32(), nullable=False),
        pa.field("bytes_out", pa.uint64(), nullable=False),
        pa.field("bytes_in", pa.uint64(), nullable=False),
        pa.field("duration_us", pa.uint64(), nullable=False),
        pa.field("epoch", pa.uint64(), nullable=False),
        pa.field("ref", pa.uint64(), nullable=False),
        pa.field("query_hash", pa.uint64(), nullable=False),
        pa.field("query_bytes", pa.uint32(), nullable=False),
        pa.field("query_bits", pa.uint32(), nullable=False),
        pa.field("trace_id", pa.binary(16), nullable=False),
        pa.field("parent_span", pa.binary(8), nullable=False),
        *(pa.field(name, _TEXT, nullable=False) for name in STRING_FIELDS),
    ],
    metadata={"wardline": "1"},
)
"""The columns of version 1. A change makes a new version; a worker reads every version it knows and dead-letters the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One numbered row of frames."""

    host: str
    host_boot: int
    partition: int

    @property
    def text(self) -> str:
        """`HOST/BOOT/PARTITION`: the Kafka key of a frontier and what a person sees."""
        return f"{self.host}/{self.host_boot:016x}/{self.partition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Records `first` to `last` (inclusive) of one door boot, from which a cut was made."""

    boot: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHead:
    """Everything a frame says about itself before its payload."""

    lane: Lane
    frame_no: int
    records: int
    created_ns: int
    inflated_bytes: int
    previous: bytes
    payload_digest: bytes
    ranges: tuple[Range, ...]

    def encode(self) -> bytes:
        """The bytes that are signed."""
        name = self.lane.host.encode()
        head_bytes = _FIXED.size + len(name) + _RANGE.size * len(self.ranges)
        assert 0 < len(name) < NAME_BYTES_MAX
        assert len(self.ranges) <= FRAME_RANGES_MAX
        fixed = _FIXED.pack(
            MAGIC, VERSION, head_bytes, self.lane.host_boot, self.lane.partition, self.records, self.frame_no,
            self.created_ns, self.inflated_bytes, len(self.ranges), len(name), CODEC_ZSTD, self.previous, self.payload_digest,
        )  # fmt: skip
        return fixed + name + b"".join(_RANGE.pack(r.boot, r.first, r.last) for r in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame whose form is right. Nothing in it may be believed before `verify` has returned."""

    head: FrameHead
    signed: bytes
    signature: bytes
    payload: bytes

    @property
    def digest(self) -> bytes:
        """What the next frame of the lane names as `previous`."""
        return hashlib.sha256(self.signed + self.signature).digest()

    @property
    def wire(self) -> bytes:
        """The bytes of the Kafka message."""
        return self.signed + self.signature + self.payload

    def verify(self, check: Callable[[bytes, bytes], None]) -> None:
        """Believe the head and the payload, or raise FrameFault.

        `check(signature, message)` raises any exception when the signature is not the host's
        (`Ed25519PublicKey.verify` has this form).
        """
        try:
            check(self.signature, self.signed)
        except Exception as fault:
            raise FrameFault("signature", f"the signature is not that of host `{self.head.lane.host}`") from fault
        if hashlib.sha256(self.payload).digest() != self.head.payload_digest:
            raise FrameFault("digest", "the payload is not the one that was signed")


def build_frame(head: FrameHead, payload: bytes, sign: Callable[[bytes], bytes]) -> Frame:
    """Sign a head over its payload. `head.payload_digest` must be the payload's SHA-256."""
    signed = head.encode()
    return Frame(head=head, signed=signed, signature=sign(signed), payload=payload)


def parse_frame(data: bytes) -> Frame:
    """Read the form of a frame. Raises FrameFault with reason `form`, `version` or `limit`; believes nothing."""
    if len(data) > FRAME_BYTES_MAX:
        raise FrameFault("limit", f"the frame has {len(data)} bytes, limit is {FRAME_BYTES_MAX}")
    if len(data) < _FIXED.size or data[:4] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes do not begin with a frame's head")
    (_, version, head_bytes, host_boot, partition, records, frame_no, created_ns, inflated, ranges, host_bytes, codec,
     previous, payload_digest) = _FIXED.unpack_from(data)  # fmt: skip
    if version != VERSION:
        raise FrameFault("version", f"the frame has version {version}, this program reads {VERSION}")
    if codec != CODEC_ZSTD:
        raise FrameFault("version", f"the payload has codec {codec}, this program reads {CODEC_ZSTD}")
    if head_bytes != _FIXED.size + host_bytes + ranges * _RANGE.size or len(data) < head_bytes + SIGNATURE_BYTES:
        raise FrameFault("form", f"the head claims {head_bytes} bytes, the frame has {len(data)}")
    for name, value, limit in (
        ("records", records, FRAME_RECORDS_MAX),
        ("ranges", ranges, FRAME_RANGES_MAX),
        ("inflated bytes", inflated, FRAME_INFLATED_BYTES_MAX),
    ):
        if value > limit:
            raise FrameFault("limit", f"the frame has {value} {name}, limit is {limit}")
    if frame_no == 0 or records == 0 or host_bytes == 0:
        raise FrameFault("form", "frame number, record count or host name is empty")
    try:
        host = data[_FIXED.size : _FIXED.size + host_bytes].decode()
    except UnicodeDecodeError as fault:
        raise FrameFault("form", "the host name is not UTF-8") from fault
    at = _FIXED.size + host_bytes
    cut = tuple(
        Range(boot=boot, first=first, last=last)
        for boot, first, last in _RANGE.iter_unpack(data[at : at + ranges * _RANGE.size])
    )
    head = FrameHead(
        lane=Lane(host=host, host_boot=host_boot, partition=partition), frame_no=frame_no, records=records,
        created_ns=created_ns, inflated_bytes=inflated, previous=previous, payload_digest=payload_digest, ranges=cut,
    )  # fmt: skip
    return Frame(
        head=head,
        signed=data[:head_bytes],
        signature=data[head_bytes : head_bytes + SIGNATURE_BYTES],
        payload=data[head_bytes + SIGNATURE_BYTES :],
    )
