# cython: language_level=3
"""Exceptions of the storage side, and how errors of PETSc, HDF5 and MPI become them.

Every call of these libraries that may fail is checked by ``CHKERR`` (PETSc), ``CHKH5`` (HDF5) or
``CHKMPI`` (MPI), which raise a :class:`TransferError` with the library's own words.

Such calls are made in sections, between :c:func:`begin_section` and :c:func:`end_section`.  There PETSc
and HDF5 report errors into one buffer instead of stderr; afterwards the handlers that were installed
before are back in place.  One thread at a time is in a section, others wait: neither library is
thread-safe, nor is MPI always.  Ctrl-C waits, too, since other ranks may wait for the calls to come.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (NOWAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_get_thread_ident,
                               PyThread_release_lock, PyThread_type_lock, WAIT_LOCK)
from libc.stdio cimport snprintf
from libc.stdint cimport int64_t
from libc.string cimport strlen
from mpi4py.libmpi cimport MPI_Comm, MPI_Error_string, MPI_MAX_ERROR_STRING

from hdf5 cimport (H5E_auto2_t, H5E_DEFAULT, H5E_error2_t, H5E_WALK_UPWARD, H5Eclear2,
                   H5Eget_auto2, H5Eset_auto2, H5Ewalk2, herr_t)
from petsc cimport PetscErrorCode, PetscErrorType, PetscPopErrorHandler, PetscPushErrorHandler

__all__ = [
    "ChecksumError",
    "ClosedFileError",
    "ExistingFileError",
    "FileAccessError",
    "LayoutError",
    "LostCheckpointError",
    "MissingDatasetError",
    "MissingFileError",
    "NotHDF5Error",
    "StorageError",
    "TransferError",
]


# -----------------------------------------------------------------------------
# The exceptions
# -----------------------------------------------------------------------------

class StorageError(Exception):
    """Base class of the exceptions that localckpt's storage raises.

    Parameters
    ----------
    cause : str
        The cause, in the words of PETSc, HDF5 or the system if they gave any.
    file : str, optional
        Path of the file concerned.
    dataset : str, optional
        Name of the dataset concerned.
    rank : int, optional
        The lowest rank (in the file's communicator) that failed.
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
    """The file, or the directory that it was to be created in, does not exist."""


class ExistingFileError(StorageError, FileExistsError):
    """Something exists at the path of a file that was to be created."""


class FileAccessError(StorageError, PermissionError):
    """The file may not be read or written: permissions, a read-only directory or mode."""


class NotHDF5Error(StorageError, OSError):
    """The file exists but is not a whole HDF5 file."""


class MissingDatasetError(StorageError, KeyError):
    """No dataset of that name in the file."""


class LayoutError(StorageError, ValueError):
    """Sizes, partition or number type differ between memory and file."""


class ClosedFileError(StorageError, ValueError):
    """The file is closed, or its communicator has been freed."""


class TransferError(StorageError, OSError):
    """PETSc, HDF5, MPI-IO or the system failed during the operation."""


class ChecksumError(TransferError):
    """The bytes that were read are not those that were written."""


class LostCheckpointError(StorageError, OSError):
    """A checkpoint could not be stored in any directory: the run cannot go on."""


# -----------------------------------------------------------------------------
# One thread at a time, and no Ctrl-C
# -----------------------------------------------------------------------------

cdef extern from "interrupts.h":
    void hold_interrupts_here()
    void release_interrupts_here()
    void forget_interrupts_here()

cdef PyThread_type_lock library_lock = PyThread_allocate_lock()
cdef unsigned long lock_owner  # a thread, if lock_depth > 0
cdef int lock_depth = 0


cdef void lock_libraries() noexcept:
    """Wait until no other thread is inside PETSc, HDF5 or MPI on localckpt's behalf. A thread may do so again."""
    global lock_owner, lock_depth
    if lock_depth == 0 or lock_owner != PyThread_get_thread_ident():
        if not PyThread_acquire_lock(library_lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(library_lock, WAIT_LOCK)
        lock_owner = PyThread_get_thread_ident()
    lock_depth += 1


cdef void unlock_libraries() noexcept:
    global lock_depth
    if lock_depth == 0:  # this is a child that was forked in between
        return
    lock_depth -= 1
    if lock_depth == 0:
        PyThread_release_lock(library_lock)


cdef void hold_interrupts() noexcept:
    """Let Ctrl-C wait until :c:func:`release_interrupts`."""
    hold_interrupts_here()


cdef void release_interrupts() noexcept:
    release_interrupts_here()


# -----------------------------------------------------------------------------
# Sections
# -----------------------------------------------------------------------------

cdef enum:
    MESSAGE_SIZE = 8192

cdef char messages[MESSAGE_SIZE]  # of PETSc, HDF5 and MPI since the last exception
cdef int section_depth = 0
cdef H5E_auto2_t hdf5_handler_before
cdef void* hdf5_data_before


cdef void append_message(const char* function, const char* message) noexcept nogil:
    cdef size_t used = strlen(messages)
    cdef const char* separator = b"; "
    # PETSc passes " " on the way up.
    if message != NULL and message[0] not in (0, b' ') and used < MESSAGE_SIZE - 1:
        snprintf(messages + used, MESSAGE_SIZE - used, "%s%s: %s", separator if used else separator + 2,
                 function if function != NULL else separator, message)


cdef PetscErrorCode append_petsc(
        MPI_Comm comm, int line, const char* function, const char* file,
        PetscErrorCode n, PetscErrorType kind, const char* message, void* ctx) noexcept nogil:
    append_message(function, message)
    return n


cdef herr_t append_hdf5(unsigned n, const H5E_error2_t* error, void* ctx) noexcept nogil:
    append_message(error.func_name, error.desc)
    return 0


cdef void install_handlers() noexcept:
    messages[0] = 0
    PetscPushErrorHandler(append_petsc, NULL)
    H5Eget_auto2(H5E_DEFAULT, &hdf5_handler_before, &hdf5_data_before)
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL)
    H5Eclear2(H5E_DEFAULT)


cdef void restore_handlers() noexcept:
    H5Eclear2(H5E_DEFAULT)
    H5Eset_auto2(H5E_DEFAULT, hdf5_handler_before, hdf5_data_before)
    PetscPopErrorHandler()


cdef void begin_section() noexcept:
    """Begin a section, or one inside another."""
    global section_depth
    lock_libraries()
    section_depth += 1
    if section_depth == 1:
        hold_interrupts()
        install_handlers()


cdef int begin_section_unless_interrupted() except -1:
    """The same, but raise KeyboardInterrupt if Ctrl-C came before."""
    begin_section()
    try:
        PyErr_CheckSignals()
    except BaseException:
        end_section()
        raise
    return 0


cdef void end_section() noexcept:
    global section_depth
    if section_depth == 0:  # this is a child that was forked in between
        return
    section_depth -= 1
    if section_depth == 0:
        restore_handlers()
        release_interrupts()
    unlock_libraries()


def _leave_sections():
    """A forked child has one thread, which is in no section."""
    global library_lock, lock_depth, section_depth
    library_lock = PyThread_allocate_lock()
    if section_depth:
        restore_handlers()
    lock_depth = section_depth = 0
    forget_interrupts_here()


os.register_at_fork(after_in_child=_leave_sections)


# -----------------------------------------------------------------------------
# Checks
# -----------------------------------------------------------------------------

cdef int raise_messages() except -1 with gil:
    # HDF5's own messages lie on its stack until its next call; the innermost
    # cause comes first in an upward walk.
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, append_hdf5, NULL)
    H5Eclear2(H5E_DEFAULT)
    cause = (<bytes> messages).decode(errors="replace")
    messages[0] = 0
    raise TransferError(cause or "PETSc or HDF5 failed without a message")


cdef int CHKERR(int ierr) except -1 nogil:
    if ierr != 0:
        return raise_messages()
    return 0


cdef int64_t CHKH5(int64_t status) except -1 nogil:
    if status < 0:
        raise_messages()
        return -1
    return status


cdef int CHKMPI(int ierr) except -1 nogil:
    cdef char message[MPI_MAX_ERROR_STRING + 1]
    cdef int n = 0
    if ierr != 0:
        message[0] = 0
        MPI_Error_string(ierr, message, &n)
        append_message("MPI", message)
        return raise_messages()
    return 0
