# cython: language_level=3
"""PETSc's log events for saving and loading.

``-log_view`` shows their count and time, and the bytes as it shows those of messages
(columns Mess and AvgLen).
"""

from petsc cimport (PetscClassId, PetscClassIdRegister, PetscLogEventBegin, PetscLogEventEnd,
                    PetscLogEventRegister, count_message)
from localckpt._errors cimport CHKERR

import localckpt._petsc  # no-cython-lint  (starts PETSc, with which events are registered, if it is the right one)


def _register_events():
    cdef PetscClassId package = 0
    CHKERR(PetscClassIdRegister(b"localckpt", &package))
    CHKERR(PetscLogEventRegister(b"localckptSave", package, &SAVE))
    CHKERR(PetscLogEventRegister(b"localckptLoad", package, &LOAD))


_register_events()


cdef void log_begin(PetscLogEvent event) noexcept nogil:
    PetscLogEventBegin(event, NULL, NULL, NULL, NULL)


cdef void log_end(PetscLogEvent event, long long nbytes) noexcept nogil:
    count_message(nbytes)
    PetscLogEventEnd(event, NULL, NULL, NULL, NULL)
