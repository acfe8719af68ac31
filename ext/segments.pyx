"""The files of a spool: 00000001.seg, 00000002.seg, ...; each mapped whole, with a checked header (schemas/layout.py)."""

import errno
import os

from libc.errno cimport EINVAL, errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from ext.layout cimport *

from schemas.errors import OperatorFault

cdef extern from "sys/mman.h" nogil:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23  /* Linux 5.14 */
    #endif
    """
    int PROT_READ, PROT_WRITE, MAP_SHARED, MADV_POPULATE_WRITE
    void* MAP_FAILED
    void* mmap(void*, size_t, int, int, int, int64_t)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)



cdef class Segment:
    """One mapped segment; unmapped when the last writer, reader or Run lets go of it."""

    def __dealloc__(self):
        if self.base is not NULL:
            munmap(self.base, self.size)

    cdef uint64_t first_seq(self) noexcept:
        return load_u64(self.base + SEGMENT_FIRST_SEQ)

    cdef int touch(self, uint64_t start) except -1:
        """Have every page from byte `start` in memory and writable; the disk says now whether it has the room."""
        cdef int result
        start &= ~<uint64_t>(PAGE_BYTES - 1)
        with nogil:
            result = madvise(self.base + start, self.size - start, MADV_POPULATE_WRITE)
        if result and c_errno != EINVAL:  # EINVAL: a kernel before 5.14, where the first write touches the page
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 0


cdef Segment map_file(int handle, uint64_t size, bint write):
    cdef void* base = mmap(NULL, size, PROT_READ | PROT_WRITE if write else PROT_READ, MAP_SHARED, handle, 0)
    if base == MAP_FAILED:
        raise OSError(c_errno, os.strerror(c_errno))
    cdef Segment segment = Segment.__new__(Segment)
    segment.base = <uint8_t*>base
    segment.size = segment.whole = size
    return segment


cdef str segment_name(uint64_t index):
    return f"{index:08d}.seg"


cdef list segment_numbers(int folder):
    """The numbers of the segments in a folder, in order."""
    names = [name.removesuffix(".seg") for name in os.listdir(folder) if name.endswith(".seg")]
    return sorted([int(name) for name in names if name.isdigit()])


cdef Segment open_segment(int folder, uint64_t index, uint64_t boot, bint mend):
    """Map an existing segment; None when its header is damaged. `mend` makes a file whole that was cut short.

    Readers may write too: they turn the word of a decision's room. Raises OperatorFault for another door's, FileNotFoundError."""
    cdef Segment segment
    cdef uint64_t size, whole
    handle = os.open(segment_name(index), os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
    try:
        size = os.fstat(handle).st_size & ~7
        if size < SEGMENT_HEADER_BYTES:
            return None
        segment = map_file(handle, size, True)
        if (memcmp(segment.base, MAGIC, 8) or load_u64(segment.base + SEGMENT_INDEX) != index
                or load_u32(segment.base + SEGMENT_CHECK) != mix32(segment.base, SEGMENT_CHECK)):
            return None
        if load_u64(segment.base + SEGMENT_BOOT) != boot:
            other = load_u64(segment.base + SEGMENT_BOOT)
            raise OperatorFault(f"{segment_name(index)}: belongs to door `{other:016x}`, not to `{boot:016x}`")
        whole = load_u64(segment.base + SEGMENT_SIZE)
        if mend and size < whole:
            os.posix_fallocate(handle, 0, whole)
        if size > whole or (mend and size < whole):
            segment = map_file(handle, whole, True)
    finally:
        os.close(handle)
    segment.whole = whole
    segment.index = index
    return segment


cdef int starting_segment(int folder, uint64_t boot, list found, uint64_t after_seq) except -1:
    """The position in `found` of the segment that holds record `after_seq` + 1: the last that begins at or before it."""
    cdef Segment segment
    for position in reversed(range(len(found))):
        segment = open_segment(folder, found[position], boot, False)
        if segment is not None and segment.first_seq() <= after_seq + 1:
            return position
    return 0
