"""The calls of the traces that are alive: two slabs of fixed size, a hash table from trace id to trace, and lists through them.

    trace   its id, the first of its calls, how many, when it was touched last, and its neighbours in that order
    call    (boot, seq) and what its records have said so far, and the next call of its trace

A record only adds to its call: bits are set, the later end stays, what was said once stays. So what is held after a set of
records does not depend on their order, nor on how often one came; as long as no trace has more calls than it may, and none
is put away. Nothing is allocated for a record, and pages that no record has reached are not used.

The id's hash is keyed, since callers choose ids. What was put away is remembered by 64 bits of that hash in a table of its
own, so that a trace of which more comes is known to be a part.
"""

import numpy as np
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.layout cimport KIND_DECISION, KIND_EFFECT, OUTCOME_OPEN, VERDICT_ALLOW

cdef enum:
    # bits of a call
    DECIDED = 1
    OUT = 2
    DENIED = 4
    HAS_EFFECT = 8
    HAS_LOST = 16
    # bits of a trace
    SETTLED = 1
    TORN = 2

cdef uint64_t mix(uint64_t value) noexcept nogil:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef int power_above(Py_ssize_t value) noexcept:
    cdef int bits = 1
    while (<Py_ssize_t>1 << bits) < value:
        bits += 1
    return bits


cdef class TraceBook:
    """Traces and their calls. One thread. The arrays are the slabs' own: read them, and write `said` and `flags` only."""

    cdef readonly object ids, head, count, unseen, touched, flags
    cdef readonly object boot, seq, start, end, parent, said, who, enforcer, state, following
    cdef readonly Py_ssize_t traces, calls, forgotten
    cdef readonly Py_ssize_t traces_max, calls_max, per_trace_max
    cdef uint64_t[:, ::1] _ids
    cdef int32_t[::1] _head, _count, _newer, _older, _unseen, _mark
    cdef int64_t[::1] _touched, _start, _end
    cdef uint8_t[::1] _flags, _state
    cdef uint64_t[::1] _boot, _seq, _parent, _said, _gone
    cdef int32_t[::1] _who, _enforcer, _next, _table
    cdef uint64_t _key, _mask, _gone_mask
    cdef int32_t _free_trace, _free_call, _fresh_trace, _fresh_call, _newest, _oldest, _edge, _turn

    def __init__(self, Py_ssize_t traces_max, Py_ssize_t calls_max, Py_ssize_t per_trace_max, Py_ssize_t gone_max, uint64_t key):
        """`key` is secret to callers; `gone_max` is how many ids of traces that were put away are remembered, about."""
        if not 0 < traces_max < 1 << 30 or not traces_max <= calls_max < 1 << 30 or per_trace_max < 1 or gone_max < 1:
            raise ValueError("a book holds a trace or more, and a call or more of each")
        self.traces_max, self.calls_max, self.per_trace_max = traces_max, calls_max, per_trace_max
        self._key = key
        self.ids = np.zeros((traces_max, 2), np.uint64)
        self.head, self.count, self.unseen = (np.zeros(traces_max, np.int32) for _ in range(3))
        self.touched, self.flags = np.zeros(traces_max, np.int64), np.zeros(traces_max, np.uint8)
        self._newer, self._older, self._mark = (np.zeros(traces_max, np.int32) for _ in range(3))
        self.boot, self.seq, self.parent, self.said = (np.zeros(calls_max, np.uint64) for _ in range(4))
        self.start, self.end = np.zeros(calls_max, np.int64), np.zeros(calls_max, np.int64)
        self.who, self.enforcer, self.following = (np.zeros(calls_max, np.int32) for _ in range(3))
        self.state = np.zeros(calls_max, np.uint8)
        self._ids, self._head, self._count, self._unseen = self.ids, self.head, self.count, self.unseen
        self._touched, self._flags = self.touched, self.flags
        self._boot, self._seq, self._parent, self._said = self.boot, self.seq, self.parent, self.said
        self._start, self._end, self._who, self._enforcer = self.start, self.end, self.who, self.enforcer
        self._next, self._state = self.following, self.state
        self._mask = (<uint64_t>1 << power_above(2 * traces_max)) - 1
        self._gone_mask = (<uint64_t>1 << power_above(gone_max)) - 1
        self._table = np.zeros(self._mask + 1, np.int32)     # slot + 1; 0 is nobody
        self._gone = np.zeros(self._gone_mask + 1, np.uint64)
        self.clear()

    def clear(self):
        """Forget everything."""
        self.traces = self.calls = self.forgotten = 0
        self._free_trace = self._free_call = self._newest = self._oldest = self._edge = -1
        self._fresh_trace = self._fresh_call = self._turn = 0
        self._table[:] = 0
        self._gone[:] = 0
        self._mark[:] = 0

    # -- what comes in -----------------------------------------------------------------------------------------------

    def add(self, const uint8_t[::1] ids not None, const uint8_t[::1] parents not None, const uint8_t[::1] kind not None,
            const uint64_t[::1] boot not None, const uint64_t[::1] seq not None, const int64_t[::1] time not None,
            const uint64_t[::1] duration not None, const uint8_t[::1] verdict not None, const uint8_t[::1] outcome not None,
            const uint8_t[::1] mode not None, const int32_t[::1] who not None, const int32_t[::1] enforcer not None,
            int64_t now_us):
        """Take records (decisions, effects, losses); returns the traces that they touch, each once, in order of their first.

        `seq` is the call's, `ids` and `parents` are 16 and 8 bytes a record. A decision that lets its call out and has an
        outcome is an effect too, `duration` (us) after its time. There must be room: see `room`.
        """
        cdef Py_ssize_t n = kind.shape[0], at, touched = 0
        cdef int32_t slot
        cdef int byte
        if ids.shape[0] != 16 * n or parents.shape[0] != 8 * n or not n == boot.shape[0] == seq.shape[0] == time.shape[0]:
            raise ValueError("columns of one length")
        if not n == duration.shape[0] == verdict.shape[0] == outcome.shape[0] == mode.shape[0]:
            raise ValueError("columns of one length")
        if not n == who.shape[0] == enforcer.shape[0]:
            raise ValueError("columns of one length")
        if not self.room(n):
            raise ValueError(f"no room for {n} records")
        found = np.empty(n, np.int32)
        cdef int32_t[::1] out = found
        cdef uint64_t first, second, parent
        self._turn += 1
        if self._turn == 0x7FFFFFFF:
            self._mark[:] = 0
            self._turn = 1
        with nogil:
            for at in range(n):
                memcpy(&first, &ids[16 * at], 8)
                memcpy(&second, &ids[16 * at + 8], 8)
                slot = self._find(first, second)
                if slot < 0:
                    slot = self._new(first, second)
                if self._mark[slot] != self._turn:
                    self._mark[slot] = self._turn
                    out[touched] = slot
                    touched += 1
                    self._touch(slot, now_us)
                parent = 0
                for byte in range(8):
                    parent = parent << 8 | parents[8 * at + byte]
                self._put(slot, kind[at], boot[at], seq[at], time[at], duration[at], parent, verdict[at], outcome[at], mode[at],
                          who[at], enforcer[at])
        return found[:touched]

    def room(self, Py_ssize_t records):
        """Whether so many records may be taken, whatever they are."""
        return self.traces_max - self.traces >= records and self.calls_max - self.calls >= records

    cdef int32_t _find(self, uint64_t first, uint64_t second) noexcept nogil:
        cdef uint64_t at = mix(first ^ self._key ^ mix(second + self._key)) & self._mask
        cdef int32_t slot
        while True:
            slot = self._table[at] - 1
            if slot < 0 or (self._ids[slot, 0] == first and self._ids[slot, 1] == second):
                return slot
            at = (at + 1) & self._mask

    cdef int32_t _new(self, uint64_t first, uint64_t second) noexcept nogil:
        cdef uint64_t mark = mix(first ^ self._key ^ mix(second + self._key)), at = mark & self._mask, gone
        cdef int32_t slot
        if self._free_trace >= 0:
            slot = self._free_trace
            self._free_trace = self._newer[slot]
        else:
            slot = self._fresh_trace
            self._fresh_trace += 1
        self.traces += 1
        self._ids[slot, 0], self._ids[slot, 1] = first, second
        self._head[slot] = -1
        self._count[slot] = self._unseen[slot] = self._mark[slot] = 0
        self._flags[slot] = SETTLED  # until it is touched, at once
        self._newer[slot], self._older[slot] = -1, self._newest
        if self._newest >= 0:
            self._newer[self._newest] = slot
        else:
            self._oldest = slot
        self._newest = slot
        gone = mix(mark) & self._gone_mask
        if self._gone[gone] == (mark | 1):
            self._gone[gone] = 0
            self._flags[slot] |= TORN
        while self._table[at]:
            at = (at + 1) & self._mask
        self._table[at] = slot + 1
        return slot

    cdef void _touch(self, int32_t slot, int64_t now_us) noexcept nogil:
        """It is the newest now, and has not settled."""
        self._touched[slot] = now_us
        if self._edge == slot:
            self._edge = self._newer[slot]
        self._flags[slot] &= ~SETTLED
        if self._newest != slot:
            self._unlink(slot)
            self._older[slot], self._newer[slot] = self._newest, -1
            self._newer[self._newest] = slot
            self._newest = slot
        if self._edge < 0:
            self._edge = slot

    cdef void _unlink(self, int32_t slot) noexcept nogil:
        cdef int32_t newer = self._newer[slot], older = self._older[slot]
        if newer >= 0:
            self._older[newer] = older
        else:
            self._newest = older
        if older >= 0:
            self._newer[older] = newer
        else:
            self._oldest = newer

    cdef void _put(self, int32_t slot, uint8_t kind, uint64_t boot, uint64_t seq, int64_t time, uint64_t duration,
                   uint64_t parent, uint8_t verdict, uint8_t outcome, uint8_t mode, int32_t who,
                   int32_t enforcer) noexcept nogil:
        cdef int32_t call = self._head[slot]
        while call >= 0 and not (self._seq[call] == seq and self._boot[call] == boot):
            call = self._next[call]
        if call < 0:
            if self._count[slot] >= self.per_trace_max:
                if kind == KIND_DECISION and self._unseen[slot] < 0x7FFFFFFF:
                    self._unseen[slot] += 1
                return
            if self._free_call >= 0:
                call = self._free_call
                self._free_call = self._next[call]
            else:
                call = self._fresh_call
                self._fresh_call += 1
            self.calls += 1
            self._count[slot] += 1
            self._boot[call], self._seq[call] = boot, seq
            self._said[call] = 0
            self._state[call] = 0
            self._end[call] = 0
            self._next[call] = self._head[slot]
            self._head[slot] = call
        if kind == KIND_DECISION:
            self._start[call], self._parent[call], self._who[call], self._enforcer[call] = time, parent, who, enforcer
            self._state[call] |= DECIDED
            if verdict == VERDICT_ALLOW or mode != 0:
                self._state[call] |= OUT
            if verdict == 0:
                self._state[call] |= DENIED
            if verdict == VERDICT_ALLOW and outcome != OUTCOME_OPEN:
                self._state[call] |= HAS_EFFECT
                self._ended(call, <int64_t>(<uint64_t>time + duration))  # unsigned: a door may say any duration
        else:
            self._state[call] |= HAS_EFFECT if kind == KIND_EFFECT else HAS_LOST
            if verdict == 0:
                self._state[call] |= DENIED
            self._ended(call, time)

    cdef void _ended(self, int32_t call, int64_t time) noexcept nogil:
        if time > self._end[call]:
            self._end[call] = time

    # -- what is asked -----------------------------------------------------------------------------------------------

    def gather(self, const int32_t[::1] slots not None):
        """All calls of some traces: (their places in the slab, for each the number of its trace in `slots`)."""
        cdef Py_ssize_t at, total = 0, n = slots.shape[0], done = 0
        cdef int32_t call
        for at in range(n):
            total += self._count[slots[at]]
        places, numbers = np.empty(total, np.int64), np.empty(total, np.int64)
        cdef int64_t[::1] place = places, number = numbers
        with nogil:
            for at in range(n):
                call = self._head[slots[at]]
                while call >= 0:
                    place[done], number[done] = call, at
                    done += 1
                    call = self._next[call]
        return places, numbers

    def settle(self, int64_t until_us):
        """The traces that nothing has touched after `until_us` and that were not said to be settled before; they are now."""
        found = []
        while self._edge >= 0 and self._touched[self._edge] <= until_us:
            self._flags[self._edge] |= SETTLED
            found.append(self._edge)
            self._edge = self._newer[self._edge]
        return np.array(found, np.int32)

    def oldest(self, Py_ssize_t traces, Py_ssize_t calls):
        """The traces that were touched longest ago: enough that so many traces and so many calls could go."""
        found = []
        cdef int32_t slot = self._oldest
        while slot >= 0 and (traces > 0 or calls > 0):
            found.append(slot)
            traces -= 1
            calls -= self._count[slot]
            slot = self._newer[slot]
        return np.array(found, np.int32)

    def drop(self, const int32_t[::1] slots not None):
        """Put traces away; their ids are remembered as long as there is room."""
        cdef Py_ssize_t at
        with nogil:
            for at in range(slots.shape[0]):
                self._drop(slots[at])

    cdef void _drop(self, int32_t slot) noexcept nogil:
        cdef uint64_t first = self._ids[slot, 0], second = self._ids[slot, 1], gone
        cdef uint64_t mark = mix(first ^ self._key ^ mix(second + self._key)), at = mark & self._mask, home, hole
        cdef int32_t call = self._head[slot], following
        gone = mix(mark) & self._gone_mask
        if self._gone[gone] and self._gone[gone] != (mark | 1):
            self.forgotten += 1
        self._gone[gone] = mark | 1
        while call >= 0:
            following = self._next[call]
            self._next[call] = self._free_call
            self._free_call = call
            self.calls -= 1
            call = following
        while self._table[at] - 1 != slot:
            at = (at + 1) & self._mask
        # what stands behind it and would not be found over the hole moves into it (Knuth, 6.4, algorithm R)
        hole = at
        while True:
            at = (at + 1) & self._mask
            if not self._table[at]:
                break
            following = self._table[at] - 1
            home = mix(self._ids[following, 0] ^ self._key ^ mix(self._ids[following, 1] + self._key)) & self._mask
            if ((at - home) & self._mask) >= ((at - hole) & self._mask):
                self._table[hole] = self._table[at]
                hole = at
        self._table[hole] = 0
        if self._edge == slot:
            self._edge = self._newer[slot]
        self._unlink(slot)
        self._newer[slot] = self._free_trace
        self._free_trace = slot
        self._flags[slot] = 0
        self.traces -= 1
