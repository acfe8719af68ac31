"""The board's writer: what an enforcer host has been told, made one state after another for its doors (see `board.pyx`)."""

import os

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from ext.segments cimport Segment
from ext.tables cimport *
from ext.words cimport *

from schemas.errors import PeerFault

cdef enum:
    SLOTS_MIN = 64
    IN_PLACE_MAX = 1024     # changes at once that are made in place: readers wait for them


cdef class BoardWriter:
    """Writes one board."""

    cdef readonly uint64_t boot
    cdef readonly uint64_t entries
    cdef str _path
    cdef Segment _head, _table
    cdef uint64_t _key0, _key1, _mask, _number, _slots_min
    cdef bint _missed           # a change failed: what stands here is not what was decided

    def __init__(self, str path not None, uint64_t boot, uint64_t slots=1024):
        cdef Segment before, head
        cdef uint8_t* at
        self._path, self.boot = path, boot
        self._slots_min = self._slots_for(0, max(slots, <uint64_t>SLOTS_MIN))
        before = old_file(path, b"WLBOARD1", HEAD_BYTES, True)
        if before is not None:
            store_word_release(before.base + AT_FRESH, 0)  # its readers look for ours now, and not when its time is over
        key = os.urandom(16)
        memcpy(&self._key0, <const char*>key, 8)
        memcpy(&self._key1, <const char*>key + 8, 8)
        try:
            head = new_file(path, HEAD_BYTES)
            at = head.base
            memcpy(at, b"WLBOARD1", 8)
            store_word(at + AT_BOOT, boot)
            store_word(at + AT_KEY, self._key0)
            store_word(at + AT_KEY + 8, self._key1)
            store_word(at + AT_START, start_of_machine())
            self._take(self._new_table(self._slots_min))
            store_word(at + AT_TABLE, self._number)
            # a crash before this leaves the board before, which is stale, and files that the next start replaces
            os.rename(f"{path}.new", path)
            self._head = head
            self._forget_tables()
        except OSError as fault:
            raise PeerFault(f"`{path}` cannot be made: {fault.strerror}") from fault

    @property
    def generation(self):
        return load_word(self._open() + AT_SEQUENCE) >> 1

    @property
    def bytes(self):
        return HEAD_BYTES + self._table.size if self._head is not None else 0

    def change(self, revoke, lift, *, uint64_t epoch, bint paused, bytes policy not None):
        cdef Items added, gone
        cdef Segment table = None
        cdef uint64_t most
        self._open()
        try:
            need_digest(policy)
            added = pairs_of(revoke, self._key0, self._key1)
            gone = texts_of(lift, self._key0, self._key1)
            most = self.entries + added.count
            if 2 * most > self._mask + 1 or added.count + gone.count > IN_PLACE_MAX:
                table = self._copied(most)
            self._step(table, added, gone, epoch, paused, policy)
        except BaseException:
            self._miss()
            raise

    def replace(self, revoked, *, uint64_t epoch, bint paused, bytes policy not None):
        cdef Items added
        cdef Segment table
        self._open()
        try:
            need_digest(policy)
            added = pairs_of(revoked, self._key0, self._key1)
            table = self._new_table(self._slots_for(added.count, self._slots_min))
            self.entries = 0
            self._step(table, added, texts_of((), 0, 0), epoch, paused, policy)
        except BaseException:
            self._miss()
            raise
        self._missed = False

    def fresh(self, uint64_t until_ns):
        cdef uint8_t* at = self._open()
        if until_ns > now_ns() + FRESH_NS_MAX:
            raise ValueError(f"fresh until {until_ns} ns is more than {FRESH_NS_MAX} ns ahead")
        store_word_release(at + AT_FRESH, 0 if self._missed else until_ns)

    def close(self):
        if self._head is not None:
            store_word_release(self._head.base + AT_FRESH, 0)
        self._head = self._table = None

    # -- one step ----------------------------------------------------------------------------------------------------

    cdef uint8_t* _open(self) except NULL:
        if self._head is None:
            raise ValueError("the board is closed")
        return self._head.base

    cdef int _step(self, Segment table, Items added, Items gone, uint64_t epoch, bint paused, bytes policy) except -1:
        """One state after another. A table that nobody reads yet is filled before; one that is read, between two numbers."""
        cdef uint8_t* at = self._head.base
        cdef uint64_t sequence = load_word(at + AT_SEQUENCE)
        if table is not None:
            self._fill(table.base, table.size, added, gone)
        else:
            self._touch(added)
            self._touch(gone)
        store_word(at + AT_BOOT, self.boot)  # the page has its fault now, if any, and not while readers wait
        store_word(at + AT_SEQUENCE, sequence + 1)
        fence_release()
        # a crash from here on leaves an odd number: stale for all, until another writer makes another board
        if table is None:
            self._fill(self._table.base, self._table.size, added, gone)
        else:
            store_word(at + AT_TABLE, self._number)
        store_word(at + AT_EPOCH, epoch)
        store_word(at + AT_PAUSED, paused)
        store_digest(at + AT_POLICY_SIZE, at + AT_POLICY, policy)
        store_word_release(at + AT_SEQUENCE, sequence + 2)
        if table is not None:
            self._take(table)
            self._forget_tables()
        return 0

    cdef int _fill(self, uint8_t* table, uint64_t size, Items added, Items gone) except -1:
        cdef Py_ssize_t i
        cdef uint64_t mask = (size - HEAD_BYTES) // SLOT_BYTES - 1, entries = self.entries
        with nogil:
            for i in range(gone.count):
                entries -= drop(table, mask, gone.hashes[i])
            for i in range(added.count):
                entries += put(table, mask, added.hashes[i], added.not_before[i])
        self.entries = entries
        return 0

    cdef void _touch(self, Items items) noexcept:
        """Have the pages writable that a change is about to write: the system may have to ask the disk."""
        cdef Py_ssize_t i
        cdef uint8_t* at
        cdef uint64_t slot
        for i in range(items.count):
            slot = items.hashes[i].a & self._mask
            at = hash_at(self._table.base, slot)
            store_word(at, load_word(at))
            at = not_before_at(self._table.base, self._mask, slot)
            store_word(at, load_word(at))

    cdef void _miss(self) noexcept:
        """Nobody may go by a board that lacks a change."""
        self._missed = True
        store_word_release(self._head.base + AT_FRESH, 0)

    # -- tables ------------------------------------------------------------------------------------------------------

    cdef uint64_t _slots_for(self, uint64_t entries, uint64_t least) noexcept:
        cdef uint64_t slots = SLOTS_MIN
        while slots < least or slots < 2 * entries:
            slots *= 2
        return slots

    cdef Segment _new_table(self, uint64_t slots):
        """The next one, empty, under its name; nobody reads it before it is pointed at. Raises PeerFault."""
        cdef Segment table
        name = f"{self._path}.table{self._number + 1}"
        try:
            table = new_file(name, HEAD_BYTES + SLOT_BYTES * slots)
            memcpy(table.base, b"WLTABLE1", 8)
            store_word(table.base + AT_SLOTS, slots)
            store_word(table.base + AT_KEY, self._key0)
            store_word(table.base + AT_KEY + 8, self._key1)
            store_word(table.base + AT_NUMBER, self._number + 1)
            os.rename(f"{name}.new", name)
        except OSError as fault:
            raise PeerFault(f"`{name}` cannot be made for {slots} slots: {fault.strerror}") from fault
        self._number += 1
        return table

    cdef Segment _copied(self, uint64_t entries):
        """A table with all that the one in use has, and room for more."""
        cdef Segment table = self._new_table(self._slots_for(entries, self._slots_min))
        cdef uint64_t slot, mask = (table.size - HEAD_BYTES) // SLOT_BYTES - 1
        cdef Hash what
        with nogil:
            for slot in range(self._mask + 1):
                what.a = load_word(hash_at(self._table.base, slot))
                what.b = load_word(hash_at(self._table.base, slot) + 8)
                if what.a:
                    put(table.base, mask, what, load_word(not_before_at(self._table.base, self._mask, slot)))
        return table

    cdef int _take(self, Segment table) except -1:
        self._table = table
        self._mask = (table.size - HEAD_BYTES) // SLOT_BYTES - 1
        return 0

    cdef int _forget_tables(self) except -1:
        """Remove the files that nobody will open again; who has one mapped keeps it. What cannot go now goes the next time."""
        folder, name = os.path.split(self._path)
        try:
            for other in os.listdir(folder or "."):
                if other.startswith(f"{name}.table") and other != f"{name}.table{self._number}":
                    os.unlink(os.path.join(folder, other))
        except OSError:
            pass
        return 0
