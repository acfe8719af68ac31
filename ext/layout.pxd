# The bytes of a record (schemas/layout.py draws them), inlined at every use. No state, no Python objects.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <endian.h>
    #define WL_LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define WL_STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define WL_PREFETCH(p) __builtin_prefetch((p), 1)
    static inline uint32_t WL_TURN(uint32_t* p, uint32_t from, uint32_t to) {  /* what stood there */
        __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
        return from;
    }
    """
    uint16_t le16toh(uint16_t) noexcept nogil
    uint32_t le32toh(uint32_t) noexcept nogil
    uint64_t le64toh(uint64_t) noexcept nogil
    uint32_t WL_LOAD_ACQUIRE(const uint32_t*) noexcept nogil
    void WL_STORE_RELEASE(uint32_t*, uint32_t) noexcept nogil
    void WL_PREFETCH(const void*) noexcept nogil
    uint32_t WL_TURN(uint32_t*, uint32_t, uint32_t) noexcept nogil

cdef enum:
    STRINGS = 20
    SEGMENT_HEADER_BYTES = 64
    RECORD_HEADER_BYTES = 176
    STRING_BYTES_MAX = 4096
    RECORD_BYTES_MAX = 16384

cdef enum:  # where a segment's header keeps what
    SEGMENT_BOOT = 8
    SEGMENT_INDEX = 16
    SEGMENT_FIRST_SEQ = 24
    SEGMENT_REF_BEFORE = 32
    SEGMENT_SIZE = 40
    SEGMENT_CHECK = 48

cdef enum:  # where a record keeps what
    AT_CHECK = 4
    AT_SEQ = 8
    AT_CALL_SEQ = 16
    AT_TIME = 24
    AT_RECORDED = 32
    AT_BYTES_OUT = 40
    AT_BYTES_IN = 48
    AT_DURATION = 56
    AT_EPOCH = 64
    AT_REF = 72
    AT_QUERY_HASH = 80
    AT_QUERY_BYTES = 88
    AT_QUERY_BITS = 92
    AT_COUNT = 96
    AT_STATUS = 100
    AT_KIND = 104
    AT_VERDICT = 105
    AT_OUTCOME = 106
    AT_MODE = 107
    AT_DEPTH = 108
    AT_ROOM = 109
    AT_TRACE_ID = 112
    AT_PARENT_SPAN = 128
    AT_LENGTHS = 136

cdef enum:  # what records say, as numbers (schemas/records.py)
    KIND_DECISION = 1
    KIND_EFFECT = 3
    KIND_LOST = 4
    VERDICT_ALLOW = 1
    OUTCOME_OPEN = 0

cdef enum:  # the room for a call's end, behind the texts of a decision that lets it out
    END_BYTES = 88
    END_CHECK = 4
    END_DURATION = 8
    END_BYTES_OUT = 16
    END_BYTES_IN = 24
    END_STATUS = 32
    END_OUTCOME = 36
    END_LENGTH = 37
    END_ADDRESS = 40
    END_ADDRESS_BYTES = 48

cdef enum:  # who has that room: its word is turned once, by the door or by its host, whichever comes first
    END_NOBODYS = 0
    END_READ = 1            # the host has read the decision: the end is a record of its own
    END_THERE = 2           # the door has written the end


cdef inline uint16_t load_u16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return le16toh(value)


cdef inline uint32_t load_u32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return le32toh(value)


cdef inline uint64_t load_u64(const uint8_t* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return le64toh(value)


cdef inline void store_u16(uint8_t* at, uint16_t value) noexcept nogil:
    value = le16toh(value)
    memcpy(at, &value, 2)


cdef inline void store_u32(uint8_t* at, uint32_t value) noexcept nogil:
    value = le32toh(value)
    memcpy(at, &value, 4)


cdef inline void store_u64(uint8_t* at, uint64_t value) noexcept nogil:
    value = le64toh(value)
    memcpy(at, &value, 8)


# The size of a record is its flag: whoever sees it sees every byte that was stored before it. `at` is 4-byte aligned.
cdef inline uint32_t load_size(const uint8_t* at) noexcept nogil:
    return le32toh(WL_LOAD_ACQUIRE(<const uint32_t*>at))


cdef inline void store_size(uint8_t* at, uint32_t size) noexcept nogil:
    WL_STORE_RELEASE(<uint32_t*>at, le32toh(size))


# A check against torn pages, not against people. Two lanes, since one multiplication must wait for the one before; each step
# is a bijection of its lane, so that one changed word always shows in 64 bits. `size` is a multiple of 8 and goes in first.
cdef inline uint32_t mix32(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint64_t even = (0x9E3779B97F4A7C15ULL ^ size) * 0xD6E8FEB86659FD93ULL
    cdef uint64_t odd = 0xC2B2AE3D27D4EB4FULL
    cdef const uint8_t* end = at + (size & ~<uint32_t>15)
    while at != end:
        even = (even ^ load_u64(at)) * 0xD6E8FEB86659FD93ULL
        odd = (odd ^ load_u64(at + 8)) * 0xD6E8FEB86659FD93ULL
        even ^= even >> 32
        odd ^= odd >> 29
        at += 16
    if size & 8:
        even = (even ^ load_u64(at)) * 0xD6E8FEB86659FD93ULL
    odd = (odd ^ (even >> 31) ^ even) * 0xD6E8FEB86659FD93ULL
    return <uint32_t>(odd ^ (odd >> 32))


cdef inline uint32_t room_for_end(const uint8_t* at) noexcept nogil:
    return END_BYTES if at[AT_ROOM] else 0


# The one test of a record's form, used by whoever reads bytes: its size, or 0 when `room` bytes from `at` hold no whole one.
cdef inline uint32_t whole_record(const uint8_t* at, uint64_t room) noexcept nogil:
    cdef uint32_t size, length, texts = 0
    cdef int i
    if room < RECORD_HEADER_BYTES:
        return 0
    size = load_size(at)
    if size < RECORD_HEADER_BYTES or size > RECORD_BYTES_MAX + room_for_end(at) or size & 7 or size > room:
        return 0
    for i in range(STRINGS):
        length = load_u16(at + AT_LENGTHS + 2 * i)
        if length > STRING_BYTES_MAX:
            return 0
        texts += length
    if ((RECORD_HEADER_BYTES + texts + 7) & ~<uint32_t>7) + room_for_end(at) != size:
        return 0
    return size


# Whether these bytes are record `seq`, whole (`size` from whole_record) and as they were written.
cdef inline bint sound_record(const uint8_t* at, uint32_t size, uint64_t seq) noexcept nogil:
    return (size != 0 and load_u64(at + AT_SEQ) == seq
            and load_u32(at + AT_CHECK) == mix32(at + AT_SEQ, size - room_for_end(at) - AT_SEQ))


# The end of the call in its decision's own record; NULL where that is a record of its own, or where a loss of power tore it.
# Never another answer again, once the host has read the record.
cdef inline const uint8_t* end_there(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef const uint8_t* end = at + size - END_BYTES
    if not at[AT_ROOM] or load_size(end) != END_THERE or load_u32(end + END_CHECK) != mix32(end + END_DURATION, END_BYTES - 8):
        return NULL
    return end


# Turn the word of a record's room; whether it was nobody's.
cdef inline bint turn_end(uint8_t* at, uint32_t size, uint32_t to) noexcept nogil:
    return WL_TURN(<uint32_t*>(at + size - END_BYTES), END_NOBODYS, le32toh(to)) == END_NOBODYS
