# cython: language_level=3
"""PETSc's log events for saving and loading.

``-log_view`` shows their count and time, and the bytes as it shows those of messages
(columns Mess and AvgLen).
"""

from petsc cimport (PetscClassId, PetscClassIdRegister, PetscLogEventBegin, PetscLogEventEnd,
                    PetscLogEventRegister)
from localckpt._errors cimport CHKERR

cdef extern from *:
    """
    #include <petsclog.h>
    #if !defined(PETSC_USE_LOG)  /* the counters exist only in a PETSc with logging */
      #define count_message(nbytes) ((void)(nbytes))
    #elif PETSC_VERSION_GE(3, 20, 0)
      #define count_message(nbytes) ((void)PetscAddLogDouble(&petsc_send_ct, &petsc_send_ct_th, 1), \\
                                     (void)PetscAddLogDouble(&petsc_send_len, &petsc_send_len_th, (nbytes)))
    #else
      #define count_message(nbytes) (petsc_send_ct += 1, petsc_send_len += (nbytes))
    #endif
    """
    void count_message(long long) noexcept nogil


def _register_events():
    cdef PetscClassId package = 0
    CHKERR(PetscClassIdRegister(b"localckpt", &package))
    CHKERR(PetscLogEventRegister(b"localckptSave", package, &SAVE))
    CHKERR(PetscLogEventRegister(b"localckptLoad", package, &LOAD))


import localckpt._petsc  # no-cython-lint  (starts PETSc, with which events are registered, if it is the right one)

_register_events()


cdef void log_begin(PetscLogEvent event) noexcept nogil:
    PetscLogEventBegin(event, NULL, NULL, NULL, NULL)


cdef void log_end(PetscLogEvent event, long long nbytes) noexcept nogil:
    count_message(nbytes)
    PetscLogEventEnd(event, NULL, NULL, NULL, NULL)
