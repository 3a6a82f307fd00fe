# cython: language_level=3
"""Rows of a file, moved by plain system calls.

A row is a range of bytes in the extent of an HDF5 dataset whose place in the file is
final.  Bytes go there and back by ``pwrite`` and ``pread``, or are mapped: neither MPI
nor HDF5 is involved.
"""

import os

import numpy as np

cimport cython
from cpython.buffer cimport (PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t
from posix.mman cimport MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.types cimport off_t
from posix.unistd cimport _SC_PAGESIZE, pread, pwrite, sysconf

from linux cimport POSIX_FADV_WILLNEED, posix_fadvise, pread_cached
from localckpt._checksum cimport checksum_of
from localckpt._descriptor cimport Descriptor
from localckpt._errors cimport lock_libraries, unlock_libraries
from localckpt._errors import ClosedFileError, TransferError
from localckpt._log cimport LOAD, SAVE, log_begin, log_end

__all__ = ["Pool", "Row"]

cdef extern from "sigbus.h" nogil:
    cdef struct mapped_range:
        const char* start
        size_t length
        const char* description
    void register_mapped(mapped_range*)
    void unregister_mapped(mapped_range*)

cdef enum:
    MAX_BYTES = 1 << 30  # in one call: Linux moves no more than 2 GiB less a page

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


cdef object transfer_error(Pool pool, int number, str doing, long long nbytes):
    return TransferError(f"{os.strerror(number)}, {doing} {nbytes} bytes", pool.file.path, pool.name, errno=number)


cdef int transfer(int fd, char* data, size_t nbytes, off_t offset, bint writing) noexcept nogil:
    """Move all bytes, however many calls it takes; the error number, or 0."""
    cdef Py_ssize_t moved
    while nbytes > 0:
        if writing:
            moved = pwrite(fd, data, min(nbytes, <size_t> MAX_BYTES), offset)
        else:
            moved = pread(fd, data, min(nbytes, <size_t> MAX_BYTES), offset)
        if moved > 0:
            data += moved
            offset += moved
            nbytes -= moved
        elif moved == 0:
            return EIO  # the file ends before the row does
        elif errno != EINTR:
            return errno
    return 0


@cython.final
cdef class Pool:
    """Pool(file, recycle, name=""): rows of one size in a file, some of them free.

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
    cdef bytes description  # of the dataset and its file, for a signal handler
    cdef list free_offsets  # of the rows that can be claimed, the next one last
    cdef dict checksums     # offset of a row -> where its checksum is
    cdef bint recycle
    cdef int generation     # of the process that may write to the rows
    cdef readonly int rows  # in all
    cdef public int saves_until_agreement  # of the ranks that share the file
    cdef public int64_t nbytes  # of a row, on this rank

    def __init__(self, Descriptor file not None, bint recycle, name=""):
        self.file = file
        self.recycle = recycle
        self.generation = generation
        self.name = str(name)
        self.description = f"dataset {name!r} of file {file.path!r}".encode(errors="replace")
        self.free_offsets = []
        self.checksums = {}

    @property
    def free(self):
        """int: rows that are free."""
        return len(self.free_offsets)

    def add(self, int64_t first, int64_t stride, int count, checksums=None, int64_t checksum_stride=8):
        """Add `count` rows, `stride` bytes apart, the first one at `first`.

        With `checksums`, checksums of the rows are written, too, `checksum_stride` bytes apart, the first one
        at `checksums`.
        """
        self.free_offsets[:0] = [first + i * stride for i in range(count - 1, -1, -1)]
        self.rows += count
        if checksums is not None:
            self.checksums.update((first + i * stride, checksums + i * checksum_stride) for i in range(count))

    def claim(self):
        """Take a free row and return it, or None if there is none."""
        cdef Row row
        if not self.free_offsets:
            return None
        row = Row.__new__(Row)
        row.pool = self
        row.offset = self.free_offsets.pop()
        row.forks = forks
        return row


@cython.final
@cython.no_gc  # it holds its pool, and that holds numbers
cdef class Row:
    """A range of bytes in a file, free again when nobody holds it.

    A row that a forked child may still read stays taken: this process cannot know when the child is done with it.
    """

    cdef Pool pool
    cdef readonly int64_t offset
    cdef int forks  # when it was claimed
    cdef object __weakref__

    def __init__(self):
        raise TypeError("rows come from Pool.claim")

    def __dealloc__(self):
        if self.pool is not None and self.pool.recycle and self.forks == forks:
            self.pool.free_offsets.append(self.offset)

    def write(self, array):
        """Store `array`'s bytes. Not collective.

        Raises
        ------
        TransferError
        """
        self.transfer(array, PyBUF_C_CONTIGUOUS, True)
        if self.offset in self.pool.checksums:
            self.write_checksum(array, self.pool.checksums[self.offset])

    def write_pieces(self, pieces):
        """Store the bytes of several arrays, one after another. Not collective.

        No checksum is written: not for rows that have one.

        Parameters
        ----------
        pieces : iterable of numpy.ndarray
            Each is needed only until the next one is asked for.

        Raises
        ------
        TransferError
        """
        cdef int64_t start = 0
        for piece in pieces:
            self.transfer(piece, PyBUF_C_CONTIGUOUS, True, start)
            start += piece.nbytes

    def read(self, array):
        """Fill `array`. Not collective.

        Raises
        ------
        TransferError
        """
        self.transfer(array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, False)

    cdef int transfer(self, object array, int flags, bint writing, int64_t start=0) except -1:
        cdef Py_buffer view
        cdef int status
        if writing and self.pool.generation != generation:
            raise ClosedFileError("it belongs to the process that opened it", self.pool.file.path, self.pool.name)
        PyObject_GetBuffer(array, &view, flags)
        lock_libraries()  # PETSc's log is for one thread at a time
        log_begin(SAVE if writing else LOAD)
        with nogil:
            status = transfer(self.pool.file.fd, <char*> view.buf, view.len, self.offset + start, writing)
        log_end(SAVE if writing else LOAD, view.len)
        unlock_libraries()
        PyBuffer_Release(&view)
        if status:
            raise transfer_error(self.pool, status, "writing" if writing else "reading", view.len)
        return 0

    cdef int write_checksum(self, object array, off_t offset) except -1:
        cdef Py_buffer view
        cdef int64_t checksum
        cdef int status
        PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS)
        try:
            checksum = checksum_of(view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        with nogil:
            status = transfer(self.pool.file.fd, <char*> &checksum, sizeof(checksum), offset, True)
        if status:
            raise transfer_error(self.pool, status, "writing the checksum of", array.nbytes)
        return 0

    def on_disk(self, int64_t nbytes):
        """bool: whether the last of its `nbytes` would have to come from the disk. Not collective."""
        cdef char last
        return pread_cached(self.pool.file.fd, &last, 1, self.offset + nbytes - 1) < 0 and errno == EAGAIN

    def check(self):
        """Ask whether the disk has failed to take something that was written to the row's file. Not collective.

        Raises
        ------
        TransferError
            If it has, once.
        """
        self.pool.file.check()

    def prefetch(self, int64_t nbytes):
        """Ask the system to read the row's `nbytes` into memory, without waiting for that. Not collective."""
        with nogil:
            posix_fadvise(self.pool.file.fd, self.offset, nbytes, POSIX_FADV_WILLNEED)

    def map(self, shape, dtype):
        """Return a new array of the row's bytes, without a copy. Not collective.

        A page of it is copied when it is first written to. The row stays taken as long as the array lives.

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
        cdef size_t before = <size_t> self.offset % PAGE  # a mapping begins at a page
        cdef size_t nbytes = <size_t> dtype.itemsize
        cdef Mapping mapping = Mapping.__new__(Mapping)
        cdef void* start
        cdef int status
        for n in shape:
            nbytes *= <size_t> n
        lock_libraries()
        log_begin(LOAD)
        with nogil:
            start = mmap(NULL, before + nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                         self.pool.file.fd, self.offset - <off_t> before)
            status = errno
        log_end(LOAD, <long long> nbytes)
        unlock_libraries()
        if start == MAP_FAILED:
            raise transfer_error(self.pool, status, "mapping", before + nbytes)
        mapping.row = self
        mapping.mapped.start = <char*> start
        mapping.mapped.length = before + nbytes
        mapping.mapped.description = self.pool.description
        register_mapped(&mapping.mapped)
        return np.ndarray(shape, dtype, mapping, before)


@cython.final
@cython.no_gc
cdef class Mapping:
    """The buffer of a mapped array, which keeps its row taken and mapped."""

    cdef Row row
    cdef mapped_range mapped

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*> self.mapped.start, <Py_ssize_t> self.mapped.length, 0, flags)

    def __dealloc__(self):
        if self.mapped.start != NULL:
            unregister_mapped(&self.mapped)
            munmap(<void*> self.mapped.start, self.mapped.length)
