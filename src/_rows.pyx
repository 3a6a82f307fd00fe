# cython: language_level=3
"""Rows of a file, moved by plain system calls.

A row is a range of bytes in the extent of an HDF5 dataset whose place in the file is
final.  Bytes go there and back by ``pwrite`` and ``pread``, or are mapped: neither MPI
nor HDF5 is involved.
"""

import os

import numpy as np
from xxhash import xxh3_64_intdigest

cimport cython
from cpython.buffer cimport (PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from libc.errno cimport EAGAIN, EINTR, EIO, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX, int64_t
from posix.mman cimport MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t
from posix.unistd cimport _SC_PAGESIZE, close, fsync, pread, pwrite, sysconf

from localckpt._errors cimport end_turn, take_turn
from localckpt._errors import ClosedFileError, TransferError
from localckpt._log cimport LOAD, SAVE, log_begin, log_end

__all__ = ["Descriptor", "Pool", "Row"]

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/uio.h>
    #ifdef RWF_NOWAIT
      static ssize_t pread_cached(int fd, void *data, size_t n, off_t offset) {
          struct iovec part = {data, n};
          return preadv2(fd, &part, 1, offset, RWF_NOWAIT);
      }
    #else  /* a system that cannot say */
      #define pread_cached(fd, data, n, offset) ((ssize_t)0)
    #endif
    #ifdef SYNC_FILE_RANGE_WAIT_BEFORE
      /* Linux tells of an earlier error of the whole file, whatever range one waits for. */
      #define written_back(fd) sync_file_range(fd, 0, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
    #else
      #define written_back(fd) 0
    #endif
    """
    ssize_t pread_cached(int fd, void* data, size_t n, off_t offset) nogil
    int written_back(int fd) nogil
    int FALLOC_FL_KEEP_SIZE
    int fallocate(int fd, int mode, off_t offset, off_t length) nogil
    int POSIX_FADV_WILLNEED
    int posix_fadvise(int fd, off_t offset, off_t length, int advice) nogil

cdef extern from "sigbus.h" nogil:
    cdef struct mapped:
        const char* start
        size_t length
        const char* what
    void note_mapped(mapped*)
    void forget_mapped(mapped*)

cdef enum:
    MOST = 1 << 30  # bytes in one call: Linux moves no more than 2 GiB less a page

cdef size_t PAGE = sysconf(_SC_PAGESIZE)
cdef int generation = 0  # forks between the first process and this one
cdef int forks = 0  # of this process


def _in_child():
    global generation
    generation += 1


def _in_parent():
    global forks
    forks += 1


os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


cdef class Descriptor:
    """Descriptor(path, flags): a plain descriptor, closed when nobody needs it any more.

    Parameters
    ----------
    path : str
        The file; it may be unlinked afterwards. Made for its owner alone.
    flags : int
        Of :func:`os.open`.

    Raises
    ------
    OSError
    """

    cdef int fd
    cdef readonly str path

    def __cinit__(self):
        self.fd = -1

    def __init__(self, path, int flags):
        self.path = path
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def fileno(self):
        """The descriptor's number."""
        return self.fd

    def sync(self):
        """Wait until the disk has what was written to the file. Not collective.

        Raises
        ------
        TransferError
            If it cannot take all of it, once.
        """
        cdef int status
        with nogil:
            status = errno if fsync(self.fd) else 0
        if status:
            raise TransferError(f"{os.strerror(status)}, waiting for the disk", self.path, errno=status)

    def can_reserve(self):
        """bool: whether the filesystem can promise disk space (``fallocate``), and fail while it cannot."""
        return fallocate(self.fd, FALLOC_FL_KEEP_SIZE, 0, 1) == 0 or errno not in (EOPNOTSUPP, ENOSYS)

    def check(self):
        """Ask whether the disk could not take what was written to the file, without waiting. Not collective.

        Raises
        ------
        TransferError
            If it could not, once.
        """
        cdef int status = errno if written_back(self.fd) else 0
        if status:
            raise TransferError(f"{os.strerror(status)}, when the system wrote to the disk", self.path, errno=status)


cdef object failure(Pool pool, int number, str doing, long long nbytes):
    return TransferError(f"{os.strerror(number)}, {doing} {nbytes} bytes", pool.file.path, pool.name, errno=number)


cdef int move(int fd, char* data, size_t n, off_t offset, bint writing) noexcept nogil:
    """All of n bytes, however many calls it takes; the error number, or 0."""
    cdef Py_ssize_t moved
    while n > 0:
        if writing:
            moved = pwrite(fd, data, min(n, <size_t> MOST), offset)
        else:
            moved = pread(fd, data, min(n, <size_t> MOST), offset)
        if moved > 0:
            data += moved
            offset += moved
            n -= moved
        elif moved == 0:
            return EIO  # the file ends before the row does
        elif errno != EINTR:
            return errno
    return 0


@cython.final
cdef class Pool:
    """Pool(file, recycle, name=""): rows of one size, of which some are free.

    Parameters
    ----------
    file : Descriptor
    recycle : bool
        Whether a row that nobody holds is free again.
    name : str, optional
        Of the dataset that the rows are in, for messages.
    """

    cdef Descriptor file
    cdef readonly str name
    cdef bytes what         # the same for a signal handler
    cdef list offsets       # of the free rows, the next one last
    cdef dict checksums     # offset of a row -> where its checksum is
    cdef bint recycle
    cdef int generation     # of the process that writes to them
    cdef readonly int rows  # in all
    cdef public int saves_until_agreement  # of the ranks that share the file
    cdef public int64_t nbytes  # of a row, on this rank

    def __init__(self, Descriptor file not None, bint recycle, name=""):
        self.file = file
        self.recycle = recycle
        self.generation = generation
        self.name = str(name)
        self.what = f"dataset {name!r} of file {file.path!r}".encode(errors="replace")
        self.offsets = []
        self.checksums = {}

    @property
    def free(self):
        """int: rows that are free."""
        return len(self.offsets)

    def add(self, int64_t first, int64_t stride, int count, checksums=None, int64_t apart=8):
        """Add `count` rows, `stride` bytes apart, the first one at `first`.

        Where `checksums` is given, so are those of what is written to them, `apart` bytes apart.
        """
        self.offsets[:0] = [first + i * stride for i in range(count - 1, -1, -1)]
        self.rows += count
        if checksums is not None:
            self.checksums.update((first + i * stride, checksums + i * apart) for i in range(count))

    def claim(self):
        """A free Row, or None."""
        cdef Row row
        if not self.offsets:
            return None
        row = Row.__new__(Row)
        row.pool = self
        row.offset = self.offsets.pop()
        row.forks = forks
        return row


@cython.final
@cython.no_gc  # it holds its pool, and that holds numbers
cdef class Row:
    """A range of bytes in a file, free again when nobody holds it.

    Not one that a forked child may still read: what it is to the child nobody knows here.
    """

    cdef Pool pool
    cdef readonly int64_t offset
    cdef int forks  # when it was claimed
    cdef object __weakref__

    def __init__(self):
        raise TypeError("rows come from Pool.claim")

    def __dealloc__(self):
        if self.pool is not None and self.pool.recycle and self.forks == forks:
            self.pool.offsets.append(self.offset)

    def write(self, array):
        """Store `array`'s bytes. Not collective.

        Raises
        ------
        TransferError
        """
        cdef int64_t number
        cdef int status
        self.transfer(array, PyBUF_C_CONTIGUOUS, True)
        if self.offset in self.pool.checksums:
            number = xxh3_64_intdigest(array) & INT64_MAX
            status = move(self.pool.file.fd, <char*> &number, sizeof(number), self.pool.checksums[self.offset], True)
            if status:
                raise failure(self.pool, status, "writing the checksum of", array.nbytes)

    def read(self, array):
        """Fill `array`. Not collective.

        Raises
        ------
        TransferError
        """
        self.transfer(array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, False)

    cdef int transfer(self, object array, int flags, bint writing) except -1:
        cdef Py_buffer view
        cdef int status
        if writing and self.pool.generation != generation:
            raise ClosedFileError("it belongs to the process that opened it", self.pool.file.path, self.pool.name)
        PyObject_GetBuffer(array, &view, flags)
        take_turn()  # PETSc's log is for one thread at a time
        log_begin(SAVE if writing else LOAD)
        with nogil:
            status = move(self.pool.file.fd, <char*> view.buf, view.len, self.offset, writing)
        log_end(SAVE if writing else LOAD, view.len)
        end_turn()
        PyBuffer_Release(&view)
        if status:
            raise failure(self.pool, status, "writing" if writing else "reading", view.len)
        return 0

    def on_disk(self, int64_t nbytes):
        """Whether the last of its bytes would have to come from the disk. Not collective."""
        cdef char last
        return pread_cached(self.pool.file.fd, &last, 1, self.offset + nbytes - 1) < 0 and errno == EAGAIN

    def check(self):
        """Ask whether the disk could not take what was written to the row's file. Not collective.

        Raises
        ------
        TransferError
            If it could not, once.
        """
        self.pool.file.check()

    def prefetch(self, int64_t nbytes):
        """Have the system read it, without waiting for that. Not collective."""
        with nogil:
            posix_fadvise(self.pool.file.fd, self.offset, nbytes, POSIX_FADV_WILLNEED)

    def map(self, shape, dtype):
        """A new array that shows the row's bytes without a copy. Not collective.

        Pages that somebody writes to are copied first; the row lives as long as the array.

        Parameters
        ----------
        shape : tuple of int
            Of at least one entry.
        dtype : numpy.dtype

        Returns
        -------
        numpy.ndarray

        Raises
        ------
        TransferError
        """
        cdef size_t ahead = <size_t> self.offset % PAGE  # a mapping begins at a page
        cdef size_t length = ahead + <size_t> dtype.itemsize
        cdef Mapping mapping = Mapping.__new__(Mapping)
        cdef int status
        for n in shape:
            length = ahead + (length - ahead) * <size_t> n
        take_turn()
        log_begin(LOAD)
        with nogil:
            mapping.start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                                 self.pool.file.fd, self.offset - <off_t> ahead)
            status = errno
        log_end(LOAD, <long long> (length - ahead))
        end_turn()
        if mapping.start == MAP_FAILED:
            mapping.start = NULL
            raise failure(self.pool, status, "mapping", length)
        mapping.length = length
        mapping.row = self
        mapping.note.start = <char*> mapping.start
        mapping.note.length = length
        mapping.note.what = self.pool.what
        note_mapped(&mapping.note)
        return np.ndarray(shape, dtype, mapping, ahead)


@cython.final
@cython.no_gc
cdef class Mapping:
    """What keeps a mapped row mapped: the buffer of its array."""

    cdef void* start
    cdef size_t length
    cdef Row row
    cdef mapped note

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.start, <Py_ssize_t> self.length, 0, flags)

    def __dealloc__(self):
        if self.note.start != NULL:
            forget_mapped(&self.note)
            munmap(self.start, self.length)
