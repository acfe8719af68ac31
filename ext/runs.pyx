"""Reading a spool: whole records that are proved sound, in order, without a copy, in any process and while the door writes.

A record stands when its size does, and a segment ends when the next one exists. A decision whose call has not ended yet is taken
as it is: the reader turns the word of its room, so that the end will be a record of its own. What is not sound is never skipped: the reader
stays there, says so in `torn`, and looks again each time, since the spool's next writer cuts the damage off.
"""

import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize

from ext.layout cimport *
from ext.segments cimport Segment, open_segment, segment_name, segment_numbers, starting_segment

cdef enum:  # why a scan stopped
    STOPPED_AT_LIMIT
    STOPPED_AT_END
    STOPPED_AT_DAMAGE


cdef class Run:
    """Whole records, one after another, in one segment; `view` shows their bytes and keeps them mapped."""

    cdef readonly uint64_t boot, first, last, records, last_ref
    cdef readonly list opened
    cdef readonly list closed
    cdef Segment _map
    cdef uint64_t _start, _bytes

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._map.base + self._start, self._bytes, 1, flags)

    @property
    def view(self):
        """The records' bytes."""
        return memoryview(self)


cdef class SpoolReader:
    """Reads one door's records in order, in any process, while the door writes."""

    cdef readonly uint64_t boot
    cdef readonly uint64_t last_seq
    cdef readonly uint64_t segment
    cdef readonly str torn
    cdef Segment _map
    cdef uint64_t _at
    cdef uint64_t _expected     # the seq of the record at `_at`
    cdef int _folder
    cdef int _stop

    def __cinit__(self):
        self._folder = -1

    def __init__(self, str folder not None, uint64_t boot, uint64_t after_seq=0):
        self.boot = boot
        self.last_seq = after_seq
        self.torn = ""
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, Py_ssize_t records_max, Py_ssize_t bytes_max):
        """New records, at most so many, and at least one where there is one, however long."""
        cdef Run run
        cdef Segment segment
        if self._folder < 0:
            raise ValueError("the spool is closed")
        runs = []
        if self._map is None and not self._find():
            return runs
        if self._map.size < self._map.whole:  # the file was cut short: its next writer makes it whole again
            segment = open_segment(self._folder, self._map.index, self.boot, False)
            self._map = segment if segment is not None else self._map
        while records_max > 0:
            run = self._scan(records_max, bytes_max, not runs)
            if run is not None:
                runs.append(run)
                records_max -= run.records
                bytes_max -= run._bytes
            if self._stop != STOPPED_AT_END or not self._go_on():
                break
        return runs

    @property
    def idle(self):
        return (self._map is not None and self._at + 8 <= self._map.size and load_size(self._map.base + self._at) == 0
                and not os.access(segment_name(self._map.index + 1), os.F_OK, dir_fd=self._folder))

    def close(self):
        """Let go of the folder; the Runs that were given out stay valid."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
        self._map = None

    def __dealloc__(self):
        if self._folder >= 0:
            os.close(self._folder)

    cdef bint _find(self) except -1:
        """Map the segment of the next record; False while there is none."""
        found = segment_numbers(self._folder)
        if not found:
            return False
        return self._enter(found[starting_segment(self._folder, self.boot, found, self.last_seq)])

    cdef bint _enter(self, uint64_t index) except -1:
        cdef Segment segment = open_segment(self._folder, index, self.boot, False)
        if segment is None:
            return self._is_torn(f"{segment_name(index)}: the header is damaged")
        if segment.first_seq() > self.last_seq + 1:
            return self._is_torn(
                f"{segment_name(index)}: begins with record {segment.first_seq()}, expected {self.last_seq + 1}")
        self._map = segment
        self._at = SEGMENT_HEADER_BYTES
        self._expected = segment.first_seq()
        self.segment = index
        return True

    cdef bint _is_torn(self, str what) except -1:
        if not self.torn:
            self.torn = what
        return False

    cdef bint _go_on(self) except -1:
        """At the end of what is written: is there more, here or in a next segment?"""
        cdef uint64_t index = self._map.index
        if not os.access(segment_name(index + 1), os.F_OK, dir_fd=self._folder):
            return False
        # looked at again: its last records may have come between our two looks, but none comes from now on
        if self._at + 8 <= self._map.size and load_size(self._map.base + self._at):
            return True
        return self._enter(index + 1)

    cdef Run _scan(self, Py_ssize_t records_max, Py_ssize_t bytes_max, bint first):
        """The records from here to the segment's end, the limit, or the first that is not sound."""
        cdef Segment segment = self._map
        cdef uint8_t* at
        cdef uint64_t start = self._at, call_seq, slots, begins = self.last_seq + 1
        cdef Py_ssize_t records = 0
        cdef uint32_t size
        cdef Run run = Run.__new__(Run)
        run.closed = []
        slots = min(<uint64_t>records_max, (segment.size - start) // RECORD_HEADER_BYTES + 1)
        cdef uint32_t* open_at = <uint32_t*>calloc(slots, sizeof(uint32_t))  # of this run's calls without end, else 0
        if open_at is NULL:
            raise MemoryError
        try:
            while True:
                at = segment.base + self._at
                self._stop = STOPPED_AT_END
                if self._at + 8 > segment.size or load_size(at) == 0:
                    break
                size = whole_record(at, segment.size - self._at)
                self._stop = STOPPED_AT_DAMAGE
                if not sound_record(at, size, self._expected):
                    self._is_torn(f"{segment_name(segment.index)}: record {self._expected} at byte {self._at} is damaged")
                    break
                if self._expected <= self.last_seq:
                    start = self._at + size
                else:
                    self._stop = STOPPED_AT_LIMIT
                    if records == records_max or (<Py_ssize_t>(self._at + size - start) > bytes_max and (records or not first)):
                        break
                    call_seq = load_u64(at + AT_CALL_SEQ)
                    if at[AT_KIND] == KIND_DECISION:
                        # from here on its end is either in it or a record of its own; a crash in between changes nothing
                        if at[AT_ROOM]:
                            turn_end(at, size, END_READ)
                        if at[AT_VERDICT] == VERDICT_ALLOW and end_there(at, size) is NULL:
                            open_at[records] = <uint32_t>self._at
                    elif at[AT_KIND] == KIND_EFFECT or at[AT_KIND] == KIND_LOST:
                        if call_seq < begins:
                            run.closed.append(call_seq)
                        elif call_seq <= self._expected:
                            open_at[call_seq - begins] = 0
                    run.last_ref = max(run.last_ref, load_u64(at + AT_REF))
                    records += 1
                    self.last_seq = self._expected
                self._at += size
                self._expected += 1
            if records == 0:
                return None
            run.opened = []
            for i in range(records):
                if open_at[i]:
                    at = segment.base + open_at[i]
                    run.opened.append((begins + i, PyBytes_FromStringAndSize(<char*>at + AT_TRACE_ID, 16)))
        finally:
            free(open_at)
        run.boot, run.first, run.last, run.records = self.boot, begins, self.last_seq, records
        run._map, run._start, run._bytes = segment, start, self._at - start
        return run
