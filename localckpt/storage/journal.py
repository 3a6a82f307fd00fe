"""A journal of records on a shared filesystem: they outlive the job that made them.

A record is an entry of JSON and, from each rank, some arrays. A directory has one file with all entries and one file
with arrays for each group of ranks; all of them only grow. A record counts once its line is in the journal, and that is
written after all arrays are on disk. A job that is killed at any instant therefore leaves whole records, and bytes
behind them that nobody refers to, which the next job overwrites.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt.storage.journal_entries import NAME, Entry, as_line, parse

__all__ = ["DamagedRecord", "Journal", "sync"]

RANKS_PER_FILE = 64  # so that the number of files does not grow with the records, and few ranks share one
PAGE = 4096  # each rank's arrays begin on a page, which a network filesystem may write as a whole


class DamagedRecord(OSError):
    """The arrays of a record are not there, or not as they were written."""


class Journal:
    """The records in one directory. Making one is collective on `comm`, as are all methods.

    Parameters
    ----------
    directory : str
        It exists, and nobody else writes to it.
    comm : mpi4py.MPI.Intracomm
        Of the same size each time that the directory is opened: a rank gets back what the same rank has written.
    check_owner : callable
        Called on rank 0 before each line that is written; it raises an OSError if the directory belongs to another
        job meanwhile.

    Attributes
    ----------
    entries : list of dict
        In the order in which they were written; the same on all ranks.
    bytes_written : int
        By this job, on this rank.

    Raises
    ------
    OSError
        On every rank. The files of a journal that can only be read are opened for reading.
    """

    def __init__(self, directory: str, comm: MPI.Intracomm, check_owner: Callable[[], None] = lambda: None) -> None:
        self.directory, self.comm, self._check_owner = directory, comm, check_owner
        self.bytes_written = 0
        self._group = comm.Split(comm.rank // RANKS_PER_FILE, comm.rank)
        self._path = os.path.join(directory, f"arrays-{comm.rank // RANKS_PER_FILE:05d}")
        self._file = self._journal = -1
        error: Exception | None = None
        content = b""
        with interrupts_held():
            try:
                if comm.rank == 0:
                    self._journal = open_for_appending(os.path.join(directory, NAME))
                    content = read_all(self._journal)
                if self._group.rank == 0:
                    os.close(open_for_appending(self._path))
                sync(directory)
            except OSError as exc:
                error = exc
            raise_everywhere(comm, error)
            try:
                self._file = open_for_appending(self._path)
            except OSError as exc:
                error = exc
            raise_everywhere(comm, error)
            content = comm.bcast(content)
            self.entries, nbytes = parse(content)
            try:
                if nbytes < len(content) and comm.rank == 0:
                    os.ftruncate(self._journal, nbytes)
                self._end = self._find_end()
            except OSError as exc:
                error = exc
            raise_everywhere(comm, error)

    def _find_end(self) -> int:
        """Where the next record of this group goes: behind the last one that counts."""
        group = self.comm.rank // RANKS_PER_FILE
        last = max((entry["at"][group] for entry in self.entries if "at" in entry), default=None)
        if last is None:
            return 0
        try:
            table = self._read_table(last)
        except DamagedRecord:
            return round_up(os.fstat(self._file).st_size)
        return int(last + table_bytes(self._group.size) + sum(round_up(int(nbytes)) for nbytes in table[:, 0]))

    def append(self, entry: Entry, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """Write a record, and return when it is on disk.

        Parameters
        ----------
        entry : dict
            The same on all ranks; values of JSON.
        arrays : sequence of numpy.ndarray
            Of this rank. An entry has arrays on all ranks or on none.

        Raises
        ------
        OSError
            On every rank, if any could not write. The record then does not count.
        """
        with interrupts_held():
            has_arrays = self.comm.allreduce(len(arrays) > 0, MPI.LOR)
            if has_arrays:
                entry = {**entry, "at": self._write_arrays(arrays)}
            error: Exception | None = None
            try:
                if self.comm.rank == 0:
                    self._write_line(as_line(entry))
            except Exception as exc:
                error = exc
            raise_everywhere(self.comm, error)
            self.entries.append(entry)

    def _write_line(self, line: bytes) -> None:
        self._check_owner()
        before = os.fstat(self._journal).st_size
        try:
            write_all(self._journal, line, before)
            os.fsync(self._journal)
        except OSError:
            os.ftruncate(self._journal, before)
            raise

    def _write_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[int]:
        """Write the arrays of a record to this group's file: where its part begins in each group's file."""
        views = [as_bytes(np.ascontiguousarray(array)) for array in arrays]
        nbytes = sum(len(view) for view in views)
        table = np.empty((self._group.size, 3), np.uint64)
        self._group.Allgather(np.array([nbytes, *digest_of(views)], np.uint64), table)
        sizes = [round_up(int(size)) for size in table[:, 0]]
        begin = self._end + table_bytes(self._group.size)
        at = begin + sum(sizes[: self._group.rank])
        error: Exception | None = None
        try:
            if self._group.rank == 0:
                write_all(self._file, with_digest(table), self._end)
            for view in views:
                write_all(self._file, view, at)
                at += len(view)
            os.fsync(self._file)
        except OSError as exc:
            error = OSError(exc.errno, exc.strerror, self._path)
        raise_everywhere(self.comm, error)
        self.bytes_written += nbytes
        ends = self.comm.allgather(self._end)[::RANKS_PER_FILE]
        self._end = begin + sum(sizes)
        return ends

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
        error: Exception | None = None
        arrays = [np.empty_like(array, order="C", subok=False) for array in like]
        try:
            self._read_arrays(entry["at"][self.comm.rank // RANKS_PER_FILE], arrays)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            error = DamagedRecord(exc.errno, f"{reason} (rank {self.comm.rank})", self._path)
        raise_everywhere(self.comm, error)
        return arrays

    def _read_arrays(self, begin: int, arrays: Sequence[NDArray[Any]]) -> None:
        table = self._read_table(begin)
        at = begin + table_bytes(self._group.size)
        at += sum(round_up(int(size)) for size in table[: self._group.rank, 0])
        nbytes, *digest = (int(number) for number in table[self._group.rank])
        if nbytes != sum(array.nbytes for array in arrays):
            raise DamagedRecord(
                None, f"a record of {nbytes} bytes at {begin} instead of {sum(a.nbytes for a in arrays)}"
            )
        views = [as_bytes(array) for array in arrays]
        for view in views:
            read_into(self._file, view, at)
            at += len(view)
        if digest_of(views) != tuple(digest):
            raise DamagedRecord(None, f"the record at {begin} has been damaged: its checksum differs")

    def _read_table(self, begin: int) -> NDArray[np.uint64]:
        """Bytes and digests of each rank of the group in the record that begins there."""
        table = np.empty(3 * self._group.size + 1, np.uint64)
        read_into(self._file, as_bytes(table), begin)
        if xxh3_64_intdigest(table[:-1].data) != table[-1]:
            raise DamagedRecord(None, f"the record at {begin} has been damaged: the checksum of its table differs")
        return table[:-1].reshape(-1, 3)

    def close(self) -> None:
        """Close the files. Not collective, except that no rank may use the journal any more."""
        for descriptor in {self._file, self._journal} - {-1}:
            os.close(descriptor)
        self._file = self._journal = -1


def open_for_appending(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def sync(path: str) -> None:
    """Make a file outlive a crash, or the names in a directory. Not collective."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    content = bytearray(os.fstat(descriptor).st_size)
    read_into(descriptor, memoryview(content), 0)
    return bytes(content)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, which may be empty."""
    return array.reshape(-1).view(np.uint8).data


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while len(view):
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def read_into(descriptor: int, view: memoryview, at: int) -> None:
    while len(view):
        count = os.preadv(descriptor, [view], at)
        if count == 0:
            raise DamagedRecord(None, f"the file ends at {at}, before the record does")
        view, at = view[count:], at + count


def digest_of(views: Sequence[memoryview]) -> tuple[int, int]:
    digest = xxh3_128()
    for view in views:
        digest.update(view)
    number = digest.intdigest()
    return number >> 64, number & (2**64 - 1)


def with_digest(table: NDArray[np.uint64]) -> bytes:
    return table.tobytes() + xxh3_64_intdigest(table.data).to_bytes(8, "little")


def table_bytes(ranks: int) -> int:
    return round_up(8 * (3 * ranks + 1))


def round_up(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
