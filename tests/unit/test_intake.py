"""What a message is: every refusal by name, and no byte of a good frame can change without being noticed."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.core.seal import encode_payload
from pipeline.core.intake import Accepted, Dead, Duplicate, Judged, PutOff, judge
from pipeline.core.ipc import claimed_bytes, read_batch
from pipeline.core.ledger import Ledger
from schemas.errors import FrameFault
from schemas.frame import ARROW_SCHEMA, Frame, Range, build_frame
from schemas.limits import FRAME_BYTES_MAX, FRAME_INFLATED_BYTES_MAX, FRAME_RECORDS_MAX, LANE_AHEAD_MAX, STRING_BYTES_MAX
from tests.support.frames import BOOT, Host, batch_of, effect, flipped, forged, ranges_of, record

PARTITION = 2


def fresh() -> Ledger:
    ledger = Ledger()
    for partition in range(4):
        ledger.take(partition, {})
    return ledger


def look(host: Host, data: bytes | None, ledger: Ledger | None = None, partition: int = PARTITION) -> Judged:
    return judge(data, partition, host.key_of, ledger or fresh())


def dead(host: Host, data: bytes | None, partition: int = PARTITION) -> Dead:
    found = look(host, data, partition=partition)
    assert isinstance(found, Dead), found
    return found


def test_a_good_frame_is_accepted_with_its_records() -> None:
    host = Host()
    records = [record(1), record(2, verdict=0, reason="forbid"), effect(3, 1)]
    frame = host.frame(records, PARTITION)
    found = look(host, frame.wire)
    assert isinstance(found, Accepted)
    assert found.batch.to_pylist() == batch_of(records).to_pylist()
    assert (found.head, found.digest, found.signed) == (frame.head, frame.digest, frame.signed + frame.signature)
    assert (found.flag, found.wire_bytes) == ("", len(frame.wire))


def test_a_frame_as_large_as_a_host_may_seal_is_accepted() -> None:
    host = Host()
    assert isinstance(look(host, host.frame(FRAME_RECORDS_MAX, PARTITION).wire), Accepted)


def test_a_frame_that_is_known_is_a_duplicate_and_is_not_decompressed() -> None:
    host, ledger = Host(), fresh()
    frame = host.sign(b"not even zstd", 100, 3, partition=PARTITION)
    ledger.take(PARTITION, {host.lane(PARTITION): (1, [])})
    assert look(host, frame.wire, ledger) == Duplicate(lane=host.lane(PARTITION), frame_no=1)


def test_a_frame_that_waits_in_a_batch_is_a_duplicate_too() -> None:
    host, ledger = Host(), fresh()
    frame = host.frame(3, PARTITION)
    ledger.begin(frame.head.lane, 1, frame.digest, frame.head.previous)
    assert isinstance(look(host, frame.wire, ledger), Duplicate)


def test_another_frame_of_a_known_number_is_a_dead_letter_that_touches_no_lane() -> None:
    host, ledger = Host(), fresh()
    first, twin = host.frame(3, PARTITION), host.frame(3, PARTITION, frame_no=1)
    ledger.begin(first.head.lane, 1, first.digest, first.head.previous)
    found = look(host, twin.wire, ledger)
    assert isinstance(found, Dead)
    assert (found.reason, found.passes) == ("twin", False)


def test_a_frame_too_far_beyond_a_missing_one_is_put_off() -> None:
    host = Host()
    assert isinstance(look(host, host.frame(3, PARTITION, frame_no=LANE_AHEAD_MAX).wire), Accepted)
    assert isinstance(look(host, host.frame(3, PARTITION, frame_no=LANE_AHEAD_MAX + 1).wire), PutOff)


def test_a_frame_that_does_not_name_the_one_before_is_stored_and_flagged() -> None:
    host, ledger = Host(), fresh()
    first, second = host.frame(3, PARTITION), host.frame(3, PARTITION, previous=bytes(31) + b"x")
    ledger.begin(first.head.lane, 1, first.digest, first.head.previous)
    found = look(host, second.wire, ledger)
    assert isinstance(found, Accepted)
    assert found.flag == "chain"


# -- what touches no lane ---------------------------------------------------------------------------------------------


def _refused(host: Host) -> dict[str, tuple[bytes | None, str]]:
    good = host.frame(3, PARTITION)
    wire = good.wire
    other_payload = host.frame(3, PARTITION, frame_no=9).payload
    long_name = struct.pack("<B", 255)
    return {
        "no value": (None, "form"),
        "nothing": (b"", "form"),
        "noise": (b"\x00" * 500, "form"),
        "a JSON message": (b'{"call": 1}' * 20, "form"),
        "a frame cut in its head": (wire[:100], "form"),
        "a frame cut in its payload": (wire[:-1], "digest"),
        "a frame with something behind": (wire + b"\0", "digest"),
        "a frame over the limit": (wire + bytes(FRAME_BYTES_MAX), "limit"),
        "another version": (wire[:4] + b"\x02\x00" + wire[6:], "version"),
        "another codec": (wire[:47] + b"\x09" + wire[48:], "version"),
        "a longer host name than there is": (wire[:46] + long_name + wire[47:], "form"),
        "a head that claims too many records": (build_frame(replace(good.head, records=FRAME_RECORDS_MAX + 1), good.payload,
                                                            host.key.sign).wire, "limit"),
        "a head that claims too many bytes": (build_frame(replace(good.head, inflated_bytes=FRAME_INFLATED_BYTES_MAX + 1),
                                                          good.payload, host.key.sign).wire, "limit"),
        "frame number 0": (build_frame(replace(good.head, frame_no=0), good.payload, host.key.sign).wire, "form"),
        "a host that nobody pinned": (Host("stranger").frame(3, PARTITION).wire, "key"),
        "somebody else's signature": (forged(good), "signature"),
        "somebody else's key under the host's name": (Host(host.name).frame(3, PARTITION).wire, "signature"),
        "a real head on other bytes": (good.signed + good.signature + other_payload, "digest"),
        "a frame of another partition": (host.frame(3, PARTITION + 1).wire, "partition"),
    }  # fmt: skip


@pytest.mark.parametrize("case", _refused(Host()))
def test_what_nobody_can_believe_touches_no_lane(case: str) -> None:
    host = Host()
    data, reason = _refused(host)[case]
    found = dead(host, data)
    assert (found.reason, found.passes) == (reason, False)
    assert found.message
    assert "\n" not in found.message


def test_a_forged_number_does_not_shadow_the_real_frame() -> None:
    host, ledger = Host(), fresh()
    real = host.frame(3, PARTITION)
    assert isinstance(look(host, forged(real), ledger), Dead)
    assert isinstance(look(host, real.wire, ledger), Accepted)


def test_a_name_with_control_characters_reaches_no_log_as_it_is() -> None:
    host = Host("\x1b]0;owned\x07")
    found = judge(host.frame(3, PARTITION).wire, PARTITION, lambda _: None, fresh())
    assert isinstance(found, Dead)
    assert found.message == "no key is registered for host `\\x1b]0;owned\\x07`"


# -- what the host has signed, and is wrong ----------------------------------------------------------------------------

Spoil = Callable[[Host], Frame]


def _records(*records: dict[str, object], **changes: object) -> Spoil:
    return lambda host: host.seal(batch_of(records), ranges_of(records), PARTITION, **changes)


def _payload(make: Callable[[pa.RecordBatch], tuple[bytes, int]]) -> Spoil:
    def spoil(host: Host) -> Frame:
        batch = batch_of(host.some(3))
        payload, inflated = make(batch)
        return host.sign(payload, inflated, 3, partition=PARTITION)

    return spoil


def _stream(batch: pa.RecordBatch, schema: pa.Schema | None = None, times: int = 1, **options: object) -> tuple[bytes, int]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema or batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        for _ in range(times):
            stream.write_batch(batch)
    plain = sink.getvalue()
    return pa.Codec("zstd").compress(plain, asbytes=True), plain.size


def _without(name: str) -> Callable[[pa.RecordBatch], tuple[bytes, int]]:
    return lambda batch: encode_payload(batch.select([n for n in batch.schema.names if n != name]))


def _with_column(name: str, values: pa.Array, nullable: bool = False) -> Callable[[pa.RecordBatch], tuple[bytes, int]]:
    def make(batch: pa.RecordBatch) -> tuple[bytes, int]:
        at = batch.schema.get_field_index(name)
        schema = batch.schema.set(at, pa.field(name, values.type, nullable=nullable))
        columns = batch.columns
        columns[at] = values
        return encode_payload(pa.RecordBatch.from_arrays(columns, schema=schema))

    return make


def _bomb(batch: pa.RecordBatch) -> tuple[bytes, int]:
    """A small frame whose zstd header tells the truth about 80 MiB, and whose head does not."""
    payload, _ = encode_payload(batch)
    return pa.Codec("zstd").compress(bytes(80 << 20), asbytes=True), len(payload)


def _bad_dictionary_index(batch: pa.RecordBatch) -> tuple[bytes, int]:
    at = batch.schema.get_field_index("door")
    columns = batch.columns
    columns[at] = pa.DictionaryArray.from_arrays(pa.array([0, 7, 0], pa.int32()), pa.array(["replay"]), safe=False)
    return encode_payload(pa.RecordBatch.from_arrays(columns, schema=batch.schema))


def _bad_utf8(batch: pa.RecordBatch) -> tuple[bytes, int]:
    at = batch.schema.get_field_index("door")
    columns = batch.columns
    raw = pa.Array.from_buffers(pa.utf8(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    columns[at] = pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int32()), raw)
    return encode_payload(pa.RecordBatch.from_arrays(columns, schema=batch.schema))


def _null_in_dictionary(batch: pa.RecordBatch) -> tuple[bytes, int]:
    at = batch.schema.get_field_index("door")
    columns = batch.columns
    columns[at] = pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int32()), pa.array([None], pa.utf8()))
    return encode_payload(pa.RecordBatch.from_arrays(columns, schema=batch.schema))


def _without_size(batch: pa.RecordBatch) -> tuple[bytes, int]:
    """The same zstd frame with a header that does not say how large it is (a window descriptor stands in its place)."""
    payload, inflated = encode_payload(batch)
    return payload[:4] + b"\x00\x50" + payload[9:], inflated


WRONG: dict[str, tuple[Spoil, str]] = {
    "no zstd": (_payload(lambda batch: (b"x" * 100, 100)), "payload"),
    "a payload of nothing": (_payload(lambda batch: (b"", 1)), "payload"),
    "a size that the header does not claim": (_payload(lambda batch: (encode_payload(batch)[0], 12345)), "payload"),
    "a bomb": (_payload(_bomb), "payload"),
    "no size in the zstd header": (_payload(_without_size), "payload"),
    "zstd that is cut": (_payload(lambda batch: (encode_payload(batch)[0][:-9], encode_payload(batch)[1])), "payload"),
    "no Arrow": (_payload(lambda batch: (pa.Codec("zstd").compress(b"hello" * 9, asbytes=True), 45)), "payload"),
    "compressed buffers inside": (_payload(lambda batch: _stream(batch, compression="lz4")), "payload"),
    "zstd buffers inside": (_payload(lambda batch: _stream(batch, compression="zstd")), "payload"),
    "two batches": (_payload(lambda batch: _stream(batch, times=2)), "payload"),
    "no batch": (_payload(lambda batch: _stream(batch, times=0)), "payload"),
    "a missing column": (_payload(_without("mode")), "schema"),
    "a missing text": (_payload(_without("reason")), "payload"),
    "another metadata": (_payload(lambda batch: encode_payload(batch.replace_schema_metadata({"wardline": "2"}))), "schema"),
    "no metadata": (_payload(lambda batch: encode_payload(batch.replace_schema_metadata(None))), "schema"),
    "another width": (_payload(_with_column("status", pa.array([0, 0, 0], pa.int64()))), "schema"),
    "a nullable column": (_payload(_with_column("status", pa.array([0, 0, 0], pa.int32()), nullable=True)), "schema"),
    "a null": (_payload(_with_column("status", pa.array([0, None, 0], pa.int32()))), "schema"),
    "a null in a dictionary": (_payload(_null_in_dictionary), "schema"),
    "an index outside its dictionary": (_payload(_bad_dictionary_index), "payload"),
    "a text that is not UTF-8": (_payload(_bad_utf8), "payload"),
    "more records than the head says": (_records(record(1), record(2), records=1), "records"),
    "fewer records than the head says": (_records(record(1), records=2), "records"),
    "kind 0, which is the frames' own": (_records(record(1, kind=0)), "value"),
    "kind 6": (_records(record(1), record(2, kind=6)), "value"),
    "verdict 2": (_records(record(1, verdict=2)), "value"),
    "outcome 5": (_records(record(1, outcome=5)), "value"),
    "mode 3": (_records(record(1, mode=3)), "value"),
    "boot 0, which is the frames' own": (_records(record(1, boot=0)), "value"),
    "call 0": (_records(record(1, call_seq=0)), "value"),
    "a call behind its record": (_records(record(1, call_seq=2)), "value"),
    "a text over the limit": (_records(record(1, resource="r" * (STRING_BYTES_MAX + 1))), "limit"),
    "a text over the limit in bytes": (_records(record(1, path="\u00e9" * (STRING_BYTES_MAX // 2 + 1))), "limit"),
    "a record outside the cut": (_records(record(1), record(2), ranges=(Range(boot=BOOT, first=1, last=1),)), "range"),
    "a record before the cut": (_records(record(1), ranges=(Range(boot=BOOT, first=2, last=9),)), "range"),
    "a record of another boot": (_records(record(1), ranges=(Range(boot=BOOT + 1, first=1, last=9),)), "range"),
    "a record twice": (_records(record(1), record(2), record(1)), "range"),
    "a cut that names no boot": (_records(record(1), ranges=()), "range"),
    "a cut that names a boot twice": (_records(record(1), ranges=(Range(boot=BOOT, first=1, last=1),) * 2), "range"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_a_host_signed_and_is_wrong_passes_the_frontier_and_is_kept(case: str) -> None:
    host = Host()
    spoil, reason = WRONG[case]
    frame = spoil(host)
    found = dead(host, frame.wire)
    assert (found.reason, found.passes) == (reason, True), found.message
    assert (found.head, found.digest) == (frame.head, frame.digest)
    assert "\n" not in found.message


def test_a_dead_frame_passes_the_frontier_once_and_may_come_alive_when_it_can_be_read() -> None:
    host, ledger = Host(), fresh()
    wrong = _records(record(1, kind=6))(host)
    lane = wrong.head.lane
    ledger.begin(lane, 1, wrong.digest, wrong.head.previous)
    assert ledger.stored(lane, 1, dead=wrong.digest)
    again = look(host, wrong.wire, ledger)
    assert isinstance(again, Dead)
    assert (again.reason, again.passes) == ("value", False)
    other = look(host, host.frame(3, PARTITION, frame_no=1).wire, ledger)
    assert isinstance(other, Dead)
    assert other.reason == "twin"


def test_a_text_at_its_limit_is_accepted() -> None:
    host = Host()
    assert isinstance(look(host, _records(record(1, path="p" * STRING_BYTES_MAX))(host).wire), Accepted)


# -- mutations ----------------------------------------------------------------------------------------------------------

HOST = Host()
GOOD = HOST.frame(12, PARTITION)


def test_a_bit_flipped_anywhere_is_refused_and_touches_no_lane() -> None:
    """Every byte of the frame, one bit each: the signature covers the head, the digest in it the payload."""
    wire = GOOD.wire
    for at in range(len(wire)):
        found = look(HOST, flipped(wire, at, at % 8))
        assert isinstance(found, Dead), at
        assert not found.passes, at


def test_a_frame_cut_anywhere_is_refused_and_touches_no_lane() -> None:
    for size in range(len(GOOD.wire)):
        found = look(HOST, GOOD.wire[:size])
        assert isinstance(found, Dead), size
        assert not found.passes, size


PLAIN = pa.Codec("zstd").decompress(GOOD.payload, decompressed_size=GOOD.head.inflated_bytes).to_pybytes()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_a_host_signs_is_judged_and_never_raises(changes: list[tuple[int, int]]) -> None:
    """A host that has gone mad signs any stream: it is accepted with sound values, or a dead letter; nothing else happens."""
    plain = bytearray(PLAIN)
    for at, value in changes:
        plain[at] = value
    payload = pa.Codec("zstd").compress(bytes(plain), asbytes=True)
    head = replace(GOOD.head, payload_digest=hashlib.sha256(payload).digest(), inflated_bytes=len(plain))
    found = look(HOST, build_frame(head, payload, HOST.key.sign).wire)
    assert isinstance(found, Accepted | Dead)
    if isinstance(found, Accepted):
        found.batch.validate(full=True)
        assert found.batch.schema.equals(ARROW_SCHEMA, check_metadata=True)
        assert found.batch.num_rows == GOOD.head.records


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_any_bytes_are_judged_and_never_raise(data: bytes) -> None:
    assert isinstance(look(HOST, data), Dead)
    assert isinstance(look(HOST, GOOD.signed[:112] + data), Dead)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_the_size_in_a_zstd_header_is_read_as_zstd_writes_it(data: bytes) -> None:
    for padded in (data, data * 20, data * 3000):
        assert claimed_bytes(pa.Codec("zstd").compress(padded, asbytes=True)) == len(padded) or not padded


def test_a_delta_dictionary_is_refused() -> None:
    sink = pa.BufferOutputStream()
    batch = batch_of([record(1)])
    longer = batch_of([record(1), record(2, door="replay2")])
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as stream:
        stream.write_batch(batch)
        stream.write_batch(longer)
    with pytest.raises(FrameFault, match="goes on with a `dictionary`"):
        read_batch(sink.getvalue())


def test_a_signature_of_the_host_under_another_head_is_refused() -> None:
    host = Host(key=Ed25519PrivateKey.generate())
    first, second = host.frame(3, PARTITION), host.frame(3, PARTITION)
    mixed = second.signed + first.signature + second.payload
    assert dead(host, mixed).reason == "signature"
