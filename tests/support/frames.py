"""Real frames from plain records, signed with real keys; and the ways to spoil one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enforcers.core.seal import encode_payload
from schemas.frame import ARROW_SCHEMA, NO_FRAME, Frame, FrameHead, Lane, Range, build_frame
from schemas.layout import VERDICT_UNSAID
from schemas.records import SEPARATOR, STRING_FIELDS, Kind, Outcome, Verdict

BOOT = (0x6543_2100 << 32) | 7
"""The door boot of records that name none."""

HOST_BOOT = (0x6543_2100 << 32) | 1

Record = Mapping[str, Any]


def record(seq: int, **fields: Any) -> dict[str, Any]:
    """One record as a door would write it: an allowed decision, unless `fields` say otherwise. Times are us."""
    texts = dict.fromkeys(STRING_FIELDS, "")
    texts |= {
        "door": "replay", "session": "s-1", "agent": 'Agent::"planner"', "root": 'User::"alice"',
        "chain": SEPARATOR.join(('User::"alice"', 'Agent::"planner"')), "action": 'Action::"mcp:tools/call"',
        "resource": 'Tool::"bank/send_money"', "reason": "permit", "policies": "policy0", "policy_digest": "d" * 64,
    }  # fmt: skip
    made: dict[str, Any] = {
        "kind": Kind.DECISION, "boot": BOOT, "seq": seq, "call_seq": seq, "time": 1_700_000_000_000_000 + seq,
        "recorded": 1_700_000_000_000_100 + seq, "verdict": Verdict.ALLOW, "outcome": Outcome.OPEN, "mode": 0, "depth": 2,
        "status": 0, "count": 1, "bytes_out": 10, "bytes_in": 0, "duration_us": 0, "epoch": 0, "ref": seq, "query_hash": 0,
        "query_bytes": 0, "query_bits": 0, "trace_id": hashlib.md5(str(seq).encode()).digest(), "parent_span": bytes(8),
        **texts,
    }  # fmt: skip
    return made | fields


def effect(seq: int, call_seq: int, **fields: Any) -> dict[str, Any]:
    """What ended the call of `call_seq`."""
    said = {"kind": Kind.EFFECT, "call_seq": call_seq, "verdict": VERDICT_UNSAID, "outcome": Outcome.OK, "status": 200}
    return record(seq, **said, bytes_in=99, duration_us=1500, **fields)


def batch_of(records: Sequence[Record], schema: pa.Schema = ARROW_SCHEMA) -> pa.RecordBatch:
    """The Arrow batch of some records."""
    columns = []
    for field in schema:
        values = [r[field.name] for r in records]
        if pa.types.is_dictionary(field.type):
            columns.append(pa.array(values, pa.utf8()).dictionary_encode())
        else:
            columns.append(pa.array([int(v) if isinstance(v, int) else v for v in values], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def ranges_of(records: Sequence[Record]) -> tuple[Range, ...]:
    """One range per door boot that covers the records."""
    boots: dict[int, list[int]] = {}
    for one in records:
        boots.setdefault(one["boot"], []).append(one["seq"])
    return tuple(Range(boot=boot, first=min(seqs), last=max(seqs)) for boot, seqs in sorted(boots.items()))


class Host:
    """A host that seals what it is given: it numbers each lane from 1 and chains the digests."""

    def __init__(self, name: str = "enforce-1", *, boot: int = HOST_BOOT, key: Ed25519PrivateKey | None = None) -> None:
        self.name = name
        self.boot = boot
        self.key = key or Ed25519PrivateKey.generate()
        self._tips: dict[int, tuple[int, bytes]] = {}
        self._seq = 0

    def lane(self, partition: int = 0) -> Lane:
        return Lane(host=self.name, host_boot=self.boot, partition=partition)

    def key_of(self, name: str) -> Callable[[bytes, bytes], None] | None:
        """The pinned keys of somebody who trusts this host alone."""
        return self.key.public_key().verify if name == self.name else None

    def some(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """The next `count` decisions of one door."""
        self._seq += count
        return [record(seq, **fields) for seq in range(self._seq - count + 1, self._seq + 1)]

    def frame(self, records: int | Sequence[Record] = 3, partition: int = 0, **changes: Any) -> Frame:
        """The next frame of a lane. `changes` replace fields of its head before it is signed."""
        given = self.some(records) if isinstance(records, int) else list(records)
        return self.seal(batch_of(given), ranges_of(given), partition, **changes)

    def seal(self, batch: pa.RecordBatch, cut: tuple[Range, ...], partition: int = 0, **changes: Any) -> Frame:
        """Sign a batch as the next frame of a lane."""
        payload, inflated = encode_payload(batch)
        return self.sign(payload, inflated, batch.num_rows, cut, partition, **changes)

    def sign(self, payload: bytes, inflated: int, rows: int, cut: tuple[Range, ...] = (), partition: int = 0,
             **changes: Any) -> Frame:  # fmt: skip
        """Sign any bytes as the next frame of a lane."""
        frame_no, previous = self._tips.get(partition, (1, NO_FRAME))
        head = FrameHead(
            lane=self.lane(partition), frame_no=frame_no, records=rows, created_ns=1_700_000_000 * 10**9,
            inflated_bytes=inflated, previous=previous, payload_digest=hashlib.sha256(payload).digest(),
            ranges=cut or (Range(boot=BOOT, first=1, last=max(1, rows)),),
        )  # fmt: skip
        frame = build_frame(replace(head, **changes), payload, self.key.sign)
        if "frame_no" not in changes:
            self._tips[partition] = (frame_no + 1, frame.digest)
        return frame


def forged(frame: Frame) -> bytes:
    """The same frame under somebody else's signature."""
    return build_frame(frame.head, frame.payload, Ed25519PrivateKey.generate().sign).wire


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """One bit of one byte is other than it was."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
