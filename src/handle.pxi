# Open files: their communicators, opening and closing. Part of _vecfile.pyx.

# An empty HDF5 file in the format of HDF5 1.8, whose metadata carry checksums: superblock of version 2
# and header of the root group. Whoever appends to it goes on in that format; PETSc creates older ones.
# It is as long as the blocks in which HDF5 allocates metadata: from there on what it allocates begins at
# multiples of what is allocated, and mapped numbers are where a CPU wants them.
cdef bytes EMPTY_FILE = (
    b"\x89HDF\r\n\x1a\n\x02\x08\x08\0" + bytes(8) + b"\xff" * 8 + b"\0\x08" + bytes(6) + b"\x30" + bytes(7)
    + b"\xec\x1c\x6e\x94"                                              # the superblock's checksum
    + b"OHDR\x02\0\x78" + b"\x02\x12\0\0\0\0" + b"\xff" * 16  # links, of which there are none
    + b"\x0a\x02\0\x01\0\0" + b"\0\x58\0\0" + bytes(88) + b"\xc5\xb9\xc8\xac").ljust(2048, b"\0")


cdef int nowhere = -1  # a descriptor of this process whose file nobody will ever read


cdef class Handle:
    """PETSc's viewer, its HDF5 id and PETSc's own duplicate of the communicator.

    Apart from :class:`VecFile` so that it outlives one that was dropped: closing is
    collective, and garbage collection is not.
    """

    cdef mpi.MPI_Comm comm
    cdef int rank, size
    cdef PetscViewer viewer
    cdef hid_t id, dxpl
    cdef int dropped
    cdef int64_t* table     # three numbers of each rank, see exchange()
    cdef object descriptor  # a plain one
    cdef object identity    # of the file that it is of: device, inode
    cdef object mpiio       # the numbers of those that MPI-IO has for this viewer
    cdef int64_t end        # of what is known to be allocated
    cdef readonly str path, mode
    cdef dict layouts  # number -> sizes of all ranks, and back
    cdef dict damaged  # path -> what HDF5 said of the object there
    cdef str why       # it is of no use any more

    def __cinit__(self):
        self.viewer = NULL
        self.table = NULL
        self.dxpl = H5P_DEFAULT
        self.layouts = {}
        self.damaged = {}
        self.why = "the file is closed"

    def __dealloc__(self):
        free(self.table)

    cdef int raise_everywhere(self, error) except -1:
        """Raise the error of the lowest failing rank on every rank. Collective."""
        return raise_on_all(self.comm, error)

    cdef tuple exchange(self, object call, object n, object nbytes, const void* data, object error):
        """Everybody's number of entries, and a checksum of all ranks' bytes. Collective.

        Once all ranks make the same call, and none of them has an error: or every rank raises it.
        """
        cdef int i, other = 0
        cdef bint failed = False
        cdef uint64_t total = 0
        cdef int64_t* mine = &self.table[3 * self.rank]
        if error is None:
            try:
                mine[0] = n
                mine[1] = crc32(repr(call).encode(errors="surrogateescape"))
                mine[2] = <int64_t> digest(data, nbytes, self.rank)
            except Exception as exc:
                error = exc
        if error is not None:
            mine[0] = -1
        if self.size > 1:
            with nogil:
                CHKMPI(mpi.MPI_Allgather(mpi.MPI_IN_PLACE, 0, mpi.MPI_DATATYPE_NULL, self.table, 3, mpi.MPI_INT64_T,
                                         self.comm))
        for i in range(self.size):
            failed |= self.table[3 * i] < 0
            if self.table[3 * i + 1] != self.table[1] and not other:
                other = i
            total += <uint64_t> self.table[3 * i + 2]
        if failed:
            self.raise_everywhere(error)
        if other:
            raise LayoutError(f"not all ranks make the same call; rank 0 and rank {other} differ",
                                 self.path if self.viewer != NULL else None)
        return tuple([self.table[3 * i] for i in range(self.size)]), total & INT64_MAX

    cdef int reserve(self, int64_t start, int64_t nbytes) except -1:
        """Take the disk space for what comes next, and for HDF5's own needs. Not collective: rank 0 does it.

        A full disk is found here. Found in MPI-IO it would leave a file that HDF5 can
        neither flush nor close.  Where the filesystem cannot reserve, it is found there.

        Parameters
        ----------
        start : int
            Where the bytes are in the file; -1 for the end of what is allocated.
        nbytes : int
        """
        cdef int number = 0
        cdef int status, fd
        if self.rank > 0:
            return 0
        fd = self.descriptor.fileno()
        if start < 0:  # VecView's flush has made the file as long as HDF5 thinks it is
            start = max(os.fstat(fd).st_size, self.end)
        longest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]  # which not all filesystems look at here
        with nogil:
            while True:
                status = fallocate(fd, FALLOC_FL_KEEP_SIZE, <off_t> start, <off_t> (nbytes + SLACK))
                number = errno if status else 0
                if number != EINTR:
                    break
        if 0 <= longest < start + nbytes + SLACK:
            number = EFBIG
        if number not in (0, EOPNOTSUPP, ENOSYS):
            raise TransferError(f"{os.strerror(number)}, reserving {nbytes + SLACK} bytes", self.path, errno=number)
        self.end = max(self.end, start + nbytes)
        return 0

    cdef divert(self):
        """Let what MPI-IO still writes to this file go nowhere. Not collective, and what fails is left out.

        HDF5 writes its metadata when it closes a file; where it cannot, it keeps the id of what
        it has freed, and crashes on it at exit.
        """
        for number in self.mpiio:
            try:
                try:
                    stat = os.fstat(number)
                    ours = (stat.st_dev, stat.st_ino) == self.identity
                except OSError as exc:
                    ours = exc.errno != _errno.EBADF  # it is open, and its file out of reach
                if ours:
                    os.dup2(nowhere, number, inheritable=False)
            except Exception:  # all ranks have to come to the closing
                pass

    cdef int close(self) except -1:
        """Give everything back. Collective where there are several ranks."""
        cdef PetscViewer viewer
        cdef hid_t dxpl = self.dxpl
        cdef int diverted = 0
        error = None
        begin_capture()
        try:
            if self.viewer == NULL:
                return 0
            viewer = self.viewer
            self.viewer = NULL
            files.remove(self)
            try:
                # Where nobody can open it again its metadata need not be written.
                diverted = self.mode != "r" and os.fstat(self.descriptor.fileno()).st_nlink == 0
            except Exception as exc:
                error, diverted = self.failure(exc), 1
            if self.size > 1:  # flushing is collective
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &diverted, 1, mpi.MPI_INT, mpi.MPI_MAX, self.comm))
            try:
                if not diverted and self.mode != "r":
                    with nogil:
                        CHKH5(H5Fflush(self.id, H5F_SCOPE_GLOBAL))
            except StorageError as exc:
                error, diverted = self.failure(exc), 1
            try:
                if diverted:
                    self.divert()
                with nogil:
                    if dxpl != H5P_DEFAULT:
                        CHKH5(H5Pclose(dxpl))
                    CHKERR(PetscViewerDestroy(&viewer))
            except Exception as exc:
                error = error or self.failure(exc)
            self.descriptor = None
            if diverted:
                with suppress(Exception):
                    os.ftruncate(nowhere, 0)
            try:
                self.raise_everywhere(error)
            finally:
                PetscCommDestroy(&self.comm)
        finally:
            end_capture()
        return 0

    cdef object failure(self, error, doing="closing the file"):
        """The same error as one of localckpt's that names the file."""
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            return TransferError(f"{error.strerror}, {doing}", self.path, errno=error.errno)
        if isinstance(error, StorageError):
            error.file = error.file or self.path
        return error


# Every file that is open in this process, in the order of opening. Opening is collective,
# so on each communicator all its ranks have the same files here in the same order.
files = []


cdef close_dropped(Handle new):
    """Close the files of new's communicator that every rank has dropped. Collective."""
    cdef int dropped
    cdef Handle old
    for old in files[:]:
        if old.comm == new.comm and old is not new:
            dropped = old.dropped
            if new.size > 1:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &dropped, 1, mpi.MPI_INT, mpi.MPI_MIN, new.comm))
            if dropped:
                old.close()


@atexit.register
def _close_all():
    cdef Handle handle
    cdef PetscBool gone = PETSC_FALSE
    PetscFinalized(&gone)
    if gone or MPI.Is_finalized():
        return
    for handle in files[:]:
        try:
            handle.close()
        except Exception as exc:
            warnings.warn(f"closing at exit: {exc}", ResourceWarning)


def _disown():
    """Leave the files to the parent: this is a forked child."""
    cdef Handle handle
    theirs = files[:]
    del files[:]
    for handle in theirs:
        handle.viewer = NULL
        handle.why = "the file belongs to the process that opened it"
    if theirs:
        atexit.register(_leave, getattr(sys, "last_value", None))
        atexit.register(_close_all)  # runs before that: the child has files of its own, perhaps


def _leave(before):
    """End this forked child before HDF5 writes to its parent's files, or MPI_Finalize waits for ever.

    The status is 1 if the interpreter has shown an exception since the fork, else 0: the one that
    sys.exit() was given is passed to no exit handler.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(getattr(sys, "last_value", None) is not before)


os.register_at_fork(after_in_child=_disown)


cdef Handle open_handle(object comm, object path, object mode, object collective):
    """Open path, or raise the same exception on every rank of comm. Collective."""
    global nowhere
    cdef Handle handle = Handle()
    cdef bytes name = b""
    cdef const char* cname
    cdef PetscFileMode how
    cdef bint fresh = False, made = False
    cdef PetscBool together
    if not isinstance(comm, Comm) or comm == MPI.COMM_NULL:
        raise ClosedFileError("there is no communicator (freed, or COMM_NULL)", file=str(path))
    begin_section()
    try:
        CHKERR(PetscCommDuplicate((<Comm> comm).ob_mpi, &handle.comm, NULL))
        CHKMPI(mpi.MPI_Comm_rank(handle.comm, &handle.rank))
        CHKMPI(mpi.MPI_Comm_size(handle.comm, &handle.size))
        try:
            handle.table = <int64_t*> malloc(3 * handle.size * sizeof(int64_t))
            if handle.table == NULL:
                raise MemoryError()
            error = None
            try:
                handle.path = os.fspath(path)
                name = os.fsencode(path)
                if b"\0" in name:
                    raise ValueError(f"a path has no null byte: {path!r}")
                if b":" in name and sizeof(mpi.MPI_Comm) == sizeof(int):
                    raise TransferError("MPICH's MPI-IO takes what is before a colon for a type of filesystem",
                                        handle.path, errno=_errno.EINVAL)
                if mode not in ("r", "w", "x", "a"):
                    raise ValueError(f"mode is 'r', 'w', 'x' or 'a', not {mode!r}")
                handle.mode = mode
                if collective is None:
                    collective = PETSc.Options("localckpt_").getBool("collective", False)
                collective = bool(collective)
                if nowhere < 0:
                    nowhere = open_nowhere()
            except Exception as exc:
                error = handle.failure(exc, "opening the file")
            handle.exchange((name, mode, collective), 0, 0, NULL, error)
            cname = name
            together = PETSC_TRUE if collective else PETSC_FALSE
            close_dropped(handle)
            for first in (True, False):  # rank 0 creates it, then the others look
                error = None
                try:
                    if first == (handle.rank == 0):
                        open_descriptor(handle)
                        made = first and mode == "x"
                        stat = os.fstat(handle.descriptor.fileno())
                        handle.identity = stat.st_dev, stat.st_ino
                        fresh = mode in ("w", "x") or mode == "a" and stat.st_size == 0
                except Exception as exc:
                    error = handle.failure(exc, "opening the file")
                handle.raise_everywhere(error)
            how = FILE_MODE_READ if mode == "r" else FILE_MODE_APPEND
            error = None
            try:
                if fresh and handle.rank == 0:
                    # Not by HDF5, which crashes at exit on what it could not write.
                    os.ftruncate(handle.descriptor.fileno(), 0)
                    written = 0
                    while written < len(EMPTY_FILE):
                        written += os.pwrite(handle.descriptor.fileno(), EMPTY_FILE[written:], written)
                others = open_numbers(handle)
                if handle.size > 1:
                    try_descriptors(handle)
            except Exception as exc:
                error = handle.failure(exc, "opening the file")
            handle.raise_everywhere(error)  # the others open it only then
            try:
                with nogil:
                    CHKERR(PetscViewerHDF5Open(handle.comm, cname, how, &handle.viewer))
                    # PETSc has read -viewer_hdf5_sp_output and its like, which are meant for
                    # the user's other viewers: a checkpoint keeps its precision.
                    CHKERR(PetscViewerHDF5SetSPOutput(handle.viewer, PETSC_FALSE))
                    CHKERR(PetscViewerHDF5SetCollective(handle.viewer, together))
                    CHKERR(PetscViewerHDF5SetBaseDimension2(handle.viewer, PETSC_FALSE))
                    CHKERR(PetscViewerHDF5SetDefaultTimestepping(handle.viewer, PETSC_FALSE))
                    CHKERR(PetscViewerHDF5GetFileId(handle.viewer, &handle.id))
                    if together:
                        handle.dxpl = CHKH5(H5Pcreate(H5P_DATASET_XFER))
                        CHKH5(H5Pset_dxpl_mpio(handle.dxpl, H5FD_MPIO_COLLECTIVE))
                handle.mpiio = open_numbers(handle) - others
            except StorageError as exc:
                # The path was there and could be opened, so what HDF5 objects to is its content.
                error = handle.failure(exc if fresh else NotHDF5Error(exc.cause))
            except Exception as exc:
                error = handle.failure(exc, "opening the file")
            handle.raise_everywhere(error)
        except BaseException:
            if handle.dxpl != H5P_DEFAULT:
                H5Pclose(handle.dxpl)
            if handle.viewer != NULL:
                PetscViewerDestroy(&handle.viewer)
                handle.viewer = NULL
            if made:  # or the next try would find that there is such a file
                with suppress(Exception):
                    os.unlink(name)
            PetscCommDestroy(&handle.comm)
            raise
    finally:
        end_capture()
    files.append(handle)
    return handle


cdef int open_nowhere() except -1:
    """A descriptor of a file without a name: in memory, where this Python can make one there."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nowhere")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


cdef int open_descriptor(Handle handle) except -1:
    """Have a plain descriptor of the file; rank 0 creates it where its mode says so.

    MPI-IO and HDF5 go on where some ranks see a file and others don't, and then hang.
    """
    flags = os.O_RDONLY if handle.mode == "r" else os.O_RDWR
    if handle.mode == "x":
        flags |= os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if handle.rank == 0 else 0)
    elif handle.rank == 0 and (handle.mode == "w" or handle.mode == "a" and not os.path.exists(handle.path)):
        flags |= os.O_CREAT
    try:
        handle.descriptor = Descriptor(handle.path, flags)
        if os.path.isdir(handle.path):  # which can be opened for reading
            raise IsADirectoryError(_errno.EISDIR, os.strerror(_errno.EISDIR))
    except OSError as exc:
        kind = (MissingFileError if exc.errno in (_errno.ENOENT, _errno.ENOTDIR) else
                ExistingFileError if exc.errno == _errno.EEXIST else
                FileAccessError if exc.errno in (_errno.EACCES, _errno.EPERM, _errno.EROFS) else
                TransferError)
        raise kind(exc.strerror, handle.path, errno=exc.errno)
    return 0


cdef int try_descriptors(Handle handle) except -1:
    """Make sure of the descriptors that MPI-IO needs: a rank without them leaves the others waiting in it."""
    numbers = []
    try:
        for _ in range(8):  # more than Open MPI takes
            numbers.append(os.dup(handle.descriptor.fileno()))
    finally:
        for number in numbers:
            os.close(number)
    return 0


cdef set open_numbers(Handle handle):
    """The descriptors that this process has of a file."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            stat = os.fstat(int(name))
            if (stat.st_dev, stat.st_ino) == handle.identity:
                found.add(int(name))
        except OSError:
            pass  # that of the listing itself
    return found
