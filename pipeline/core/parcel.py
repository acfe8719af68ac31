"""One message on `egress`: what some frames hold for the detectors of one partition, signed by the worker that stored them.

    0 magic `WLE1`   4 version u16   6 head_bytes u16   8 partition u32   12 inflated bytes u32
    16 SHA-256 of the payload [32]   48 worker bytes u8, 3 zero bytes   52 worker name, UTF-8
    head_bytes .. +64        Ed25519 signature over bytes 0 .. head_bytes
    then                     payload: one zstd frame around five times (size u32, Arrow IPC stream): `PIECES`, then the rows of
                             agents, credentials and domains, then findings; size 0 where there are none

A frame's rows for one partition travel whole, or in numbered pieces where they are too large for one message. What a frame's
rows are depends on the frame alone, so a frame that is read again makes the same pieces, and whoever has one skips it.
Unsigned rows would let anyone who can write to the topic have an agent revoked.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.detect.aggregate import split
from pipeline.core.ipc import inflate
from schemas.egress import SUBJECTS, subject_partition
from schemas.errors import FrameFault
from schemas.findings import FINDING_SCHEMA, Finding, finding_row
from schemas.frame import SIGNATURE_BYTES, Lane
from schemas.limits import FRAME_BYTES_MAX, FRAME_INFLATED_BYTES_MAX

MAGIC: Final = b"WLE1"
VERSION: Final = 1
_FIXED: Final = struct.Struct("<4sHHII32sBBH")
_SIZE: Final = struct.Struct("<I")
_CODEC: Final = pa.Codec("zstd", compression_level=-1)

PIECES: Final = pa.schema(
    [
        pa.field("lane_host", pa.utf8(), nullable=False),
        pa.field("lane_boot", pa.uint64(), nullable=False),
        pa.field("lane_partition", pa.uint32(), nullable=False),
        pa.field("frame_no", pa.uint64(), nullable=False),
        pa.field("piece", pa.uint32(), nullable=False),
    ]
)
"""Which frames, and which piece of each, a message has the rows of."""

_FRAME: Final = ("lane_host", "lane_boot", "lane_partition", "frame_no")

Check: TypeAlias = Callable[[bytes, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A frame's rows for one partition, or a numbered piece of them."""

    lane: Lane
    frame_no: int
    piece: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a message says. `rows` has a table for each subject, `findings` rows of `FINDING_SCHEMA`."""

    worker: str
    partition: int
    pieces: tuple[Piece, ...]
    rows: Mapping[str, pa.Table]
    findings: pa.Table

    def without(self, known: Callable[[Piece], bool]) -> "Parcel":
        """The same without the pieces that are known already."""
        fresh = tuple(piece for piece in self.pieces if not known(piece))
        if len(fresh) == len(self.pieces):
            return self
        kept = {(piece.lane, piece.frame_no) for piece in fresh}
        rows = {name: _only(table, kept) for name, table in self.rows.items()}
        return replace(self, pieces=fresh, rows=rows)


def make_parcels(
    frames: Sequence[tuple[Lane, int]], rows: Mapping[str, pa.Table], findings: Mapping[int, pa.Table], partitions: int,
    worker: str, sign: Callable[[bytes], bytes],
) -> list[tuple[int, bytes]]:  # fmt: skip
    """(partition, message) for the rows of some frames, whatever their number: `rows` is by subject, of all the frames.

    `findings` are rows of `FINDING_SCHEMA` by partition: they are in the store, and the partition's owner goes on with them.
    """
    shares: dict[int, dict[str, pa.Table]] = {}
    for name, table in rows.items():
        for partition, share in split(table, name, partitions):
            shares.setdefault(partition, {})[name] = share
    pieces = tuple(Piece(lane=lane, frame_no=frame_no) for lane, frame_no in frames)
    messages: list[tuple[int, bytes]] = []
    for partition in sorted(shares.keys() | findings.keys()):
        part = {name: shares.get(partition, {}).get(name, schema.empty_table()) for name, schema in SUBJECTS.items()}
        found = findings.get(partition, FINDING_SCHEMA.empty_table())
        parcel = Parcel(worker=worker, partition=partition, pieces=pieces, rows=part, findings=found)
        messages += [(partition, message) for message in _fit(parcel, sign)]
    return messages


def finding_parcels(
    findings: Sequence[Finding], partitions: int, worker: str, sign: Callable[[bytes], bytes]
) -> list[tuple[int, bytes]]:
    """(partition, message) that hand stored findings on to whoever makes the risks of their agents."""
    owners: dict[int, list[dict[str, Any]]] = {}
    for finding in findings:
        owners.setdefault(subject_partition(finding.agent, partitions), []).append(finding_row(finding, worker))
    tables = {partition: pa.Table.from_pylist(rows, schema=FINDING_SCHEMA) for partition, rows in owners.items()}
    return make_parcels([], {}, tables, partitions, worker, sign)


def _fit(parcel: Parcel, sign: Callable[[bytes], bytes]) -> list[bytes]:
    """The parcel in one message, or in as many as it needs."""
    message = _encode(parcel, sign)
    if len(message) <= FRAME_BYTES_MAX:
        return [message]
    if len(parcel.pieces) == 1:
        return [_encode(part, sign) for part in _broken(parcel)]
    half = len(parcel.pieces) // 2
    made: list[bytes] = []
    for number, pieces in enumerate((parcel.pieces[:half], parcel.pieces[half:])):
        kept = {(piece.lane, piece.frame_no) for piece in pieces}
        rows = {name: _only(table, kept) for name, table in parcel.rows.items()}
        findings = parcel.findings if number == 0 else parcel.findings.slice(0, 0)
        made += _fit(replace(parcel, pieces=pieces, rows=rows, findings=findings), sign)
    return made


def _broken(parcel: Parcel) -> list[Parcel]:
    """The rows of one frame in pieces that fit, by halving; what a piece is depends on the rows alone."""
    waiting, fitting = [(parcel.rows, parcel.findings)], []
    while waiting:
        rows, findings = waiting.pop()
        many = sum(table.num_rows for table in rows.values())
        trial = replace(parcel, rows=rows, findings=findings)
        if many <= 1 or len(_encode(trial, lambda _: bytes(SIGNATURE_BYTES))) <= FRAME_BYTES_MAX:
            fitting.append((rows, findings))
            continue
        first, second = _halves(rows, many // 2)
        waiting += [(second, findings.slice(0, 0)), (first, findings)]
    whole = parcel.pieces[0]
    return [
        replace(parcel, rows=rows, findings=findings, pieces=(replace(whole, piece=number),))
        for number, (rows, findings) in enumerate(fitting)
    ]


def _halves(rows: Mapping[str, pa.Table], count: int) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """The first `count` rows of all tables one behind the other, and the rest: each has fewer rows, and only its own texts."""
    first, second, left = {}, {}, count
    for name, table in rows.items():
        many = min(left, table.num_rows)
        first[name], second[name] = _compact(table.slice(0, many)), _compact(table.slice(many))
        left -= many
    return first, second


def _compact(table: pa.Table) -> pa.Table:
    """The same without texts that no row has."""
    columns = [
        column.cast(pa.utf8()).dictionary_encode() if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema).combine_chunks()


def _only(table: pa.Table, frames: set[tuple[Lane, int]]) -> pa.Table:
    """The rows of these frames."""
    if not table.num_rows:
        return table
    code, known = _frame_codes(table)
    keep = np.array([frame in frames for frame in known], bool)
    return table if keep.all() else _compact(table.filter(pa.array(keep[code])))


def _frame_codes(table: pa.Table) -> tuple[NDArray[np.int64], list[tuple[Lane, int]]]:
    """For each row the number of its frame, and the frames by number."""
    host = table.column("lane_host").unify_dictionaries().combine_chunks()
    if isinstance(host, pa.ChunkedArray):
        host = host.chunk(0)
    columns = [host.indices.to_numpy(), *(table.column(name).to_numpy() for name in _FRAME[1:])]
    kind = [("host", np.int32), ("boot", np.uint64), ("partition", np.uint32), ("frame_no", np.uint64)]
    keys = np.empty(table.num_rows, kind)
    for (name, _), column in zip(kind, columns, strict=True):
        keys[name] = column
    found, code = np.unique(keys, return_inverse=True)
    names = host.dictionary.to_pylist()
    frames = [
        (Lane(host=names[host_at], host_boot=int(boot), partition=int(partition)), int(frame_no))
        for host_at, boot, partition, frame_no in found.tolist()
    ]
    return code, frames


def _encode(parcel: Parcel, sign: Callable[[bytes], bytes]) -> bytes:
    pieces = pa.Table.from_pylist(
        [
            {"lane_host": piece.lane.host, "lane_boot": piece.lane.host_boot, "lane_partition": piece.lane.partition,
             "frame_no": piece.frame_no, "piece": piece.piece}
            for piece in parcel.pieces
        ],
        schema=PIECES,
    )  # fmt: skip
    plain = b"".join(_stream(table) for table in (pieces, *(parcel.rows[name] for name in SUBJECTS), parcel.findings))
    payload: bytes = _CODEC.compress(plain, asbytes=True)
    name = parcel.worker.encode()
    head = _FIXED.pack(
        MAGIC, VERSION, _FIXED.size + len(name), parcel.partition, len(plain), hashlib.sha256(payload).digest(), len(name), 0, 0
    ) + name  # fmt: skip
    return head + sign(head) + payload


def _stream(table: pa.Table) -> bytes:
    if not table.num_rows:
        return _SIZE.pack(0)
    out = pa.BufferOutputStream()
    whole = table.unify_dictionaries().combine_chunks()
    with pa.ipc.new_stream(out, whole.schema) as stream:
        stream.write_table(whole)
    data: bytes = out.getvalue().to_pybytes()
    return _SIZE.pack(len(data)) + data


def parcel_worker(data: bytes) -> str:
    """Who says to have signed a message, to find his key; empty where the message is none."""
    if len(data) < _FIXED.size or data[:4] != MAGIC:
        return ""
    return data[_FIXED.size : _FIXED.size + data[48]].decode(errors="replace")


def parse_parcel(data: bytes, check: Check) -> Parcel:
    """Verify and read a message. Raises FrameFault `form`, `version`, `limit`, `signature`, `digest`, `payload` or `schema`."""
    if len(data) < _FIXED.size + SIGNATURE_BYTES or data[:4] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes are no message of aggregates")
    _, version, head_bytes, partition, inflated, digest, name_bytes, _, _ = _FIXED.unpack_from(data)
    if version != VERSION:
        raise FrameFault("version", f"the message has version {version}, this program reads {VERSION}")
    if head_bytes != _FIXED.size + name_bytes or len(data) < head_bytes + SIGNATURE_BYTES:
        raise FrameFault("form", f"the head claims {head_bytes} bytes, the message has {len(data)}")
    if inflated > FRAME_INFLATED_BYTES_MAX:
        raise FrameFault("limit", f"the message has {inflated} inflated bytes, limit is {FRAME_INFLATED_BYTES_MAX}")
    worker = parcel_worker(data)
    try:
        check(data[head_bytes : head_bytes + SIGNATURE_BYTES], data[:head_bytes])
    except Exception as fault:
        raise FrameFault("signature", f"the signature is not that of worker `{worker}`") from fault
    payload = data[head_bytes + SIGNATURE_BYTES :]
    if hashlib.sha256(payload).digest() != digest:
        raise FrameFault("digest", "the payload is not the one that was signed")
    plain = inflate(payload, inflated)
    pieces, *tables, findings = _tables(plain)
    named = tuple(
        Piece(lane=Lane(host=host, host_boot=boot, partition=lane_partition), frame_no=frame_no, piece=piece)
        for host, boot, lane_partition, frame_no, piece in zip(*(column.to_pylist() for column in pieces.columns), strict=True)
    )
    rows = dict(zip(SUBJECTS, tables, strict=True))
    return Parcel(worker=worker, partition=partition, pieces=named, rows=rows, findings=findings)


def _tables(plain: pa.Buffer) -> list[pa.Table]:
    tables, at = [], 0
    for schema in (PIECES, *SUBJECTS.values(), FINDING_SCHEMA):
        if len(plain) < at + _SIZE.size:
            raise FrameFault("payload", "the payload ends before its last table")
        (size,) = _SIZE.unpack_from(plain, at)
        at += _SIZE.size
        tables.append(_read(plain.slice(at, size), schema) if size else schema.empty_table())
        at += size
    return tables


def _read(data: pa.Buffer, schema: pa.Schema) -> pa.Table:
    try:
        with pa.ipc.open_stream(data) as stream:
            if not stream.schema.equals(schema):
                raise FrameFault("schema", "the message's columns are not those of version 1")
            return stream.read_all()
    except (OSError, pa.ArrowException, StopIteration, ValueError) as fault:
        raise FrameFault("payload", f"the message has no Arrow stream that we accept: {type(fault).__name__}") from fault
