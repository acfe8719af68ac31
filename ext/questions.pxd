"""A question in one piece of memory, for the matcher's table: texts next to each other, so that comparing them is one walk.

Inlined where it is used. No state; the one Python object that a place holds is its decision.
"""

from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_DATA, PyUnicode_GET_LENGTH, PyUnicode_KIND
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy


cdef struct Place:          # a question: its texts follow, each a Head and its characters
    PyObject* decision
    Py_ssize_t links


cdef struct Head:
    uint32_t chars
    uint32_t width          # bytes of each character


cdef inline size_t bytes_of(str text) noexcept:
    return PyUnicode_GET_LENGTH(text) * <size_t>PyUnicode_KIND(text)


cdef inline const char* matched(const char* at, str text) noexcept:
    """Where the next text begins; NULL when `text` is not the one that stands here, or `at` is NULL."""
    cdef Head head
    if at == NULL:
        return NULL
    memcpy(&head, at, sizeof(Head))
    if (head.chars != <size_t>PyUnicode_GET_LENGTH(text) or head.width != <size_t>PyUnicode_KIND(text)
            or memcmp(at + sizeof(Head), PyUnicode_DATA(text), bytes_of(text)) != 0):
        return NULL
    return at + sizeof(Head) + bytes_of(text)


cdef inline char* written(char* at, str text) noexcept:
    cdef Head head
    head.chars, head.width = PyUnicode_GET_LENGTH(text), PyUnicode_KIND(text)
    memcpy(at, &head, sizeof(Head))
    memcpy(at + sizeof(Head), PyUnicode_DATA(text), bytes_of(text))
    return at + sizeof(Head) + bytes_of(text)


cdef inline void drop(Place* place):
    if place != NULL:
        Py_DECREF(<object>place.decision)
        PyMem_Free(place)
