"""What was told to whom: the distinct names and queries of each (agent, destination), with what each can have carried out.

    name_bits       of a text of n characters with entropy H (Shannon, 1948, order 0): n * H
    decayed         a meter that each item raises by its bits, and that halves in every `half`
    Units           per pair, the distinct items with the first time that each was seen; the largest are kept

Memory is bounded three times: items of one pair and kind (the smallest make room: what is kept does not depend on the order),
items in all, and pairs (the pair used least lately makes room, with its items).
"""

import numpy as np

from libc.math cimport exp2, log2
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.vector cimport vector
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

cdef enum:
    NOBODY = -1
    KINDS = 2
    MOST = 1 << 28

cdef struct Unit:
    uint64_t hash, boot, seq
    int64_t time            # of the first call that showed it
    double bits
    int32_t pair
    int32_t following       # in its bucket, or among the free
    int32_t next            # of the same pair
    uint8_t kind
    uint8_t refused         # whether a call that showed it was refused

cdef struct Pair:
    uint64_t hash
    double told, asked      # bits of its names and refused queries, and of its other queries
    int32_t count[KINDS]
    int32_t first           # item
    int32_t following       # in its bucket, or among the free
    int32_t older, newer
    uint64_t calls
    uint8_t used


def name_bits(str text not None):
    """Bits of a text: its bytes as UTF-8 times their entropy."""
    cdef Py_ssize_t size, at
    cdef const uint8_t* data = <const uint8_t*>PyUnicode_AsUTF8AndSize(text, &size)
    cdef uint32_t counts[256]
    cdef double bits = 0
    memset(counts, 0, sizeof(counts))
    for at in range(size):
        counts[data[at]] += 1
    for at in range(256):
        if counts[at]:
            bits -= counts[at] * log2(<double>counts[at] / size)
    return bits + 0.0  # never -0.0


def decayed(const int64_t[::1] time, const double[::1] bits, double half):
    """The meter after each item, of items in the order of time; `half` in the unit of `time`."""
    cdef Py_ssize_t at, size = time.shape[0]
    cdef double level = 0
    assert bits.shape[0] == size
    found = np.empty(size)
    cdef double[::1] out = found
    for at in range(size):
        if at:
            level *= exp2(-<double>(time[at] - time[at - 1]) / half)
        level += bits[at]
        out[at] = level
    return found


cdef class Units:
    """At most `pairs` pairs with `units` items together, of each pair at most so many of kind 0 and kind 1."""

    cdef readonly uint64_t evicted      # pairs that made room
    cdef readonly Py_ssize_t pairs, units
    cdef vector[Pair] _pairs
    cdef vector[Unit] _units
    cdef vector[int32_t] _pair_buckets, _unit_buckets
    cdef int32_t _free_pair, _free_unit, _oldest, _newest
    cdef int32_t _most[KINDS]
    cdef Py_ssize_t _pairs_max, _units_max

    def __init__(self, Py_ssize_t pairs, Py_ssize_t units, int32_t most_names, int32_t most_queries):
        if not (1 <= pairs <= MOST and 1 <= most_names <= units <= MOST and 1 <= most_queries <= units):
            raise ValueError(f"{pairs} pairs with {most_names} and {most_queries} of {units} items: no such table")
        self._pairs_max, self._units_max = pairs, units
        self._most[0], self._most[1] = most_names, most_queries
        self.evicted = 0
        self.clear()

    def drop_oldest(self):
        """Let go of the pair used least lately, with its items; False where there is none left then."""
        if self._oldest >= 0:
            self.drop_pair(self._oldest)
            self.evicted += 1
        return self.pairs > 0

    def clear(self):
        """Forget every pair."""
        self._pairs.clear()
        self._units.clear()
        self._pair_buckets.assign(_power(self._pairs_max), NOBODY)
        self._unit_buckets.assign(_power(self._units_max), NOBODY)
        self._free_pair = self._free_unit = self._oldest = self._newest = NOBODY
        self.pairs = self.units = 0

    def find(self, const uint64_t[::1] hashes, const uint64_t[::1] calls):
        """(slot, whether it is new) of each pair, which is now the one used last. `calls` more are counted for it."""
        cdef Py_ssize_t row, rows = hashes.shape[0]
        cdef int32_t at
        cdef size_t bucket
        assert calls.shape[0] == rows
        found, added = np.empty(rows, np.int32), np.zeros(rows, np.uint8)
        cdef int32_t[::1] slots = found
        cdef uint8_t[::1] new = added
        for row in range(rows):
            bucket = hashes[row] & (self._pair_buckets.size() - 1)
            at = self._pair_buckets[bucket]
            while at >= 0 and self._pairs[at].hash != hashes[row]:
                at = self._pairs[at].following
            if at < 0:
                at = self.add_pair(hashes[row], bucket)
                new[row] = 1
            else:
                self.unlist(at)
                self.enlist(at)
            self._pairs[at].calls += calls[row]
            slots[row] = at
        return found, added

    def add(self, const int32_t[::1] slots, uint8_t kind, const uint64_t[::1] hashes, const double[::1] bits,
            const int64_t[::1] time, const uint8_t[::1] refused, const uint64_t[::1] boot, const uint64_t[::1] seq,
            uint8_t[::1] changed):
        """Take items of one kind; marks in `changed` (by row) where what is kept of a pair is not what it was.

        Of two items with one hash the earlier is kept, and it is refused where either was.
        """
        cdef Py_ssize_t row, rows = slots.shape[0]
        cdef int32_t at
        cdef Unit* one
        assert hashes.shape[0] == bits.shape[0] == time.shape[0] == refused.shape[0] == rows
        assert boot.shape[0] == seq.shape[0] == changed.shape[0] == rows
        if kind >= KINDS:
            raise ValueError(f"a kind is below {KINDS}")
        for row in range(rows):
            if not 0 <= slots[row] < <int32_t>self._pairs.size() or not self._pairs[slots[row]].used:
                continue  # it has made room for a later one of the same rows
            at = self.find_unit(slots[row], kind, hashes[row])
            if at < 0:
                at = self.add_unit(slots[row], kind, hashes[row], bits[row])
                if at < 0:
                    continue
                one = &self._units[at]
                one.time, one.boot, one.seq = time[row], boot[row], seq[row]
                changed[row] = 1
            one = &self._units[at]
            if time[row] < one.time or (time[row] == one.time and (boot[row] < one.boot or (
                    boot[row] == one.boot and seq[row] < one.seq))):
                one.time, one.boot, one.seq = time[row], boot[row], seq[row]
                changed[row] = 1
            if refused[row] and not one.refused:
                self.weigh(one, -1)
                one.refused = 1
                self.weigh(one, 1)
                changed[row] = 1

    def of(self, int32_t slot):
        """(calls, kind, hash, time, bits, refused, boot, seq) of a pair: a number, and an array of its items each."""
        cdef int32_t at
        cdef Py_ssize_t row = 0, rows
        if not 0 <= slot < <int32_t>self._pairs.size() or not self._pairs[slot].used:
            raise KeyError(slot)
        rows = self._pairs[slot].count[0] + self._pairs[slot].count[1]
        columns = (np.empty(rows, np.uint8), np.empty(rows, np.uint64), np.empty(rows, np.int64), np.empty(rows),
                   np.empty(rows, np.uint8), np.empty(rows, np.uint64), np.empty(rows, np.uint64))
        cdef uint8_t[::1] kind = columns[0], refused = columns[4]
        cdef uint64_t[::1] hashes = columns[1], boot = columns[5], seq = columns[6]
        cdef int64_t[::1] time = columns[2]
        cdef double[::1] bits = columns[3]
        at = self._pairs[slot].first
        while at >= 0:
            kind[row], hashes[row], time[row] = self._units[at].kind, self._units[at].hash, self._units[at].time
            bits[row], refused[row] = self._units[at].bits, self._units[at].refused
            boot[row], seq[row] = self._units[at].boot, self._units[at].seq
            at = self._units[at].next
            row += 1
        return (self._pairs[slot].calls, *columns)

    def bits_of(self, const int32_t[::1] slots):
        """(bits of the names and refused queries, bits of the other queries) of each pair."""
        cdef Py_ssize_t row
        found = np.zeros(slots.shape[0]), np.zeros(slots.shape[0])
        cdef double[::1] told = found[0], asked = found[1]
        for row in range(slots.shape[0]):
            if 0 <= slots[row] < <int32_t>self._pairs.size() and self._pairs[slots[row]].used:
                told[row], asked[row] = self._pairs[slots[row]].told, self._pairs[slots[row]].asked
        return found

    def asked_before(self, int32_t slot, int64_t time):
        """Bits of a pair's queries that were let out first before a time."""
        cdef int32_t at
        cdef double bits = 0
        if not 0 <= slot < <int32_t>self._pairs.size() or not self._pairs[slot].used:
            return 0.0
        at = self._pairs[slot].first
        while at >= 0:
            if self._units[at].kind == 1 and not self._units[at].refused and self._units[at].time < time:
                bits += self._units[at].bits
            at = self._units[at].next
        return bits

    cdef void weigh(self, Unit* unit, int sign) noexcept nogil:
        if unit.kind == 0 or unit.refused:
            self._pairs[unit.pair].told += sign * unit.bits
        else:
            self._pairs[unit.pair].asked += sign * unit.bits

    # -- the tables --------------------------------------------------------------------------------------------------

    cdef int32_t add_pair(self, uint64_t pair_hash, size_t bucket) except -2:
        cdef Pair* pair
        cdef int32_t at
        if self.pairs == self._pairs_max:
            self.drop_pair(self._oldest)
            self.evicted += 1
        at = self._free_pair
        if at >= 0:
            self._free_pair = self._pairs[at].following
        else:
            at = <int32_t>self._pairs.size()
            self._pairs.resize(at + 1)
        pair = &self._pairs[at]
        memset(pair, 0, sizeof(Pair))
        pair.hash, pair.first, pair.following, pair.used = pair_hash, NOBODY, self._pair_buckets[bucket], 1
        self._pair_buckets[bucket] = at
        self.pairs += 1
        self.enlist(at)
        return at

    cdef int32_t find_unit(self, int32_t pair, uint8_t kind, uint64_t unit_hash) noexcept nogil:
        cdef int32_t at = self._unit_buckets[_mixed(pair, kind, unit_hash) & (self._unit_buckets.size() - 1)]
        while at >= 0 and (self._units[at].hash != unit_hash or self._units[at].pair != pair or self._units[at].kind != kind):
            at = self._units[at].following
        return at

    cdef int32_t add_unit(self, int32_t slot, uint8_t kind, uint64_t unit_hash, double bits) except -2:
        """The place of a new item; -1 where the pair keeps larger ones."""
        cdef Pair* pair = &self._pairs[slot]
        cdef int32_t at, least = NOBODY
        cdef size_t bucket
        if pair.count[kind] == self._most[kind]:
            at = pair.first
            while at >= 0:
                if self._units[at].kind == kind and (least < 0 or _less(&self._units[at], &self._units[least])):
                    least = at
                at = self._units[at].next
            if bits < self._units[least].bits or (bits == self._units[least].bits and unit_hash < self._units[least].hash):
                return NOBODY
            self.drop_unit(least)
        while self.units == self._units_max:
            if self._oldest == slot:  # all items are this pair's
                return NOBODY
            self.drop_pair(self._oldest)
            self.evicted += 1
        at = self._free_unit
        if at >= 0:
            self._free_unit = self._units[at].following
        else:
            at = <int32_t>self._units.size()
            self._units.resize(at + 1)
        bucket = _mixed(slot, kind, unit_hash) & (self._unit_buckets.size() - 1)
        self._units[at] = Unit(hash=unit_hash, boot=0, seq=0, time=0, bits=bits, pair=slot,
                               following=self._unit_buckets[bucket], next=pair.first, kind=kind, refused=0)
        self._unit_buckets[bucket] = at
        pair.first = at
        pair.count[kind] += 1
        self.weigh(&self._units[at], 1)
        self.units += 1
        return at

    cdef void drop_unit(self, int32_t at) noexcept:
        cdef Unit* unit = &self._units[at]
        cdef Pair* pair = &self._pairs[unit.pair]
        cdef int32_t* link = &pair.first
        while link[0] != at:
            link = &self._units[link[0]].next
        link[0] = unit.next
        link = &self._unit_buckets[_mixed(unit.pair, unit.kind, unit.hash) & (self._unit_buckets.size() - 1)]
        while link[0] != at:
            link = &self._units[link[0]].following
        link[0] = unit.following
        pair.count[unit.kind] -= 1
        self.weigh(unit, -1)
        unit.pair = NOBODY
        unit.following = self._free_unit
        self._free_unit = at
        self.units -= 1

    cdef void drop_pair(self, int32_t at) noexcept:
        cdef Pair* pair = &self._pairs[at]
        cdef int32_t* link = &self._pair_buckets[pair.hash & (self._pair_buckets.size() - 1)]
        while pair.first >= 0:
            self.drop_unit(pair.first)
        while link[0] != at:
            link = &self._pairs[link[0]].following
        link[0] = pair.following
        self.unlist(at)
        pair.used = 0
        pair.following = self._free_pair
        self._free_pair = at
        self.pairs -= 1

    cdef void enlist(self, int32_t at) noexcept nogil:
        self._pairs[at].older, self._pairs[at].newer = self._newest, NOBODY
        if self._newest >= 0:
            self._pairs[self._newest].newer = at
        else:
            self._oldest = at
        self._newest = at

    cdef void unlist(self, int32_t at) noexcept nogil:
        cdef int32_t older = self._pairs[at].older, newer = self._pairs[at].newer
        if older >= 0:
            self._pairs[older].newer = newer
        else:
            self._oldest = newer
        if newer >= 0:
            self._pairs[newer].older = older
        else:
            self._newest = older


cdef inline bint _less(Unit* one, Unit* other) noexcept nogil:
    return one.bits < other.bits or (one.bits == other.bits and one.hash < other.hash)


cdef inline uint64_t _mixed(int32_t pair, uint8_t kind, uint64_t unit_hash) noexcept nogil:
    cdef uint64_t h = (unit_hash ^ (<uint64_t>pair << 1 | kind) * 0x9E3779B97F4A7C15ULL) * 0xD6E8FEB86659FD93ULL
    return h ^ (h >> 32)


cdef Py_ssize_t _power(Py_ssize_t least):
    cdef Py_ssize_t size = 64
    while size < least:
        size *= 2
    return size
