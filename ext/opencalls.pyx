"""Calls whose end has not come yet, by (boot, seq): what an end needs of its decision, which came in an earlier frame.

    decided   a decision comes: it is kept until its end; an end that came before it (a frame that was put off) is given to it.
              One that says that its call is over is not kept: nothing follows
    ended     an end comes, or a word in between: the bytes on top of what was known, and where its decision belongs

Open hashing over fixed slots: memory is bounded by the number of calls, and the one of which nothing was heard for longest makes
room, counted. Bytes are totals since a call began, so only what is more than before counts.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp.vector cimport vector

cdef enum:
    NOBODY = -1
    SLOTS_MAX = 1 << 28

cdef struct Open:
    uint64_t boot, seq, bytes_out, bytes_in
    int64_t time
    uint64_t round              # in which its decision came, and in which row of that
    int32_t row
    int32_t place               # of its decision; -1: that has not come
    int32_t following           # in its bucket, or among the free
    int32_t older, newer        # by when something was heard of it last
    uint8_t over                # an end that came before its decision, and was the last word
    uint8_t back                # it took the verdict back


cdef inline uint64_t _mixed(uint64_t boot, uint64_t seq) noexcept nogil:
    cdef uint64_t h = (boot ^ 0x9E3779B97F4A7C15ULL) * 0xD6E8FEB86659FD93ULL
    h = (h ^ (h >> 32) ^ seq) * 0xD6E8FEB86659FD93ULL
    return h ^ (h >> 32)


cdef class OpenCalls:
    """At most `capacity` calls."""

    cdef readonly uint64_t evicted
    cdef readonly Py_ssize_t entries
    cdef vector[Open] _slots
    cdef vector[int32_t] _buckets
    cdef int32_t _free, _oldest, _newest, _capacity
    cdef uint64_t _round

    def __init__(self, Py_ssize_t capacity):
        cdef Py_ssize_t buckets = 64
        if not 1 <= capacity <= SLOTS_MAX:
            raise ValueError(f"a table has 1 to {SLOTS_MAX} calls, not {capacity}")
        while buckets < capacity:
            buckets *= 2
        self._capacity = <int32_t>capacity
        self._buckets.assign(buckets, NOBODY)
        self._free = self._oldest = self._newest = NOBODY
        self.entries = 0
        self.evicted = 0
        self._round = 0

    cdef int32_t find(self, uint64_t boot, uint64_t seq) noexcept nogil:
        cdef int32_t at = self._buckets[_mixed(boot, seq) & (self._buckets.size() - 1)]
        while at >= 0 and (self._slots[at].boot != boot or self._slots[at].seq != seq):
            at = self._slots[at].following
        return at

    cdef int32_t add(self, uint64_t boot, uint64_t seq) except -2 nogil:
        cdef Open empty
        cdef int32_t at
        cdef size_t bucket
        if self.entries == self._capacity:
            self.drop(self._oldest)
            self.evicted += 1
        if self._free >= 0:
            at = self._free
            self._free = self._slots[at].following
        else:
            at = <int32_t>self._slots.size()
            self._slots.push_back(empty)
        bucket = _mixed(boot, seq) & (self._buckets.size() - 1)
        self._slots[at] = Open(boot=boot, seq=seq, bytes_out=0, bytes_in=0, time=0, round=0, row=NOBODY, place=NOBODY,
                               following=self._buckets[bucket], older=NOBODY, newer=NOBODY, over=0, back=0)
        self._buckets[bucket] = at
        self.entries += 1
        self.enlist(at)
        return at

    cdef void enlist(self, int32_t at) noexcept nogil:
        self._slots[at].older, self._slots[at].newer = self._newest, NOBODY
        if self._newest >= 0:
            self._slots[self._newest].newer = at
        else:
            self._oldest = at
        self._newest = at

    cdef void unlist(self, int32_t at) noexcept nogil:
        cdef int32_t older = self._slots[at].older, newer = self._slots[at].newer
        if older >= 0:
            self._slots[older].newer = newer
        else:
            self._oldest = newer
        if newer >= 0:
            self._slots[newer].older = older
        else:
            self._newest = older

    cdef void drop(self, int32_t at) noexcept nogil:
        cdef int32_t* link = &self._buckets[_mixed(self._slots[at].boot, self._slots[at].seq) & (self._buckets.size() - 1)]
        while link[0] != at:
            link = &self._slots[link[0]].following
        link[0] = self._slots[at].following
        self.unlist(at)
        self._slots[at].following = self._free
        self._free = at
        self.entries -= 1

    def decided(self, const uint64_t[::1] boot, const uint64_t[::1] seq, const int32_t[::1] place, const int64_t[::1] time,
                const uint64_t[::1] bytes_out, const uint64_t[::1] bytes_in, const uint8_t[::1] over,
                uint64_t[::1] more_out, uint64_t[::1] more_in, uint8_t[::1] back):
        """Keep the decisions whose calls go on; of the others (`over`) the decision refuses them, or says how they ended. Fills
        in the last three where an end came before its decision: the bytes on top of the decision's own, and whether it took
        the verdict back."""
        cdef Py_ssize_t row, rows = boot.shape[0]
        cdef int32_t at
        cdef Open* one
        assert seq.shape[0] == place.shape[0] == time.shape[0] == bytes_out.shape[0] == bytes_in.shape[0] == rows
        assert over.shape[0] == more_out.shape[0] == more_in.shape[0] == back.shape[0] == rows
        self._round += 1
        with nogil:
            for row in range(rows):
                if over[row]:
                    continue
                at = self.find(boot[row], seq[row])
                if at < 0:
                    at = self.add(boot[row], seq[row])
                one = &self._slots[at]
                if one.place >= 0:
                    continue  # the same decision again: it is kept as it was
                more_out[row] = one.bytes_out - min(one.bytes_out, bytes_out[row])
                more_in[row] = one.bytes_in - min(one.bytes_in, bytes_in[row])
                back[row] = one.back
                if one.over:
                    self.drop(at)
                else:
                    one.bytes_out, one.bytes_in = bytes_out[row] + more_out[row], bytes_in[row] + more_in[row]
                    one.place, one.time = place[row], time[row]
                    one.round, one.row = self._round, <int32_t>row

    def ended(self, const uint64_t[::1] boot, const uint64_t[::1] seq, uint64_t[::1] bytes_out, uint64_t[::1] bytes_in,
              const uint8_t[::1] last, const uint8_t[::1] back, int32_t[::1] place, int64_t[::1] time, int32_t[::1] decision):
        """Replace the bytes by those on top of what was known, and fill in `place` and `time` of the decision: a place of -1
        where that has not come; and its row in the last `decided`, or -1. `last` is 1 for a call's end, 0 for a word in between.
        """
        cdef Py_ssize_t row, rows = boot.shape[0]
        cdef int32_t at
        cdef Open* one
        cdef uint64_t more
        assert seq.shape[0] == bytes_out.shape[0] == bytes_in.shape[0] == last.shape[0] == back.shape[0] == rows
        assert place.shape[0] == time.shape[0] == decision.shape[0] == rows
        with nogil:
            for row in range(rows):
                at = self.find(boot[row], seq[row])
                if at < 0:
                    at = self.add(boot[row], seq[row])
                else:
                    self.unlist(at)
                    self.enlist(at)
                one = &self._slots[at]
                more = bytes_out[row] - min(one.bytes_out, bytes_out[row])
                bytes_out[row], one.bytes_out = more, one.bytes_out + more
                more = bytes_in[row] - min(one.bytes_in, bytes_in[row])
                bytes_in[row], one.bytes_in = more, one.bytes_in + more
                place[row], time[row] = one.place, one.time
                decision[row] = one.row if one.place >= 0 and one.round == self._round else NOBODY
                if one.place < 0:
                    one.over |= last[row]
                    one.back |= back[row]
                elif last[row]:
                    self.drop(at)

    def places(self, uint8_t[::1] used):
        """Mark the places that calls are kept for."""
        cdef int32_t at = self._oldest
        while at >= 0:
            if 0 <= self._slots[at].place < used.shape[0]:
                used[self._slots[at].place] = 1
            at = self._slots[at].newer

    def renumber(self, const int32_t[::1] number):
        """Give each place another number."""
        cdef int32_t at = self._oldest
        while at >= 0:
            if 0 <= self._slots[at].place < number.shape[0]:
                self._slots[at].place = number[self._slots[at].place]
            at = self._slots[at].newer
