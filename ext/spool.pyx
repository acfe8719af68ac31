"""A door's spool: records in memory-mapped segments, written with one copy before the call goes out.

    writer:  texts -> next free bytes of the segment -> check -> size (release): from here on the record exists
             -> its call ends and the host has not read it: into the room behind it -> word (compare-and-swap)
    reader:  size (acquire) -> form, check, seq -> Run: a view over whole records, no copy (`ext.runs`)

A segment is allocated and its pages are touched before it is used, so that a full disk shows in `SpoolFull`, never as SIGBUS.
A record that a crash cut short has no size yet: it never happened. Segment N+1 exists only when N gets no more records.
"""

import errno
import os
from collections import deque

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

from ext.layout cimport *
from ext.segments cimport MAGIC, PAGE_BYTES, Segment, map_file, open_segment, segment_name, segment_numbers, starting_segment
from ext.text cimport PyUnicode_CheckExact, put_utf8, utf8_size

from ext.runs import Run, SpoolReader
from schemas.errors import AgentFault, OperatorFault, SpoolFull
from schemas.records import STRING_FIELDS

cdef enum:
    FIELDS = 22     # of a record, as `append` has them
    LINE_BYTES = 64
    AHEAD_LINES = 10    # as long as most records are
    PLACES = 4096   # records back from the last whose place is known: a call that ends later than so many has its end apart

cdef struct Place:
    uint64_t seq
    uint64_t at

cdef tuple NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
__all__ = ["Run", "SpoolReader", "SpoolWriter"]


cdef class SpoolWriter:
    """Appends one door's records. One thread at a time, but `prepare` may run in another."""

    cdef readonly uint64_t boot
    cdef readonly uint64_t last_seq
    cdef readonly uint64_t last_ref
    cdef Segment _map
    cdef uint8_t* _base
    cdef uint64_t _at           # the next free byte of the segment
    cdef uint64_t _end          # the segment's end: what `reserved` appends may use
    cdef uint64_t _plain_end    # how far others may go in it
    cdef uint64_t _segment_bytes, _spool_bytes, _reserved_bytes
    cdef uint64_t _older_bytes  # segments before this one that the host has not removed yet
    cdef object _older
    cdef int _folder
    cdef Segment _spare
    cdef str _spare_name
    cdef uint64_t _made
    cdef Place[PLACES] _places  # of decisions that let a call out, in this segment
    cdef int _making            # segments that are being made now: at most one by `append` and one by `prepare`

    def __cinit__(self):
        self._folder = -1

    def __init__(self, str folder not None, uint64_t boot, uint64_t segment_bytes, uint64_t spool_bytes,
                 uint64_t reserved_bytes, uint64_t after_seq=0):
        self.boot = boot
        self._segment_bytes = segment_bytes & ~<uint64_t>(PAGE_BYTES - 1)
        self._spool_bytes = spool_bytes
        self._reserved_bytes = reserved_bytes
        self._older = deque()
        if self._segment_bytes < 2 * RECORD_BYTES_MAX:
            raise OperatorFault(f"a spool segment has {segment_bytes} bytes, the least is {2 * RECORD_BYTES_MAX}")
        if spool_bytes < 2 * segment_bytes or reserved_bytes > spool_bytes - segment_bytes:
            raise OperatorFault(f"a spool of {spool_bytes} bytes, {reserved_bytes} of them reserved, needs room for two"
                                f" segments of {segment_bytes}, one of them not reserved")
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a handle: the folder may be renamed
        try:
            self._recover(after_seq)
        except OSError as fault:
            self.close()
            _raise_if_full(fault)
            raise
        except BaseException:
            self.close()
            raise

    @cython.binding(False)  # a bound method would copy the arguments of `append(*record)` into memory of its own
    def append(self, uint8_t kind, uint64_t call_seq, int64_t time_ns, int64_t recorded_ns, uint8_t verdict, uint8_t outcome,
               uint8_t mode, uint8_t depth, int32_t status, uint32_t count, uint64_t bytes_out, uint64_t bytes_in,
               uint64_t duration_ns, uint64_t epoch, uint64_t ref, uint64_t query_hash, uint32_t query_bytes,
               uint32_t query_bits, bytes trace_id not None, bytes parent_span not None, tuple texts not None, bint reserved):
        """Write one record; returns its seq."""
        return self._write(kind, call_seq, time_ns, recorded_ns, verdict, outcome, mode, depth, status, count, bytes_out,
                           bytes_in, duration_ns, epoch, ref, query_hash, query_bytes, query_bits, trace_id, parent_span, texts,
                           reserved)

    def put(self, tuple record not None):
        """The same of what `append` has as arguments."""
        if PyTuple_GET_SIZE(record) != FIELDS:
            raise ValueError(f"a record has {FIELDS} fields, not {len(record)}")
        return self._write(record[0], record[1], record[2], record[3], record[4], record[5], record[6], record[7], record[8],
                           record[9], record[10], record[11], record[12], record[13], record[14], record[15], record[16],
                           record[17], <bytes?>record[18], <bytes?>record[19], <tuple?>record[20], record[21])

    cdef uint64_t _write(self, uint8_t kind, uint64_t call_seq, int64_t time_ns, int64_t recorded_ns, uint8_t verdict,
                         uint8_t outcome, uint8_t mode, uint8_t depth, int32_t status, uint32_t count, uint64_t bytes_out,
                         uint64_t bytes_in, uint64_t duration_ns, uint64_t epoch, uint64_t ref, uint64_t query_hash,
                         uint32_t query_bytes, uint32_t query_bits, bytes trace_id, bytes parent_span, tuple texts,
                         bint reserved) except 0:
        cdef uint16_t lengths[STRINGS]
        cdef bint room = kind == KIND_DECISION and verdict == VERDICT_ALLOW and outcome == OUTCOME_OPEN
        cdef uint32_t said = _measure(texts, lengths), size = said + END_BYTES if room else said
        if PyBytes_GET_SIZE(trace_id) != 16 or PyBytes_GET_SIZE(parent_span) != 8:
            raise ValueError(f"trace id and parent span have {len(trace_id)} and {len(parent_span)} bytes, expected 16 and 8")
        if self._at + size > (self._end if reserved else self._plain_end):
            self._make_room(size, reserved)
        cdef uint64_t seq = self.last_seq + 1
        cdef uint8_t* at = self._base + self._at
        cdef uint8_t* text_at = at + RECORD_HEADER_BYTES
        cdef int i
        store_u64(at + AT_SEQ, seq)
        store_u64(at + AT_CALL_SEQ, call_seq if call_seq else seq)
        store_u64(at + AT_TIME, <uint64_t>time_ns)
        store_u64(at + AT_RECORDED, <uint64_t>recorded_ns)
        store_u64(at + AT_BYTES_OUT, bytes_out)
        store_u64(at + AT_BYTES_IN, bytes_in)
        store_u64(at + AT_DURATION, duration_ns)
        store_u64(at + AT_EPOCH, epoch)
        store_u64(at + AT_REF, ref)
        store_u64(at + AT_QUERY_HASH, query_hash)
        store_u32(at + AT_QUERY_BYTES, query_bytes)
        store_u32(at + AT_QUERY_BITS, query_bits)
        store_u32(at + AT_COUNT, count)
        store_u32(at + AT_STATUS, <uint32_t>status)
        at[AT_KIND] = kind
        at[AT_VERDICT] = verdict
        at[AT_OUTCOME] = outcome
        at[AT_MODE] = mode
        store_u32(at + AT_DEPTH, depth)
        at[AT_ROOM] = room
        memcpy(at + AT_TRACE_ID, PyBytes_AS_STRING(trace_id), 16)
        memcpy(at + AT_PARENT_SPAN, PyBytes_AS_STRING(parent_span), 8)
        store_u64(at + said - 8, 0)  # padding: a crash may have left bytes of a record that never happened
        if room:
            store_u64(at + said, END_NOBODYS)
            self._places[seq & (PLACES - 1)] = Place(seq, self._at)
        for i in range(STRINGS):
            store_u16(at + AT_LENGTHS + 2 * i, lengths[i])
            put_utf8(text_at, PyTuple_GET_ITEM(texts, i), lengths[i])
            text_at += lengths[i]
        store_u32(at + AT_CHECK, mix32(at + AT_SEQ, said - AT_SEQ))
        # a crash before this store leaves no record, after it a whole one
        store_size(at, size)
        self._at += size
        # a door does much between two records: the next one's lines would come from memory one after another, at 0.1 us each
        for i in range(AHEAD_LINES):
            WL_PREFETCH(at + size + LINE_BYTES * i)
        self.last_seq = seq
        if ref > self.last_ref:
            self.last_ref = ref
        return seq

    @cython.binding(False)
    def complete(self, uint64_t seq, uint8_t outcome, int32_t status, uint64_t bytes_out, uint64_t bytes_in,
                 uint64_t duration_ns, str address not None):
        """Write a call's end into its decision's record, if that can be."""
        cdef Place* place = &self._places[seq & (PLACES - 1)]
        cdef uint8_t* at
        cdef uint8_t* end
        cdef uint32_t size
        cdef Py_ssize_t length = utf8_size(<PyObject*>address)
        if place.seq != seq or seq == 0 or self._base is NULL or not 0 <= length <= END_ADDRESS_BYTES:
            return False
        at = self._base + place.at
        size = load_size(at)
        end = at + size - END_BYTES
        if load_size(end) != END_NOBODYS:
            return False
        # nobody reads these bytes before the word says that they are there
        store_u64(end + END_DURATION, duration_ns)
        store_u64(end + END_BYTES_OUT, bytes_out)
        store_u64(end + END_BYTES_IN, bytes_in)
        store_u32(end + END_STATUS, <uint32_t>status)
        store_u32(end + END_OUTCOME, outcome | <uint32_t>length << 8)
        memset(end + END_ADDRESS, 0, END_ADDRESS_BYTES)
        put_utf8(end + END_ADDRESS, <PyObject*>address, length)
        store_u32(end + END_CHECK, mix32(end + END_DURATION, END_BYTES - 8))
        # a crash before this leaves the call open, as does a host that was quicker; after it, it has ended
        return turn_end(at, size, END_THERE)

    def prepare(self):
        """Make the next segment now, so that no append has to. Where there is no room, the append that needs it says so."""
        if self._base is NULL or self._spare is not None or self._making:
            return
        self._forget_removed()
        if not self._may_grow():
            return
        self._making += 1
        try:
            name, segment = self._make_segment()
        except OSError:
            return
        finally:
            self._making -= 1
        self._spare, self._spare_name = segment, name
        if self._base is NULL:  # closed while the disk worked
            self.close()

    def close(self):
        """Let go. The records stay as they are, and so does the segment's whole length: a reader may have it mapped."""
        self._map = None
        self._base = NULL
        self._at = self._end = self._plain_end = 0
        if self._folder < 0 or self._making:  # `prepare` closes when it is done
            return
        if self._spare is not None:
            os.unlink(self._spare_name, dir_fd=self._folder)
            self._spare = None
        os.close(self._folder)
        self._folder = -1

    def __dealloc__(self):
        if self._folder >= 0:
            os.close(self._folder)

    # -- off the usual path ------------------------------------------------------------------------------------------

    cdef int _make_room(self, uint32_t size, bint reserved) except -1:
        if self._base is NULL:
            raise ValueError("the spool is closed")
        self._forget_removed()
        if self._at + size > self._end:
            # also for a record that may not go in there yet: the host leaves, and removes, only a segment with a successor
            if not self._may_grow():
                used = self._older_bytes + self._end
                raise SpoolFull(f"the spool has {used} bytes in segments, limit is {self._spool_bytes}")
            self._making += 1
            try:
                self._roll()
            except OSError as fault:
                _raise_if_full(fault)
                raise
            finally:
                self._making -= 1
        if not reserved and self._at + size > self._plain_end:
            raise SpoolFull(f"the spool has {self._older_bytes + self._at} bytes in use, limit is"
                            f" {self._spool_bytes - self._reserved_bytes} beside {self._reserved_bytes} reserved")
        return 0

    cdef int _forget_removed(self) except -1:
        while self._older:
            oldest = self._older[0]
            if os.access(segment_name(oldest[0]), os.F_OK, dir_fd=self._folder):
                break
            if self._older and self._older[0] is oldest:  # `prepare` may have seen it at the same time
                self._older_bytes -= <uint64_t>self._older.popleft()[1]
        self._set_limits()
        return 0

    cdef void _set_limits(self) noexcept:
        cdef uint64_t plain = self._spool_bytes - self._reserved_bytes
        self._end = self._map.size
        if self._older_bytes == 0:
            self._plain_end = self._end  # nothing can be removed, so waiting would be for ever
        else:
            self._plain_end = min(self._end, plain - self._older_bytes if plain > self._older_bytes else 0)

    cdef bint _may_grow(self) noexcept:
        cdef uint64_t more = self._segment_bytes * (1 + self._making)
        return self._older_bytes == 0 or self._older_bytes + self._map.size + more <= self._spool_bytes

    cdef tuple _make_segment(self):
        """An allocated segment without a number: (name, map). A crash leaves a file that the next start removes."""
        cdef Segment segment
        self._made += 1
        name = f"next-{self._made}.seg"
        handle = -1
        try:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
            os.posix_fallocate(handle, 0, self._segment_bytes)
            segment = map_file(handle, self._segment_bytes, True)
            segment.touch(0)
        except OSError:
            if handle >= 0:
                os.unlink(name, dir_fd=self._folder)
            raise
        finally:
            if handle >= 0:
                os.close(handle)
        return name, segment

    cdef int _roll(self) except -1:
        """Go on in a new segment: its header is whole before it gets its number."""
        cdef Segment segment
        if self._spare is not None:
            name, segment = self._spare_name, self._spare
            self._spare = None
        else:
            name, segment = self._make_segment()
        segment.index = self._map.index + 1 if self._map is not None else 1
        self._begin(name, segment)
        return 0

    cdef int _begin(self, str name, Segment segment) except -1:
        cdef uint8_t* base = segment.base
        memcpy(base, MAGIC, 8)
        store_u64(base + SEGMENT_BOOT, self.boot)
        store_u64(base + SEGMENT_INDEX, segment.index)
        store_u64(base + SEGMENT_FIRST_SEQ, self.last_seq + 1)
        store_u64(base + SEGMENT_REF_BEFORE, self.last_ref)
        store_u64(base + SEGMENT_SIZE, segment.size)
        store_u32(base + SEGMENT_CHECK, mix32(base, SEGMENT_CHECK))
        try:
            os.rename(name, segment_name(segment.index), src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            os.unlink(name, dir_fd=self._folder)
            raise
        if self._map is not None:
            self._older.append((self._map.index, self._map.size))
            self._older_bytes += self._map.size
        self._use(segment, SEGMENT_HEADER_BYTES)
        return 0

    cdef void _use(self, Segment segment, uint64_t at) noexcept:
        memset(self._places, 0, sizeof(self._places))
        self._map = segment
        self._base = segment.base
        self._at = at
        self._set_limits()

    cdef int _recover(self, uint64_t after_seq) except -1:
        """Find the tail. What stands behind the first record that is not sound is no record: set aside or zeroed."""
        cdef Segment segment = None, following
        cdef uint64_t at = SEGMENT_HEADER_BYTES
        for name in os.listdir(self._folder):
            if name.startswith("next-") and name.endswith(".seg"):
                os.unlink(name, dir_fd=self._folder)
        found = segment_numbers(self._folder)
        position = starting_segment(self._folder, self.boot, found, after_seq) if found else 0
        for index in found[:position]:
            size = os.stat(segment_name(index), dir_fd=self._folder).st_size
            self._older.append((index, size))
            self._older_bytes += size
        while position < len(found):
            following = open_segment(self._folder, found[position], self.boot, True)
            if following is None:
                break
            if segment is None:
                if after_seq and following.first_seq() > after_seq + 1:
                    break  # whoever reads behind `after_seq` would never get past the gap
            elif following.index != segment.index + 1 or following.first_seq() != self.last_seq + 1:
                break
            if segment is not None:
                self._older.append((segment.index, segment.size))
                self._older_bytes += segment.size
            segment = following
            position += 1
            at = self._walk(segment)
            if at + 8 <= segment.size and load_size(segment.base + at):
                break
        for index in found[position:]:  # their bytes stay for whoever wants to look
            os.rename(segment_name(index), f"{index:08d}.torn", src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if segment is None:
            return self._recover_nothing(found[0] if found else 1, after_seq)
        segment.touch(0)
        memset(segment.base + at, 0, segment.size - at)
        self._use(segment, at)
        if self.last_seq < after_seq:
            # the machine lost power: the host has sealed records whose pages never reached the disk
            self.last_seq = after_seq
            self._roll()
        return 0

    cdef int _recover_nothing(self, uint64_t index, uint64_t after_seq) except -1:
        cdef Segment segment
        if index > 1 and after_seq == 0:
            raise OperatorFault(f"{segment_name(index)}: its header is damaged, and only that says which record came before it")
        self.last_seq = after_seq
        name, segment = self._make_segment()
        segment.index = index
        return self._begin(name, segment)

    cdef uint64_t _walk(self, Segment segment) noexcept:
        """Count the sound records of a segment; returns the byte behind the last."""
        cdef uint64_t at = SEGMENT_HEADER_BYTES, seq = segment.first_seq()
        cdef uint32_t size
        self.last_ref = max(self.last_ref, load_u64(segment.base + SEGMENT_REF_BEFORE))
        while True:
            size = whole_record(segment.base + at, segment.size - at)
            if not sound_record(segment.base + at, size, seq):
                self.last_seq = seq - 1
                return at
            self.last_ref = max(self.last_ref, load_u64(segment.base + at + AT_REF))
            at += size
            seq += 1


cdef int _raise_if_full(fault) except -1:
    """Where the system says that there is no room, say SpoolFull: the call waits or is refused, and later there may be."""
    if fault.errno in NO_ROOM:
        raise SpoolFull(f"the spool cannot grow: {fault.strerror.lower()}") from fault
    return 0


cdef uint32_t _measure(tuple texts, uint16_t* lengths) except 0:
    """The bytes of a record with these texts. Raises AgentFault before anything is written."""
    cdef Py_ssize_t size, total = RECORD_HEADER_BYTES
    cdef PyObject* text
    cdef int i
    if PyTuple_GET_SIZE(texts) != STRINGS:
        raise ValueError(f"a record has {STRINGS} texts, not {len(texts)}")
    for i in range(STRINGS):
        text = PyTuple_GET_ITEM(texts, i)
        if not PyUnicode_CheckExact(text):
            raise TypeError(f"`{STRING_FIELDS[i]}` is not a str")
        size = utf8_size(text)
        if size < 0:
            raise AgentFault(f"`{STRING_FIELDS[i]}` has a lone surrogate, which no UTF-8 can say")
        if size > STRING_BYTES_MAX:
            raise AgentFault(f"`{STRING_FIELDS[i]}` has {size} bytes, limit is {STRING_BYTES_MAX}")
        lengths[i] = <uint16_t>size
        total += size
    total = (total + 7) & ~7
    if total > RECORD_BYTES_MAX:
        raise AgentFault(f"the record has {total} bytes, limit is {RECORD_BYTES_MAX}")
    return <uint32_t>total
