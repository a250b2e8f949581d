# cython: language_level=3
"""A growing buffer, and integers in network byte order: what the persister's compiled modules share."""

from cpython.mem cimport PyMem_Realloc
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef struct Buffer:
    char *begin  # freed with PyMem_Free by its owner
    Py_ssize_t length
    Py_ssize_t room


cdef inline int grow(Buffer *buffer, Py_ssize_t more) except -1:
    cdef Py_ssize_t room = buffer.room * 2 if buffer.room * 2 >= buffer.length + more else buffer.length + more + 4096
    cdef void *moved = PyMem_Realloc(buffer.begin, room)
    if moved == NULL:
        raise MemoryError
    buffer.begin, buffer.room = <char *>moved, room
    return 0


cdef inline int add(Buffer *buffer, const char *begin, Py_ssize_t length) except -1:
    if buffer.length + length > buffer.room:
        grow(buffer, length)
    memcpy(buffer.begin + buffer.length, begin, length)
    buffer.length += length
    return 0


cdef inline void put_big(char *to, uint64_t number, int width) noexcept nogil:
    cdef int at
    for at in range(width - 1, -1, -1):
        to[at] = <char>(number & 255)
        number >>= 8


cdef inline uint64_t get_big(const char *begin, int width) noexcept nogil:
    cdef uint64_t number = 0
    cdef int at
    for at in range(width):
        number = number << 8 | <unsigned char>begin[at]
    return number
