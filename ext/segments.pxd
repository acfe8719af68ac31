# What a spool's writer and its readers share of its files.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #define WL_SEGMENT_MAGIC "WLSPOOL1"
    """
    const char* MAGIC "WL_SEGMENT_MAGIC"

cdef enum:
    PAGE_BYTES = 4096


cdef class Segment:
    cdef uint8_t* base
    cdef uint64_t size
    cdef uint64_t whole     # what the header says; more than `size` where the file was cut short
    cdef uint64_t index

    cdef uint64_t first_seq(self) noexcept
    cdef int touch(self, uint64_t start) except -1


cdef Segment map_file(int handle, uint64_t size, bint write)
cdef str segment_name(uint64_t index)
cdef list segment_numbers(int folder)
cdef Segment open_segment(int folder, uint64_t index, uint64_t boot, bint mend)
cdef int starting_segment(int folder, uint64_t boot, list found, uint64_t after_seq) except -1
