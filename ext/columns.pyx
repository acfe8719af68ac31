"""Spool bytes to the Arrow columns of a frame, split by partition, without a Python object per record.

    Run.view -> partition of the trace id (Kafka's own hash) -> that partition's columns -> IPC stream, or RecordBatch

Each text is dictionary-encoded in the order in which its values first came. A batch owns its memory and lives as long as Arrow
needs it. Its stream is written here, as Arrow would: what such a stream says of itself differs from batch to batch in nothing
but lengths, so one that Arrow has written is the form of all, with the places where lengths stand.
"""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy
from libcpp.vector cimport vector
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from ext.layout cimport *

from ext.runs import Run
from schemas.frame import ARROW_SCHEMA
from schemas.limits import FRAME_RECORDS_MAX

cdef enum:
    FIXED = 22          # columns before the texts
    ADDRESS = 14        # of the texts
    SEPARATOR = 0x1F
    SLOTS_LEAST = 64
    CONTINUED = 8       # bytes of each message before what it says of itself; a stream ends with as many


cdef uint32_t _murmur2(const uint8_t* at, uint32_t size) noexcept nogil:
    """Kafka's hash of a key (org.apache.kafka.common.utils.Utils.murmur2)."""
    cdef uint32_t h = <uint32_t>0x9747B28C ^ size, k
    while size >= 4:
        k = load_u32(at) * <uint32_t>0x5BD1E995
        k ^= k >> 24
        h = h * <uint32_t>0x5BD1E995 ^ k * <uint32_t>0x5BD1E995
        at += 4
        size -= 4
    if size == 3:
        h ^= <uint32_t>at[2] << 16
    if size >= 2:
        h ^= <uint32_t>at[1] << 8
    if size >= 1:
        h = (h ^ at[0]) * <uint32_t>0x5BD1E995
    h ^= h >> 13
    h *= <uint32_t>0x5BD1E995
    return h ^ h >> 15


def partition_of(bytes trace_id not None, uint32_t partitions):
    """Kafka's default partition of a key."""
    if partitions == 0:
        raise ValueError("a topic has at least one partition")
    return (_murmur2(trace_id, len(trace_id)) & 0x7FFFFFFF) % partitions


cdef inline uint64_t _hash(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint64_t h = size * 0x9E3779B97F4A7C15ULL, last = 0
    while size >= 8:
        h = (h ^ load_u64(at)) * 0xD6E8FEB86659FD93ULL
        h ^= h >> 32
        at += 8
        size -= 8
    if size:
        memcpy(&last, at, size)
        h = (h ^ last) * 0xD6E8FEB86659FD93ULL
        h ^= h >> 32
    return h


cdef cppclass Texts:
    """One text column: an index per record into the distinct values, which are found by open addressing.

    Values that somebody chose to collide cost at most a batch's records for each of its records: a batch is the bound.
    """

    vector[int32_t] index
    vector[int32_t] ends        # where each distinct value ends in `data`; ends[0] = 0
    vector[uint8_t] data
    vector[uint64_t] hashes     # of each distinct value
    vector[int32_t] slots       # of a value, or -1
    int32_t empty, last         # the empty value and the last other one, or -1

    __init__() nogil:
        this.empty = this.last = -1

    int add(const uint8_t* at, uint32_t size) except -1 nogil:
        # most texts are empty, as in an effect, or those of the last decision
        if size == 0:
            if this.empty < 0:
                this.empty = this.find(at, 0)
            this.index.push_back(this.empty)
            return 0
        if this.last < 0 or not this.is_value(this.last, at, size):
            this.last = this.find(at, size)
        this.index.push_back(this.last)
        return 0

    int32_t find(const uint8_t* at, uint32_t size) except -1 nogil:
        """The number of a value, which is added where it is new."""
        cdef int32_t value
        cdef uint64_t h
        cdef size_t slot, mask
        if this.hashes.size() * 2 >= this.slots.size():
            this.grow()
        h = _hash(at, size)
        mask = this.slots.size() - 1
        slot = h & mask
        while True:
            value = this.slots[slot]
            if value < 0:
                break
            if this.hashes[value] == h and this.is_value(value, at, size):
                return value
            slot = (slot + 1) & mask
        value = <int32_t>this.hashes.size()
        this.hashes.push_back(h)
        this.data.insert(this.data.end(), at, at + size)
        this.ends.push_back(<int32_t>this.data.size())
        this.slots[slot] = value
        return value

    bint is_value(int32_t value, const uint8_t* at, uint32_t size) noexcept nogil:
        cdef int32_t start = this.ends[value]
        return <uint32_t>(this.ends[value + 1] - start) == size and memcmp(this.data.data() + start, at, size) == 0

    int grow() except -1 nogil:
        cdef size_t mask, slot, value
        if this.ends.size() == 0:
            this.ends.push_back(0)
        mask = max(<size_t>SLOTS_LEAST, 2 * this.slots.size()) - 1
        this.slots.assign(mask + 1, -1)
        for value in range(this.hashes.size()):
            slot = this.hashes[value] & mask
            while this.slots[slot] >= 0:
                slot = (slot + 1) & mask
            this.slots[slot] = <int32_t>value
        return 0


cdef inline int64_t _us(const uint8_t* at) noexcept nogil:
    """Nanoseconds to microseconds, rounded down also before 1970."""
    cdef int64_t ns = <int64_t>load_u64(at)
    return ns // 1000 - (1 if ns % 1000 < 0 else 0)


cdef struct Part:
    const void* at
    int64_t size


cdef inline int64_t _padded(int64_t size) noexcept nogil:
    return (size + 7) & ~<int64_t>7


cdef class _Message:
    """What one message of a stream says of itself, and where in that its lengths stand."""

    cdef bytes said
    cdef Py_ssize_t body, length, nodes, buffers
    cdef int columns, parts

    cdef uint8_t* write(self, uint8_t* to, int64_t length, const Part* parts) noexcept:
        """This message with these parts; returns the byte behind it."""
        cdef int64_t at = 0
        cdef int i
        memcpy(to, PyBytes_AS_STRING(self.said), PyBytes_GET_SIZE(self.said))
        for i in range(self.parts):
            store_u64(to + self.buffers + 16 * i, at)
            store_u64(to + self.buffers + 16 * i + 8, parts[i].size)
            at += _padded(parts[i].size)
        for i in range(self.columns):
            store_u64(to + self.nodes + 16 * i, length)
        store_u64(to + self.length, length)
        store_u64(to + self.body, at)
        to += PyBytes_GET_SIZE(self.said)
        for i in range(self.parts):
            if parts[i].size:
                store_u64(to + _padded(parts[i].size) - 8, 0)
                memcpy(to, parts[i].at, parts[i].size)
                to += _padded(parts[i].size)
        return to


cdef class Batch:
    """The columns of one partition, and the owner of their memory. Nothing is added once it was given out."""

    cdef vector[uint8_t] kind, verdict, outcome, mode, depth, trace_id, parent_span
    cdef vector[uint64_t] boot, seq, call_seq, bytes_out, bytes_in, duration_us, epoch, ref, query_hash
    cdef vector[int64_t] time, recorded
    cdef vector[int32_t] status
    cdef vector[uint32_t] count, query_bytes, query_bits
    cdef vector[Texts] texts
    cdef readonly Py_ssize_t records

    def __cinit__(self):
        self.texts.resize(STRINGS)

    cdef int add(self, uint64_t boot, const uint8_t* at) except -1 nogil:
        cdef const uint8_t* text = at + RECORD_HEADER_BYTES
        cdef const uint8_t* end = end_there(at, load_u32(at))
        cdef uint32_t length
        cdef int i
        self.kind.push_back(at[AT_KIND])
        self.boot.push_back(boot)
        self.seq.push_back(load_u64(at + AT_SEQ))
        self.call_seq.push_back(load_u64(at + AT_CALL_SEQ))
        self.time.push_back(_us(at + AT_TIME))
        self.recorded.push_back(_us(at + AT_RECORDED))
        self.verdict.push_back(at[AT_VERDICT])
        self.outcome.push_back(end[END_OUTCOME] if end else at[AT_OUTCOME])
        self.mode.push_back(at[AT_MODE])
        self.depth.push_back(at[AT_DEPTH])
        self.status.push_back(<int32_t>load_u32(end + END_STATUS if end else at + AT_STATUS))
        self.count.push_back(load_u32(at + AT_COUNT))
        self.bytes_out.push_back(load_u64(end + END_BYTES_OUT if end else at + AT_BYTES_OUT))
        self.bytes_in.push_back(load_u64(end + END_BYTES_IN if end else at + AT_BYTES_IN))
        self.duration_us.push_back(load_u64(end + END_DURATION if end else at + AT_DURATION) // 1000)
        self.epoch.push_back(load_u64(at + AT_EPOCH))
        self.ref.push_back(load_u64(at + AT_REF))
        self.query_hash.push_back(load_u64(at + AT_QUERY_HASH))
        self.query_bytes.push_back(load_u32(at + AT_QUERY_BYTES))
        self.query_bits.push_back(load_u32(at + AT_QUERY_BITS))
        self.trace_id.insert(self.trace_id.end(), at + AT_TRACE_ID, at + AT_TRACE_ID + 16)
        self.parent_span.insert(self.parent_span.end(), at + AT_PARENT_SPAN, at + AT_PARENT_SPAN + 8)
        for i in range(STRINGS):
            length = load_u16(at + AT_LENGTHS + 2 * i)
            if i == ADDRESS and end and end[END_LENGTH]:
                self.add_both(text, length, end + END_ADDRESS, min(<uint32_t>end[END_LENGTH], END_ADDRESS_BYTES))
            else:
                self.texts[i].add(text, length)
            text += length
        self.records += 1
        return 0

    cdef int add_both(self, const uint8_t* client, uint32_t length, const uint8_t* dialled, uint32_t more) except -1 nogil:
        """Where a whole call came from and where it went: a list of two in one text."""
        cdef uint8_t[STRING_BYTES_MAX + 1 + END_ADDRESS_BYTES] both
        memcpy(both, client, length)
        both[length] = SEPARATOR
        memcpy(both + length + 1, dialled, more)
        return self.texts[ADDRESS].add(both, length + 1 + more)

    def stream(self):
        """An Arrow IPC stream of this batch alone."""
        cdef Part parts[2 * (FIXED + STRINGS)]
        cdef Texts* texts
        cdef Py_ssize_t size = PyBytes_GET_SIZE(SCHEMA) + CONTINUED
        cdef _Message message
        cdef int i
        cdef const void** fixed = [
            self.kind.data(), self.boot.data(), self.seq.data(), self.call_seq.data(), self.time.data(), self.recorded.data(),
            self.verdict.data(), self.outcome.data(), self.mode.data(), self.depth.data(), self.status.data(),
            self.count.data(), self.bytes_out.data(), self.bytes_in.data(), self.duration_us.data(), self.epoch.data(),
            self.ref.data(), self.query_hash.data(), self.query_bytes.data(), self.query_bits.data(), self.trace_id.data(),
            self.parent_span.data(),
        ]
        cdef int* widths = [1, 8, 8, 8, 8, 8, 1, 1, 1, 1, 4, 4, 8, 8, 8, 8, 8, 8, 4, 4, 16, 8]
        if not self.records:
            raise ValueError("a batch without records has no stream")
        for i in range(FIXED + STRINGS):  # of each column which values are there, which is never said, and the values
            parts[2 * i].size = 0
            parts[2 * i + 1].at = fixed[i] if i < FIXED else self.texts[i - FIXED].index.data()
            parts[2 * i + 1].size = self.records * (widths[i] if i < FIXED else 4)
            size += _padded(parts[2 * i + 1].size)
        for message in MESSAGES:
            size += PyBytes_GET_SIZE(message.said)
        for i in range(STRINGS):
            size += _padded(4 * self.texts[i].ends.size()) + _padded(self.texts[i].data.size())
        cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(made)
        memcpy(to, PyBytes_AS_STRING(SCHEMA), PyBytes_GET_SIZE(SCHEMA))
        to += PyBytes_GET_SIZE(SCHEMA)
        cdef Part values[3]
        values[0].size = 0
        for i in range(STRINGS):
            texts = &self.texts[i]
            values[1].at, values[1].size = texts.ends.data(), 4 * texts.ends.size()
            values[2].at, values[2].size = texts.data.data(), texts.data.size()
            to = (<_Message>MESSAGES[i]).write(to, texts.hashes.size(), values)
        to = (<_Message>MESSAGES[STRINGS]).write(to, self.records, parts)
        store_u64(to, 0xFFFFFFFF)
        assert to + CONTINUED == <uint8_t*>PyBytes_AS_STRING(made) + size
        return made

    def arrow(self):
        """The same memory as Arrow sees it: a RecordBatch of `schemas.frame.ARROW_SCHEMA`."""
        cdef Texts* texts
        cdef int i
        arrays = [
            self.column(0, self.kind.data(), 1), self.column(1, self.boot.data(), 8), self.column(2, self.seq.data(), 8),
            self.column(3, self.call_seq.data(), 8), self.column(4, self.time.data(), 8),
            self.column(5, self.recorded.data(), 8), self.column(6, self.verdict.data(), 1),
            self.column(7, self.outcome.data(), 1), self.column(8, self.mode.data(), 1), self.column(9, self.depth.data(), 1),
            self.column(10, self.status.data(), 4), self.column(11, self.count.data(), 4),
            self.column(12, self.bytes_out.data(), 8), self.column(13, self.bytes_in.data(), 8),
            self.column(14, self.duration_us.data(), 8), self.column(15, self.epoch.data(), 8),
            self.column(16, self.ref.data(), 8), self.column(17, self.query_hash.data(), 8),
            self.column(18, self.query_bytes.data(), 4), self.column(19, self.query_bits.data(), 4),
            self.column(20, self.trace_id.data(), 16), self.column(21, self.parent_span.data(), 8),
        ]
        for i in range(STRINGS):
            texts = &self.texts[i]
            distinct = <Py_ssize_t>texts.hashes.size()
            ends = self.buffer(texts.ends.data(), 4 * (distinct + 1))
            values = pa.StringArray.from_buffers(distinct, ends, self.buffer(texts.data.data(), texts.data.size()), None, 0)
            arrays.append(pa.DictionaryArray.from_buffers(
                TYPES[FIXED + i], self.records, [None, self.buffer(texts.index.data(), 4 * self.records)], values, 0))
        return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)

    cdef object column(self, int number, const void* start, int width):
        return pa.Array.from_buffers(TYPES[number], self.records, [None, self.buffer(start, width * self.records)], 0)

    cdef object buffer(self, const void* start, Py_ssize_t size):
        return pa.foreign_buffer(<uintptr_t>start, size, self) if size else NOTHING


TYPES = tuple(ARROW_SCHEMA.types)
NOTHING = pa.py_buffer(b"")


cdef class Columns:
    """The records of one cut as one Arrow batch or more per partition."""

    cdef readonly Py_ssize_t records
    cdef uint32_t _partitions
    cdef Py_ssize_t _batch_records
    cdef list _open         # a Batch or None for each partition
    cdef list _full         # (partition, Batch)

    def __init__(self, uint32_t partitions, Py_ssize_t batch_records=FRAME_RECORDS_MAX):
        if partitions == 0:
            raise ValueError("a topic has at least one partition")
        if not 1 <= batch_records <= FRAME_RECORDS_MAX:
            raise ValueError(f"a batch has 1 to {FRAME_RECORDS_MAX} records, not {batch_records}")
        self._partitions = partitions
        self._batch_records = batch_records
        self._forget()

    cdef void _forget(self):
        self.records = 0
        self._open = [None] * self._partitions
        self._full = []

    def add(self, view):
        """Take the records of a Run's view: all, or none where they are not whole."""
        cdef const uint8_t[::1] data
        cdef const uint8_t* at
        cdef const uint8_t* end
        if not isinstance(view, memoryview) or not isinstance(view.obj, Run):
            raise TypeError("these bytes are not the view of a Run, so nobody says whose records they are")
        cdef uint64_t boot = view.obj.boot
        cdef uint32_t partition, size
        cdef Batch batch
        data = view
        if data.shape[0] == 0:
            return
        at = &data[0]
        end = at + data.shape[0]
        while at != end:
            size = whole_record(at, end - at)
            if size == 0:
                raise ValueError(f"byte {at - &data[0]} of {data.shape[0]} is not the start of a whole record")
            at += size
        at = &data[0]
        while at != end:
            partition = (_murmur2(at + AT_TRACE_ID, 16) & 0x7FFFFFFF) % self._partitions
            batch = self._open[partition]
            if batch is None:
                batch = self._open[partition] = Batch()
            batch.add(boot, at)
            self.records += 1
            if batch.records == self._batch_records:
                self._full.append((partition, batch))
                self._open[partition] = None
            at += load_u32(at)

    def batches(self):
        """Everything that was added, by partition and in the order in which it came; then start anew."""
        return [(partition, (<Batch>batch).arrow()) for partition, batch in self.parts()]

    def parts(self):
        """The same, as this module's own batches."""
        found = self._full + [(number, batch) for number, batch in enumerate(self._open) if batch is not None]
        found.sort(key=_partition)  # stable, so a partition's batches keep their order
        self._forget()
        return found


def _partition(found):
    return found[0]


# -- the form of a stream, as Arrow writes it (its Message.fbs, in the layout of FlatBuffers) -------------------------------

def _field(data, table, number):
    """Where the field of a table stands; 0 where it is left out."""
    front = table - int.from_bytes(data[table:table + 4], "little", signed=True)
    if 4 + 2 * number >= int.from_bytes(data[front:front + 2], "little"):
        return 0
    here = int.from_bytes(data[front + 4 + 2 * number:front + 6 + 2 * number], "little")
    return table + here if here else 0


def _there(data, at):
    """What an offset points to."""
    return at + int.from_bytes(data[at:at + 4], "little")


def _learn():
    """(the message of the schema, those of the dictionaries and then that of the records) of a stream of the smallest batch."""
    cdef _Message message
    texts = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), ["x"])
    ones = [texts if pa.types.is_dictionary(kind) else
            pa.array([bytes(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else 1], kind) for kind in TYPES]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ARROW_SCHEMA) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(ones, schema=ARROW_SCHEMA))
    data, at, found = sink.getvalue().to_pybytes(), 0, []
    while size := int.from_bytes(data[at + 4:at + 8], "little"):
        message = _Message()
        message.said = said = data[at:at + CONTINUED + size]
        root = _there(said, CONTINUED)
        message.body = _field(said, root, 3)
        at += CONTINUED + size
        if not found:
            found.append(said)  # the schema has no body
            continue
        at += int.from_bytes(said[message.body:message.body + 8], "little")
        batch = _there(said, _field(said, root, 2))
        if len(found) <= STRINGS:  # a dictionary: a batch of one column
            number = _field(said, batch, 0)
            assert (int.from_bytes(said[number:number + 8], "little") if number else 0) == len(found) - 1
            batch = _there(said, _field(said, batch, 1))
        message.length = _field(said, batch, 0)
        nodes, buffers = _there(said, _field(said, batch, 1)), _there(said, _field(said, batch, 2))
        message.columns = int.from_bytes(said[nodes:nodes + 4], "little")
        message.parts = int.from_bytes(said[buffers:buffers + 4], "little")
        message.nodes, message.buffers = nodes + 4, buffers + 4
        columns = 1 if len(found) <= STRINGS else FIXED + STRINGS
        assert message.body and message.length and message.columns == columns
        assert message.parts == (3 if columns == 1 else 2 * columns)
        found.append(message)
    assert len(found) == STRINGS + 2
    return found[0], tuple(found[1:])


cdef bytes SCHEMA
cdef tuple MESSAGES
SCHEMA, MESSAGES = _learn()
