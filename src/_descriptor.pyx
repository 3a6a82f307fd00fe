# cython: language_level=3
"""Plain descriptors of files, and what Linux tells of a disk through them."""

import os
import resource

from libc.errno cimport EFBIG, EINTR, ENOSYS, EOPNOTSUPP, errno
from posix.types cimport off_t
from posix.unistd cimport close, fsync

from linux cimport FALLOC_FL_KEEP_SIZE, fallocate, wait_for_written
from localckpt._errors import TransferError

__all__ = ["Descriptor"]


cdef class Descriptor:
    """Descriptor(path, flags): a plain descriptor, closed when nobody needs it any more.

    Parameters
    ----------
    path : str
        The file; it may be unlinked afterwards. If it is created, only its owner may open it.
    flags : int
        Of :func:`os.open`.

    Raises
    ------
    OSError
    """

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

    def can_reserve(self):
        """bool: whether the filesystem can promise disk space (``fallocate``), and fail while it cannot."""
        cdef int status
        with nogil:
            status = errno if fallocate(self.fd, FALLOC_FL_KEEP_SIZE, 0, 1) else 0
        return status not in (EOPNOTSUPP, ENOSYS)

    cdef int reserve(self, int64_t start, int64_t nbytes) except -1:
        """Reserve disk space for bytes [start, start + nbytes), if the filesystem can. Not collective."""
        cdef int status
        largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]  # not all filesystems check it in fallocate
        with nogil:
            while True:
                status = errno if fallocate(self.fd, FALLOC_FL_KEEP_SIZE, <off_t> start, <off_t> nbytes) else 0
                if status != EINTR:
                    break
        if 0 <= largest < start + nbytes:
            status = EFBIG
        if status not in (0, EOPNOTSUPP, ENOSYS):
            raise TransferError(f"{os.strerror(status)}, reserving {nbytes} bytes", self.path, errno=status)
        return 0

    def sync(self):
        """Wait until the disk has everything that was written to the file. Not collective.

        Raises
        ------
        TransferError
            If the disk cannot take all of it, once.
        """
        cdef int status
        with nogil:
            status = errno if fsync(self.fd) else 0
        if status:
            raise TransferError(f"{os.strerror(status)}, waiting for the disk", self.path, errno=status)

    def check(self):
        """Ask whether the disk has failed to take something that was written to the file. Not collective.

        Raises
        ------
        TransferError
            If it has, once.
        """
        cdef int status
        with nogil:
            status = errno if wait_for_written(self.fd) else 0
        if status:
            raise TransferError(f"{os.strerror(status)}, when the system wrote to the disk", self.path, errno=status)
