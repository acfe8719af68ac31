"""Read a frame's payload without trusting it: every size is checked before anything is allocated for it.

    zstd frame whose header claims exactly the signed number of bytes
      -> Arrow IPC stream: schema, one dictionary for each text column, one record batch, end
      -> `ARROW_SCHEMA`, no nulls, everything validated

Arrow would allocate whatever a compressed buffer inside the stream claims, so a stream with compressed buffers is refused: the
one compression of a frame is the zstd around it.
"""

import struct
from typing import Final

import pyarrow as pa

from schemas.errors import FrameFault
from schemas.frame import ARROW_SCHEMA
from schemas.records import STRING_FIELDS

ZSTD_MAGIC: Final = 0xFD2FB528
_CODEC: Final = pa.Codec("zstd")
_FLAG_BYTES: Final = {0: 0, 1: 2, 2: 4, 3: 8}
_DICTIONARY_ID_BYTES: Final = {0: 0, 1: 1, 2: 2, 3: 4}

_MESSAGE_HEADER: Final = 2
_DICTIONARY_DATA: Final = 1
_DICTIONARY_IS_DELTA: Final = 2
_BATCH_COMPRESSION: Final = 3


def claimed_bytes(payload: bytes) -> int:
    """The decompressed size that a zstd frame's header claims. Raises FrameFault `payload` when it says none.

    RFC 8878 section 3.1.1.1: magic, descriptor, window (absent in a single segment), dictionary id, content size.
    """
    if len(payload) < 6 or struct.unpack_from("<I", payload)[0] != ZSTD_MAGIC:
        raise FrameFault("payload", f"the payload's {len(payload)} bytes do not begin with a zstd frame")
    descriptor = payload[4]
    single = bool(descriptor & 0x20)
    width = _FLAG_BYTES[descriptor >> 6] or int(single)
    at = 5 + (not single) + _DICTIONARY_ID_BYTES[descriptor & 3]
    if width == 0 or len(payload) < at + width:
        raise FrameFault("payload", "the zstd frame does not say how large it is")
    value = int.from_bytes(payload[at : at + width], "little")
    return value + 256 if width == 2 else value


def inflate(payload: bytes, inflated_bytes: int) -> pa.Buffer:
    """Decompress exactly `inflated_bytes`. Raises FrameFault `payload`."""
    claimed = claimed_bytes(payload)
    if claimed != inflated_bytes:
        raise FrameFault("payload", f"the zstd frame claims {claimed} bytes, the head {inflated_bytes}")
    try:
        # zstd itself holds a frame to the size that its header claims, so the buffer is full when this returns
        return _CODEC.decompress(payload, decompressed_size=inflated_bytes)
    except (OSError, pa.ArrowException) as fault:
        raise FrameFault("payload", f"the payload cannot be decompressed: {_line(fault)}") from fault


def read_batch(plain: pa.Buffer) -> pa.RecordBatch:
    """The one record batch of a stream with `ARROW_SCHEMA`. Raises FrameFault `payload` or `schema`."""
    try:
        _check_messages(plain)
        with pa.ipc.open_stream(plain) as stream:
            if not stream.schema.equals(ARROW_SCHEMA, check_metadata=True):
                raise FrameFault("schema", f"the payload's schema is not version 1: {_difference(stream.schema)}")
            batch = stream.read_next_batch()
        batch.validate(full=True)
    except FrameFault:
        raise
    except (OSError, pa.ArrowException, struct.error, StopIteration, ValueError) as fault:
        raise FrameFault("payload", f"the payload is no Arrow stream that we accept: {_line(fault)}") from fault
    for field, column in zip(batch.schema, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(field.type) else column
        if column.null_count or values.null_count:
            raise FrameFault("schema", f"column `{field.name}` has nulls")
    return batch


def _check_messages(plain: pa.Buffer) -> None:
    """Hold the stream to schema, one whole dictionary per text column, one record batch; nothing compressed, nothing behind."""
    reader = pa.ipc.MessageReader.open_stream(plain)
    wanted = ["schema", *["dictionary"] * len(STRING_FIELDS), "record batch"]
    for kind in wanted:
        message = reader.read_next_message()
        if message.type != kind:
            raise FrameFault("payload", f"the stream has a `{message.type}` where a `{kind}` belongs")
        if kind != "schema":
            _check_plain(message.metadata.to_pybytes(), dictionary=kind == "dictionary")
    try:
        extra = reader.read_next_message()
    except StopIteration:
        return
    raise FrameFault("payload", f"the stream goes on with a `{extra.type}` behind its record batch")


def _check_plain(metadata: bytes, *, dictionary: bool) -> None:
    """Refuse compressed buffers and delta dictionaries, read from the message's flatbuffer (Arrow has checked its form)."""
    header = _table(metadata, _root(metadata), _MESSAGE_HEADER)
    if dictionary:
        if _slot(metadata, header, _DICTIONARY_IS_DELTA):
            raise FrameFault("payload", "the stream has a delta dictionary")
        header = _table(metadata, header, _DICTIONARY_DATA)
    if _slot(metadata, header, _BATCH_COMPRESSION):
        raise FrameFault("payload", "the stream has compressed buffers")


def _root(data: bytes) -> int:
    return int(struct.unpack_from("<I", data)[0])


def _slot(data: bytes, table: int, index: int) -> int:
    """Where a flatbuffer table keeps a field; 0 when it does not say it."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * index
    offset = struct.unpack_from("<H", data, vtable + at)[0] if at + 2 <= size else 0
    return table + offset if offset else 0


def _table(data: bytes, table: int, index: int) -> int:
    at = _slot(data, table, index)
    if not at:
        raise FrameFault("payload", "a message of the stream has no header")
    return int(at + struct.unpack_from("<I", data, at)[0])


def _difference(schema: pa.Schema) -> str:
    """The first thing that differs, in few words."""
    for index, wanted in enumerate(ARROW_SCHEMA):
        if index >= len(schema):
            return f"column `{wanted.name}` is missing"
        found = schema.field(index)
        if not found.equals(wanted):
            return f"column {index + 1} is `{found.name[:64]}` {str(found.type)[:64]}, expected `{wanted.name}` {wanted.type}"
    if len(schema) > len(ARROW_SCHEMA):
        return f"{len(schema)} columns, expected {len(ARROW_SCHEMA)}"
    return "the metadata differs"


def _line(fault: BaseException) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text[:200]
