# cython: language_level=3
"""How an error of one rank reaches all of them.

Between two collective calls nothing may raise on one rank alone, or the others wait for it in
the next one.  So a rank does its work in between in a ``try`` and hands the error that it caught,
or None, to :func:`raise_everywhere`, which all ranks call.  Ctrl-C waits until such a section is
over (:class:`interrupts_held`).
"""

import pickle

from cpython.exc cimport PyErr_CheckSignals
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm

from localckpt._errors cimport CHKMPI, hold_interrupts, lock_libraries, release_interrupts, unlock_libraries
from localckpt._errors import StorageError, TransferError

__all__ = ["interrupts_held", "raise_everywhere"]


cdef class interrupts_held:
    """A context in which Ctrl-C (SIGINT) waits: for code that runs between two collective calls."""

    def __enter__(self):
        hold_interrupts()
        try:
            PyErr_CheckSignals()  # one that came before
        except BaseException:
            release_interrupts()
            raise

    def __exit__(self, *exc):
        release_interrupts()


UNDESCRIBABLE = pickle.dumps(StorageError("an error that cannot be described"))


cdef bytes pickled(object error):
    """The error as bytes, or, if it cannot be pickled, a TransferError with its words."""
    for describe in (lambda: error, lambda: TransferError(f"{type(error).__name__}: {error}")):
        try:
            payload = pickle.dumps(describe())
            if isinstance(pickle.loads(payload), BaseException):
                return payload
        except Exception:
            pass
    return UNDESCRIBABLE


cdef int raise_everywhere_on(mpi.MPI_Comm comm, object error) except -1:
    """:func:`raise_everywhere` in a section. Collective on `comm`."""
    cdef int rank = 0, size = 1, lowest, nbytes = 0
    cdef bytes payload = b""
    cdef char* buffer
    CHKMPI(mpi.MPI_Comm_size(comm, &size))
    if size == 1:
        if error is not None:
            raise error
        return 0
    CHKMPI(mpi.MPI_Comm_rank(comm, &rank))
    lowest = size  # rank that has an error
    if error is not None:
        lowest = rank
        if isinstance(error, StorageError) and error.rank is None:
            error.rank = rank
        payload = pickled(error)  # before anybody waits for it
        nbytes = <int> len(payload)
    with nogil:
        CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &lowest, 1, mpi.MPI_INT, mpi.MPI_MIN, comm))
    if lowest == size:
        return 0
    with nogil:
        CHKMPI(mpi.MPI_Bcast(&nbytes, 1, mpi.MPI_INT, lowest, comm))
    if rank != lowest:
        payload = bytes(nbytes)
    buffer = payload
    with nogil:
        CHKMPI(mpi.MPI_Bcast(buffer, nbytes, mpi.MPI_CHAR, lowest, comm))
    received = pickle.loads(payload)
    if rank != lowest:
        raise received
    if type(received) is type(error):
        raise error
    raise received from error


def raise_everywhere(Comm comm not None, error):
    """Raise the error of the lowest rank that has one on every rank. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    error : BaseException or None
        Of this rank. If it is a :class:`~localckpt.StorageError` without a rank, it gets this one. If it cannot
        be pickled, a :class:`~localckpt.TransferError` with its words is raised instead.
    """
    lock_libraries()
    hold_interrupts()
    try:
        raise_everywhere_on(comm.ob_mpi, error)
    finally:
        release_interrupts()
        unlock_libraries()
