"""How regular is the traffic of a pair? RITA's beacon score, and the days of pairs that it is computed over.

The score is that of RITA version 5 (activecm/rita, written from its formulas): a quarter each of how regular the intervals are,
how alike the sizes, how long it lasts, and how even the day is filled. `PairDay` keeps of one UTC day what it needs: the calls of
each hour in all, and of the latest 512 seconds with calls how many there were and their bytes. What is kept is a function of the
set of calls: the latest 512 of a set are among the latest 512 of any part of it that has them.
"""

from libc.math cimport ceil, fabs, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memmove

cdef enum:
    BINS = 24
    BIN_S = 3600
    DAY_S = 86400
    SECONDS_MAX = 512
    UNIQUE_MIN = 4          # timestamps; fewer have no regularity
    BARS_MIN = 11           # non-empty bins from which the histogram may be one of two heights
    LASTING_MIN = 6         # non-empty bins from which duration counts
    RUN_FULL = 12           # bins in a row that count as the whole day
    SPREAD_MIN = 10         # Q3 - Q1 below which skewness means nothing

cdef double STEP_SHARE = 0.05
cdef double WILSON_Z = 1.96


cdef struct Second:
    uint32_t at, calls, sent, got


cdef int _by_value(const void* a, const void* b) noexcept nogil:
    cdef double x = (<double*>a)[0], y = (<double*>b)[0]
    return (x > y) - (x < y)


cdef double _median(double* values, Py_ssize_t count) noexcept nogil:
    return values[count // 2] if count % 2 else (values[count // 2 - 1] + values[count // 2]) / 2


cdef double _regular(double* values, Py_ssize_t count, double default, double* spare) noexcept nogil:
    """How much alike values are: half of it by Bowley's skewness, half by the median absolute deviation. Sorts them."""
    cdef double middle, low, high, skew = 0, deviation
    cdef Py_ssize_t half = count // 2, i
    qsort(values, count, sizeof(double), _by_value)
    middle = low = high = _median(values, count)
    if half:
        low, high = _median(values, half), _median(values + count - half, half)
    if high - low >= SPREAD_MIN and middle != low and middle != high:
        skew = (low + high - 2 * middle) / (high - low)
    if middle >= 1:
        for i in range(count):
            spare[i] = fabs(values[i] - middle)
        qsort(spare, count, sizeof(double), _by_value)
        deviation = max(0.0, (middle - _median(spare, count)) / middle)
    else:
        deviation = default
    return ((1 - fabs(skew)) + deviation) / 2


cdef double _even(const uint32_t* bins) noexcept nogil:
    """How evenly the day is filled, or how well by two heights."""
    cdef double mean = 0, square = 0, even, twofold
    cdef uint32_t most = 0, step
    cdef int bars = 0, i, best = 0, second = 0, group
    cdef int heights[BINS]
    for i in range(BINS):
        mean += bins[i]
        bars += bins[i] > 0
        most = max(most, bins[i])
    mean /= BINS
    for i in range(BINS):
        square += (bins[i] - mean) * (bins[i] - mean)
        heights[i] = 0
    even = max(0.0, 1 - sqrt(square / BINS) / mean)
    if bars < BARS_MIN:
        return even
    step = <uint32_t>ceil(most * STEP_SHARE)
    for i in range(BINS):
        if bins[i]:
            heights[min(BINS - 1, <int>(bins[i] // step))] += 1
    for group in range(BINS):
        if heights[group] > best:
            best, second = heights[group], best
        elif heights[group] > second:
            second = heights[group]
    twofold = <double>(best + second) / (bars - 1)
    return min(1.0, max(even, twofold))


cdef double _lasting(const uint32_t* bins, double share) noexcept nogil:
    """How much of the day it lasts: from first to last (`share`), or the longest run of hours, over midnight too."""
    cdef int bars = 0, run = 0, longest = 0, i
    for i in range(2 * BINS):
        bars += i < BINS and bins[i] > 0
        run = run + 1 if bins[i % BINS] else 0
        longest = max(longest, run)
    if bars < LASTING_MIN:
        return 0
    longest = min(longest, BINS)
    return min(1.0, max(ceil(1000 * share) / 1000, ceil(1000.0 * longest / RUN_FULL) / 1000))


cdef double _rounded(double value) noexcept nogil:
    return <double>(<int64_t>(value * 1000 + 0.5)) / 1000


def wilson(Py_ssize_t hits, Py_ssize_t count):
    """The lower end of Wilson's 95 % interval for a share: what it is at least, by so few or so many."""
    return _wilson(hits, count)


cdef double _wilson(Py_ssize_t hits, Py_ssize_t count) noexcept nogil:
    cdef double share, square = WILSON_Z * WILSON_Z
    if count == 0:
        return 0
    share = <double>hits / count
    share = (share + square / (2 * count) - WILSON_Z * sqrt(share * (1 - share) / count + square / (4.0 * count * count)))
    return max(0.0, share / (1 + square / count))


def rita(seconds, sizes, int64_t low, int64_t high):
    """RITA's score over calls: (score, intervals, sizes, lasting, even), or None for fewer than four different seconds.

    `seconds` and `sizes` are of the calls, in any order; the histogram is over `low` to `high`.
    """
    cdef uint32_t bins[BINS]
    cdef int i
    cdef int64_t at
    if not sizes:
        raise ValueError("there are calls without sizes")
    if high <= low:
        raise ValueError(f"a histogram from {low} to {high} has no width")
    unique = sorted(set(seconds))
    if len(unique) < UNIQUE_MIN:
        return None
    for i in range(BINS):
        bins[i] = 0
    for at in seconds:
        bins[max(0, min(BINS - 1, <int64_t>((at - low) / ((high - low) / <double>BINS))))] += 1
    gaps = [b - a for a, b in zip(unique, unique[1:])]
    return _score(_regular_of(gaps, 1), _regular_of(sizes, 0), bins, (max(unique) - min(unique)) / <double>(high - low))


cdef double _regular_of(values, double default) except -1:
    cdef Py_ssize_t count = len(values), i
    cdef double* room = <double*>realloc(NULL, 2 * count * sizeof(double))
    if room == NULL:
        raise MemoryError
    try:
        for i in range(count):
            room[i] = values[i]
        return _regular(room, count, default, room + count)
    finally:
        free(room)


cdef double _mean(double intervals, double sizes, double lasting, double even) noexcept nogil:
    """Of the four, or of three where sizes are unknown."""
    if sizes < 0:
        return _rounded((intervals + lasting + even) / 3)
    return _rounded((intervals + sizes + lasting + even) / 4)


cdef tuple _score(double intervals, double sizes, const uint32_t* bins, double share):
    cdef double lasting = _lasting(bins, share), even = _even(bins)
    return _mean(intervals, sizes, lasting, even), intervals, sizes, lasting, even


cdef class PairDay:
    """One UTC day of calls from one agent to one host."""

    cdef Second* _seconds
    cdef int _count, _room
    cdef uint32_t _bins[BINS]
    cdef readonly uint64_t calls, rows
    cdef readonly int64_t first, last
    cdef readonly bint full

    def __cinit__(self):
        cdef int i
        for i in range(BINS):
            self._bins[i] = 0
        self.first, self.last = DAY_S, -1

    def __dealloc__(self):
        free(self._seconds)

    cdef int _add(self, int64_t at, uint64_t calls, uint64_t sent, uint64_t got) except -1:
        cdef int where = self._count
        cdef Second* second
        self.rows += 1
        self.calls += calls
        self._bins[at // BIN_S] = <uint32_t>min(<uint64_t>0xFFFFFFFF, self._bins[at // BIN_S] + calls)
        self.first, self.last = min(self.first, at), max(self.last, at)
        while where > 0 and self._seconds[where - 1].at > at:
            where -= 1
        if where > 0 and self._seconds[where - 1].at == at:
            second = &self._seconds[where - 1]
        else:
            if self._count == SECONDS_MAX:
                self.full = True
                if where == 0:
                    return 0  # older than all that are kept
                memmove(self._seconds, self._seconds + 1, (where - 1) * sizeof(Second))
                where -= 1
            else:
                if self._count == self._room:
                    self._grow()
                memmove(self._seconds + where + 1, self._seconds + where, (self._count - where) * sizeof(Second))
                self._count += 1
            second = &self._seconds[where]
            second.at, second.calls, second.sent, second.got = <uint32_t>at, 0, 0, 0
        second.calls = <uint32_t>min(<uint64_t>0xFFFFFFFF, second.calls + calls)
        second.sent = <uint32_t>min(<uint64_t>0xFFFFFFFF, second.sent + sent)
        second.got = <uint32_t>min(<uint64_t>0xFFFFFFFF, second.got + got)
        return 0

    cdef int _grow(self) except -1:
        cdef int room = min(SECONDS_MAX, max(4, 2 * self._room))
        cdef Second* grown = <Second*>realloc(self._seconds, room * sizeof(Second))
        if grown == NULL:
            raise MemoryError
        self._seconds, self._room = grown, room
        return 0

    @property
    def kept(self):
        """Seconds of which it has the calls."""
        return self._count

    @property
    def hours(self):
        """Calls in each hour of the day."""
        return [self._bins[i] for i in range(BINS)]

    def seconds(self):
        """(second of the day, calls, bytes sent, bytes got) of each second that is kept and in which a call was made."""
        cdef int i
        return [
            (self._seconds[i].at, self._seconds[i].calls, self._seconds[i].sent, self._seconds[i].got)
            for i in range(self._count)
            if self._seconds[i].calls
        ]

    def judge(self, double least):
        cdef double values[SECONDS_MAX]
        cdef double spare[SECONDS_MAX]
        cdef double intervals, sizes, answers, sent = 0
        cdef int i, count = 0, same = 0, run = 0
        cdef int64_t before = -1
        for i in range(self._count):
            if self._seconds[i].calls:
                if before >= 0:
                    values[count - 1] = self._seconds[i].at - before
                before = self._seconds[i].at
                count += 1
        if count < UNIQUE_MIN or self.calls >= DAY_S:
            return None
        intervals = _regular(values, count - 1, 1, spare)
        count = 0
        for i in range(self._count):
            if self._seconds[i].calls:
                values[count] = self._seconds[i].got // self._seconds[i].calls
                count += 1
        qsort(values, count, sizeof(double), _by_value)
        for i in range(count):
            run = run + 1 if i and values[i] == values[i - 1] else 1
            same = max(same, run)
        answers = _wilson(same, count)
        count = 0
        for i in range(self._count):
            if self._seconds[i].calls:
                values[count] = <double>self._seconds[i].sent / self._seconds[i].calls
                sent = max(sent, values[count])
                count += 1
        sizes = _regular(values, count, 0, spare) if sent > 0 else -1
        found = _score(intervals, sizes, self._bins, (self.last - self.first) / <double>DAY_S)
        crossed = -1
        if least <= 1 and found[0] * answers >= least:
            crossed = self._crossed(intervals, sizes, answers, least)
        return (*found, answers, same, count, crossed)

    cdef int64_t _crossed(self, double intervals, double sizes, double answers, double least):
        """When the day had become even and long enough, for intervals and sizes as they are."""
        cdef uint32_t bins[BINS]
        cdef int hour, i, at
        cdef int64_t until
        for i in range(BINS):
            bins[i] = 0
        for hour in range(BINS):
            if not self._bins[hour]:
                continue
            until = min(self.last, (hour + 1) * BIN_S - 1)
            bins[hour] = self._bins[hour]
            if not self._enough(bins, until, intervals, sizes, answers, least):
                continue
            if self.full and <int>self._seconds[0].at > hour * BIN_S:
                return until  # the calls of this hour are no longer all there
            bins[hour] = 0
            for at in range(self._count):
                if <int>(self._seconds[at].at // BIN_S) == hour and self._seconds[at].calls:
                    bins[hour] += self._seconds[at].calls
                    if self._enough(bins, self._seconds[at].at, intervals, sizes, answers, least):
                        return self._seconds[at].at
            return until
        return self.last

    cdef bint _enough(
        self, const uint32_t* bins, int64_t until, double intervals, double sizes, double answers, double least
    ) noexcept:
        cdef double share = (until - self.first) / <double>DAY_S
        return _mean(intervals, sizes, _lasting(bins, share), _even(bins)) * answers >= least


def fill(list days not None, const int64_t[::1] which not None, const int64_t[::1] second not None,
         const int64_t[::1] calls not None, const int64_t[::1] sent not None, const int64_t[::1] got not None):
    """Add rows to pairs' days: row i to `days[which[i]]`, at a second of the day."""
    cdef Py_ssize_t i, count = len(days)
    cdef PairDay day
    if not (which.shape[0] == second.shape[0] == calls.shape[0] == sent.shape[0] == got.shape[0]):
        raise ValueError("the columns of the rows are not of one length")
    for i in range(which.shape[0]):
        if not 0 <= which[i] < count or not 0 <= second[i] < DAY_S or calls[i] < 0 or sent[i] < 0 or got[i] < 0:
            raise ValueError(f"row {i} is of no day: day {which[i]} of {count}, second {second[i]}")
        day = <PairDay>days[which[i]]
        day._add(second[i], calls[i], sent[i], got[i])
