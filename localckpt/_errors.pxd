# Errors of PETSc, HDF5 and MPI as exceptions, in sections that are one thread's and that Ctrl-C does not interrupt.

from libc.stdint cimport int64_t

cdef void lock_libraries() noexcept
cdef void unlock_libraries() noexcept
cdef void hold_interrupts() noexcept
cdef void release_interrupts() noexcept
cdef void begin_section() noexcept
cdef int begin_section_unless_interrupted() except -1
cdef void end_section() noexcept
cdef int CHKERR(int ierr) except -1 nogil
cdef int64_t CHKH5(int64_t status) except -1 nogil
cdef int CHKMPI(int ierr) except -1 nogil
