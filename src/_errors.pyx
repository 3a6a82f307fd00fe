# cython: language_level=3
"""Exceptions of the storage side, and how PETSc's and HDF5's errors become them.

Between :c:func:`begin_capture` and :c:func:`end_capture` both libraries report into
one text buffer instead of stderr; ``CHKERR`` (PETSc) and ``CHKH5`` (HDF5) raise
:class:`TransferError` with that text.  Whatever handlers were installed before are
back in place afterwards.  One thread at a time is in between, others wait: neither
library is thread-safe, nor is MPI always.  Ctrl-C waits, too, since other ranks may
wait for what comes next.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_get_thread_ident,
                               PyThread_release_lock, PyThread_type_lock, WAIT_LOCK)
from libc.stdio cimport snprintf
from libc.stdint cimport int64_t
from libc.string cimport strlen
from hdf5 cimport (H5E_auto2_t, H5E_DEFAULT, H5E_error2_t, H5E_WALK_UPWARD, H5Eclear2,
                   H5Eget_auto2, H5Eset_auto2, H5Ewalk2, herr_t)
from mpi4py.libmpi cimport MPI_Comm, MPI_Error_string, MPI_MAX_ERROR_STRING
from petsc cimport PetscErrorCode, PetscErrorType, PetscPopErrorHandler, PetscPushErrorHandler

__all__ = ["StorageError", "MissingFileError", "ExistingFileError", "FileAccessError", "NotHDF5Error", "MissingDatasetError",
           "LayoutError", "ClosedFileError", "TransferError", "ChecksumError",
           "LostCheckpointError"]


# -----------------------------------------------------------------------------
# The exceptions
# -----------------------------------------------------------------------------

class StorageError(Exception):
    """Root of everything that localckpt's storage raises.

    Parameters
    ----------
    cause : str
        What went wrong, in PETSc's, HDF5's or the system's words where there are any.
    file : str, optional
        Path of the file concerned.
    dataset : str, optional
        Name of the dataset concerned.
    rank : int, optional
        Rank (in the file's communicator) on which it went wrong first.
    errno : int, optional
        The system's error number.
    """

    def __init__(self, cause, file=None, dataset=None, rank=None, errno=None):
        super().__init__(cause)
        self.cause = cause
        self.file = file
        self.dataset = dataset
        self.rank = rank
        self.errno = errno

    def __str__(self):
        where = [f"file {self.file!r}" if self.file is not None else "",
                 f"dataset {self.dataset!r}" if self.dataset is not None else "",
                 f"rank {self.rank}" if self.rank is not None else ""]
        where = ", ".join(filter(None, where))
        return f"{self.cause} [{where}]" if where else str(self.cause)

    def __reduce__(self):
        return type(self), (self.cause, self.file, self.dataset, self.rank, self.errno)


class MissingFileError(StorageError, FileNotFoundError):
    """The file, or the directory it should go into, does not exist."""


class ExistingFileError(StorageError, FileExistsError):
    """There is something at the path where a new file was to be."""


class FileAccessError(StorageError, PermissionError):
    """The file may not be read or written: permissions, a read-only directory or mode."""


class NotHDF5Error(StorageError, OSError):
    """The file is there but is not a whole HDF5 file."""


class MissingDatasetError(StorageError, KeyError):
    """No dataset of that name in the file."""


class LayoutError(StorageError, ValueError):
    """Sizes, partition or number type differ between memory and file."""


class ClosedFileError(StorageError, ValueError):
    """The file, or the communicator it was to live on, is gone."""


class TransferError(StorageError, OSError):
    """PETSc, HDF5, MPI-IO or the system failed during the operation."""


class ChecksumError(TransferError):
    """The bytes that were read are not those that were written."""


class LostCheckpointError(StorageError, OSError):
    """A checkpoint could be stored nowhere: the run cannot go on."""


# -----------------------------------------------------------------------------
# Capturing what the libraries say
# -----------------------------------------------------------------------------

cdef enum:
    ROOM = 8192

cdef extern from "interrupts.h":
    void hold_interrupts_here()
    void release_interrupts_here()
    void forget_interrupts_here()

cdef char text[ROOM]
cdef PyThread_type_lock turn = PyThread_allocate_lock()
cdef unsigned long owner  # the thread whose turn it is, if turns > 0
cdef int turns = 0
cdef int captures = 0
cdef H5E_auto2_t h5_handler
cdef void* h5_data


cdef void hold_interrupts() noexcept:
    hold_interrupts_here()


cdef void release_interrupts() noexcept:
    release_interrupts_here()


cdef void append(const char* function, const char* message) noexcept nogil:
    cdef size_t used = strlen(text)
    cdef const char* separator = b"; "
    if message != NULL and message[0] not in (0, b' ') and used < ROOM - 1:  # PETSc passes " " on the way up
        snprintf(text + used, ROOM - used, "%s%s: %s", separator if used else separator + 2,
                 function if function != NULL else separator, message)


cdef PetscErrorCode keep_petsc(
        MPI_Comm comm, int line, const char* function, const char* file,
        PetscErrorCode n, PetscErrorType kind, const char* message, void* ctx) noexcept nogil:
    append(function, message)
    return n


cdef herr_t keep_hdf5(unsigned n, const H5E_error2_t* error, void* ctx) noexcept nogil:
    append(error.func_name, error.desc)
    return 0


cdef void take_turn() noexcept:
    """Wait until no other thread is inside PETSc, HDF5 or MPI on our behalf."""
    global owner, turns
    if turns == 0 or owner != PyThread_get_thread_ident():
        if not PyThread_acquire_lock(turn, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(turn, WAIT_LOCK)
        owner = PyThread_get_thread_ident()
    turns += 1


cdef void end_turn() noexcept:
    global turns
    if turns == 0:  # this is a child that was forked in between
        return
    turns -= 1
    if turns == 0:
        PyThread_release_lock(turn)


cdef void begin_capture() noexcept:
    global captures
    take_turn()
    captures += 1
    if captures > 1:
        return
    hold_interrupts()
    text[0] = 0
    PetscPushErrorHandler(keep_petsc, NULL)
    H5Eget_auto2(H5E_DEFAULT, &h5_handler, &h5_data)
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL)
    H5Eclear2(H5E_DEFAULT)


cdef int begin_section() except -1:
    """begin_capture, unless Python has an interrupt to handle first."""
    begin_capture()
    try:
        PyErr_CheckSignals()
    except BaseException:
        end_capture()
        raise
    return 0


cdef void end_capture() noexcept:
    global captures
    if captures == 0:  # this is a child that was forked in between
        return
    captures -= 1
    if captures == 0:
        restore_handlers()
        release_interrupts()
    end_turn()


cdef void restore_handlers() noexcept:
    H5Eclear2(H5E_DEFAULT)
    H5Eset_auto2(H5E_DEFAULT, h5_handler, h5_data)
    PetscPopErrorHandler()


def _forget_threads():
    """A forked child has one thread, which is not inside."""
    global turn, turns, captures
    turn = PyThread_allocate_lock()
    if captures:
        restore_handlers()
    turns = captures = 0
    forget_interrupts_here()


os.register_at_fork(after_in_child=_forget_threads)


cdef int fail() except -1 with gil:
    # What HDF5 itself says lies on its stack until its next call; the innermost
    # cause comes first in an upward walk.
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_hdf5, NULL)
    H5Eclear2(H5E_DEFAULT)
    said = (<bytes> text).decode(errors="replace")
    text[0] = 0
    raise TransferError(said or "PETSc or HDF5 failed without a message")


cdef int CHKERR(int ierr) except -1 nogil:
    if ierr != 0:
        return fail()
    return 0


cdef int64_t CHKH5(int64_t status) except -1 nogil:
    if status < 0:
        fail()
        return -1
    return status


cdef int CHKMPI(int ierr) except -1 nogil:
    cdef char said[MPI_MAX_ERROR_STRING + 1]
    cdef int n = 0
    if ierr != 0:
        said[0] = 0
        MPI_Error_string(ierr, said, &n)
        append("MPI", said)
        return fail()
    return 0
