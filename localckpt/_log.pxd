# PETSc's log events for saving and loading: their count, time and bytes in -log_view.

from petsc cimport PetscLogEvent

cdef PetscLogEvent SAVE, LOAD
cdef void log_begin(PetscLogEvent event) noexcept nogil
cdef void log_end(PetscLogEvent event, long long nbytes) noexcept nogil
