"""What one Kafka message is. The order of the questions is the point:

    form, size                      -> Dead, touches no lane: nothing in it may be believed
    key known, signature, digest    -> Dead, touches no lane: a forged number must not shadow the real frame
    lane's partition = Kafka's      -> Dead, touches no lane: the real one comes in its own partition
    number already stored, pending  -> Duplicate; the same number with other content: Dead, touches no lane
    too far beyond a missing frame  -> PutOff: its host keeps it and sends it again
    payload, schema, values         -> Dead, and `passes`: the host signed just this, sending it again cannot help it
    otherwise                       -> Accepted

A payload whose digest is wrong is treated as a forgery although the head's signature is good: whoever can write to the topic
could put a real head on other bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.ipc import inflate, read_batch
from pipeline.core.ledger import Ledger, Standing
from schemas.errors import FrameFault
from schemas.frame import Frame, FrameHead, Lane, parse_frame
from schemas.layout import VERDICT_UNSAID
from schemas.limits import STRING_BYTES_MAX
from schemas.records import STRING_FIELDS, Kind, Mode, Outcome, Verdict

Check: TypeAlias = Callable[[bytes, bytes], None]

CHOICES: Final = {
    "kind": frozenset(Kind),
    "verdict": frozenset({*Verdict, VERDICT_UNSAID}),
    "outcome": frozenset(Outcome),
    "mode": frozenset(Mode),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A frame that is new and right. `flag` is `chain` when it does not name the frame before it in its lane."""

    head: FrameHead
    digest: bytes
    signed: bytes
    batch: pa.RecordBatch
    wire_bytes: int
    flag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A frame that is stored, or waits in a batch."""

    lane: Lane
    frame_no: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOff:
    """A frame too far beyond a missing one: it is not stored, and its host sends it again."""

    lane: Lane
    frame_no: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """A message that is kept as a dead letter.

    `head` is what its head says, believable only with `passes`: then the host has signed exactly these bytes, and the frontier
    of the lane passes them (once: not when it has passed them before). `digest` and `signed` are the frame's when its form
    could be read, else empty.
    """

    reason: str
    message: str
    head: FrameHead | None = None
    digest: bytes = b""
    signed: bytes = b""
    passes: bool = False
    wire_bytes: int = 0


Judged: TypeAlias = Accepted | Duplicate | PutOff | Dead


def judge(data: bytes | None, partition: int, key_of: Callable[[str], Check | None], ledger: Ledger) -> Judged:
    """Say what a message from Kafka partition `partition` is. Total: never raises for anything that `data` may be.

    `key_of(host)` gives `verify(signature, message)` of a registered host, or None. `ledger` is asked, not changed.
    """
    if data is None:
        return Dead(reason="form", message="the message has no value")
    try:
        frame = parse_frame(data)
    except FrameFault as fault:
        return Dead(reason=fault.reason, message=_clean(str(fault)), wire_bytes=len(data))
    head = frame.head
    try:
        _believe(frame, partition, key_of)
    except FrameFault as fault:
        return _dead(frame, fault, passes=False)
    digest = frame.digest
    standing = ledger.standing(head.lane, head.frame_no, digest)
    if standing is Standing.KNOWN:
        return Duplicate(lane=head.lane, frame_no=head.frame_no)
    if standing is Standing.TWIN:
        twin = FrameFault("twin", f"lane {head.lane.text} has another frame {head.frame_no}, of other content")
        return _dead(frame, twin, passes=False)
    if standing is Standing.AHEAD:
        return PutOff(lane=head.lane, frame_no=head.frame_no)
    try:
        batch = read_batch(inflate(frame.payload, head.inflated_bytes))
        check_records(batch, head)
    except FrameFault as fault:
        return _dead(frame, fault, passes=not ledger.is_dead(head.lane, head.frame_no))
    flag = "" if ledger.continues(head.lane, head.frame_no, head.previous, digest) else "chain"
    signed = frame.signed + frame.signature
    return Accepted(head=head, digest=digest, signed=signed, batch=batch, wire_bytes=len(data), flag=flag)


def read_again(data: bytes) -> tuple[FrameHead, pa.RecordBatch]:
    """The head and the records of a frame that `judge` has called a Duplicate. Raises FrameFault where it has no records."""
    frame = parse_frame(data)
    batch = read_batch(inflate(frame.payload, frame.head.inflated_bytes))
    check_records(batch, frame.head)
    return frame.head, batch


def _believe(frame: Frame, partition: int, key_of: Callable[[str], Check | None]) -> None:
    host = frame.head.lane.host
    check = key_of(host)
    if check is None:
        raise FrameFault("key", f"no key is registered for host `{host}`")
    frame.verify(check)
    if frame.head.lane.partition != partition:
        raise FrameFault("partition", f"the frame belongs to partition {frame.head.lane.partition}, it came in {partition}")


def _dead(frame: Frame, fault: FrameFault, *, passes: bool) -> Dead:
    signed = frame.signed + frame.signature
    return Dead(
        reason=fault.reason, message=_clean(str(fault)), head=frame.head, digest=frame.digest, signed=signed, passes=passes,
        wire_bytes=len(signed) + len(frame.payload),
    )  # fmt: skip


def _clean(text: str) -> str:
    """Names in a head that nobody has signed may hold anything; logs and terminals get it printable."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def check_records(batch: pa.RecordBatch, head: FrameHead) -> None:
    """Hold the values to what a door may write. Raises FrameFault `records`, `value`, `range` or `limit`."""
    if batch.num_rows != head.records:
        raise FrameFault("records", f"the payload has {batch.num_rows} records, the head says {head.records}")
    for name, allowed in CHOICES.items():
        for value in pc.unique(batch.column(name)).to_pylist():
            if value not in allowed:
                raise FrameFault("value", f"a record has {name} {value}, allowed are {', '.join(map(str, sorted(allowed)))}")
    boot = batch.column("boot").to_numpy()
    seq = batch.column("seq").to_numpy()
    call_seq = batch.column("call_seq").to_numpy()
    # boot 0 is the frame rows' own in the store; a number 0 is no record
    if not boot.all() or not call_seq.all() or (call_seq > seq).any():
        raise FrameFault("value", "a record has boot 0, call 0, or a call behind its own number")
    _check_ranges(boot, seq, head)
    for name in STRING_FIELDS:
        values = batch.column(name).dictionary
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > STRING_BYTES_MAX:
            raise FrameFault("limit", f"a record's {name} has {longest} bytes, limit is {STRING_BYTES_MAX}")


def _check_ranges(boot: "np.ndarray[tuple[int], np.dtype[np.uint64]]", seq: "np.ndarray[tuple[int], np.dtype[np.uint64]]",
                  head: FrameHead) -> None:  # fmt: skip
    """Every record is one of the cut that the head names, and none is there twice."""
    ranges = sorted((r.boot, r.first, r.last) for r in head.ranges)
    boots = np.array([r[0] for r in ranges], dtype=np.uint64)
    if len(ranges) == 0 or len(set(boots.tolist())) != len(ranges):
        raise FrameFault("range", "the head names no door boot, or one twice")
    at = np.minimum(np.searchsorted(boots, boot), len(ranges) - 1)
    first = np.array([r[1] for r in ranges], dtype=np.uint64)[at]
    last = np.array([r[2] for r in ranges], dtype=np.uint64)[at]
    outside = np.flatnonzero((boots[at] != boot) | (seq < first) | (seq > last))
    if outside.size:
        row = outside[0]
        raise FrameFault("range", f"record {seq[row]} of boot {boot[row]:016x} is not in the ranges of the head")
    order = np.lexsort((seq, boot))
    same = (boot[order][1:] == boot[order][:-1]) & (seq[order][1:] == seq[order][:-1])
    if same.any():
        row = order[1:][same][0]
        raise FrameFault("range", f"record {seq[row]} of boot {boot[row]:016x} is there twice")


