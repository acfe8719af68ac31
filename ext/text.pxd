# A str's UTF-8, written where it belongs without an object between. CPython's own form keeps a copy in the str for ever.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from cpython.object cimport PyObject

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(PyObject*) noexcept
    bint PyUnicode_IS_ASCII(PyObject*) noexcept
    int PyUnicode_KIND(PyObject*) noexcept
    void* PyUnicode_DATA(PyObject*) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject*) noexcept
    uint32_t PyUnicode_READ(int, void*, Py_ssize_t) noexcept


# Lone surrogates have no UTF-8: -1.
cdef inline Py_ssize_t utf8_size(PyObject* text) noexcept:
    cdef Py_ssize_t i, size = 0, length = PyUnicode_GET_LENGTH(text)
    cdef uint32_t c
    if PyUnicode_IS_ASCII(text):
        return length
    for i in range(length):
        c = PyUnicode_READ(PyUnicode_KIND(text), PyUnicode_DATA(text), i)
        if 0xD800 <= c <= 0xDFFF:
            return -1
        size += 1 if c < 0x80 else 2 if c < 0x800 else 3 if c < 0x10000 else 4
    return size


cdef inline void put_utf8(uint8_t* at, PyObject* text, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    cdef uint32_t c
    if PyUnicode_IS_ASCII(text):
        memcpy(at, PyUnicode_DATA(text), size)
        return
    for i in range(PyUnicode_GET_LENGTH(text)):
        c = PyUnicode_READ(PyUnicode_KIND(text), PyUnicode_DATA(text), i)
        if c < 0x80:
            at[0] = <uint8_t>c
            at += 1
        elif c < 0x800:
            at[0] = <uint8_t>(0xC0 | c >> 6)
            at[1] = <uint8_t>(0x80 | c & 0x3F)
            at += 2
        elif c < 0x10000:
            at[0] = <uint8_t>(0xE0 | c >> 12)
            at[1] = <uint8_t>(0x80 | c >> 6 & 0x3F)
            at[2] = <uint8_t>(0x80 | c & 0x3F)
            at += 3
        else:
            at[0] = <uint8_t>(0xF0 | c >> 18)
            at[1] = <uint8_t>(0x80 | c >> 12 & 0x3F)
            at[2] = <uint8_t>(0x80 | c >> 6 & 0x3F)
            at[3] = <uint8_t>(0x80 | c & 0x3F)
            at += 4
