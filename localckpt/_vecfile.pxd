# For Cython code that writes plain buffers: `from localckpt._vecfile cimport VecFile`.

cdef class VecFile:
    cdef readonly object comm
    cdef readonly str path
    cdef readonly str mode
    cdef object _handle
    # n PetscScalars of this rank at data, stored under name with block size bs. Collective.
    cdef int write_scalars(self, object name, const void* data, long long n, long long bs) except -1
    cdef int read_scalars(self, object name, void* data, long long n) except -1
