"""The stored frontier of a lane: the worker's signed word that the outbox may forget frames up to `frame_no`.

    0 magic `WLS1`   4 version u16   6 head_bytes u16   8 host_boot u64   16 frame_no u64   24 stored_ns i64
    32 partition u32   36 host_bytes u8, worker_bytes u8, 2 zero bytes   40 host, then worker, UTF-8
    then the Ed25519 signature [64]

Readers take the maximum per lane; a frontier that does not verify is counted and forgotten.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from schemas.errors import FrameFault
from schemas.frame import SIGNATURE_BYTES, Lane

MAGIC: Final = b"WLS1"
VERSION: Final = 1
_FIXED: Final = struct.Struct("<4sHHQQqIBBH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Everything of `lane` up to and including `frame_no` is in the store (or kept as a dead letter)."""

    lane: Lane
    frame_no: int
    stored_ns: int
    worker: str

    def encode(self, sign: Callable[[bytes], bytes]) -> bytes:
        """The Kafka message, signed by the worker."""
        host, worker = self.lane.host.encode(), self.worker.encode()
        signed = (
            _FIXED.pack(MAGIC, VERSION, _FIXED.size + len(host) + len(worker), self.lane.host_boot, self.frame_no,
                        self.stored_ns, self.lane.partition, len(host), len(worker), 0)
            + host + worker
        )  # fmt: skip
        return signed + sign(signed)


def parse_frontier(data: bytes, key_of: Callable[[str], Callable[[bytes, bytes], None] | None]) -> Frontier:
    """Read and verify a frontier. `key_of(worker)` gives that worker's `verify(signature, message)`, or None.

    Raises FrameFault with reason `form`, `version`, `key` or `signature`.
    """
    if len(data) < _FIXED.size + SIGNATURE_BYTES or data[:4] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes are no frontier")
    _, version, head_bytes, host_boot, frame_no, stored_ns, partition, host_bytes, worker_bytes, _ = _FIXED.unpack_from(data)
    if version != VERSION:
        raise FrameFault("version", f"the frontier has version {version}, this program reads {VERSION}")
    if head_bytes != _FIXED.size + host_bytes + worker_bytes or len(data) != head_bytes + SIGNATURE_BYTES:
        raise FrameFault("form", f"the frontier claims {head_bytes} bytes, the message has {len(data)}")
    try:
        host = data[_FIXED.size : _FIXED.size + host_bytes].decode()
        worker = data[_FIXED.size + host_bytes : head_bytes].decode()
    except UnicodeDecodeError as fault:
        raise FrameFault("form", "a name in the frontier is not UTF-8") from fault
    check = key_of(worker)
    if check is None:
        raise FrameFault("key", f"no key is pinned for worker `{worker}`")
    try:
        check(data[head_bytes:], data[:head_bytes])
    except Exception as fault:
        raise FrameFault("signature", f"the signature is not that of worker `{worker}`") from fault
    lane = Lane(host=host, host_boot=host_boot, partition=partition)
    return Frontier(lane=lane, frame_no=frame_no, stored_ns=stored_ns, worker=worker)
