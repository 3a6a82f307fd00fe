# The one way in which PETSc's and HDF5's failures become exceptions, one thread at a time and without Ctrl-C in
# between; `cimport`able.

from libc.stdint cimport int64_t

cdef void take_turn() noexcept
cdef void end_turn() noexcept
cdef void hold_interrupts() noexcept
cdef void release_interrupts() noexcept
cdef void begin_capture() noexcept
cdef int begin_section() except -1
cdef void end_capture() noexcept
cdef int CHKERR(int ierr) except -1 nogil
cdef int64_t CHKH5(int64_t status) except -1 nogil
cdef int CHKMPI(int ierr) except -1 nogil
