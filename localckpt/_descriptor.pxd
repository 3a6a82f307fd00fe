# Plain descriptors of files.

from libc.stdint cimport int64_t


cdef class Descriptor:
    cdef int fd
    cdef readonly str path

    cdef int reserve(self, int64_t start, int64_t nbytes) except -1
