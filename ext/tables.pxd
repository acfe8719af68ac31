# What a board's writer and its readers share: where things are (ext/board.pyx draws it), files, hashes, and walks over a table.
from libc.stdint cimport uint8_t, uint64_t

from ext.segments cimport Segment
from ext.words cimport *

cdef extern from *:
    """
    #define WL_NEVER UINT64_MAX
    #define WL_FRESH_NS_MAX UINT64_C(60000000000)
    """
    const uint64_t NEVER "WL_NEVER"                 # a sequence that no board has, a slot that no table has
    const uint64_t FRESH_NS_MAX "WL_FRESH_NS_MAX"   # further ahead, it is a word from before the machine was started

cdef enum:
    HEAD_BYTES = 4096
    SEEN_BYTES = 128
    DIGEST_BYTES = 32
    DIGEST_WORDS = 4
    SLOT_BYTES = 24

cdef enum:  # where a board keeps what
    AT_BOOT = 8
    AT_KEY = 16
    AT_START = 32
    AT_SEQUENCE = 64
    AT_FRESH = 72
    AT_EPOCH = 80
    AT_TABLE = 88
    AT_PAUSED = 96
    AT_POLICY_SIZE = 104
    AT_POLICY = 128

cdef enum:  # a table; its key is where a board's is
    AT_SLOTS = 8
    AT_NUMBER = 32

cdef enum:  # a door's word
    AT_SEEN_SEQUENCE = 8
    AT_SEEN_EPOCH = 16
    AT_SEEN_APPLIED = 24
    AT_SEEN_SIZE = 32
    AT_SEEN_POLICY = 40


cdef class Items:
    """Hashes of texts, each with its `not before`."""

    cdef Hash* hashes
    cdef uint64_t* not_before
    cdef Py_ssize_t count


cdef Items pairs_of(object pairs, uint64_t key0, uint64_t key1)
cdef Items texts_of(object texts, uint64_t key0, uint64_t key1)
cdef Segment new_file(str path, uint64_t size)
cdef Segment old_file(str path, const char* magic, uint64_t size_min, bint write=*)
cdef uint64_t start_of_machine()
cdef void store_digest(uint8_t* at_size, uint8_t* at, bytes digest) noexcept
cdef bytes load_digest(const uint8_t* at_size, const uint8_t* at)
cdef int need_digest(bytes digest) except -1


# Open addressing, one step after another. Never more than half full, so that a walk is short and ends at an empty slot.

cdef inline uint8_t* hash_at(const uint8_t* table, uint64_t slot) noexcept nogil:
    return <uint8_t*>table + HEAD_BYTES + 16 * slot


cdef inline uint8_t* not_before_at(const uint8_t* table, uint64_t mask, uint64_t slot) noexcept nogil:
    return <uint8_t*>table + HEAD_BYTES + 16 * (mask + 1) + 8 * slot


# Where it is or would be; NEVER only for a reader that looks while a writer moves things about.
cdef inline uint64_t slot_of(const uint8_t* table, uint64_t mask, Hash what) noexcept nogil:
    cdef uint64_t step, slot = what.a & mask, a
    for step in range(mask + 1):
        a = load_word(hash_at(table, slot))
        if a == 0 or (a == what.a and load_word(hash_at(table, slot) + 8) == what.b):
            return slot
        slot = (slot + 1) & mask
    return NEVER


cdef inline void fill(uint8_t* table, uint64_t mask, uint64_t slot, Hash what, uint64_t not_before) noexcept nogil:
    store_word(not_before_at(table, mask, slot), not_before)
    store_word(hash_at(table, slot) + 8, what.b)
    store_word(hash_at(table, slot), what.a)


# Whether it is new.
cdef inline bint put(uint8_t* table, uint64_t mask, Hash what, uint64_t not_before) noexcept nogil:
    cdef uint64_t slot = slot_of(table, mask, what)
    cdef bint new = load_word(hash_at(table, slot)) == 0
    fill(table, mask, slot, what, not_before)
    return new


# Whether it was there. What would no longer be found behind the gap moves into it.
cdef inline bint drop(uint8_t* table, uint64_t mask, Hash what) noexcept nogil:
    cdef uint64_t gap = slot_of(table, mask, what), at = gap
    cdef Hash other
    if load_word(hash_at(table, gap)) == 0:
        return False
    while True:
        at = (at + 1) & mask
        other.a = load_word(hash_at(table, at))
        if other.a == 0:
            break
        if ((at - other.a) & mask) < ((at - gap) & mask):
            continue  # it began to look behind the gap
        other.b = load_word(hash_at(table, at) + 8)
        fill(table, mask, gap, other, load_word(not_before_at(table, mask, at)))
        gap = at
    other.a = other.b = 0
    fill(table, mask, gap, other, 0)
    return True
