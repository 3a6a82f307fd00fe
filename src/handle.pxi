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
    cdef bint diverted
    cdef object descriptor  # a plain one
    cdef object mpiio       # the numbers of those that MPI-IO has for this viewer
    cdef int64_t end        # of what is known to be allocated
    cdef readonly str path, mode
    cdef dict layouts  # number -> sizes of all ranks, and back
    cdef dict damaged  # path -> what HDF5 said of the object there
    cdef str why       # it is of no use any more

    def __cinit__(self):
        self.viewer = NULL
        self.dxpl = H5P_DEFAULT
        self.layouts = {}
        self.damaged = {}
        self.why = "the file is closed"

    cdef settle(self, error):
        """Raise the error of the lowest failing rank on every rank. Collective."""
        cdef int first = self.size if error is None else self.rank
        cdef int n = 0
        cdef char* buffer
        if self.size == 1:
            if error is not None:
                raise error
            return
        with nogil:
            CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &first, 1, mpi.MPI_INT, mpi.MPI_MIN, self.comm))
        if first == self.size:
            return
        payload = b""
        if first == self.rank:
            if isinstance(error, StorageError) and error.rank is None:
                error.rank = self.rank
            payload = pickle.dumps(error)
        n = len(payload)
        with nogil:
            CHKMPI(mpi.MPI_Bcast(&n, 1, mpi.MPI_INT, first, self.comm))
        payload = payload or bytes(n)
        buffer = payload
        with nogil:
            CHKMPI(mpi.MPI_Bcast(buffer, n, mpi.MPI_CHAR, first, self.comm))
        raise pickle.loads(payload)

    cdef tuple begin(self, object call, long long n, object error):
        """Everybody's number of entries, or anybody's error. Collective."""
        sizes = self.exchange(n if error is None else -1, call)
        if min(sizes) < 0:
            self.settle(error)
        return sizes

    cdef tuple exchange(self, long long n, object call):
        """Everybody's number of entries, once all ranks make the same call. Collective."""
        cdef int64_t mine[2]
        cdef int64_t[:, ::1] all
        if self.size == 1:
            return (n,)
        mine = [n, crc32(repr(call).encode(errors="surrogateescape"))]
        all = np.empty((self.size, 2), dtype=np.int64)
        with nogil:
            CHKMPI(mpi.MPI_Allgather(mine, 2, mpi.MPI_INT64_T, &all[0, 0], 2, mpi.MPI_INT64_T, self.comm))
        sizes, calls = np.asarray(all).T.tolist()
        if min(sizes) >= 0 and len(set(calls)) > 1:
            raise LayoutMismatch(f"not all ranks make the same call; rank 0 and rank "
                                 f"{[c == calls[0] for c in calls].index(False)} differ",
                                 self.path if self.viewer != NULL else None)
        return tuple(sizes)

    cdef int64_t checksum(self, const void* data, long long nbytes) except -1:
        """One number for all ranks' bytes. Collective."""
        cdef uint64_t total = digest(data, nbytes, self.rank)
        if self.size > 1:
            with nogil:
                CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &total, 1, mpi.MPI_UINT64_T, mpi.MPI_SUM, self.comm))
        return total & INT64_MAX

    cdef int reserve(self, int64_t start, int64_t nbytes) except -1:
        """Take the disk space for what comes next, and for HDF5's own needs. Collective.

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
        error = None
        if self.rank == 0:
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
            if number in (0, EOPNOTSUPP, ENOSYS):
                self.end = max(self.end, start + nbytes)
            else:
                error = TransferError(f"{os.strerror(number)}, reserving {nbytes + SLACK} bytes",
                                      self.path, errno=number)
        self.settle(error)
        return 0

    cdef int divert(self) except -1:
        """Let what MPI-IO still writes to this file go nowhere, if descriptors are left. Not collective.

        HDF5 writes its metadata when it closes a file; where it cannot, it keeps the id of what
        it has freed, and crashes on it at exit.
        """
        self.diverted = True
        with suppress(OSError):
            nowhere = os.memfd_create("nowhere")
            for number in self.mpiio:
                os.dup2(nowhere, number, inheritable=False)
            os.close(nowhere)
        return 0

    cdef int close(self) except -1:
        """Give everything back. Collective where there are several ranks."""
        cdef PetscViewer viewer
        cdef hid_t dxpl = self.dxpl
        error = None
        begin_capture()
        try:
            if self.viewer == NULL or self.diverted and self.size > 1:
                return 0  # see _close_all
            viewer = self.viewer
            self.viewer = NULL
            files.remove(self)
            try:
                if self.mode == "r":
                    pass
                elif os.fstat(self.descriptor.fileno()).st_nlink == 0:
                    self.divert()  # nobody can open it again: its metadata need not be written
                else:
                    with nogil:
                        CHKH5(H5Fflush(self.id, H5F_SCOPE_GLOBAL))
            except StorageError as exc:
                exc.file = self.path
                error = exc
                self.divert()
            try:
                with nogil:
                    if dxpl != H5P_DEFAULT:
                        CHKH5(H5Pclose(dxpl))
                    CHKERR(PetscViewerDestroy(&viewer))
            except StorageError as exc:
                exc.file = self.path
                error = error or exc
            self.descriptor = None
            try:
                self.settle(error)
            finally:
                PetscCommDestroy(&self.comm)
        finally:
            end_capture()
        return 0


# Every file that is open in this process, in the order of opening. Opening is collective,
# so on each communicator all its ranks have the same files here in the same order.
files = []


cdef reap(Handle new):
    """Close the files of new's communicator that every rank has dropped. Collective."""
    cdef int n
    cdef int[::1] dropped
    cdef Handle old
    mine = [old for old in files if (<Handle> old).comm == new.comm and old is not new]
    if not mine:
        return
    dropped = np.array([(<Handle> old).dropped for old in mine], dtype=np.intc)
    n = len(mine)
    if new.size > 1:
        with nogil:
            CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &dropped[0], n, mpi.MPI_INT, mpi.MPI_MIN, new.comm))
    for i, old in enumerate(mine):
        if dropped[i]:
            old.close()


@atexit.register
def _close_all():
    cdef Handle handle
    cdef PetscBool gone = PETSC_FALSE
    PetscFinalized(&gone)
    if gone or MPI.Is_finalized():
        return
    for handle in list(files):
        try:
            handle.close()
        except StorageError as exc:
            warnings.warn(f"closing at exit: {exc}", ResourceWarning)
    if files:
        # One rank failed within a collective operation, and HDF5's ranks have lost step: closing
        # the file, which MPI_Finalize has HDF5 do, would never end.
        handle = files[0]
        print(f"localckpt: all is done, but the job is aborted: HDF5 cannot close {handle.path!r}, "
              "to which a rank could not write", file=sys.stderr, flush=True)
        sys.stdout.flush()
        mpi.MPI_Abort(handle.comm, 1)


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
    cdef Handle handle = Handle()
    cdef bytes name
    cdef const char* cname
    cdef PetscFileMode how
    cdef int fresh
    cdef PetscBool together
    if not isinstance(comm, Comm) or comm == MPI.COMM_NULL:
        raise ClosedFile("there is no communicator (freed, or COMM_NULL)", file=str(path))
    begin_capture()
    try:
        CHKERR(PetscCommDuplicate((<Comm> comm).ob_mpi, &handle.comm, NULL))
        CHKMPI(mpi.MPI_Comm_rank(handle.comm, &handle.rank))
        CHKMPI(mpi.MPI_Comm_size(handle.comm, &handle.size))
        try:
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
            except Exception as exc:
                error = exc
            handle.begin((name if error is None else b"", mode, bool(collective)), 0, error)
            cname = name
            together = PETSC_TRUE if collective else PETSC_FALSE
            reap(handle)
            fresh = agree_on_file(handle, mode)
            how = FILE_MODE_READ if mode == "r" else FILE_MODE_APPEND
            error = None
            try:
                if fresh and handle.rank == 0:
                    # Not by HDF5, which crashes at exit on what it could not write.
                    os.ftruncate(handle.descriptor.fileno(), 0)
                    written = 0
                    while written < len(EMPTY_FILE):
                        written += os.pwrite(handle.descriptor.fileno(), EMPTY_FILE[written:], written)
                others = open_numbers(handle.descriptor)
                if handle.size > 1:
                    spare(handle.descriptor)
            except OSError as exc:
                error = TransferError(f"{exc.strerror}, opening the file", handle.path, errno=exc.errno)
            handle.settle(error)  # the others open it only then
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
                handle.mpiio = open_numbers(handle.descriptor) - others
            except StorageError as exc:
                # The path was there and could be opened, so what HDF5 objects to is its content.
                error = (exc if fresh else NotHDF5(exc.cause))
                error.file = handle.path
            except OSError as exc:
                error = TransferError(f"{exc.strerror}, opening the file", handle.path, errno=exc.errno)
            handle.settle(error)
        except BaseException:
            if handle.viewer != NULL:
                PetscViewerDestroy(&handle.viewer)
                handle.viewer = NULL
            PetscCommDestroy(&handle.comm)
            raise
    finally:
        end_capture()
    files.append(handle)
    return handle


cdef spare(file):
    """Make sure of the descriptors that MPI-IO needs: a rank without them leaves the others waiting in it."""
    numbers = []
    try:
        for _ in range(8):  # more than Open MPI takes
            numbers.append(os.dup(file.fileno()))
    finally:
        for number in numbers:
            os.close(number)


cdef set open_numbers(file):
    """The descriptors that this process has of a file."""
    mine = os.fstat(file.fileno())
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), mine):
                found.add(int(name))
        except OSError:
            pass  # that of the listing itself
    return found


cdef int agree_on_file(Handle handle, str mode) except -1:
    """Whether rank 0 is to create the file, once every rank can open it. Collective.

    MPI-IO and HDF5 go on where some ranks see a file and others don't, and then hang.
    """
    flags = os.O_RDONLY if mode == "r" else os.O_RDWR
    for turn in (handle.rank == 0, handle.rank > 0):  # rank 0 creates, then the others look
        error = None
        if turn:
            try:
                if mode == "x":
                    flags |= os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if handle.rank == 0 else 0)
                elif handle.rank == 0 and (mode == "w" or mode == "a" and not os.path.exists(handle.path)):
                    flags |= os.O_CREAT
                handle.descriptor = Descriptor(handle.path, flags)
                if os.path.isdir(handle.path):  # which can be opened for reading
                    raise IsADirectoryError(_errno.EISDIR, os.strerror(_errno.EISDIR))
            except OSError as exc:
                kind = (FileNotFound if exc.errno in (_errno.ENOENT, _errno.ENOTDIR) else
                        FileExists if exc.errno == _errno.EEXIST else
                        NoAccess if exc.errno in (_errno.EACCES, _errno.EPERM, _errno.EROFS) else
                        TransferError)
                error = kind(exc.strerror, handle.path, errno=exc.errno)
        handle.settle(error)
        if handle.size == 1:
            break
    return mode in ("w", "x") or mode == "a" and os.fstat(handle.descriptor.fileno()).st_size == 0
