# cython: language_level=3
"""How an error of one rank reaches all of them.

Between two collective calls nothing may raise on one rank alone, or the others wait for it in
the next one.  So what a rank does in between it does in a ``try``, and what that caught goes
through :func:`raise_everywhere`, on all ranks.  Ctrl-C waits until such a section is over
(:class:`interrupts_held`).
"""

import pickle

from cpython.exc cimport PyErr_CheckSignals
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm

from localckpt._errors cimport CHKMPI, end_turn, hold_interrupts, release_interrupts, take_turn
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


NO_WORDS = pickle.dumps(StorageError("an error that cannot be described"))


cdef bytes packed(object error):
    """The error as bytes from which every rank can make it: those of another one where it cannot be pickled."""
    for describe in (lambda: error, lambda: TransferError(f"{type(error).__name__}: {error}")):
        try:
            payload = pickle.dumps(describe())
            if isinstance(pickle.loads(payload), BaseException):
                return payload
        except Exception:
            pass
    return NO_WORDS


cdef int raise_on_all(mpi.MPI_Comm comm, object error) except -1:
    cdef int rank = 0, size = 1, first, n = 0
    cdef bytes payload = b""
    cdef char* buffer
    CHKMPI(mpi.MPI_Comm_size(comm, &size))
    if size == 1:
        if error is not None:
            raise error
        return 0
    CHKMPI(mpi.MPI_Comm_rank(comm, &rank))
    first = size
    if error is not None:
        first = rank
        if isinstance(error, StorageError) and error.rank is None:
            error.rank = rank
        payload = packed(error)  # before anybody waits for it
        n = <int> len(payload)
    with nogil:
        CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &first, 1, mpi.MPI_INT, mpi.MPI_MIN, comm))
    if first == size:
        return 0
    with nogil:
        CHKMPI(mpi.MPI_Bcast(&n, 1, mpi.MPI_INT, first, comm))
    if rank != first:
        payload = bytes(n)
    buffer = payload
    with nogil:
        CHKMPI(mpi.MPI_Bcast(buffer, n, mpi.MPI_CHAR, first, comm))
    told = pickle.loads(payload)
    if first != rank:
        raise told
    if type(told) is type(error):
        raise error
    raise told from error


def raise_everywhere(Comm comm not None, error):
    """Raise the error of the lowest rank that has one on every rank. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    error : BaseException or None
        This rank's; a :class:`~localckpt.StorageError` without a rank gets this one. One that cannot be
        pickled is raised as a :class:`~localckpt.TransferError` with its words.
    """
    take_turn()
    hold_interrupts()
    try:
        raise_on_all(comm.ob_mpi, error)
    finally:
        release_interrupts()
        end_turn()
