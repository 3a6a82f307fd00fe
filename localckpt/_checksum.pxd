# Checksums of bytes in memory.

from libc.stdint cimport int64_t

cdef int64_t checksum_of(const void* data, size_t nbytes, int seed=*) except -1
