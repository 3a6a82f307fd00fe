# cython: language_level=3
"""Checksums of bytes in memory: XXH3 without its highest bit, so that it is a positive int64 in HDF5."""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport INT64_MAX

from xxhash import xxh3_64_intdigest


cdef int64_t checksum_of(const void* data, size_t nbytes, int seed=0) except -1:
    view = PyMemoryView_FromMemory(<char*> data, <Py_ssize_t> nbytes, PyBUF_READ) if nbytes else b""
    return xxh3_64_intdigest(view, seed) & INT64_MAX
