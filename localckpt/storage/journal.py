"""A journal of records on a shared filesystem: they outlive the job that made them.

A record is an entry of JSON and, from each rank, some arrays. A directory has one file with all entries and one file
with arrays for each group of ranks; all of them only grow, until they are cleared. A record counts once its line is in
the journal, and that is written after all arrays are on disk, or, if nobody waits for the disk, after all are written.
A job that is killed at any instant therefore leaves whole records, and bytes behind them that nobody refers to, which
the next job overwrites.

In the file of a group, a record is a table (bytes and checksum of each rank's part) and then these parts. Its line has
the checksum of the table, so that a record whose place was used again is damaged, and never another record.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from xxhash import xxh3_64_hexdigest, xxh3_128

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import StorageError, TransferError
from localckpt.storage.journal_entries import NAME, Entry, as_line, parse

__all__ = ["DamagedRecord", "Journal", "sync"]

RANKS_PER_FILE = 64  # so that the number of files does not grow with the records, and few ranks share one
PAGE = 4096  # each rank's arrays begin on a page, which a network filesystem may write as a whole


class DamagedRecord(TransferError):
    """The arrays of a record are not there, or not as they were written."""


class Journal:
    """The records in one directory. Making one is collective on `comm`, as are all methods but :meth:`close`.

    Opening a journal changes no record. Where the directory can only be read, :meth:`append` raises the reason.

    Parameters
    ----------
    directory : str
        It exists.
    comm : mpi4py.MPI.Intracomm
        Of the same size each time that the directory is opened: a rank gets back what the same rank has written.
        With another size, the entries can be read, but no arrays.
    check_owner : callable
        Called on rank 0 before anything is written; it raises an OSError if the directory belongs to another job
        meanwhile.

    Attributes
    ----------
    entries : list of dict
        In the order in which they were written; the same on all ranks.
    bytes_written : int
        By this job, on this rank.

    Raises
    ------
    OSError
        On every rank.
    """

    def __init__(self, directory: str, comm: MPI.Intracomm, check_owner: Callable[[], None] = lambda: None) -> None:
        self.directory, self.comm, self._check_owner = directory, comm, check_owner
        self.entries: list[Entry] = []
        self.bytes_written = 0
        self._group = comm.rank // RANKS_PER_FILE
        self._file = self._journal = -1
        self._unwriteable: tuple[Any, ...] = ()  # the arguments of the OSError
        self._length = 0  # of the journal's whole lines, in bytes
        self._staged = b""  # lines that count from the next commit on
        self._unsynced = False  # whether any of these has arrays
        self._flusher = ThreadPoolExecutor(1)  # it starts its thread when that is first needed
        self._last_flush: Future[None] | None = None  # in the background
        self._ends = [0] * -(-comm.size // RANKS_PER_FILE)  # of the last record in each group's file
        try:
            with interrupts_held():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        content, error = b"", None
        try:
            self._path = os.path.join(self.directory, f"arrays-{self._group:05d}")
            self._file = self._open_file(self._path)
            if self.comm.rank == 0:
                self._journal = self._open_file(os.path.join(self.directory, NAME), os.O_APPEND)
                with open(self._journal, "rb", closefd=False) as file:
                    content = file.read()
            if self.comm.rank % RANKS_PER_FILE == 0 and not self._unwriteable:
                sync(self.directory)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        content = self.comm.bcast(content)
        try:
            found = parse(content)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        self._take(*found)

    def _open_file(self, path: str, flags: int = 0) -> int:
        """Open a file for writing or, if that is not allowed, for reading."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
        except OSError as exc:
            if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                self._unwriteable = exc.errno, exc.strerror, path
                with contextlib.suppress(FileNotFoundError):
                    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            raise

    def _take(self, entries: list[Entry], nbytes: int) -> None:
        """Take up entries that are in the journal, in so many bytes."""
        self._pass_by(entries)
        self.entries += entries
        self._length += nbytes

    def _pass_by(self, entries: list[Entry]) -> None:
        """What is written next comes after the arrays of these entries."""
        for entry in entries:
            for group, (_, end, _) in enumerate(entry.get("at", [])[: len(self._ends)]):
                self._ends[group] = max(self._ends[group], end)

    def append(self, entry: Entry, arrays: Sequence[NDArray[Any]] = (), *, wait: bool = True) -> None:
        """Write a record, and return when it is on disk, with all that was staged before.

        Parameters
        ----------
        entry : dict
            Values of JSON, without the key ``at``. That of rank 0 is written.
        arrays : sequence of numpy.ndarray
            Of this rank.
        wait : bool, optional
            For the disk. Otherwise the record is flushed in the background. It then outlives this process at once;
            a node that fails before the flush has ended may leave it damaged.

        Raises
        ------
        OSError
            On every rank, if any could not write. The record then does not count in this job. If only the last
            ``fsync`` of all has failed, it may count in the next one. What fails in the background is raised by the
            next commit.
        """
        with interrupts_held():
            self.stage(entry, arrays)
            self.commit(wait=wait)

    def stage(self, entry: Entry, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """Write a record that counts from the next :meth:`commit` on.

        Parameters and exceptions are those of :meth:`append`.
        """
        with interrupts_held():
            line, error = b"", None
            has_arrays = self.comm.allreduce(len(arrays) > 0, MPI.LOR)
            at = self._write_arrays(arrays) if has_arrays else []
            try:
                if self.comm.rank == 0:
                    line = as_line({**entry, "at": at} if has_arrays else entry)
            except Exception as exc:
                error = exc
            raise_everywhere(self.comm, error)
            line = self.comm.bcast(line)
            try:
                staged, _ = parse(line)
            except Exception as exc:
                error = exc
            raise_everywhere(self.comm, error)
            self._pass_by(staged)
            self._staged += line
            self._unsynced = self._unsynced or has_arrays

    def commit(self, *, wait: bool = True) -> None:
        """Make all staged records count, and return when they are on disk.

        Parameters
        ----------
        wait : bool, optional
            See :meth:`append`.

        Raises
        ------
        OSError
            On every rank, if any could not write. None of them then counts in this job.
        """
        if not self._staged:
            return
        with interrupts_held():
            error: Exception | None = None
            lines, unsynced, self._staged, self._unsynced = self._staged, self._unsynced, b"", False
            try:
                last, self._last_flush = self._last_flush, None
                if last is not None:
                    last.result()
                if unsynced and wait:
                    flush(self._file, self._path)
            except Exception as exc:
                error = exc
            raise_everywhere(self.comm, error)
            try:
                written = parse(lines)
                if self.comm.rank == 0:
                    self._write_line(lines)
                if wait:
                    self._flush_journal()
                else:
                    self._last_flush = self._flusher.submit(self._flush_all)
            except Exception as exc:
                error = naming(exc, os.path.join(self.directory, NAME))
            raise_everywhere(self.comm, error)
            self._take(*written)

    def clear(self) -> None:
        """Forget all records and free their space. They are gone from the disk before anything is written over them.

        Raises
        ------
        OSError
            On every rank, if any could not write.
        """
        with interrupts_held():
            error: Exception | None = None
            try:
                self._require_writeable()
                if self.comm.rank == 0:
                    os.ftruncate(self._journal, 0)
                    os.fsync(self._journal)
            except Exception as exc:
                error = naming(exc, os.path.join(self.directory, NAME))
            raise_everywhere(self.comm, error)
            self.entries.clear()
            self._length, self._staged, self._unsynced = 0, b"", False
            self._ends = [0] * len(self._ends)
            try:
                if self.comm.rank % RANKS_PER_FILE == 0:
                    os.ftruncate(self._file, 0)
            except Exception as exc:
                error = naming(exc, self._path)
            raise_everywhere(self.comm, error)

    def _require_writeable(self) -> None:
        if self._unwriteable:
            raise OSError(*self._unwriteable)
        if self.comm.rank == 0:
            self._check_owner()

    def _write_line(self, line: bytes) -> None:
        self._require_writeable()
        found = os.fstat(self._journal)
        if found.st_size < self._length or found.st_nlink == 0:
            raise OSError(errno.ESTALE, "it has been cut off or removed")
        # What a killed job has left, or one that lost the directory to this one and did not know it yet.
        os.ftruncate(self._journal, self._length)
        while line:
            line = line[os.write(self._journal, line) :]

    def _flush_journal(self) -> None:
        if self.comm.rank == 0:
            flush(self._journal, os.path.join(self.directory, NAME))

    def _flush_all(self) -> None:
        flush(self._file, self._path)
        self._flush_journal()

    def _write_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[tuple[int, int, str]]:
        """Write the arrays of a record.

        Returns
        -------
        list of (int, int, str)
            For each group where its part begins and ends in its file, and the checksum of the table there.
        """
        error: Exception | None = None
        try:
            self._require_writeable()
            views = [as_bytes(np.ascontiguousarray(array)) for array in arrays]
            part = sum(map(len, views)), *digest_of(views)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        parts = self.comm.allgather(part)
        try:
            groups = [parts[first : first + RANKS_PER_FILE] for first in range(0, len(parts), RANKS_PER_FILE)]
            tables = [np.array(group, np.uint64) for group in groups]
            at = [
                (begin, places(begin, table)[-1], xxh3_64_hexdigest(table.tobytes()))
                for begin, table in zip(self._ends, tables)
            ]
            index, begin, table = self.comm.rank % RANKS_PER_FILE, self._ends[self._group], tables[self._group]
            if index == 0:
                write_all(self._file, memoryview(table.tobytes()), begin)
            place = places(begin, table)[index]
            for view in views:
                write_all(self._file, view, place)
                place += len(view)
        except Exception as exc:
            error = naming(exc, self._path)
        raise_everywhere(self.comm, error)
        self.bytes_written += part[0]
        return at

    def read(self, entry: Entry, like: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The arrays of a record that this rank has written.

        Parameters
        ----------
        entry : dict
            One of :attr:`entries`, with arrays.
        like : sequence of numpy.ndarray
            Of the shapes and dtypes of the arrays.

        Raises
        ------
        DamagedRecord
            On every rank, if the arrays of any are not as they were written.
        """
        with interrupts_held():
            error: Exception | None = None
            try:
                arrays = [np.empty_like(array, order="C", subok=False) for array in like]
                self._read_arrays(entry["at"][self._group], [as_bytes(array) for array in arrays])
            except OSError as exc:
                cause = exc.cause if isinstance(exc, DamagedRecord) else exc.strerror or str(exc)
                error = DamagedRecord(cause, self._path, errno=exc.errno)
            except Exception as exc:
                error = exc
            raise_everywhere(self.comm, error)
            return arrays

    def _read_arrays(self, at: Sequence[Any], views: Sequence[memoryview]) -> None:
        begin, _, checksum = at
        first = self._group * RANKS_PER_FILE
        table = np.empty((min(self.comm.size - first, RANKS_PER_FILE), 3), np.uint64)
        read_into(self._file, as_bytes(table), begin)
        if xxh3_64_hexdigest(table.tobytes()) != checksum:
            raise DamagedRecord(f"the record at {begin} has been damaged: the checksum of its table differs")
        index = self.comm.rank - first
        nbytes, *digest = (int(number) for number in table[index])
        wanted = sum(map(len, views))
        if nbytes != wanted:
            raise DamagedRecord(f"the record at {begin} has {nbytes} bytes of this rank, not {wanted}")
        place = places(begin, table)[index]
        for view in views:
            read_into(self._file, view, place)
            place += len(view)
        if digest_of(views) != tuple(digest):
            raise DamagedRecord(f"the record at {begin} has been damaged: its checksum differs")

    def close(self) -> None:
        """Close the files. No rank may use the journal any more. Not collective."""
        self._flusher.shutdown()
        descriptors = {self._file, self._journal} - {-1}
        self._file = self._journal = -1
        for descriptor in descriptors:
            os.close(descriptor)


def sync(path: str) -> None:
    """Make a file outlive a crash, or the names in a directory, where the filesystem can do that. Not collective."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # of a directory, on some network filesystems
            raise
    finally:
        os.close(descriptor)


def flush(descriptor: int, path: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as exc:
        raise naming(exc, path) from None


def naming(error: Exception, path: str) -> Exception:
    """An error of the system that says which file it is about."""
    if isinstance(error, OSError) and error.filename is None and not isinstance(error, StorageError):
        return TransferError(error.strerror or str(error), path, errno=error.errno)
    return error


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, which may be empty."""
    return array.reshape(-1).view(np.uint8).data


def write_all(descriptor: int, view: memoryview, at: int) -> None:
    while len(view):
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def read_into(descriptor: int, view: memoryview, at: int) -> None:
    while len(view):
        count = os.preadv(descriptor, [view], at)
        if count == 0:
            raise DamagedRecord(f"the file ends at {at}, before the record does")
        view, at = view[count:], at + count


def digest_of(views: Sequence[memoryview]) -> tuple[int, int]:
    digest = xxh3_128()
    for view in views:
        digest.update(view)
    number = digest.intdigest()
    return number >> 64, number & (2**64 - 1)


def places(begin: int, table: NDArray[np.uint64]) -> list[int]:
    """Where each rank's part of a record begins, after the table that is at `begin`, and where the record ends."""
    sizes = [table.nbytes, *(int(nbytes) for nbytes in table[:, 0])]
    return list(accumulate((-(-size // PAGE) * PAGE for size in sizes), initial=begin))[1:]
