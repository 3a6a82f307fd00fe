# cython: language_level=3
"""Open files: their communicators, opening, closing, forked children and the end of the process."""

import atexit
import errno as _errno
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from zlib import crc32

from mpi4py import MPI
from petsc4py import PETSc

from libc.stdint cimport INT64_MAX, uint64_t
from libc.stdlib cimport free, malloc
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm

from hdf5 cimport (H5F_SCOPE_GLOBAL, H5FD_MPIO_COLLECTIVE, H5Fflush, H5P_DATASET_XFER, H5P_DEFAULT, H5Pclose, H5Pcreate,
                   H5Pset_dxpl_mpio)
from petsc cimport (FILE_MODE_APPEND, FILE_MODE_READ, PETSC_FALSE, PETSC_TRUE, PetscBool, PetscCommDestroy,
                    PetscCommDuplicate, PetscFileMode, PetscFinalized, PetscViewerDestroy, PetscViewerHDF5GetFileId,
                    PetscViewerHDF5Open, PetscViewerHDF5SetBaseDimension2, PetscViewerHDF5SetCollective,
                    PetscViewerHDF5SetDefaultTimestepping, PetscViewerHDF5SetSPOutput)
from localckpt._checksum cimport checksum_of
from localckpt._collective cimport raise_everywhere_on
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI, begin_section, begin_section_unless_interrupted, end_section
from localckpt._errors import (ClosedFileError, ExistingFileError, FileAccessError, LayoutError, MissingFileError,
                               NotHDF5Error, StorageError, TransferError)

cdef enum:
    METADATA_ROOM = 1 << 16  # bytes that HDF5 may need beside the data, for one dataset and the next flush

# An empty HDF5 file in the format of HDF5 1.8, whose metadata carry checksums: superblock of version 2
# and header of the root group. HDF5 appends in the format of the file; PETSc creates older ones.
# It is as long as the blocks in which HDF5 allocates metadata, so that datasets begin at multiples of
# such a block, and mapped numbers are aligned as a CPU wants them.
cdef bytes EMPTY_FILE = (
    b"\x89HDF\r\n\x1a\n\x02\x08\x08\0" + bytes(8) + b"\xff" * 8 + b"\0\x08" + bytes(6) + b"\x30" + bytes(7)
    + b"\xec\x1c\x6e\x94"                                              # the superblock's checksum
    + b"OHDR\x02\0\x78" + b"\x02\x12\0\0\0\0" + b"\xff" * 16  # links, of which there are none
    + b"\x0a\x02\0\x01\0\0" + b"\0\x58\0\0" + bytes(88) + b"\xc5\xb9\xc8\xac").ljust(2048, b"\0")

# Every file that is open in this process, in the order of opening. Opening is collective,
# so on each communicator all its ranks have the same files here in the same order.
cdef list open_handles = []

cdef int discard_descriptor = -1  # of a file that nobody will ever read


cdef class Handle:
    """An open file: PETSc's viewer, its HDF5 id and PETSc's duplicate of the communicator.

    Apart from :class:`VecFile` so that it outlives one that was dropped: closing is
    collective, and garbage collection is not.
    """

    def __cinit__(self):
        self.viewer = NULL
        self.announced = NULL
        self.dxpl = H5P_DEFAULT
        self.layouts = {}
        self.damaged_objects = {}
        self.closed_reason = "the file is closed"

    def __dealloc__(self):
        free(self.announced)

    # ------------------------------------------------------------------ errors and agreement

    cdef int raise_everywhere(self, error) except -1:
        """Raise the error of the lowest failing rank on every rank. Collective."""
        return raise_everywhere_on(self.comm, error)

    cdef object located(self, error, dataset=None):
        """The error, which names this file and the dataset if it is one of localckpt's."""
        if isinstance(error, StorageError):
            error.file, error.dataset = self.path, dataset
        return error

    cdef object as_transfer_error(self, error, doing):
        """An error of the system as a TransferError; any of localckpt's names this file if it names none."""
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            return TransferError(f"{error.strerror}, {doing}", self.path, errno=error.errno)
        if isinstance(error, StorageError):
            error.file = error.file or self.path
        return error

    cdef tuple agree_on_call(self, object call, object n, object nbytes, const void* data, object error):
        """All ranks' numbers of entries, and one checksum of all ranks' bytes. Collective.

        If a rank has an error, or makes another call than rank 0, this raises on every rank.
        """
        cdef int i, differing = 0
        cdef bint failed = False
        cdef uint64_t total = 0
        cdef Announcement* own = &self.announced[self.rank]
        if error is None:
            try:
                own.entries = n
                own.call = crc32(repr(call).encode(errors="surrogateescape"))
                own.data_checksum = checksum_of(data, nbytes, self.rank)
            except Exception as exc:
                error = exc
        if error is not None:
            own.entries = -1
        if self.size > 1:
            with nogil:
                CHKMPI(mpi.MPI_Allgather(mpi.MPI_IN_PLACE, 0, mpi.MPI_DATATYPE_NULL, self.announced,
                                         sizeof(Announcement) // sizeof(int64_t), mpi.MPI_INT64_T, self.comm))
        for i in range(self.size):
            failed |= self.announced[i].entries < 0
            if self.announced[i].call != self.announced[0].call and not differing:
                differing = i
            total += <uint64_t> self.announced[i].data_checksum
        if failed:
            self.raise_everywhere(error)
        if differing:
            raise LayoutError(f"not all ranks make the same call; rank 0 and rank {differing} differ",
                              self.path if self.viewer != NULL else None)
        return tuple([self.announced[i].entries for i in range(self.size)]), total & INT64_MAX

    # ------------------------------------------------------------------ disk space

    cdef int reserve(self, int64_t start, int64_t nbytes) except -1:
        """Reserve disk space for the next bytes, and for HDF5's own needs. Not collective: rank 0 does it.

        A full disk is found here. Found in MPI-IO it would leave a file that HDF5 can
        neither flush nor close.  If the filesystem cannot reserve, it is found there.

        Parameters
        ----------
        start : int
            Where the bytes are in the file; -1 for the end of what is allocated.
        nbytes : int
        """
        if self.rank > 0:
            return 0
        if start < 0:  # VecView's flush has made the file as long as HDF5 thinks it is
            start = max(os.fstat(self.descriptor.fd).st_size, self.reserved_end)
        self.descriptor.reserve(start, nbytes + METADATA_ROOM)
        self.reserved_end = max(self.reserved_end, start + nbytes)
        return 0

    # ------------------------------------------------------------------ closing

    cdef int close(self) except -1:
        """Close the file and free its communicator. Collective where there are several ranks."""
        cdef PetscViewer viewer
        cdef hid_t dxpl = self.dxpl
        cdef int discard = 0  # whether the file's metadata need not, or cannot, be written
        error = None
        begin_section()
        try:
            if self.viewer == NULL:
                return 0
            viewer = self.viewer
            self.viewer = NULL
            open_handles.remove(self)
            try:
                # Nobody can open an unlinked file again.
                discard = self.mode != "r" and os.fstat(self.descriptor.fd).st_nlink == 0
            except Exception as exc:
                error, discard = self.as_transfer_error(exc, "closing the file"), 1
            if self.size > 1:  # flushing is collective
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &discard, 1, mpi.MPI_INT, mpi.MPI_MAX, self.comm))
            try:
                if not discard and self.mode != "r":
                    with nogil:
                        CHKH5(H5Fflush(self.id, H5F_SCOPE_GLOBAL))
            except StorageError as exc:
                error, discard = self.as_transfer_error(exc, "closing the file"), 1
            try:
                if discard:
                    discard_writes(self)
                with nogil:
                    if dxpl != H5P_DEFAULT:
                        CHKH5(H5Pclose(dxpl))
                    CHKERR(PetscViewerDestroy(&viewer))
            except Exception as exc:
                error = error or self.as_transfer_error(exc, "closing the file")
            self.descriptor = None
            if discard:
                with suppress(Exception):
                    os.ftruncate(discard_descriptor, 0)
            try:
                self.raise_everywhere(error)
            finally:
                PetscCommDestroy(&self.comm)
        finally:
            end_section()
        return 0

    cdef int abandon(self) except -1:
        """Undo an opening that failed."""
        if self.dxpl != H5P_DEFAULT:
            H5Pclose(self.dxpl)
        if self.viewer != NULL:
            PetscViewerDestroy(&self.viewer)
            self.viewer = NULL
        if self.created:  # or the next try would find that there is such a file
            with suppress(Exception):
                os.unlink(self.path)
        PetscCommDestroy(&self.comm)
        return 0


cdef discard_writes(Handle handle):
    """Let MPI-IO's descriptors refer to another file, which nobody reads. Not collective, and never raises.

    HDF5 writes its metadata when it closes a file; if it cannot, it keeps the id of an object
    that it has freed, and crashes on it at exit.
    """
    for number in handle.mpiio_descriptors:
        try:
            try:
                stat = os.fstat(number)
                is_this_file = (stat.st_dev, stat.st_ino) == handle.device_and_inode
            except OSError as exc:
                is_this_file = exc.errno != _errno.EBADF  # it is open, and its file out of reach
            if is_this_file:
                os.dup2(discard_descriptor, number, inheritable=False)
        except Exception:  # all ranks have to come to the closing
            pass


cdef close_dropped(Handle new):
    """Close the files on new's communicator that every rank has dropped. Collective."""
    cdef int dropped
    cdef Handle handle
    for handle in open_handles[:]:
        if handle.comm == new.comm and handle is not new:
            dropped = handle.dropped
            if new.size > 1:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &dropped, 1, mpi.MPI_INT, mpi.MPI_MIN, new.comm))
            if dropped:
                handle.close()


# -----------------------------------------------------------------------------
# The end of the process, and forked children
# -----------------------------------------------------------------------------

@atexit.register
def _close_all():
    """Close every open file, before PETSc and MPI are finalized."""
    cdef Handle handle
    cdef PetscBool finalized = PETSC_FALSE
    PetscFinalized(&finalized)
    if finalized or MPI.Is_finalized():
        return
    for handle in open_handles[:]:
        try:
            handle.close()
        except Exception as exc:
            warnings.warn(f"closing at exit: {exc}", ResourceWarning)


def _leave_files_to_parent():
    """In a forked child: the open files stay its parent's."""
    cdef Handle handle
    parents = open_handles[:]
    del open_handles[:]
    for handle in parents:
        handle.viewer = NULL
        handle.closed_reason = "the file belongs to the process that opened it"
    if parents:
        atexit.register(_exit_child, getattr(sys, "last_value", None))
        atexit.register(_close_all)  # runs before that: the child may have files of its own


def _exit_child(last_value_at_fork):
    """End this forked child before HDF5 writes to its parent's files, or MPI_Finalize waits for ever.

    The status is 1 if the interpreter has shown an exception since the fork, else 0: the status that
    sys.exit() was given is passed to no exit handler.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(getattr(sys, "last_value", None) is not last_value_at_fork)


os.register_at_fork(after_in_child=_leave_files_to_parent)


# -----------------------------------------------------------------------------
# Opening
# -----------------------------------------------------------------------------

cdef Handle open_handle(object comm, object path, object mode, object collective):
    """Open path, or raise the same exception on every rank of comm. Collective."""
    cdef Handle handle = Handle()
    cdef MPI_Comm users
    cdef bint is_new
    if not isinstance(comm, Comm) or comm == MPI.COMM_NULL:
        raise ClosedFileError("there is no communicator (freed, or COMM_NULL)", file=str(path))
    users = (<Comm> comm).ob_mpi
    begin_section_unless_interrupted()
    try:
        with nogil:
            CHKERR(PetscCommDuplicate(users, &handle.comm, NULL))
        try:
            CHKMPI(mpi.MPI_Comm_rank(handle.comm, &handle.rank))
            CHKMPI(mpi.MPI_Comm_size(handle.comm, &handle.size))
            name, collective = agree_on_arguments(handle, path, mode, collective)
            close_dropped(handle)
            is_new = open_descriptors(handle)
            descriptors = prepare_file(handle, is_new)
            open_viewer(handle, name, is_new, collective, descriptors)
        except BaseException:
            handle.abandon()
            raise
    finally:
        end_section()
    open_handles.append(handle)
    return handle


cdef tuple agree_on_arguments(Handle handle, object path, object mode, object collective):
    """The path in the system's encoding and whether to use collective transfers. Collective."""
    global discard_descriptor
    cdef bytes name = b""
    handle.announced = <Announcement*> malloc(handle.size * sizeof(Announcement))
    if handle.announced == NULL:
        raise MemoryError()
    error = None
    try:
        handle.path = os.fspath(path)
        name = os.fsencode(path)
        if b"\0" in name:
            raise ValueError(f"a path has no null byte: {path!r}")
        if b":" in name and sizeof(MPI_Comm) == sizeof(int):
            raise TransferError("MPICH's MPI-IO takes the part of a path before a colon for a type of filesystem",
                                handle.path, errno=_errno.EINVAL)
        if mode not in ("r", "w", "x", "a"):
            raise ValueError(f"mode is 'r', 'w', 'x' or 'a', not {mode!r}")
        handle.mode = mode
        if collective is None:
            collective = PETSc.Options("localckpt_").getBool("collective", False)
        collective = bool(collective)
        if discard_descriptor < 0:
            discard_descriptor = open_discard_descriptor()
    except Exception as exc:
        error = handle.as_transfer_error(exc, "opening the file")
    handle.agree_on_call((name, mode, collective), 0, 0, NULL, error)
    return name, collective


cdef int open_discard_descriptor() except -1:
    """A descriptor of a file without a name: in memory, where this Python can make one there."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nowhere")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


cdef bint open_descriptors(Handle handle) except -1:
    """Open a plain descriptor on every rank, and return whether the file is new. Collective.

    Where some ranks see a file and others don't, MPI-IO and HDF5 would go on, and then hang.
    """
    cdef bint is_new = False
    for rank0s_turn in (True, False):  # rank 0 creates the file, then the others look for it
        error = None
        try:
            if rank0s_turn == (handle.rank == 0):
                open_descriptor(handle)
                handle.created = rank0s_turn and handle.mode == "x"
                stat = os.fstat(handle.descriptor.fd)
                handle.device_and_inode = stat.st_dev, stat.st_ino
                is_new = handle.mode in ("w", "x") or handle.mode == "a" and stat.st_size == 0
        except Exception as exc:
            error = handle.as_transfer_error(exc, "opening the file")
        handle.raise_everywhere(error)
    return is_new


cdef int open_descriptor(Handle handle) except -1:
    """Open a plain descriptor; rank 0 creates the file if its mode says so."""
    flags = os.O_RDONLY if handle.mode == "r" else os.O_RDWR
    if handle.mode == "x":
        flags |= os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if handle.rank == 0 else 0)
    elif handle.rank == 0 and (handle.mode == "w" or handle.mode == "a" and not os.path.exists(handle.path)):
        flags |= os.O_CREAT
    try:
        handle.descriptor = Descriptor(handle.path, flags)
        if os.path.isdir(handle.path):  # a directory can be opened for reading
            raise IsADirectoryError(_errno.EISDIR, os.strerror(_errno.EISDIR))
    except OSError as exc:
        kind = (MissingFileError if exc.errno in (_errno.ENOENT, _errno.ENOTDIR) else
                ExistingFileError if exc.errno == _errno.EEXIST else
                FileAccessError if exc.errno in (_errno.EACCES, _errno.EPERM, _errno.EROFS) else
                TransferError)
        raise kind(exc.strerror, handle.path, errno=exc.errno)
    return 0


cdef set prepare_file(Handle handle, bint is_new):
    """Write an empty HDF5 file if it is new, and make sure that MPI-IO can open it. Collective.

    Returns the numbers of the descriptors that the process has of it.
    """
    cdef set descriptors = None
    error = None
    try:
        if is_new and handle.rank == 0:
            # Not by HDF5, which crashes at exit on metadata that it could not write.
            os.ftruncate(handle.descriptor.fd, 0)
            written = 0
            while written < len(EMPTY_FILE):
                written += os.pwrite(handle.descriptor.fd, EMPTY_FILE[written:], written)
        descriptors = own_descriptors(handle)
        if handle.size > 1:
            try_descriptors(handle)
    except Exception as exc:
        error = handle.as_transfer_error(exc, "opening the file")
    handle.raise_everywhere(error)  # the others open it only then
    return descriptors


cdef int try_descriptors(Handle handle) except -1:
    """Raise if MPI-IO could not get the descriptors that it needs: a rank without them leaves the others waiting."""
    numbers = []
    try:
        for _ in range(8):  # more than Open MPI takes
            numbers.append(os.dup(handle.descriptor.fd))
    finally:
        for number in numbers:
            os.close(number)
    return 0


cdef set own_descriptors(Handle handle):
    """The numbers of the descriptors that this process has of the file."""
    numbers = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            stat = os.fstat(int(name))
            if (stat.st_dev, stat.st_ino) == handle.device_and_inode:
                numbers.add(int(name))
        except OSError:
            pass  # that of the listing itself
    return numbers


cdef int open_viewer(Handle handle, bytes name, bint is_new, bint collective, set descriptors) except -1:
    """Open PETSc's viewer on the file, of which the process has these descriptors. Collective."""
    cdef const char* path = name
    cdef PetscFileMode mode = FILE_MODE_READ if handle.mode == "r" else FILE_MODE_APPEND
    cdef PetscBool collective_transfers = PETSC_TRUE if collective else PETSC_FALSE
    error = None
    try:
        with nogil:
            CHKERR(PetscViewerHDF5Open(handle.comm, path, mode, &handle.viewer))
            # PETSc has read -viewer_hdf5_sp_output and its like, which are meant for
            # the user's other viewers: a checkpoint keeps its precision.
            CHKERR(PetscViewerHDF5SetSPOutput(handle.viewer, PETSC_FALSE))
            CHKERR(PetscViewerHDF5SetCollective(handle.viewer, collective_transfers))
            CHKERR(PetscViewerHDF5SetBaseDimension2(handle.viewer, PETSC_FALSE))
            CHKERR(PetscViewerHDF5SetDefaultTimestepping(handle.viewer, PETSC_FALSE))
            CHKERR(PetscViewerHDF5GetFileId(handle.viewer, &handle.id))
            if collective:
                handle.dxpl = CHKH5(H5Pcreate(H5P_DATASET_XFER))
                CHKH5(H5Pset_dxpl_mpio(handle.dxpl, H5FD_MPIO_COLLECTIVE))
        handle.mpiio_descriptors = own_descriptors(handle) - descriptors
    except StorageError as exc:
        # The path was there and could be opened, so HDF5 objects to the file's content.
        error = handle.as_transfer_error(exc if is_new else NotHDF5Error(exc.cause), "opening the file")
    except Exception as exc:
        error = handle.as_transfer_error(exc, "opening the file")
    handle.raise_everywhere(error)
    return 0
