"""The board: what an enforcer host tells its doors, in memory that they share. One writer, readers without a lock.

    PATH         0 magic `WLBOARD1`   8 boot   16 key [16]   32 start of the machine   (all u64, as the processor has them)
                 64 sequence   72 fresh until   80 epoch   88 table   96 paused   104 bytes of the policy digest   128 the digest
    PATH.tableN  0 magic `WLTABLE1`   8 slots   16 key [16]   32 N
                 4096 hashes, 16 bytes for each slot (0: empty)   then `not before`, 8 bytes for each
    FOLDER/seen  the same for one door's word: 0 magic `WLSEEN01`   8 sequence   16 epoch   24 applied   32 bytes   40 the digest

The sequence is odd while the writer changes something, and 2 more after it: whoever finds the same even number before and
after has read one state. So a reader that finds the number of its last look has nothing to look at, and a text that was not
in the table then is not in it now. A writer that dies with the number odd leaves a board that nobody believes.

A table is changed in place while it is at most half full. A larger one is written beside it and then pointed at. Its places
depend on a key that is drawn for each board, so that nobody who chooses names can choose places.
"""

import os

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from ext.segments cimport Segment
from ext.tables cimport *
from ext.words cimport *

from ext.post import BoardWriter
from schemas.errors import PeerFault

__all__ = ["BoardReader", "BoardWriter", "SeenReader", "SeenWriter", "Selectors"]

cdef extern from *:
    """
    #define WL_MID_CHANGE_NS 100000000
    #define WL_LOOK_NS 50000000
    """
    const uint64_t MID_CHANGE_NS "WL_MID_CHANGE_NS"     # how long a reader waits for a change that is being made
    const uint64_t LOOK_NS "WL_LOOK_NS"                 # between two looks whether there is another board

cdef enum:
    SPINS = 100

cdef enum:  # schemas.records.Standing
    GO
    STALE
    PAUSED
    REVOKED

cdef uint8_t NOTHING[HEAD_BYTES]                    # what a reader reads where there is no board: never fresh


cdef class Selectors:
    """Texts that are true of a call."""

    cdef readonly tuple texts
    cdef readonly uint64_t issued_s
    cdef Items _items           # for the board whose key is
    cdef uint64_t _key0, _key1
    cdef uint64_t _clean        # the sequence at which none of them was in its table

    def __init__(self, tuple texts not None, uint64_t issued_s=0):
        self.texts = texts
        self.issued_s = issued_s
        self._know(0, 0)

    cdef int _know(self, uint64_t key0, uint64_t key1) except -1:
        self._items = texts_of(self.texts, key0, key1)
        self._key0, self._key1 = key0, key1
        self._clean = NEVER
        return 0


cdef class BoardReader:
    """Reads a board; one thread at a time."""

    cdef readonly uint64_t epoch
    cdef readonly uint64_t turn
    cdef readonly bytes policy
    cdef str _path
    cdef Segment _head, _table
    cdef const uint8_t* _at     # the head, or NOTHING
    cdef uint64_t _key0, _key1
    cdef uint64_t _sequence     # of the last look; what follows was read with it
    cdef uint64_t _number, _mask
    cdef bint _paused
    cdef uint64_t _go           # the same number where calls may go on
    cdef uint64_t _hopeless     # a number that was waited for in vain
    cdef uint64_t _look_at_ns
    cdef object _file

    def __init__(self, str path not None):
        self._path = path
        self.policy = b""
        self._forget()
        self._find()
        self._refresh()

    @property
    def generation(self):
        return 0 if self._sequence == NEVER else self._sequence >> 1

    @cython.binding(False)
    def check(self, Selectors caller not None, Selectors target not None):
        cdef uint64_t sequence = load_word_acquire(self._at + AT_SEQUENCE)
        if (sequence == self._go and caller._clean == sequence and target._clean == sequence
                and caller._key0 == self._key0 and target._key0 == self._key0 and self._fresh()):
            return GO
        return self._look(caller, target)

    @cython.binding(False)
    def unchanged(self):
        return load_word_acquire(self._at + AT_SEQUENCE) == self._sequence and self._fresh()

    cdef inline bint _fresh(self) noexcept:
        """One comparison for both ends: `now` < until <= `now` + FRESH_NS_MAX."""
        return load_word(self._at + AT_FRESH) - now_coarse_ns() - 1 < FRESH_NS_MAX

    # -- off the usual path ------------------------------------------------------------------------------------------

    cdef int _look(self, Selectors caller, Selectors target) except -1:
        cdef uint64_t sequence, give_up_at = 0
        cdef int tries = 0
        cdef bint found
        while True:
            sequence = load_word_acquire(self._at + AT_SEQUENCE)
            if sequence == self._sequence or (not sequence & 1 and self._refresh()):
                if not self._fresh():
                    if self._find():
                        continue
                    return STALE
                if self._paused:
                    return PAUSED
                found = self._revoked(caller) or self._revoked(target)
                fence_acquire()
                if load_word(self._at + AT_SEQUENCE) == self._sequence:
                    if found:
                        return REVOKED
                    self._go = caller._clean = target._clean = self._sequence
                    return GO
            if not self._fresh() or sequence == self._hopeless:
                if self._find():
                    continue
                return STALE
            tries += 1
            if tries < SPINS:  # most changes take less than a microsecond
                spin()
                continue
            if tries == SPINS:
                give_up_at = now_ns() + MID_CHANGE_NS
            elif now_ns() > give_up_at:
                self._hopeless = sequence
                return STALE
            with nogil:
                rest_20_us()

    cdef bint _revoked(self, Selectors who) except -1:
        cdef Py_ssize_t i
        cdef uint64_t slot, not_before
        if who._key0 != self._key0 or who._key1 != self._key1:
            who._know(self._key0, self._key1)
        for i in range(who._items.count):
            slot = slot_of(self._table.base, self._mask, who._items.hashes[i])
            if slot != NEVER and load_word(hash_at(self._table.base, slot)):
                not_before = load_word(not_before_at(self._table.base, self._mask, slot))
                if not_before == 0 or who.issued_s < not_before:
                    return True
        return False

    cdef bint _refresh(self) except -1:
        """Read one state, with its table; False where it is being changed."""
        cdef uint64_t sequence = load_word_acquire(self._at + AT_SEQUENCE)
        cdef uint64_t epoch = load_word(self._at + AT_EPOCH), number = load_word(self._at + AT_TABLE)
        cdef uint64_t paused = load_word(self._at + AT_PAUSED)
        cdef bytes policy = load_digest(self._at + AT_POLICY_SIZE, self._at + AT_POLICY)
        fence_acquire()
        if sequence & 1 or load_word(self._at + AT_SEQUENCE) != sequence or self._head is None:
            return False
        if number != self._number and not self._open_table(number):
            return False
        self.epoch, self.policy, self._paused = epoch, policy, paused != 0
        self._sequence = sequence
        self.turn += 1
        return True

    cdef bint _open_table(self, uint64_t number) except -1:
        """False where it is no more there: the writer has put another in its place, or none of this is sound."""
        cdef Segment table = old_file(f"{self._path}.table{number}", b"WLTABLE1", HEAD_BYTES)
        cdef uint64_t slots
        if table is None:
            return False
        slots = load_word(table.base + AT_SLOTS)
        if (load_word(table.base + AT_KEY) != self._key0 or load_word(table.base + AT_KEY + 8) != self._key1
                or load_word(table.base + AT_NUMBER) != number or slots == 0 or slots & (slots - 1)
                or slots > table.size // SLOT_BYTES or table.size != HEAD_BYTES + SLOT_BYTES * slots):
            return False
        self._table, self._number, self._mask = table, number, slots - 1
        return True

    cdef bint _find(self) except -1:
        """Whether there is another board under our path, which then is ours."""
        cdef uint64_t now = now_coarse_ns()
        cdef Segment head
        if now < self._look_at_ns:
            return False
        self._look_at_ns = now + LOOK_NS
        try:
            said = os.stat(self._path)
        except OSError:
            return False
        file = (said.st_dev, said.st_ino)  # ours cannot be given to another file while we have it mapped
        if file == self._file:
            return False
        head = old_file(self._path, b"WLBOARD1", HEAD_BYTES)
        if head is None or load_word(head.base + AT_START) != start_of_machine():
            return False
        self._forget()
        self._head, self._file = head, file
        self._at = head.base
        self._key0, self._key1 = load_word(head.base + AT_KEY), load_word(head.base + AT_KEY + 8)
        return True

    cdef void _forget(self) noexcept:
        self._head = self._table = self._file = None
        self._at = NOTHING
        self._sequence = self._go = self._hopeless = NEVER
        self._number = 0
        self.turn += 1


cdef class SeenWriter:
    """One door's word on what it has applied."""

    cdef Segment _map

    def __init__(self, str folder not None):
        path = os.path.join(folder, "seen")
        try:
            self._map = new_file(path, SEEN_BYTES)
            memcpy(self._map.base, b"WLSEEN01", 8)
            os.rename(f"{path}.new", path)
        except OSError as fault:
            raise PeerFault(f"`{path}` cannot be made: {fault.strerror}") from fault

    def write(self, uint64_t epoch, bytes policy not None, uint64_t applied_ns):
        cdef uint8_t* at = self._map.base
        cdef uint64_t sequence = load_word(at + AT_SEEN_SEQUENCE)
        need_digest(policy)
        store_word(at + AT_SEEN_SEQUENCE, sequence + 1)
        fence_release()
        # a crash from here on leaves a word that is not read; its door is dead
        store_word(at + AT_SEEN_EPOCH, epoch)
        store_word(at + AT_SEEN_APPLIED, applied_ns)
        store_digest(at + AT_SEEN_SIZE, at + AT_SEEN_POLICY, policy)
        store_word_release(at + AT_SEEN_SEQUENCE, sequence + 2)


cdef class SeenReader:
    """Reads a door's word."""

    cdef str _path
    cdef Segment _map

    def __init__(self, str folder not None):
        self._path = os.path.join(folder, "seen")

    def read(self):
        cdef uint64_t sequence, epoch, applied
        cdef bytes policy
        cdef int tries
        if self._map is None:
            self._map = old_file(self._path, b"WLSEEN01", SEEN_BYTES)
            if self._map is None:
                return None
        for tries in range(1_000):
            sequence = load_word_acquire(self._map.base + AT_SEEN_SEQUENCE)
            epoch = load_word(self._map.base + AT_SEEN_EPOCH)
            applied = load_word(self._map.base + AT_SEEN_APPLIED)
            policy = load_digest(self._map.base + AT_SEEN_SIZE, self._map.base + AT_SEEN_POLICY)
            fence_acquire()
            if sequence and not sequence & 1 and load_word(self._map.base + AT_SEEN_SEQUENCE) == sequence:
                return epoch, policy, applied
        return None
