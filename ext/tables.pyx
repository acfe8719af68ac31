"""The files of a board and the hashes of its texts: what its writer and its readers share."""

import os

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ext.segments cimport Segment, map_file
from ext.text cimport PyUnicode_DATA, PyUnicode_GET_LENGTH, PyUnicode_IS_ASCII
from ext.words cimport *

from schemas.errors import AgentFault


cdef Segment new_file(str path, uint64_t size):
    """A file of zeros that has its room on the disk, as `path` + `.new`."""
    cdef Segment segment
    name = f"{path}.new"
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
        segment = map_file(handle, size, True)
        segment.touch(0)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(handle)
    return segment


cdef Segment old_file(str path, const char* magic, uint64_t size_min, bint write=False):
    """Map a file that somebody else writes. None where there is none, or one of another form."""
    cdef Segment segment
    try:
        handle = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(handle).st_size
        if size < size_min:
            return None
        segment = map_file(handle, size, write)
    except OSError:
        return None
    finally:
        os.close(handle)
    return segment if memcmp(segment.base, magic, 8) == 0 else None


cdef uint64_t start_of_machine():
    """A number that the next start of this machine has not; 0 where the system does not say."""
    cdef Hash hashed
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            said = file.read(64)
    except OSError:
        return 0
    hashed = sip128(<const uint8_t*><const char*>said, len(said), 0, 0)
    return hashed.a


cdef Hash hash_of(str text, uint64_t key0, uint64_t key1) except *:
    cdef Hash hashed
    cdef bytes data
    if PyUnicode_IS_ASCII(<PyObject*>text):
        hashed = sip128(<const uint8_t*>PyUnicode_DATA(<PyObject*>text), PyUnicode_GET_LENGTH(<PyObject*>text), key0, key1)
    else:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise AgentFault("a selector has characters that have no UTF-8") from None
        hashed = sip128(<const uint8_t*><const char*>data, len(data), key0, key1)
    hashed.a |= not hashed.a  # 0 is an empty slot
    return hashed


cdef void store_digest(uint8_t* at_size, uint8_t* at, bytes digest) noexcept:
    cdef uint64_t words[DIGEST_WORDS]
    cdef int i
    memset(words, 0, DIGEST_BYTES)
    memcpy(words, <const char*>digest, len(digest))
    store_word(at_size, len(digest))
    for i in range(DIGEST_WORDS):
        store_word(at + 8 * i, words[i])


cdef bytes load_digest(const uint8_t* at_size, const uint8_t* at):
    """What stands there; it counts only when the sequence says so afterwards."""
    cdef uint64_t words[DIGEST_WORDS]
    cdef int i
    for i in range(DIGEST_WORDS):
        words[i] = load_word(at + 8 * i)
    return (<const char*>words)[:DIGEST_BYTES if load_word(at_size) == DIGEST_BYTES else 0]


cdef int need_digest(bytes digest) except -1:
    if len(digest) not in (0, DIGEST_BYTES):
        raise ValueError(f"a policy digest has {len(digest)} bytes, expected {DIGEST_BYTES} or none")
    return 0


cdef class Items:
    """Hashes of texts, each with its `not before`."""

    def __dealloc__(self):
        PyMem_Free(self.hashes)
        PyMem_Free(self.not_before)


cdef Items new_items(Py_ssize_t count):
    cdef Items items = Items.__new__(Items)
    items.hashes = <Hash*>PyMem_Malloc((count + 1) * sizeof(Hash))
    items.not_before = <uint64_t*>PyMem_Malloc((count + 1) * sizeof(uint64_t))
    if items.hashes is NULL or items.not_before is NULL:
        raise MemoryError
    items.count = count
    return items


cdef Items pairs_of(object pairs, uint64_t key0, uint64_t key1):
    """Of `(text, not before)`."""
    cdef list found = list(pairs)
    cdef Items items = new_items(len(found))
    cdef Py_ssize_t i
    for i in range(items.count):
        text, not_before = found[i]
        items.hashes[i] = hash_of(<str?>text, key0, key1)
        items.not_before[i] = not_before
    return items


cdef Items texts_of(object texts, uint64_t key0, uint64_t key1):
    """Of texts alone."""
    cdef list found = list(texts)
    cdef Items items = new_items(len(found))
    cdef Py_ssize_t i
    for i in range(items.count):
        items.hashes[i] = hash_of(<str?>found[i], key0, key1)
        items.not_before[i] = 0
    return items
